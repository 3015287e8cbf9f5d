"""Post-copy migration: the guest runs here already while pages of its memory are still elsewhere.

Must not know rings. POSTCOPY_ADVISE hands the front-end a userfaultfd. After POSTCOPY_LISTEN a memory region is mapped
and registered there, and the front-end is told its address in this process, by which it will recognise faults; then it
acknowledges. Until it has, no ring reads the region: a fault that it does not know would be nobody's.

    SET_MEM_TABLE or ADD_MEM_REG...  →  announce  →  reply with our addresses
    the acknowledgement              →  is_ack, take  →  the connection adopts the table, without an answer
"""

from __future__ import annotations

from vhostuser.errors import StateError
from vhostuser.fds import OwnedFd
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.userfault import UserFault
from vhostuser.wire.codec import is_postcopy_ack
from vhostuser.wire.frames import Frame


class Postcopy:
    """One connection's part in it.

    Args:
        source: makes userfaultfds; None where post-copy is not offered.

    Attributes:
        listening: whether regions are registered before they are used.
        announced: the table that the front-end knows and has not acknowledged.
    """

    def __init__(self, source: OwnedFd | None) -> None:
        self.listening = False
        self.announced: GuestMemory | None = None
        self._source = source
        self._faults: UserFault | None = None

    @property
    def offered(self) -> bool:
        """Whether front-ends may use it."""
        return self._source is not None

    def advise(self) -> int:
        """Make a userfaultfd, in place of an earlier one: the descriptor to pass on. Raises PortError, StateError."""
        assert self._source is not None  # the session admits nothing that is not offered
        self.check_acknowledged("POSTCOPY_ADVISE")
        self.end()
        self._faults = UserFault(self._source)
        return self._faults.fileno()

    def listen(self, memory: GuestMemory) -> None:
        """Register what comes from now on; `memory` is what there is.

        Raises:
            StateError: too early, or too late.
        """
        if self._faults is None:
            raise StateError("POSTCOPY_LISTEN: it comes after POSTCOPY_ADVISE", rule="VU-POST-2")
        if memory.mappings:
            words = f"POSTCOPY_LISTEN: {len(memory.mappings)} memory regions are in use already"
            raise StateError(words, rule="VU-POST-2")
        self.listening = True

    def announce(self, memory: GuestMemory, present: GuestMemory) -> None:
        """Register what `memory` has and `present` lacks, and keep it until it is acknowledged.

        Raises:
            PortError: it cannot be registered.
        """
        assert self._faults is not None
        known = {*present.mappings, *(self.announced.mappings if self.announced else ())}
        for mapping in memory.mappings:
            if mapping not in known:
                self._faults.register(mapping)
        self.announced = memory

    def check_acknowledged(self, request: str) -> None:
        """Raise StateError for what has to wait until the table that was announced is acknowledged."""
        if self.announced is not None:
            words = f"{request}: memory regions were told and not acknowledged yet"
            raise StateError(words, rule="VU-POST-4")

    def is_ack(self, frame: Frame) -> bool:
        """Whether a frame is the acknowledgement of what was announced."""
        return self.announced is not None and is_postcopy_ack(frame)

    def take(self) -> GuestMemory:
        """The announced table, to be used from now on."""
        memory, self.announced = self.announced, None
        assert memory is not None
        return memory

    def end(self) -> None:
        """Wait for no page any more; harmless if none is waited for."""
        self.listening = False
        if self._faults is not None:
            self._faults.close()
            self._faults = None
