"""Every sentence of the vhost-user specification that states a rule, numbered, and what answers it.

Runs as ``scripts/spec-sentences [RST]``. The specification is QEMU's ``docs/interop/vhost-user.rst``, whose sentences are
not ours to copy: ``protocol-spec/sentences.toml`` keeps a number, a place and a hash of each, beside the statements of
``statements.toml`` that say the same in our own words, or the reason why there is none. Without a file at hand the named
edition is fetched once. Exits with 1 if the list is not about that edition, or leaves a sentence without an answer.

    scripts/spec-sentences                 compare, and count
    scripts/spec-sentences --text          show each sentence with its answer
    scripts/spec-sentences --update        take over a new edition: known sentences keep their answers
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

#: What makes a sentence a rule. A plain "may" allows something and binds nobody.
_RULE = re.compile(
    r"\b(must|shall|should|may not|might not|cannot|can not|can't|has to|have to|needs? to|required?|requires|mandatory"
    r"|recommended|expected|supposed to|only legal|only valid|is legal|invalid|illegal|reserved|error to|not advised"
    r"|care must|negotiate this|will reply|will close|relies on|stops? the|never|always)\b",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^([=\-^~])\1{2,}$")
_MESSAGE = re.compile(r"^``(VHOST_USER_\w+)``(?: \(previous name.*)?$")
_ITEM = re.compile(r"^(?:[*-]|#\.|\d+\.|[a-z]\.)\s+")
_FIELD = re.compile(r"^:([^:]+):\s*(.*)$")
_FACTS = ("id", "equivalent ioctl", "request payload", "reply payload")  # the request table has them
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*(])")
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


@dataclass
class _Paragraph:
    section: str
    line: int
    words: list[str]


def sentences(text: str) -> list[Sentence]:
    """The rules of a specification in reStructuredText, in order."""
    return [
        Sentence(paragraph.section, paragraph.line, sentence)
        for paragraph in _paragraphs(text.splitlines())
        for sentence in _split(" ".join(paragraph.words))
        if _RULE.search(sentence)
    ]


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
    """Running text: paragraphs, list items and the meanings of fields; no code, tables or directives."""
    section, open_paragraph, block = "", _Paragraph("", 0, []), -1
    for number, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
        words, indent = line.strip(), len(line) - len(line.lstrip())
        if block >= 0 and (not words or indent > block):
            continue
        block = -1
        heading = bool(words) and indent == 0 and _HEADING.match(following)
        message = _MESSAGE.match(line)
        starts = not words or heading or message or _HEADING.match(words) or words[0] in "+|" or words.startswith("..")
        if open_paragraph.words and (starts or _ITEM.match(words) or _FIELD.match(words)):
            yield open_paragraph
            open_paragraph = _Paragraph("", 0, [])
        if heading or message:
            section = message[1] if message else words
        elif words.startswith("..") and not re.match(r"\.\. (note|admonition)::", words, re.IGNORECASE):
            block = indent
        elif re.match(r"\.\. note::", words, re.IGNORECASE):
            words = words[9:].strip()
            if words:
                open_paragraph = _Paragraph(section, number, [words])
        elif not starts:
            field = _FIELD.match(words)
            if field and field[1] in _FACTS:
                continue
            words = _ITEM.sub("", field[2] if field else words)
            if not open_paragraph.words:
                open_paragraph = _Paragraph(section, number, [])
            open_paragraph.words.append(words.removesuffix("::"))
            if line.rstrip().endswith("::"):
                block = indent
    if open_paragraph.words:
        yield open_paragraph
