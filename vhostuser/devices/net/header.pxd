from vhostuser.virtio.primitives cimport *

cdef bint admit(unsigned long long header, unsigned long long frame, unsigned int offloads) noexcept nogil
