"""The list of the specification's rules: complete in itself, true to the register of statements, kept over editions."""

from __future__ import annotations

import io
import sys
import tarfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from scripts import answers as register
from scripts.answers import (
    Answer,
    Edition,
    differences,
    faults,
    load,
    main,
    statement_ids,
    taken_over,
    text_of,
    written,
)
from scripts.sentences import sentences

OLD = "Tea\n===\n\nWater must boil. Cups should be warm.\n"
NEW = "Tea\n===\n\nAll guests must wait. Water must boil. Cups must be warm.\n"
GOOD = [
    Answer(1, "Tea", 4, sentences(OLD)[0].hash, statements=("TEA-1", "TEA-2")),
    Answer(2, "Tea", 4, sentences(OLD)[1].hash, reason="a matter of taste"),
]
KNOWN = ["TEA-1", "TEA-2"]
EDITION = Edition("1", "", "docs/tea.rst", sha256(OLD.encode()).hexdigest())


def test_every_rule_of_the_specification_has_an_answer() -> None:
    edition, answers = load()
    assert list(faults(answers, statement_ids())) == []
    assert register.REGISTER.read_text() == written(edition, answers)


def test_a_good_list() -> None:
    assert list(faults(GOOD, KNOWN)) == []
    assert list(differences(GOOD, sentences(OLD))) == []


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (replace(GOOD[1], number=3), "the numbers are not consecutive"),
        (replace(GOOD[1], reason=""), "2 (Tea, line 4) has neither"),
        (replace(GOOD[1], statements=("TEA-1",)), "has statements, and a reason for none"),
        (replace(GOOD[1], statements=("TEA-9",), reason=""), "TEA-9 is no statement"),
        (replace(GOOD[1], untestable=True), "1 of 2 are called untestable, which is above 5 %"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_list(answer: Answer, fault: str) -> None:
    (found,) = faults([GOOD[0], answer], KNOWN)
    assert fault in found


def test_another_edition_is_told_apart_and_taken_over() -> None:
    assert [line.partition(":")[0] for line in differences(GOOD, sentences(NEW))] == ["new", "gone", "new"]
    answers = taken_over(GOOD, sentences(NEW))
    assert [(answer.number, answer.statements, answer.reason) for answer in answers] == [
        (1, (), ""),
        (2, ("TEA-1", "TEA-2"), ""),
        (3, (), ""),
    ]
    assert list(differences(answers, sentences(NEW))) == []


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_text(written(EDITION, GOOD))
    assert load(path) == (EDITION, GOOD)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(register, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def archive(folder: Path, text: str) -> str:
    """The address of an archive with such a text."""
    path = folder / "tea.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for name, data in (("tea-1/README", b"must"), ("tea-1/docs/tea.rst", text.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.as_uri()


def test_the_text_is_fetched_once(tmp_path: Path, cache: Path) -> None:
    edition = replace(EDITION, url=archive(tmp_path, OLD))
    assert text_of(edition) == OLD
    (tmp_path / "tea.tar.xz").unlink()
    assert text_of(edition) == OLD


def test_another_text_than_the_named_one_is_not_kept(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SystemExit, match=r"docs/tea\.rst has the sha256"):
        text_of(replace(EDITION, url=archive(tmp_path, NEW)))
    assert list(cache.iterdir()) == []


def test_an_archive_without_the_text(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SystemExit, match=r"no docs/coffee\.rst in it"):
        text_of(replace(EDITION, url=archive(tmp_path, OLD), member="docs/coffee.rst"))


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed, text = tmp_path / "list.toml", tmp_path / "tea.rst"
    listed.write_text(written(EDITION, GOOD))
    text.write_text(NEW)
    monkeypatch.setattr(register, "REGISTER", listed)
    monkeypatch.setattr(register, "statement_ids", lambda: KNOWN)
    monkeypatch.setattr(register, "load", lambda: load(listed))

    def run(*words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["spec-sentences", str(text), *words])
        return main(), capsys.readouterr().out.splitlines()

    status, lines = run()
    assert (status, lines[-1]) == (1, "3 rules in 1: 1 have statements, 1 a reason for none, 0 of those are untestable")
    assert any(line.startswith("new: line 4 (Tea): All guests must wait.") for line in lines)
    status, lines = run("--update", "--name=2", "--text")
    assert status == 1  # two have no answer yet
    assert "2 Tea: Water must boil." in lines
    assert "    TEA-1, TEA-2" in lines
    assert load(listed)[0].version == "2"
    text.write_text(OLD)
    listed.write_text(written(EDITION, GOOD))
    assert run()[0] == 0
