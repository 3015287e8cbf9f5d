"""What is known of peers that differ from the specification, by peer.

Must not know: how checks are run.

A known quirk stays what it is, a failure or a difference, and counts as one; it is named, so that whoever reads the
results need not find it out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostuser.conformance.suite import Result


@dataclass(frozen=True)
class Quirk:
    """A way in which a peer differs.

    Attributes:
        name: What it is called.
        text: What the peer does.
        checks: Patterns of the checks that find it.
    """

    name: str
    text: str
    checks: tuple[str, ...]

    def explains(self, result: Result) -> bool:
        """Whether a result is this one."""
        return any(fnmatchcase(result.check.name, pattern) for pattern in self.checks)


PEERS: dict[str, tuple[Quirk, ...]] = {"libvhost-user": (), "dpdk": ()}
"""The peers, and what is known of each."""
