from vhostuser.virtio.layout cimport *
from vhostuser.virtio.memory cimport pages_vanished
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.ring cimport Ring

cdef class Pump:
    cdef readonly Ring first, second
    cdef readonly int wake_fd
    cdef public int port
    cdef readonly bint port_failed
    cdef unsigned int[::1] woken
    cdef unsigned long long woken_address
    cdef int[::1] poll_set
    cdef unsigned long long poll_address
    cdef int step(self, int budget) noexcept nogil
    cdef int loop(self) noexcept nogil
    cdef void wait(self, int todo) noexcept nogil
    cdef readonly unsigned long long poll_ns
    cdef unsigned long long given_at_turn, rest_at, given_at_look
    cdef readonly int looks
    cdef unsigned long long given(self) noexcept nogil
    cdef bint lingers(self) noexcept nogil
    cdef int pause(self) noexcept nogil
    cdef bint watch(self, int slot, Ring ring) noexcept nogil
    cdef unsigned long long vanished
    cdef bint broken(self) noexcept nogil
    cdef bint lost(self, Ring ring) noexcept nogil
    cdef bint arm(self, Ring ring) noexcept nogil

cdef class ChainPump(Pump):
    cdef readonly unsigned long long ticket
    cdef bint winding_down
    cdef int step(self, int budget) noexcept nogil
