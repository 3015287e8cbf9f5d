"""Transcripts as files: whatever can be an entry comes back as it was, and whatever is none is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.transcript.entries import (
    Closed,
    Descriptor,
    Entry,
    Kind,
    Paused,
    Resized,
    Said,
    Saw,
    Side,
    Signalled,
    Transcript,
    Wrote,
)
from vhostuser.transcript.file import FORMAT, Recorder, TranscriptError, lines_of, load, parse, save

RECORDED = sorted((Path(__file__).parents[2] / "protocol-spec" / "transcripts").glob("*.jsonl"))

words = st.integers(0, 2**32 - 1)
times = st.integers(0, 10**9).map(lambda n: n / 1e6)
names = st.text("abc 012", min_size=1, max_size=8)
descriptors = st.builds(
    Descriptor,
    names,
    st.sampled_from(Kind),
    size=st.integers(0, 2**63),
    seals=st.integers(0, 31),
    block=st.sampled_from((0, 2 << 20)),
    blocking=st.booleans(),
    full=st.booleans(),
    writable=st.booleans(),
    path=st.sampled_from(("", "/dev/null")),
)
entries: st.SearchStrategy[Entry] = st.one_of(
    st.builds(
        Said,
        st.sampled_from(Side),
        words,
        words,
        st.binary(max_size=48),
        st.none() | words,
        st.lists(descriptors, max_size=3).map(tuple),
        st.booleans(),
        st.lists(st.integers(1, 12), max_size=3).map(tuple),
        st.none() | st.integers(0, 60),
        st.sampled_from((None, "ack", "reply")),
        times,
        st.lists(st.just("VU-HDR-1"), max_size=1).map(tuple),
        st.lists(st.just("0x10 cleared"), max_size=1).map(tuple),
    ),
    st.builds(
        Wrote, names, st.integers(0, 2**40), st.lists(st.binary(max_size=9), min_size=1).map(tuple), times, times
    ),
    st.builds(Saw, names, st.integers(0, 2**40), st.binary(max_size=9), times),
    st.builds(Resized, names, st.integers(0, 2**40), times),
    st.builds(Signalled, names, times),
    st.builds(Paused, times, times),
    st.builds(Closed, st.sampled_from(Side), times),
)


@given(st.builds(Transcript, st.lists(entries, max_size=6).map(tuple), names, names, names))
def test_a_transcript_comes_back_as_it_was(transcript: Transcript) -> None:
    assert parse("\n".join(lines_of(transcript))) == transcript


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_transcripts_are_read(path: Path, tmp_path: Path) -> None:
    transcript = load(path)
    assert transcript.front_end
    assert len(transcript.entries) == len(path.read_text().splitlines()) - 1
    save(transcript, tmp_path / "again.jsonl")
    assert load(tmp_path / "again.jsonl") == transcript


def test_a_recorder_writes_each_entry_at_once(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with Recorder(path) as recorder:
        recorder.begin("QEMU", "ours")
        recorder.begin("QEMU again", "ours")
        assert load(path) == Transcript((), "QEMU", "ours")
        recorder.add(Closed())
        assert load(path).entries == (Closed(),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "t: empty"),
        ("{", "t:1: no JSON"),
        ("[]", "t:1: list instead of an object"),
        ("[" * 100_000, "t:1: no JSON"),
        ('{"format": "pcap"}', "t:1: format 'pcap'; known are"),
        (f'{{"format": "{FORMAT}", "byte_order": "middle"}}', "t:1: byte order 'middle'"),
        (f'{{"format": "{FORMAT}", "offer": 7}}', "t:1: offer: 7 is not an object"),
        (f'{{"format": "{FORMAT}", "offer": {{"vrings": "two"}}}}', "t:1: vrings: 'two' is not a number, as 0x10"),
        (f'{{"format": "{FORMAT}", "offer": {{"vrings": -2}}}}', "t:1: vrings: -2 is not a whole number up to"),
    ],
)
def test_what_is_no_transcript_is_told(text: str, complaint: str) -> None:
    with pytest.raises(TranscriptError, match=complaint):
        parse(text, "t")


MESSAGE = {"from": "front-end", "request": "SET_OWNER", "flags": 1, "payload": ""}
SIDES = "front-end, back-end"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"event": "lunch"}, "event: 'lunch' is not one of closed, write, saw, resize, signal, pause"),
        ({"event": "closed", "by": "me"}, f"by: 'me' is not one of {SIDES}"),
        ({"event": "write", "memory": "a", "offset": 0, "data": [1]}, "data: 1 is not bytes in hexadecimal digits"),
        ({"event": "write", "memory": "a", "offset": "b", "data": ""}, "offset: 'b' is not a whole number up to"),
        ({"event": "saw", "memory": 7, "offset": 0, "data": ""}, "memory: 7 is not a string"),
        ({"event": "pause"}, "seconds is missing: a number of seconds"),
        ({"event": "pause", "seconds": -1}, "seconds: -1 is not a number of seconds"),
        ({"event": "pause", "seconds": float("nan")}, "seconds: nan is not a number of seconds"),
        (MESSAGE | {"from": "nobody"}, f"from: 'nobody' is not one of {SIDES}"),
        ({"from": "front-end"}, "request is missing: a request's name, or its number"),
        (MESSAGE | {"request": "SET_TEA"}, "request: 'SET_TEA' is not the name of a front-end's request, or its"),
        (MESSAGE | {"request": 2**32}, "request: 4294967296 is not a whole number up to 0xffffffff"),
        (MESSAGE | {"flags": True}, "flags: True is not a whole number up to 0xffffffff"),
        (MESSAGE | {"payload": "0x"}, "payload: '0x' is not bytes in hexadecimal digits"),
        (MESSAGE | {"payload": "g" * 99}, "payload: 'g{39}… is not bytes"),
        (MESSAGE | {"answer": "no"}, "answer: 'no' is not reply or ack"),
        (MESSAGE | {"fds": 1}, "fds: 1 is not a list"),
        (MESSAGE | {"fds": [1]}, "fds: 1 is not an object for each descriptor"),
        (MESSAGE | {"fds": [{"kind": "lamp"}]}, "kind: 'lamp' is not one of memory, eventfd, socket, pipe"),
        (MESSAGE | {"fds": [{"kind": "memory", "size": "1"}]}, "size: '1' is not a whole number"),
        (MESSAGE | {"own_channel": 1}, "own_channel: 1 is not true or false"),
    ],
)
def test_a_line_that_is_none_is_told_by_its_key_and_what_could_be_there(line: object, complaint: str) -> None:
    with pytest.raises(TranscriptError, match=f"t:2: {complaint}"):
        parse(f'{{"format": "{FORMAT}"}}\n{json.dumps(line)}', "t")


@given(st.text(max_size=200))
def test_any_line_is_an_entry_or_an_error(line: str) -> None:
    try:
        parse(f'{{"format": "{FORMAT}"}}\n{line}')
    except TranscriptError:
        return


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(("", "00", "front-end", "memory", "SET_OWNER")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("name", "kind", "size")), inner),
    max_leaves=4,
)
EVENTS = st.sampled_from((None, "closed", "write", "saw", "resize", "signal", "pause"))


@given(
    st.fixed_dictionaries(
        {"event": EVENTS}, optional=dict.fromkeys((*MESSAGE, "by", "memory", "offset", "data", "fds"), JSON)
    )
)
def test_any_values_are_an_entry_or_an_error(line: dict[str, object]) -> None:
    try:
        parse(f'{{"format": "{FORMAT}"}}\n{json.dumps(line)}')
    except TranscriptError:
        return
