from vhostuser.devices.net.receive cimport Receiver
from vhostuser.devices.net.transmit cimport Transmitter
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.pump cimport Pump
from vhostuser.virtio.ring cimport Ring

cdef enum:
    TURNS = 0
    SLEEPS = 1
    POLLS = 2

cdef class NetPump(Pump):
    cdef readonly Ring rx, tx
    cdef readonly Receiver receiver
    cdef readonly Transmitter transmitter
    cdef readonly object batch
    cdef unsigned long long[::1] counts
    cdef int step(self, int budget) noexcept nogil
    cdef void wait(self, int todo) noexcept nogil
