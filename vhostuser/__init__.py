"""vhostuser: a vhost-user back-end in Python, and a toolbox for people who work on the vhost-user protocol.

How a message and a packet travel::

    socket -> transport.channel -> wire.codec -> session.backend.admit -> runtime.handlers -> session.backend.answer
    guest memory <-> virtio rings <-> devices.net.pump (one thread a queue group, compiled, no GIL) <-> port descriptor

The two paths never meet. ``docs/architecture.md`` tells what each package knows and must not know.
"""

from vhostuser import edition as _edition

__version__ = "0.1.0"

_edition.choose(__path__[0])
