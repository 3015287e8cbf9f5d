cimport cython
from vhostuser.virtio.guard cimport *
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *

@cython.final
cdef class GuestMemory:
    cdef readonly tuple mappings
    cdef readonly int absent
    cdef unsigned long long[::1] rows
    cdef unsigned long long[::1] hosts
    cdef int count, host_count
    cdef int find(self, unsigned long long address, int hint) noexcept nogil
    cdef int translate(self, unsigned long long address, unsigned long long length, unsigned long long iov, int room) noexcept nogil
    cdef unsigned long long guest_phys_addr(self, unsigned long long host) noexcept nogil
    cdef unsigned long long hole(self, unsigned long long address, unsigned long long length) noexcept nogil
    cdef unsigned long long contiguous(self, unsigned long long address, unsigned long long length) noexcept nogil

cdef unsigned long long pages_vanished() noexcept nogil
