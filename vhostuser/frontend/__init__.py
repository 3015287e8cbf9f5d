"""The other end of the protocol, and a driver's side of the rings: for tests, the demo and protocol tools.

::

    async with vhostuser.frontend.connect("/run/vm1.sock") as front_end:
        ring = await front_end.add_ring(0)

=================  ==========================================================================
``conversation``   requests with their answers, and frames that no table allows
``client``         connecting, and the sequences of requests that every front-end needs
``memory``         guest memory: files, mapped here, whose descriptors the back-end gets
``features``       feature bits that the drivers here know
``rings``          what a driver does alike with both layouts; ``split`` and ``packed`` are these
``layouts``        which of the two was negotiated
``net``            a driver of network devices; ``guest`` answers ping and the like behind it
``dirty``          the dirty log
``iommu``          translations for a back-end that asks for them
``postcopy``       pages for a back-end that waits for them
``inband``         kicks and calls as messages
=================  ==========================================================================

The names below are the public ones. Requests, payloads and frames are in :mod:`vhostuser.wire`, errors in
:mod:`vhostuser.errors`. ``docs/frontend.md`` has an example of each.
"""

from vhostuser.frontend.client import DEFAULT_PROTOCOL_FEATURES, FrontEnd, InflightFile, connect
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.dirty import DirtyBitmap
from vhostuser.frontend.features import RING_FEATURES, DriverFeature
from vhostuser.frontend.guest import BuiltinGuest
from vhostuser.frontend.iommu import Iommu, IommuRam
from vhostuser.frontend.layouts import make_ring
from vhostuser.frontend.memory import MIB, GuestRam, RamRegion
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver, NetHeader, Packet
from vhostuser.frontend.packed import Event, EventFlags, PackedDescriptor, PackedDriverRing, PackedRing, Position
from vhostuser.frontend.postcopy import PageServer
from vhostuser.frontend.rings import DescriptorFlags, DriverQueue, Used
from vhostuser.frontend.split import Descriptor, DriverRing, SplitRing

__all__ = [
    "connect",
    "FrontEnd",
    "RefusedError",
    "InflightFile",
    "DEFAULT_PROTOCOL_FEATURES",
    "DriverFeature",
    "RING_FEATURES",
    "GuestRam",
    "RamRegion",
    "MIB",
    "DriverQueue",
    "Used",
    "make_ring",
    "DescriptorFlags",
    "DriverRing",
    "SplitRing",
    "Descriptor",
    "PackedDriverRing",
    "PackedRing",
    "PackedDescriptor",
    "Position",
    "Event",
    "EventFlags",
    "NetDriver",
    "DRIVER_FEATURES",
    "NetHeader",
    "Packet",
    "BuiltinGuest",
    "DirtyBitmap",
    "Iommu",
    "IommuRam",
    "PageServer",
]
