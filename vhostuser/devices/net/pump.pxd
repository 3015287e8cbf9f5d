from vhostuser.devices.net.header cimport admit
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.pump cimport Pump
from vhostuser.virtio.ring cimport Ring

cdef enum:
    TX_PACKETS = 0
    TX_BYTES = 1
    TX_DROPPED = 2
    TX_REJECTED = 3
    TX_DISCARDED = 4
    TX_BLOCKED = 5
    RX_PACKETS = 6
    RX_BYTES = 7
    RX_DROPPED = 8
    RX_STARVED = 9
    RX_MERGED = 10
    TURNS = 11
    SLEEPS = 12

cdef class NetPump(Pump):
    cdef readonly Ring rx, tx
    cdef readonly unsigned int header_size
    cdef bint mergeable
    cdef unsigned int offloads
    cdef unsigned long long[::1] counts
    cdef unsigned long long[::1] headers
    cdef unsigned long long headers_address
    cdef object buffers
    cdef unsigned long long overflow, stash, stashed
    cdef int large, ramp

    cdef int transmit(self, int budget) noexcept nogil
    cdef int send(self, int i) noexcept nogil
    cdef void take_header(self, int i, unsigned long long header) noexcept nogil
    cdef int receive(self, int budget) noexcept nogil
    cdef int fill(self, int i, int taken) noexcept nogil
    cdef int window(self, int i, int taken) noexcept nogil
    cdef void keep(self, int i, int end, unsigned long long size) noexcept nogil
    cdef int deliver(self) noexcept nogil
    cdef void scatter(self, int i, unsigned long long source, unsigned long long size) noexcept nogil
    cdef void set_num_buffers(self, int i, int count) noexcept nogil
    cdef int step(self, int budget) noexcept nogil
    cdef void wait(self, int todo) noexcept nogil
