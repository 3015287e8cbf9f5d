"""Every exception of the package, sorted by who is to blame, because that decides what falls.

    VhostUserError
    ├── ProtocolError               abstract
    │   ├── RemoteProtocolError     the peer broke the vhost-user specification
    │   │   ├── FramingError          the byte stream cannot be followed further: the connection closes
    │   │   ├── PayloadError          a field has an illegal value
    │   │   ├── FdError               wrong number or wrong kind of file descriptor
    │   │   ├── NotNegotiatedError    the request's feature was not acknowledged
    │   │   ├── StateError            legal request, wrong moment
    │   │   └── UnsupportedRequestError   unknown, or known and not offered here
    │   └── LocalProtocolError      our own caller asked for something illegal
    ├── GuestError                  the driver broke the virtio specification: its ring stops, others run on
    │   ├── MemoryAccessError         an address outside guest memory, or memory that vanished
    │   └── RingError                 indices, descriptors or chains that cannot be
    ├── PortError                   the host side (tap, socket) failed
    ├── EndpointError               the vhost-user socket cannot be made or used
    ├── PrivilegeError              the process cannot give up what it was to give up
    └── ConnectionClosedError       the peer is gone

A message holds the offending value, the limit, and the specification's name for it, and at its end the statement of
``protocol-spec/statements.toml`` that was broken:
``SET_VRING_NUM: 3 is not a power of two (vring 1) [VU-RING-12]``.
"""

from __future__ import annotations


class VhostUserError(Exception):
    """Base of all errors raised by this package.

    Args:
        words: What happened.
        rule: Identifier of the statement that says why this is an error, where there is one.

    Attributes:
        rule: The same.
    """

    def __init__(self, *words: object, rule: str | None = None) -> None:
        super().__init__(*words)
        self.rule = rule

    @property
    def text(self) -> str:
        """What happened, without the rule: for who raises another error from this one, with the same rule."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.text} [{self.rule}]" if self.rule else self.text


class ProtocolError(VhostUserError):
    """A vhost-user rule was broken; the subclasses say by whom."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the vhost-user specification."""


class FramingError(RemoteProtocolError):
    """The byte stream cannot be followed further; the connection has to close."""


class PayloadError(RemoteProtocolError):
    """A payload has the wrong size or a field has an illegal value."""


class FdError(RemoteProtocolError):
    """A message came with the wrong number or the wrong kind of file descriptors."""


class NotNegotiatedError(RemoteProtocolError):
    """The request belongs to a feature that the front-end did not acknowledge."""


class StateError(RemoteProtocolError):
    """The request is not legal in the present state."""


class UnsupportedRequestError(RemoteProtocolError):
    """The request is unknown, or known and not offered here."""


class LocalProtocolError(ProtocolError):
    """Our own caller asked for something that the specification forbids."""


class GuestError(VhostUserError):
    """The driver in the guest broke the virtio specification; its ring stops."""


class MemoryAccessError(GuestError):
    """An address range is not (or no longer) guest memory."""


class RingError(GuestError):
    """A ring's index, descriptor or chain is one that cannot be."""


class PortError(VhostUserError):
    """The host side of a device (tap, packet socket) cannot be opened or has failed."""


class EndpointError(VhostUserError):
    """A socket cannot be made, or what stands in its place is not one that we may use."""


class PrivilegeError(VhostUserError):
    """The process cannot become another user, or cannot give up its capabilities."""


class ConnectionClosedError(VhostUserError):
    """The peer closed the connection, at a message boundary or in the middle of a message."""


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, however deep; an error that is no group is its own."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
