cimport cython
from vhostuser.virtio.layout cimport *

cdef class Batch:
    cdef readonly bint works, in_order
    cdef unsigned int waiting
    cdef long[::1] result
    cdef void add_read(self, unsigned long long address, unsigned int size) noexcept nogil
    cdef void add_write(self, unsigned long long address, unsigned int size) noexcept nogil
    cdef void add_writev(self, unsigned long long iov, unsigned int count) noexcept nogil
    cdef int submit(self) noexcept nogil
