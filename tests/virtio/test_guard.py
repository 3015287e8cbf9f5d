"""Guest memory that vanishes does not end the process; everything else about SIGBUS stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.virtio.bench import map_guest
from vhostuser.errors import MemoryAccessError
from vhostuser.frontend.memory import GuestRam
from vhostuser.virtio.memory import GuestMemory, Mapping

PAGE = 4096

UNGUARDED = """
import mmap, os, sys
from vhostuser.virtio.memory import Mapping
guarded = os.memfd_create("guarded")
os.ftruncate(guarded, 4096)
mapping = Mapping(guarded, 0, 4096, 0, 0)   # the handler is installed
{close}
other = os.memfd_create("other")
os.ftruncate(other, 4096)
view = mmap.mmap(other, 4096)
os.ftruncate(other, 0)
view[0]
"""

CHAINED = """
import ctypes, mmap, os
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os._exit(42))
ctypes.CDLL(None).signal(7, handler)
""" + UNGUARDED.format(close="")


def run(program: str) -> int:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False).returncode


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("access", ["read", "write"])
def test_a_page_that_vanished_is_an_error(access: str) -> None:
    with GuestRam([(0, 4 * PAGE)], seals=0) as ram:
        memory = map_guest(ram)
        memory.write(2 * PAGE, b"was here")
        os.ftruncate(ram.regions[0].fd.fileno(), PAGE)
        with pytest.raises(MemoryAccessError, match="vanished"):
            memory.read(2 * PAGE, 8) if access == "read" else memory.write(2 * PAGE, bytes(8))
        memory.write(0, b"still here")
        assert memory.read(0, 10) == b"still here"
        with pytest.raises(MemoryAccessError):  # the page beside it as well
            memory.read(3 * PAGE, 8)
        memory.close()


def test_two_pages_vanish_in_one_access() -> None:
    with GuestRam([(0, 4 * PAGE)], seals=0) as ram:
        memory = map_guest(ram)
        os.ftruncate(ram.regions[0].fd.fileno(), 0)
        with pytest.raises(MemoryAccessError, match="vanished"):
            memory.read(PAGE // 2, 2 * PAGE)
        memory.close()


@pytest.mark.proves("VIO-MEM-4")
def test_a_huge_page_that_vanished_is_an_error(hugepages: int) -> None:
    size = 2 << 20
    with GuestRam([(0, 2 * size)], seals=0, hugetlb=True) as ram:
        memory = map_guest(ram)
        memory.write(size + 12345, b"was here")
        os.ftruncate(ram.regions[0].fd.fileno(), size)
        with pytest.raises(MemoryAccessError, match="vanished"):
            memory.read(size + 12345, 8)
        memory.write(100, b"still here")
        assert memory.read(100, 10) == b"still here"
        memory.close()


def test_other_guests_memory_is_untouched() -> None:
    with GuestRam([(0, PAGE)], seals=0) as lost, GuestRam([(0, PAGE)]) as kept:
        memories = [map_guest(lost), map_guest(kept)]
        memories[1].write(0, b"kept")
        os.ftruncate(lost.regions[0].fd.fileno(), 0)
        with pytest.raises(MemoryAccessError):
            memories[0].read(0, 1)
        assert memories[1].read(0, 4) == b"kept"
        for memory in memories:
            memory.close()


def test_only_the_thread_that_met_it_is_told() -> None:
    with GuestRam([(0, 2 * PAGE)], seals=0) as ram:
        memory = map_guest(ram)
        os.ftruncate(ram.regions[0].fd.fileno(), PAGE)
        errors: list[BaseException] = []

        def meet() -> None:
            try:
                memory.read(PAGE, 1)
            except MemoryAccessError as error:
                errors.append(error)

        thread = threading.Thread(target=meet)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert memory.read(0, 1) == b"\0"
        memory.close()


def test_many_mappings_come_and_go() -> None:
    with GuestRam([(0, PAGE)]) as ram:
        fd = ram.regions[0].fd.fileno()
        for _ in range(20):
            memories = [GuestMemory([Mapping(fd, 0, PAGE, 0, 0)]) for _ in range(500)]
            for memory in memories:
                memory.close()


@pytest.mark.parametrize("close", ["", "mapping.close()"], ids=["guarded memory elsewhere", "guarded memory gone"])
def test_a_sigbus_that_is_not_ours_ends_the_process(close: str) -> None:
    assert run(UNGUARDED.format(close=close)) == -signal.SIGBUS


def test_a_sigbus_that_is_not_ours_reaches_the_handler_before_us() -> None:
    assert run(CHAINED) == 42
