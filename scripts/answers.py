"""Which statements answer each rule of the vhost-user specification, or why none does.

Runs as ``scripts/spec-sentences [RST]``. The specification is QEMU's ``docs/interop/vhost-user.rst``, whose text is not
ours to copy: ``protocol-spec/sentences.toml`` keeps a number, a place and a hash of each rule, beside the statements of
``statements.toml`` that say the same in our own words, or the reason why there is none. Without a file at hand the
edition that the list is about is fetched once. Exits with 1 if the list is not about that edition or has a fault.

    scripts/spec-sentences             compare, and count
    scripts/spec-sentences --text      show each rule with its answer
    scripts/spec-sentences --update    take over an edition: known rules keep their answers, new ones have none yet
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tarfile
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

from scripts.sentences import Sentence, sentences

ROOT = Path(__file__).resolve().parent.parent
REGISTER = ROOT / "protocol-spec" / "sentences.toml"
STATEMENTS = ROOT / "protocol-spec" / "statements.toml"
CACHE = ROOT / ".cache" / "specification"

UNTESTABLE_PERCENT = 5

HEAD = """\
# Every rule of the vhost-user specification, and what answers it; `scripts/spec-sentences --text` shows both.
#
# hash        of the sentence, so that a later edition tells what it changed
# statements  of statements.toml that say the same in our words
# reason      why there is none; `untestable` marks what binds a back-end and still no test can judge
"""


@dataclass(frozen=True)
class Edition:
    """The text that the list is about."""

    version: str
    url: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Answer:
    """A rule's place, and what answers it: statements, or a reason."""

    number: int
    section: str
    line: int
    hash: str
    statements: tuple[str, ...] = ()
    reason: str = ""
    untestable: bool = False


def load(path: Path = REGISTER) -> tuple[Edition, list[Answer]]:
    """The list, in its order."""
    with path.open("rb") as file:
        register = tomllib.load(file)
    rows = [{**row, "statements": tuple(row.get("statements", ()))} for row in register["sentence"]]
    return Edition(**register["edition"]), [Answer(**row) for row in rows]


def faults(answers: list[Answer], statements: Iterable[str]) -> Iterator[str]:
    """What is wrong with a list, whatever it is about.

    Args:
        answers: the list.
        statements: identifiers that exist.
    """
    known = set(statements)
    if [answer.number for answer in answers] != list(range(1, len(answers) + 1)):
        yield "the numbers are not consecutive from 1"
    for answer in answers:
        place = f"{answer.number} ({answer.section}, line {answer.line})"
        if not answer.statements and not answer.reason:
            yield f"{place} has neither statements nor a reason"
        if answer.statements and (answer.reason or answer.untestable):
            yield f"{place} has statements, and a reason for none"
        yield from (f"{place}: {name} is no statement" for name in answer.statements if name not in known)
    untestable = sum(answer.untestable for answer in answers)
    if untestable * 100 > UNTESTABLE_PERCENT * len(answers):
        yield f"{untestable} of {len(answers)} are called untestable, which is above {UNTESTABLE_PERCENT} %"


def differences(answers: list[Answer], rules: list[Sentence]) -> Iterator[str]:
    """Where a text is not the one that the list is about."""
    old, new = [answer.hash for answer in answers], [rule.hash for rule in rules]
    for tag, left, right, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        yield from (f"gone: {answers[i].number} ({answers[i].section})" for i in range(left, right))
        yield from (f"new: line {rule.line} ({rule.section}): {rule.text}" for rule in rules[start:end])


def taken_over(answers: list[Answer], rules: list[Sentence]) -> list[Answer]:
    """A list about another text: a rule that was there keeps its answer, a new one has none."""
    known = [answer.hash for answer in answers]
    matcher = SequenceMatcher(None, known, [rule.hash for rule in rules], autojunk=False)
    kept = {block.b + i: answers[block.a + i] for block in matcher.get_matching_blocks() for i in range(block.size)}
    return [
        replace(kept.get(i, Answer(0, "", 0, "")), number=i + 1, section=rule.section, line=rule.line, hash=rule.hash)
        for i, rule in enumerate(rules)
    ]


def written(edition: Edition, answers: list[Answer]) -> str:
    """The list as a file."""
    lines = [HEAD, "[edition]", *(f"{name} = {json.dumps(value)}" for name, value in vars(edition).items())]
    for answer in answers:
        lines += ["", "[[sentence]]"]
        values = {name: value for name, value in vars(answer).items() if value not in ((), "", False)}
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join([*lines, ""])


def text_of(edition: Edition) -> str:
    """The edition's text, fetched where it was not yet.

    Raises:
        SystemExit: what the archive holds is another text.
    """
    path = CACHE / f"vhost-user-{edition.version}.rst"
    if not path.exists():
        print(f"fetching {edition.member} from {edition.url}", file=sys.stderr)
        CACHE.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_member(edition))
    text = path.read_bytes()
    found = hashlib.sha256(text).hexdigest()
    if found != edition.sha256:
        path.unlink()
        raise SystemExit(f"{edition.url}: {edition.member} has the sha256 {found}, not {edition.sha256}")
    return text.decode()


def _member(edition: Edition) -> bytes:
    with (
        urllib.request.urlopen(edition.url, timeout=60) as response,
        tarfile.open(fileobj=response, mode="r|*") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(edition.member) else None
            if file:
                return file.read()
    raise SystemExit(f"{edition.url}: no {edition.member} in it")


def statement_ids() -> list[str]:
    """Identifiers of all statements."""
    with STATEMENTS.open("rb") as file:
        return [str(statement["id"]) for statement in tomllib.load(file)["statement"]]


def main() -> int:
    """Compare, show or take over. Returns the exit status."""
    parser = argparse.ArgumentParser(description="The rules of the vhost-user specification, and what answers them.")
    parser.add_argument("rst", type=Path, nargs="?", help="the specification's text instead of the named edition's")
    parser.add_argument("--text", action="store_true", help="show each rule with its answer")
    parser.add_argument("--update", action="store_true", help="write the list anew for this text")
    parser.add_argument("--name", help="with --update and a file: the version that it is of")
    options = parser.parse_args()
    edition, answers = load()
    text = options.rst.read_text() if options.rst else text_of(edition)
    rules = sentences(text)
    if options.update:
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        edition = replace(edition, version=options.name or edition.version, sha256=sha256)
        answers = taken_over(answers, rules)
        REGISTER.write_text(written(edition, answers))
    if options.text:
        for answer, rule in zip(answers, rules, strict=False):
            print(f"{answer.number} {rule.section}: {rule.text}\n    {', '.join(answer.statements) or answer.reason}\n")
    problems = [*differences(answers, rules), *faults(answers, statement_ids())]
    print("".join(f"{problem}\n" for problem in problems), end="")
    stated = sum(bool(answer.statements) for answer in answers)
    untestable = sum(answer.untestable for answer in answers)
    rest = f"{len(answers) - stated} a reason for none, {untestable} of those are untestable"
    print(f"{len(rules)} rules in {edition.version}: {stated} have statements, {rest}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
