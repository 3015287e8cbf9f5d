cimport cython
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.memory cimport GuestMemory
from vhostuser.virtio.primitives cimport *

@cython.final
cdef class DirtyLog:
    cdef object mapping, copy
    cdef readonly unsigned long long size
    cdef unsigned long long bits, copied
    cdef int mark(self, unsigned long long page) noexcept nogil

@cython.final
cdef class RingLog:
    cdef DirtyLog log
    cdef GuestMemory memory
    cdef readonly bint on, own
    cdef bint fresh, elsewhere
    cdef object told
    cdef unsigned long long desc, device
    cdef int fd
    cdef bint may_block
    cdef readonly unsigned long long logged, beyond
    cdef void buffer(self, unsigned long long host, unsigned long long length) noexcept nogil
    cdef void desc_area(self, unsigned long long offset, unsigned long long length) noexcept nogil
    cdef void device_area(self, unsigned long long offset, unsigned long long length) noexcept nogil
    cdef void area(self, unsigned long long host, unsigned long long length) noexcept nogil
    cdef void mark(self, unsigned long long address, unsigned long long length) noexcept nogil
    cdef void poke(self) noexcept nogil
