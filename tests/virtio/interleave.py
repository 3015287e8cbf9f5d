"""Every interleaving of a driver's steps with a device's single memory accesses; run as a program, it prints JSON.

The accesses of the interpreted edition can be counted and stopped at, so this runs in it, whichever edition the test
suite runs over: both are made of the same lines, and compiled loads and stores of guest memory keep their order.

A scenario has the driver do its two steps at every pair of places in the device's turn. Afterwards both sides do only
what they were told to: the device turns again only for a kick, and the driver looks again only for a call. Whoever
then sleeps although there is work for it has lost a notification.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, product
from typing import Any

from tests.virtio.bench import NEXT, Discard, PackedDiscard, put_table, signals, turn_until_idle
from tests.virtio.packed import AVAIL, USED
from vhostuser import edition
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DescriptorFlags, full_fence
from vhostuser.virtio import packed, ring, split

ACCESSES = ("load_acquire_u16", "load_u16", "load_u32", "load_u64", "store_release_u16", "store_u16", "store_u32")


Layout = Discard | PackedDiscard


class Watch:
    """Sees every access of the ring code: counts the loads of each address, and lets others act at a chosen one."""

    def __init__(self) -> None:
        self.count = 0
        self.loads: Counter[int] = Counter()
        self.actions: list[tuple[int, Callable[[], None]]] = []
        for module, name in product((split, packed, ring), ACCESSES):
            if hasattr(module, name):
                setattr(module, name, self._seen(name, getattr(module, name)))

    def _seen(self, name: str, access: Callable[..., Any]) -> Callable[..., Any]:
        def seen(address: int, *value: int) -> Any:
            self.act()
            self.count += 1
            if name.startswith("load"):
                self.loads[address] += 1
            return access(address, *value)

        return seen

    def act(self) -> None:
        """Do what is due before the next access."""
        while self.actions and self.actions[0][0] <= self.count:
            self.actions.pop(0)[1]()

    def start(self, *actions: tuple[int, Callable[[], None]]) -> None:
        self.count = 0
        self.loads.clear()
        self.actions = list(actions)


def places(watch: Watch, scenario: Callable[[int, int], object]) -> Iterator[tuple[int, int]]:
    """All pairs of places in the device's turn, in order; the last place is behind its last access."""
    never = 1 << 30
    scenario(never, never)
    yield from combinations_with_replacement(range(watch.count + 1), 2)


def lost_kicks(
    watch: Watch, ram: GuestRam, layout: type[Layout], event_idx: bool, earlier: int
) -> list[tuple[int, int]]:
    """Where a driver that makes a chain available, then looks whether to kick, leaves the device asleep."""

    def scenario(publish: int, look: int) -> bool:
        with layout(ram, 4, event_idx=event_idx) as bench:
            turn_until_idle(bench.pump)
            bench.add(earlier)
            bench.driver.kick()
            signals(bench.driver.kick_fd.fileno())
            watch.start((publish, lambda: void(bench.add())), (look, lambda: void(bench.driver.kick())))
            turn_until_idle(bench.pump)
            last = watch.count
            watch.count = 1 << 31  # what is not done yet is done now, while the device sleeps
            watch.act()
            while signals(bench.driver.kick_fd.fileno()):
                turn_until_idle(bench.pump)
            watch.count = last
            return bool(bench.driver.used_idx == earlier + 1)

    return [pair for pair in places(watch, scenario) if not scenario(*pair)]


def lost_calls(watch: Watch, ram: GuestRam, layout: type[Layout], event_idx: bool) -> list[tuple[int, int]]:
    """Where a driver that asks for a call, then looks at the used ring, sleeps although a chain was used."""

    def scenario(ask: int, look: int) -> bool:
        with layout(ram, 4, event_idx=event_idx) as bench:
            driver = bench.driver
            bench.add()
            turn_until_idle(bench.pump)  # the first call after a start is always made
            driver.reap()
            signals(driver.call_fd.fileno())
            driver.used_event, driver.avail_flags = driver.used_idx - 1, 1
            seen = driver.used_idx
            asleep = False

            def asks() -> None:
                driver.used_event, driver.avail_flags = seen, 0
                full_fence()

            def looks() -> None:
                nonlocal asleep
                asleep = driver.used_idx == seen

            bench.add()
            watch.start((ask, asks), (look, looks))
            turn_until_idle(bench.pump)
            last = watch.count
            watch.count = 1 << 31
            watch.act()
            watch.count = last
            return not asleep or bool(signals(driver.call_fd.fileno()))

    return [pair for pair in places(watch, scenario) if not scenario(*pair)]


