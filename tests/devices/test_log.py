"""The dirty log of a queue pair: after every turn, the pages that were logged are those that were written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.devices.bench import MODERN, Net
from tests.virtio.logged import PAGE, turn, witnessed
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.virtio.features import VirtioFeature

#: Two regions side by side, and one far above.
REGIONS = ((0, 2 * MIB), (2 * MIB, 2 * MIB), (1 << 32, 2 * MIB))
RINGS = MIB  # below this

LAYOUTS = {
    "split": 0,
    "packed": VirtioFeature.RING_PACKED,
    "in order": VirtioFeature.RING_PACKED | VirtioFeature.IN_ORDER,
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)

lengths = st.sampled_from([1, 5, 12, 13, 100, 1526, PAGE, 3 * PAGE, 40_000, 70_000])
places = st.one_of(
    st.integers(-70_000, 0).map(lambda offset: 2 * MIB + offset),  # across the border of two regions
    st.integers(RINGS, 4 * MIB - 70_000),
    st.integers(1 << 32, (1 << 32) + 2 * MIB - 70_000),
)
chains = st.lists(st.tuples(places, lengths), min_size=1, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), chains),
        st.tuples(st.just("post many"), st.tuples(places, st.sampled_from([64, 1526, PAGE]))),
        st.tuples(st.just("packet"), st.tuples(st.sampled_from([3, 14, 60, 1514, 9000, 65_000]), st.booleans())),
        st.tuples(st.just("send"), chains),
        st.tuples(st.just("turn"), st.sampled_from([1, 3, 256])),
    ),
    min_size=4,
    max_size=30,
)

#: After a long packet one that is refused, longer than its chain: the next chain is not written.
REFUSED_AND_TOO_LONG: list[tuple[str, Any]] = [
    *[("post", [(2 * MIB, length)]) for length in (3 * PAGE, 12)],
    ("post", [(2 * MIB - PAGE, 64)]),
    *[("packet", (9000, True)), ("packet", (3, False))],
]


def do(net: Net, step: str, what: Any, indirect: bool) -> None:
    match step, what:
        case "post", chain if net.rx.free >= len(chain):
            net.rx.add(writable=chain, indirect=indirect and len(chain) > 1)
        case "post many", (place, size):
            for i in range(min(20, net.rx.free)):
                net.rx.add(writable=[(place + i * size, size)])
        case "packet", (size, good):  # a header that the driver did not agree to is not delivered
            net.host.send((b"\0" if good else b"\1\xff").ljust(net.header_size, b"\0") + bytes(size))
        case "send", chain if net.tx.free >= len(chain):
            net.tx.add(readable=chain, indirect=indirect and len(chain) > 1)


@pytest.mark.proves("VU-LOG-1", "VU-LOG-2")
@every_layout
@given(
    mergeable=st.booleans(),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    batching=st.sampled_from(Batching),
    steps=steps,
)
@example(mergeable=False, event_idx=False, indirect=False, batching=Batching.NONE, steps=REFUSED_AND_TOO_LONG)
@settings(deadline=None, max_examples=60)
def test_what_was_written_is_what_was_logged(
    layout: int, mergeable: bool, event_idx: bool, indirect: bool, batching: Batching, steps: list[tuple[str, Any]]
) -> None:
    features = int(VirtioFeature.VERSION_1) | layout | (NetFeature.MRG_RXBUF if mergeable else 0)
    with GuestRam(REGIONS) as ram:
        net = Net(ram, features, 64, event_idx=event_idx)
        net.pump.use(net.port.fileno(), net.header_size, batching)
        with witnessed(ram, net.memory, net.pump.rx, net.pump.tx) as witness:
            for step, what in [*steps, ("turn", 256), ("turn", 256)]:
                if step == "turn":
                    net.pump.turn(what)
                    witness.agree()
                    net.rx.reap()
                    net.tx.reap()
                else:
                    do(net, step, what, indirect)
        net.close()


@pytest.mark.proves("VU-LOG-2")
@every_layout
def test_num_buffers_is_logged_though_it_comes_last(layout: int) -> None:
    """The header has a page of its own, which is written once more when the packet's buffers are known."""
    with GuestRam(REGIONS) as ram:
        net = Net(ram, MODERN | layout, 64)
        with witnessed(ram, net.memory, net.pump.rx, net.pump.tx) as witness:
            header, rest = ram.alloc(PAGE, PAGE), ram.alloc(2 * PAGE, PAGE)
            net.rx.add(writable=[(header, 12), (rest, 2 * PAGE)])
            net.host.send(bytes(12) + bytes(PAGE))
            assert {header, rest} == turn(net.pump, witness) & {header, rest, rest + PAGE}
        net.close()


@pytest.mark.proves("VU-LOG-2")
@every_layout
def test_a_window_that_was_written_in_vain_is_logged(layout: int) -> None:
    """After a long packet the next ones go straight into the driver's buffers, those too that it never gets."""
    with GuestRam(REGIONS) as ram:
        net = Net(ram, MODERN | layout, 64)
        with witnessed(ram, net.memory, net.pump.rx, net.pump.tx) as witness:
            buffers = [ram.alloc(2 * PAGE, PAGE) for _ in range(20)]
            for buffer in buffers:
                net.rx.add(writable=[(buffer, 2 * PAGE)])
            net.host.send(bytes(12) + bytes(9000))
            turn(net.pump, witness)
            [first, *_], seen = buffers[2:], set()
            net.host.send(b"\1\xff".ljust(12, b"\0") + bytes(9000))
            while net.counters("rx_refused") == (0,):
                seen |= turn(net.pump, witness)
            assert {first, first + PAGE, first + 2 * PAGE} <= seen
        net.close()
