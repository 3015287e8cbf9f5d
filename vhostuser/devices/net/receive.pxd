from vhostuser.devices.net.header cimport accepts
from vhostuser.devices.net.uring cimport Uring
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.ring cimport Ring

cdef enum:
    RX_PACKETS = 0
    RX_BYTES = 1
    RX_DROPPED = 2
    RX_STARVED = 3
    RX_KEPT = 4
    RX_MOVED = 5
    RX_BATCHES = 6
    RX_REFUSED = 7

cdef void move_header(unsigned long long to) noexcept nogil

cdef class Receiver:
    cdef readonly Ring ring
    cdef readonly unsigned int header_size, shift
    cdef unsigned int accepted
    cdef bint mergeable
    cdef readonly int port
    cdef readonly bint port_failed
    cdef readonly Uring uring
    cdef unsigned long long[::1] counts
    cdef object slots
    cdef unsigned long long slots_address
    cdef unsigned long long[::1] kept_at, kept_size
    cdef int kept_first, kept_end
    cdef int large, ramp
    cdef bint drained

    cdef int turn(self, int budget) noexcept nogil
    cdef int burst(self, int taken) noexcept nogil
    cdef int batch(self, Uring uring, int taken) noexcept nogil
    cdef int window(self, int i, int taken) noexcept nogil
    cdef bint usable(self, int i) noexcept nogil
    cdef long check(self, int i, long got) noexcept nogil
    cdef long judge(self, unsigned long long flags, unsigned long long gso, long size) noexcept nogil
    cdef long excuse(self, long got) noexcept nogil
    cdef bint plain(self, int i) noexcept nogil
    cdef void skip(self, int i) noexcept nogil
    cdef void unskip(self, int i) noexcept nogil
    cdef int read_aside(self, int i) noexcept nogil
    cdef int spread(self, int i, int end, unsigned long long got) noexcept nogil
    cdef bint move(self, int i, int into, unsigned long long size) noexcept nogil
    cdef void keep(self, int i, int end, int slot, unsigned long long size) noexcept nogil
    cdef unsigned long long overflow(self, int slot) noexcept nogil
    cdef int deliver(self) noexcept nogil
    cdef void lay_out(self, int count) noexcept nogil
    cdef void scatter(self, int i, unsigned long long source, unsigned long long size) noexcept nogil
    cdef void set_num_buffers(self, int i, int count) noexcept nogil
