"""Conversations that tests write down, and back-ends that hold one."""

from __future__ import annotations

from vhostuser.session.witness import Side
from vhostuser.transcript.entries import Descriptor, Said
from vhostuser.wire import layouts
from vhostuser.wire.messages import Payload

REPLY, NEED_REPLY = 5, 9


def asks(request: int, payload: Payload | None = None, flags: int = 1, *fds: Descriptor) -> Said:
    """What a front-end says."""
    return Said(Side.FRONTEND, request, flags, _bytes(payload), fds=fds)


def answers(request: int, payload: Payload | None = None, *fds: Descriptor) -> Said:
    """What a back-end answers."""
    return Said(Side.BACKEND, request, REPLY, _bytes(payload), fds=fds)


def _bytes(payload: Payload | None) -> bytes:
    return b"" if payload is None else layouts.build(payload)
