"""Recorded front-ends: every message is decoded, admitted, and answered where the recording shows an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vhostuser.session.backend import BackendSession, Done, Offer
from vhostuser.wire.codec import decode, decode_reply
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import Direction, FrontendRequest

RECORDED = sorted((Path(__file__).parents[2] / "protocol-spec" / "transcripts").glob("*.jsonl"))
TRANSCRIPTS = [path for path in RECORDED if not path.stem.endswith("both-sides")]  # those are played to a live back-end

each = pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)


def load(path: Path) -> tuple[Offer, list[dict[str, Any]]]:
    """The offer that a transcript fits, and its messages."""
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head["format"] == "vhost-user transcript 1"
    assert head["byte_order"] == "little"
    assert lines[-1] == {"event": "closed"}
    offer = head["offer"]
    return (
        Offer(
            int(offer["virtio_features"], 16),
            ProtocolFeature(int(offer["protocol_features"], 16)),
            offer["vrings"],
        ),
        lines[:-1],
    )


def frame_of(line: dict[str, Any]) -> Frame:
    """The frame that a line has recorded; its descriptors are only counted."""
    fds = LentFds(range(100, 100 + len(line["fds"])))
    return Frame(FrontendRequest[line["request"]], line["flags"], bytes.fromhex(line["payload"]), fds)


def body_of(message: Message) -> Payload | None:
    """A body such as a handler would give."""
    assert message.spec
    kind = message.spec.reply_payload
    if kind is U64:
        return U64(0)
    return message.payload if isinstance(message.payload, Payload) and type(message.payload) is kind else None


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) == 6


@pytest.mark.proves("VU-PEER-1")
@each
def test_every_recorded_message_decodes_to_what_its_line_says(path: Path) -> None:
    _, lines = load(path)
    for line in lines:
        message = decode(Direction.FRONTEND, frame_of(line))
        assert message.name == line["request"]
        assert str(message.payload or "") == line["text"]


@pytest.mark.proves("VU-PEER-1")
@each
def test_every_recorded_message_is_admitted_and_answered_as_recorded(path: Path) -> None:
    offer, lines = load(path)
    session = BackendSession(offer)
    for line in lines:
        message = decode(Direction.FRONTEND, frame_of(line))
        assert message.spec
        session.admit(message)
        own_reply = line["answer"] == "reply"
        answer = session.answer(message, Done(body_of(message)) if own_reply else Done())
        if line["answer"] is None:
            assert answer is None
        else:
            assert answer
            body = decode_reply(message.spec, answer)
            assert body == (body_of(message) if own_reply else U64(0))
    assert session.suspended
