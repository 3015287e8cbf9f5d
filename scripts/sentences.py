"""The rules of the vhost-user specification, sentence by sentence.

Knows reStructuredText as far as that document uses it, and which words make a rule. Must not know what answers a rule:
that is in ``answers``. The sentences are not ours to copy, so each has a place and a hash; its text is only shown.

A list item is a rule too if the sentence that introduces its list is one ("the device must:"), and so is every step of
a procedure that has to be followed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise

#: What makes a sentence a rule. A plain "may" allows something and binds nobody.
_RULE = re.compile(
    r"\b(must|shall|should|shouldn't|(?-i:MAY)|may not|might not|cannot|can not|can't|can only|has to|have to|needs? to"
    r"|required?|requires|requirements|mandatory|recommended|expected|supposed to|preferred|only supported|only legal"
    r"|only valid|only upon|is legal|invalid|illegal|reserved|error to|a bug|not advised|not allowed|not used|not set"
    r"|incompatible|care must|gated by|will (?:reply|respond|close|remain|have)|replies with|respond with|relies on"
    r"|stops? the|are started|started state|is initialized|is ignored|identified by|map to|ring addresses are|exit"
    r"|translated to|matches|exactly one|at most \d|native byte order|big endian|atomic|starts at|covers from"
    r"|are supplied|disable all rings|0 is success|0 on success|no fd|never|always)\b",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"^([=\-^~])\1{2,}$")
_MESSAGE = re.compile(r"^``(VHOST_USER_\w+)``(?: \(previous name.*)?$")
_ITEM = re.compile(r"^(?:[*-]|#\.|\d+\.|[a-z]\.)\s+")
_FIELD = re.compile(r"^:([^:]+):\s+(.*)$")
_NOTE = re.compile(r"^\.\. (?:note|admonition)::", re.IGNORECASE)
_FACTS = ("id", "equivalent ioctl", "request payload", "reply payload")  # the table of requests has them
_END = re.compile(r"(?:(?<=[.!?])|(?<=\.\)))\s+(?=[A-Z`*(])")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|ie|vs|etc)\.$")


@dataclass(frozen=True)
class Sentence:
    """A sentence that states a rule.

    Attributes:
        section: the heading or message that it stands under.
        line: of the file, where its paragraph begins; from 1.
        text: without line breaks.
    """

    section: str
    line: int
    text: str

    @property
    def hash(self) -> str:
        """Tells a changed sentence from one that only moved."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


class _Kind(Enum):
    """What a line is."""

    TITLE = auto()
    GAP = auto()  # nothing, a table, a fact
    DIRECTIVE = auto()
    TEXT = auto()


@dataclass
class _Paragraph:
    """Running text, a list item, or the meaning of a field."""

    section: str
    line: int
    item: bool
    words: list[str] = field(default_factory=list)


def sentences(text: str) -> list[Sentence]:
    """The rules of a specification in reStructuredText, in order."""
    found, in_list = [], False
    for paragraph in _paragraphs(text.splitlines()):
        pieces = list(_split(" ".join(paragraph.words)))
        rules = [piece for piece in pieces if (in_list and paragraph.item) or _RULE.search(piece)]
        found += [Sentence(paragraph.section, paragraph.line, piece) for piece in rules]
        introduces = pieces[-1].endswith(":")
        in_list = (introduces and (in_list or pieces[-1] in rules)) or (in_list and paragraph.item)
    return found


def _split(text: str) -> Iterator[str]:
    """Sentences of a paragraph; an abbreviation's full stop ends none."""
    begun = ""
    for piece in _END.split(re.sub(r"\s+", " ", text).strip()):
        begun = f"{begun} {piece}".strip()
        if not _ABBREVIATION.search(begun):
            yield begun
            begun = ""
    if begun:
        yield begun


def _paragraphs(lines: list[str]) -> Iterator[_Paragraph]:
    """All running text; no code, no tables, no directives but notes."""
    section, paragraph = "", None
    for number, line, kind in _outside_blocks(lines):
        begins = paragraph is None or bool(_ITEM.match(line.strip()) or _FIELD.match(line.strip()))
        if paragraph and (begins or kind is not _Kind.TEXT):
            yield paragraph
            paragraph = None
        if kind is _Kind.TITLE:
            message = _MESSAGE.match(line)
            section = message[1] if message else line.strip()
        elif kind is _Kind.TEXT:
            paragraph = paragraph or _Paragraph(section, number, bool(_ITEM.match(line.strip())))
            paragraph.words.append(_words(line))
    if paragraph:
        yield paragraph


def _outside_blocks(lines: list[str]) -> Iterator[tuple[int, str, _Kind]]:
    """Each line with its number and kind, without what is indented below ``::`` or a directive."""
    block: int | None = None
    for number, (line, following) in enumerate(pairwise([*lines, ""]), 1):
        indent = len(line) - len(line.lstrip())
        if block is not None and (not line.strip() or indent > block):
            continue
        block = None
        if _NOTE.match(line.strip()):
            yield number, _NOTE.sub("", line.strip()), _Kind.GAP
            line = _NOTE.sub("", line.strip())  # a note is text, its title too
        kind = _kind(line, following)
        yield number, line, kind
        if kind is _Kind.DIRECTIVE or line.rstrip().endswith("::"):
            block = indent
            yield number, "", _Kind.GAP


def _kind(line: str, following: str) -> _Kind:
    words = line.strip()
    if _MESSAGE.match(line) or (words and line[0] != " " and _UNDERLINE.match(following)):
        return _Kind.TITLE
    if words.startswith(".."):
        return _Kind.DIRECTIVE
    fact = _FIELD.match(words)
    if not words or words[0] in "+|" or _UNDERLINE.match(words) or (fact and fact[1] in _FACTS):
        return _Kind.GAP
    return _Kind.TEXT


def _words(line: str) -> str:
    """The text of a line, without a list's bullet, a field's name, and the colon that announces code."""
    words = line.strip()
    named = _FIELD.match(words)
    return re.sub("::$", ":", _ITEM.sub("", named[2] if named else words))
