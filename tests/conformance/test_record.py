"""What happens in a check becomes a transcript that can be played."""

from __future__ import annotations

import os

from vhostuser.conformance.memory import RecordedRam
from vhostuser.conformance.record import Record
from vhostuser.fds import OwnedFd
from vhostuser.transcript.entries import Closed, Kind, Paused, Resized, Said, Saw, Side, Signalled, Wrote
from vhostuser.wire.frames import Frame, LentFds

PAGE = 4096


def test_stores_before_memory_is_passed_stand_behind_the_message_that_passes_it() -> None:
    record = Record()
    with RecordedRam(record, [(0x10000, PAGE)], mmap_offset=2 * PAGE) as memory:
        (region,) = memory.regions
        memory.write(0x10010, b"early")
        record.frame(Side.FRONTEND, Frame(3, 1, b""))
        record.frame(Side.FRONTEND, Frame(5, 1, b"table", LentFds([region.fd.fileno()])))
        memory.write(0x10020, b"late")
        memory.store_u16(0x10030, 0x10102)
        memory.look(0x10010, 5)
        memory.emptied()
    transcript = record.transcript("front", "back", "scene")
    name = "memory at 0x10000"
    kinds = [type(entry) for entry in transcript.entries]
    assert kinds == [Said, Said, Wrote, Wrote, Wrote, Saw, Resized, Resized]
    begin = 2 * PAGE
    assert [(entry.memory, entry.offset, entry.data) for entry in transcript.entries if isinstance(entry, Wrote)] == [
        (name, begin + 0x10, (b"early",)),
        (name, begin + 0x20, (b"late",)),
        (name, begin + 0x30, (b"\2\1",)),
    ]
    (saw,) = [e for e in transcript.entries if isinstance(e, Saw)]
    assert (saw.offset, saw.data) == (begin + 0x10, b"early")
    assert [e.size for e in transcript.entries if isinstance(e, Resized)] == [0, 3 * PAGE]


def test_descriptors_have_names_and_each_its_own() -> None:
    record = Record()
    with OwnedFd(os.eventfd(0)) as one, OwnedFd(os.eventfd(0)) as other, OwnedFd(os.eventfd(0)) as third:
        record.name(one.fileno(), "kick 0")
        record.name(other.fileno(), "kick 0")
        fds = [one.fileno(), other.fileno(), third.fileno()]
        record.frame(Side.FRONTEND, Frame(12, 1, b"", LentFds(fds)))
        record.signalled(other.fileno())
        (said, signalled) = record.transcript("", "", "").entries
        assert isinstance(said, Said)
        assert [fd.name for fd in said.fds] == ["kick 0", "kick 0 2", f"fd {third.fileno()}"]
        assert {fd.kind for fd in said.fds} == {Kind.EVENTFD}
        assert isinstance(signalled, Signalled)
        assert signalled.name == "kick 0 2"


def test_pauses_and_ends_are_entries() -> None:
    record = Record()
    assert record.empty
    record.paused(0.5)
    record.closed(Side.BACKEND)
    paused, closed = record.transcript("", "", "").entries
    assert isinstance(paused, Paused)
    assert isinstance(closed, Closed)
    assert (paused.seconds, closed.side, record.empty) == (0.5, Side.BACKEND, False)
    assert closed.time >= paused.time
