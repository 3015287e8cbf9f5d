"""What a process holds, and what more it holds later."""

from __future__ import annotations

import os
from collections import Counter

from vhostuser.fds import OwnedFd
from vhostuser.peer.footprint import Footprint


def test_what_is_held_more_is_growth_and_what_is_held_less_is_none() -> None:
    before = Footprint(Counter(socket=2, eventfd=1), Counter(memory=1), 3)
    after = Footprint(Counter(socket=1, eventfd=3), Counter(memory=2), 2)
    assert before.growth(after) == "+2 eventfd, +1 memory"
    assert before.difference(after) == "+2 eventfd, -1 socket, +1 memory, -1 threads"
    assert before.growth(before) == ""


def test_a_descriptor_that_was_opened_is_growth() -> None:
    before = Footprint.of(os.getpid())
    with OwnedFd(os.eventfd(0)):
        assert before.growth(Footprint.of(os.getpid())) == "+1 anon_inode:[eventfd]"
    assert Footprint.of(os.getpid()).growth(before) == ""


def test_a_folder_without_a_name_has_one() -> None:
    before = Footprint.of(os.getpid())
    with OwnedFd(os.open("/", os.O_RDONLY)):
        assert before.growth(Footprint.of(os.getpid())) == "+1 /"
