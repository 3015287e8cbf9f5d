from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.ring cimport Ring
from vhostuser.virtio.split_record cimport SplitRecord

cdef class SplitRing(Ring):
    cdef unsigned short next_avail, seen, next_used, published
    cdef bint signalled
    cdef SplitRecord record
    cdef int walk(self, unsigned int head) noexcept nogil
    cdef int take(self, int limit) noexcept nogil
    cdef void give(self, int count) noexcept nogil
    cdef void log_entries(self, int count) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef bint owes(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
