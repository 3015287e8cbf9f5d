cimport cython
from vhostuser.virtio.primitives cimport *

@cython.final
cdef class SplitRecord:
    cdef readonly int index
    cdef readonly object part
    cdef unsigned long long at
    cdef unsigned int num
    cdef unsigned short[::1] heads
    cdef unsigned long long heads_address
    cdef int recorded
    cdef readonly int owed
    cdef unsigned int last
    cdef unsigned long long counter
    cdef unsigned long long fetch(self, unsigned long long avail, int next_avail, int limit) noexcept nogil
    cdef void publish(self, unsigned long long idx, int old, int new) noexcept nogil
    cdef void finish(self, int old, int new) noexcept nogil
    cdef int beyond(self, int next_avail) noexcept nogil
    cdef unsigned int head(self, int place) noexcept nogil
    cdef unsigned long long entry(self, unsigned int head) noexcept nogil
