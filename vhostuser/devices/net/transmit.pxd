cimport cython
from vhostuser.devices.net.batch cimport Batch
from vhostuser.devices.net.header cimport admit
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.ring cimport Ring

cdef enum:
    TX_PACKETS = 0
    TX_BYTES = 1
    TX_DROPPED = 2
    TX_REJECTED = 3
    TX_DISCARDED = 4
    TX_BLOCKED = 5
    TX_BATCHES = 6

@cython.final
cdef class Transmitter:
    cdef readonly Ring ring
    cdef readonly unsigned int header_size, port_header
    cdef unsigned int offloads
    cdef readonly int port
    cdef readonly bint port_failed
    cdef readonly Batch batch
    cdef unsigned long long[::1] counts
    cdef object slots
    cdef unsigned long long slots_address
    cdef int[::1] chosen

    cdef int turn(self, int budget) noexcept nogil
    cdef void fetch(self, int taken) noexcept nogil
    cdef int burst(self, int taken) noexcept nogil
    cdef int send_batch(self, Batch batch, int taken) noexcept nogil
    cdef int ready(self, int i) noexcept nogil
    cdef unsigned long long port_size(self, int i) noexcept nogil
    cdef unsigned long long slot(self, int i) noexcept nogil
    cdef unsigned long long iov(self, int i) noexcept nogil
    cdef int settle(self, int i, long sent) noexcept nogil
    cdef void take(self, int i, unsigned long long to, unsigned long long size) noexcept nogil
