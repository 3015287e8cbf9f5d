"""What an entropy device fills."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.chains import by_hand, linked
from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.violation import Violation, about

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe


@checks("VIO-RNG-1", devices=("rng",))
@each_layout
async def buffers_get_random_bytes(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout)
    seen: list[bytes] = []
    for sizes in ((64, 64, 64), (200,), (100_000,), (1,)):
        buffers = [(chains.memory.alloc(size), size) for size in sizes]
        chains.offer(*linked([], buffers))
        chains.kick()
        with about(f"buffers of {', '.join(map(str, sizes))} bytes"):
            [used] = await chains.used()
            if not 0 < used.written <= sum(sizes):
                raise Violation(f"{used.written} bytes were written")
            content = b"".join(chains.memory.read(*buffer) for buffer in buffers)
            random, rest = content[: used.written], content[used.written :]
            pieces = [random[at : at + 32] for at in range(0, len(random) - 31, 32)]
            if len({*seen, *pieces}) < len(seen) + len(pieces):
                raise Violation(f"of {used.written} bytes some 32 have come before")
            if any(rest):
                raise Violation(f"{used.written} bytes were written, as it is told, and some behind them")
            seen += pieces
