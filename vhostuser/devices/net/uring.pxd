cimport cython
from vhostuser.devices.net.batch cimport Batch
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *

cdef class Uring(Batch):
    cdef readonly int fd
    cdef object sq_memory, sqe_memory
    cdef unsigned long long sq_tail, cq_head, cq_tail, cqes, sqes
    cdef unsigned int sq_mask, cq_mask
    cdef void prepare(self, int opcode, unsigned long long address, unsigned int size) noexcept nogil
