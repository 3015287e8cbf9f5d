from vhostuser.virtio.dirty cimport DirtyLog, RingLog
from vhostuser.virtio.layout cimport *
from vhostuser.virtio.memory cimport GuestMemory, pages_vanished
from vhostuser.virtio.primitives cimport *
from vhostuser.virtio.timeline cimport Timeline

cdef class Ring:
    # set by the control side, between two turns
    cdef readonly int index, expects
    cdef readonly GuestMemory memory, reads_from, writes_to
    cdef readonly unsigned int num
    cdef readonly bint event_idx, indirect, started
    cdef public bint enabled
    cdef readonly tuple addresses
    cdef readonly int kick, call, err
    cdef bint call_may_block, err_may_block
    cdef unsigned long long desc, driver, device
    cdef dict views
    # the ring's own state
    cdef readonly int fault
    cdef public bint reported
    cdef public Timeline timeline
    cdef readonly RingLog log
    cdef readonly bint armed
    cdef unsigned int base
    cdef object part
    cdef readonly bint positioned
    # what the front-end has to be asked
    cdef readonly int asks
    cdef readonly bint ask_sent
    cdef unsigned long long ask_iova
    cdef int ask_perm
    # the burst in hand
    cdef readonly int taken
    cdef int iov_end
    cdef unsigned long long[::1] iov
    cdef unsigned long long iov_address
    cdef unsigned int[::1] head, written
    cdef int[::1] first, segments, readable
    cdef unsigned long long[::1] size
    cdef unsigned long long[::1] counts
    cdef unsigned long long[::1] scratch
    cdef unsigned long long scratch_address

    cdef bint runs(self) noexcept nogil
    cdef int fail(self, int fault) noexcept nogil
    cdef void begin(self) noexcept nogil
    cdef void open_chain(self, unsigned int head) noexcept nogil
    cdef void close_chain(self, int answer) noexcept nogil
    cdef int gather(self, unsigned long long address, unsigned int length, bint writable) noexcept nogil
    cdef unsigned long long indirect_entry(self, unsigned long long table, unsigned int index) noexcept nogil
    cdef void log_burst(self) noexcept nogil
    cdef void log_written(self, int i, int end, unsigned long long size) noexcept nogil
    cdef void log_chain(self, int i, unsigned long long size) noexcept nogil
    cdef int missed(self, unsigned long long address, unsigned long long length, bint writable) noexcept nogil
    cdef void ask(self, int what, unsigned long long iova, int perm) noexcept nogil
    cdef void note(self, int what, int count) noexcept nogil
    cdef void notify(self) noexcept nogil
    cdef void kicked(self) noexcept nogil
    cdef bint unplaced(self) noexcept nogil

    cdef int take(self, int limit) noexcept nogil
    cdef void give(self, int count) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef bint owes(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
