"""The package carries what real front-ends were recorded to say."""

from __future__ import annotations

from vhostuser.spec.transcripts import transcripts
from vhostuser.transcript.file import parse


def test_each_transcript_is_there_and_can_be_read() -> None:
    assert {name.split("-")[0] for name in transcripts()} == {"qemu72", "dpdk2211"}
    for name, text in transcripts().items():
        assert parse(text, name).entries
