from vhostuser.virtio.layout cimport *
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.packed_record cimport PackedRecord
from vhostuser.virtio.ring cimport Ring

cdef class PackedRing(Ring):
    cdef readonly bint in_order
    cdef int next_avail, next_used, seen
    cdef bint avail_wrap, used_wrap, seen_wrap
    cdef bint blocked
    cdef int[::1] span
    cdef int in_hand
    cdef int held, held_flags, moved, given
    cdef bint signalled
    cdef PackedRecord record
    cdef void record_new(self, PackedRecord record, int slot) noexcept nogil
    cdef int find_used(self, int used, bint wrap) noexcept nogil
    cdef unsigned long long slot(self, int index) noexcept nogil
    cdef bint available(self, int flags, bint wrap) noexcept nogil
    cdef int walk(self, int flags) noexcept nogil
    cdef int walk_table(self, unsigned long long table, unsigned int length) noexcept nogil
    cdef void fetched(self, int count) noexcept nogil
    cdef void log_entries(self, int slot, int count) noexcept nogil
    cdef void use(self, int name, unsigned int written, int span) noexcept nogil
    cdef bint asked(self) noexcept nogil
    cdef int take(self, int limit) noexcept nogil
    cdef void give(self, int count) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef bint owes(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
