from vhostuser.virtio.primitives cimport *

cdef unsigned int demand(int gso) noexcept nogil
cdef bint accepts(int flags, int gso, unsigned int offloads) noexcept nogil
cdef bint admit(unsigned long long header, unsigned long long frame, unsigned int offloads) noexcept nogil
