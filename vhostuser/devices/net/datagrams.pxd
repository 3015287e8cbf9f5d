cimport cython
from vhostuser.devices.net.batch cimport Batch
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *

cdef class Datagrams(Batch):
    cdef readonly int file
    cdef bint reading
    cdef object memory
    cdef unsigned long long messages, iovecs
    cdef void add_buffer(self, unsigned long long address, unsigned int size) noexcept nogil
    cdef void add_message(self, unsigned long long iov, unsigned int count) noexcept nogil
    cdef unsigned long long message(self, unsigned int i) noexcept nogil
