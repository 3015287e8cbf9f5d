cimport cython
from vhostuser.devices.net.batch cimport Batch
from vhostuser.devices.net.header cimport accepts
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.ring cimport Ring

cdef enum:
    RX_PACKETS = 0
    RX_BYTES = 1
    RX_DROPPED = 2
    RX_STARVED = 3
    RX_DIRECT = 4
    RX_BATCHES = 5
    RX_REFUSED = 6

cdef void move_header(unsigned long long to) noexcept nogil

@cython.final
cdef class Receiver:
    cdef readonly Ring ring
    cdef readonly unsigned int header_size
    cdef bint mergeable
    cdef readonly int shift
    cdef unsigned int accepted
    cdef bint flagless
    cdef readonly int port
    cdef readonly bint port_failed
    cdef readonly Batch batch
    cdef unsigned long long[::1] counts
    cdef object slots
    cdef unsigned long long slots_address, overflow
    cdef unsigned long long[::1] kept_at, kept_size
    cdef int kept_first, kept_end
    cdef int large, ramp
    cdef bint drained

    cdef int turn(self, int budget) noexcept nogil
    cdef long check(self, long got) noexcept nogil
    cdef bint wanted(self, unsigned long long flags, unsigned long long gso) noexcept nogil
    cdef void read(self, int count) noexcept nogil
    cdef void read_batch(self, Batch batch, int count) noexcept nogil
    cdef unsigned long long slot(self, int i) noexcept nogil
    cdef void keep(self, int i, long got) noexcept nogil
    cdef int deliver(self, int taken, bint all_there_are) noexcept nogil
    cdef int cover(self, int i, int taken, unsigned long long size) noexcept nogil
    cdef bint may_grow(self, int taken) noexcept nogil
    cdef void give_up(self, int i, int end) noexcept nogil
    cdef void lay_out(self, int i, int end) noexcept nogil
    cdef void scatter(self, int i, unsigned long long source, unsigned long long size) noexcept nogil
    cdef int direct(self, int taken) noexcept nogil
    cdef int window(self, int i, int taken) noexcept nogil
    cdef long read_window(self, int i, int end) noexcept nogil
    cdef bint wanted_in(self, int i) noexcept nogil
    cdef int spread(self, int i, int end, unsigned long long got) noexcept nogil
    cdef void keep_overflow(self, int i, int end, unsigned long long size) noexcept nogil
    cdef void account(self, unsigned long long size) noexcept nogil
    cdef void set_num_buffers(self, int i, int count) noexcept nogil
