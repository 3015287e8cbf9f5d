"""What goes with each harness: the same to the byte each time, and in the formats that libFuzzer and OSS-Fuzz read."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZipFile

import pytest

from fuzzing import corpus, protocol
from tests.fuzzing.test_harnesses import run
from vhostuser.wire.codec import decode
from vhostuser.wire.requests import FRONTEND_REQUESTS

LONGEST_WORD = 64
"""libFuzzer's limit, in bytes."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with the same in them."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    for folder in folders:
        ran = run("fuzzing.corpus", str(folder))
        assert ran.returncode == 0, ran.stderr
    return folders


def test_the_same_files_come_out_each_time(written: list[Path]) -> None:
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in written)
    assert one == other
    assert set(one) == {
        f"{name}{what}" for name in corpus.names() for what in (".dict", ".options", "_seed_corpus.zip")
    }


@pytest.mark.parametrize("name", corpus.names())
def test_a_dictionary_has_words_that_libfuzzer_reads(written: list[Path], name: str) -> None:
    lines = (written[0] / f"{name}.dict").read_text().splitlines()
    words = [re.fullmatch(r'\w+="((?:\\x[0-9a-f]{2})+)"', line) for line in lines]
    assert len(words) > 10
    assert all(word and len(word[1]) <= 4 * LONGEST_WORD for word in words)


@pytest.mark.parametrize("name", corpus.names())
def test_a_corpus_has_no_input_twice(written: list[Path], name: str) -> None:
    with ZipFile(written[0] / f"{name}_seed_corpus.zip") as packed:
        inputs = [packed.read(member) for member in packed.namelist()]
    assert len(inputs) == len(set(inputs)) >= 5


def test_a_message_of_each_row_is_a_legal_one() -> None:
    for spec, frame in protocol.requests():
        assert decode(spec.direction, frame).spec is spec


def test_the_conversations_are_those_of_the_transcripts() -> None:
    conversations = list(protocol.conversations())
    assert len(conversations) == 9
    for conversation in conversations:
        assert len(conversation.frames) > 10
        assert all(frame.request in FRONTEND_REQUESTS for frame in conversation.frames)
