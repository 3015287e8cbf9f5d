cimport cython
from vhostuser.virtio.primitives cimport *

@cython.final
cdef class Timeline:
    cdef readonly unsigned int entries
    cdef object memory
    cdef unsigned long long address
    cdef void note(self, int what, int ring, int count) noexcept nogil