def loads(watch: Watch, ram: GuestRam, event_idx: bool) -> dict[str, int]:
    """How often a turn loads each field of one chain: two descriptors, the second one a table of two."""
    with Discard(ram, 4, event_idx=event_idx) as bench:
        driver = bench.driver
        buffer = bench.buffer
        table = put_table(ram, [(*buffer, NEXT, 1), (*buffer, 0, 0)])
        put_table(ram, [(*buffer, NEXT, 1), (*table, DescriptorFlags.INDIRECT, 0)], driver.desc_addr)
        driver.avail_idx += 1
        watch.start()
        bench.pump.turn()
        fields = {"avail.flags": driver.avail_addr, "avail.idx": driver.avail_addr + 2}
        fields |= {"avail.ring[0]": driver.avail_addr + 4, "used_event": driver.avail_addr + 12}
        for name, begin in (("desc", driver.desc_addr), ("table", table[0])):
            for i in range(2):
                for offset, field in ((0, "addr"), (8, "len"), (12, "flags"), (14, "next")):
                    fields[f"{name}[{i}].{field}"] = begin + 16 * i + offset
        host = {name: bench.memory.pieces(at, 1)[0][0] for name, at in fields.items()}
        counted = {name: watch.loads.pop(at, 0) for name, at in host.items()}
        return counted | {"anything else": watch.loads.total()}


def packed_loads(watch: Watch, ram: GuestRam, event_idx: bool) -> dict[str, int]:
    """The same for a packed ring: a chain of two slots, and an indirect one with a table of two."""
    with PackedDiscard(ram, 4, event_idx=event_idx) as bench:
        driver = bench.driver
        table = driver.table([(*bench.buffer, 0), (*bench.buffer, 0)])
        driver.offer((*bench.buffer, NEXT), (*bench.buffer, 0), name=1)
        driver.offer((*table, DescriptorFlags.INDIRECT), name=2)
        watch.start()
        bench.pump.turn()
        fields = {"driver event": driver.avail_addr, "desc[3].flags": driver.desc_addr + 48 + 14}
        for i in range(3):
            for offset, field in ((0, "addr"), (8, "len"), (12, "id"), (14, "flags")):
                fields[f"desc[{i}].{field}"] = driver.desc_addr + 16 * i + offset
        for i in range(2):
            for offset, field in ((0, "addr"), (8, "len"), (14, "flags")):
                fields[f"table[{i}].{field}"] = table[0] + 16 * i + offset
        host = {name: bench.memory.pieces(at, 1)[0][0] for name, at in fields.items()}
        counted = {name: watch.loads.pop(at, 0) for name, at in host.items()}
        return counted | {"anything else": watch.loads.total()}


def bursts(watch: Watch, ram: GuestRam, layout: type[Layout]) -> list[int]:
    """How many used chains a driver sees that looks before each access of a turn, in which a burst of three is used."""
    with layout(ram, 4) as bench:
        driver = bench.driver
        seen: list[int] = []
        bench.add(3)
        watch.start(*((place, lambda: seen.append(driver.used_idx)) for place in range(1 << 10)))
        bench.pump.turn()
        return seen


def laps(watch: Watch, ram: GuestRam) -> list[int]:
    """Bursts from a ring of two whose driver makes its slots available anew, a lap on, before each access."""
    with PackedDiscard(ram, 2) as bench:
        taken: list[int] = []
        give = packed.PackedRing.give

        def giving(ring: packed.PackedRing, count: int) -> None:
            taken.append(ring.taken)
            give(ring, count)

        packed.PackedRing.give = giving  # type: ignore[method-assign,assignment]

        lap = [AVAIL] * 8 + [USED] * 8  # two chains are fetched by eight accesses

        def again(flags: int) -> None:
            for slot in range(2):
                ram.store_u16(bench.driver.desc_addr + 16 * slot + 14, flags)

        watch.start(*((place, lambda flags=flags: again(flags)) for place, flags in enumerate(lap * 64)))
        bench.pump.turn(16)
        return taken


def void(_: object) -> None:
    """An action's result is nobody's."""


def main() -> None:
    """Run the scenario that the command line names."""
    assert edition.name() == "interpreted", edition.name()
    scenario, *options = sys.argv[1:]
    if "no-second-look" in options:  # the mistake that the scenario is there to find
        for forgetful in (split.SplitRing, packed.PackedRing):
            arm = forgetful.arm
            forgetful.arm = lambda self, arm=arm: arm(self) and False  # type: ignore[method-assign]
    watch = Watch()
    event_idx, is_packed = "event_idx" in options, "packed" in options
    layout: type[Layout] = PackedDiscard if is_packed else Discard
    with GuestRam([(0, 1 << 26)]) as ram:
        match scenario:
            case "kicks":
                found: object = [lost_kicks(watch, ram, layout, event_idx, earlier) for earlier in (0, 1, 2)]
            case "calls":
                found = lost_calls(watch, ram, layout, event_idx)
            case "bursts":
                found = bursts(watch, ram, layout)
            case "laps":
                found = laps(watch, ram)
            case "loads":
                found = (packed_loads if is_packed else loads)(watch, ram, event_idx)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
