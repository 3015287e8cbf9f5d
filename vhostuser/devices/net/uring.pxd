cimport cython
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *

@cython.final
cdef class Uring:
    cdef readonly int fd
    cdef object sq_memory, sqe_memory
    cdef unsigned long long sq_tail, cq_head, cq_tail, cqes, sqes
    cdef unsigned int sq_mask, cq_mask
    cdef unsigned int waiting
    cdef readonly bint works
    cdef long[::1] result
    cdef void prepare(self, int opcode, unsigned long long address, unsigned int size) noexcept nogil
    cdef int submit(self) noexcept nogil
