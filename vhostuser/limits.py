"""How much one front-end may take of us: the numbers, and why they are what they are.

Must not know who enforces them: the channel (time, messages), the listener (connections), the handlers (memory).

What is not here follows from the protocol's own shape: one request is answered before the next one is read, so no
second reply ever waits; a message has 4096 bytes and 253 descriptors at most (``wire.frames``), of which a request
keeps as many as its row in the table says; a ring has three descriptors and 32768 entries, a device 256 rings; a
request that brings what is there already replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take. Time is in seconds.

    Attributes:
        message_timeout: From the first byte of a message to its last.
        send_timeout: Until the kernel has taken a whole message from us, which means: until the peer reads.
        first_message_timeout: Until a client that connected to us says something: others wait for their turn.
        messages_per_second: Messages that are read; a second's worth at once, then the rest waits in the socket. A
            memory table of 509 slots, or the 256 rings of a device that starts, take a part of it; an IOMMU's
            front-end that is busy comes close.
        connections_per_second: Clients that are accepted, refused ones included; likewise.
        mapped_bytes: Guest memory that is mapped. A process can map 128 TiB, a sparse file can say that it has more.
    """

    message_timeout: float = 30.0
    send_timeout: float = 30.0
    first_message_timeout: float = 30.0
    messages_per_second: float = 10_000.0
    connections_per_second: float = 200.0
    mapped_bytes: int = 4 << 40

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"limit {field.name}: {value} is not above 0")

    def changed(self, name: str, value: float) -> Self:
        """The same limits but for one.

        Raises:
            ValueError: there is no such limit, or it cannot have that value.
        """
        names = [field.name for field in fields(self)]
        if name not in names:
            raise ValueError(f"{name}: no such limit; there are {', '.join(names)}")
        kind = type(getattr(self, name))
        return replace(self, **{name: kind(value)})


STANDARD = Limits()
