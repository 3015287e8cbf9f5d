"""Messages in one line, as logs and traces show them."""

from __future__ import annotations

from tests.wire.payloads import KINDS
from vhostuser import wire
from vhostuser.fds import FdBundle
from vhostuser.wire import messages as m
from vhostuser.wire.frames import LentFds
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest


def message(request: FrontendRequest, payload: m.Payload | bytes | None, fds: int = 0) -> m.Message:
    return m.Message(request, FRONTEND_REQUESTS[request], payload, LentFds(range(fds)), need_reply=fds > 1)


def test_small_numbers_are_decimal_and_great_ones_hexadecimal() -> None:
    shown = str(message(FrontendRequest.SET_VRING_ADDR, m.VringAddr(1, 0, 0x7F0000001000, 4095, 4096, 0)))
    assert shown == ("SET_VRING_ADDR index=1 flags=0 descriptor=0x7f0000001000 used=4095 available=0x1000 log=0")


def test_regions_and_descriptors_are_shown() -> None:
    table = m.MemoryTable((m.MemoryRegion(0, 4096, 0, 0), m.MemoryRegion(1, 2, 3, 4, m.XenMmap(1, 2))))
    assert str(message(FrontendRequest.SET_MEM_TABLE, table, fds=2)) == (
        "SET_MEM_TABLE regions=([guest_phys_addr=0 memory_size=0x1000 userspace_addr=0 mmap_offset=0 xen=None], "
        "[guest_phys_addr=1 memory_size=2 userspace_addr=3 mmap_offset=4 xen=[flags=1 domid=2]]) 2 fds need_reply"
    )


def test_long_values_are_cut_short() -> None:
    assert str(m.ShmemConfig(0, (0,) * 256)) == "nregions=0 memory_sizes=(256 values)"
    assert str(m.Config(0, 0, bytes(256))) == f"offset=0 flags=0 payload={'00' * 16}…"
    unknown = m.Message(99, None, bytes(17), FdBundle())
    assert str(unknown) == f"request 99 {'00' * 16}…"


def test_a_request_without_payload_is_its_name() -> None:
    assert str(message(FrontendRequest.GET_FEATURES, None)) == "GET_FEATURES"


def test_every_payload_has_a_public_name() -> None:
    assert {kind.__name__ for kind in KINDS} <= set(wire.__all__)
