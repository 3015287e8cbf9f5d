cimport cython
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *

@cython.final
cdef class PackedRecord:
    cdef readonly int index
    cdef readonly object part
    cdef unsigned long long at, desc
    cdef int entries, num
    cdef unsigned short[::1] link, heads, tails, spans
    cdef int free, room, first, old_used, old_wrap
    cdef readonly int known, owed
    cdef readonly bint unused
    cdef unsigned long long counter
    cdef void add(self, int slot, int span) noexcept nogil
    cdef void note(self, int head, int tail, int span) noexcept nogil
    cdef void publish(self, unsigned long long place, int flags, int count, int used, bint wrap) noexcept nogil
    cdef void store_used(self, int used, int wrap) noexcept nogil
    cdef void settle(self, int used, bint wrap) noexcept nogil
    cdef void release(self, int k) noexcept nogil
    cdef int circle(self, int i) noexcept nogil
    cdef unsigned long long entry(self, int entry) noexcept nogil
