cdef extern from "guard.h" nogil:
    int guard "vu_guard"(unsigned long long start, unsigned long long size, unsigned long long page) noexcept
    void unguard "vu_unguard"(unsigned long long start) noexcept
    unsigned long long vanished "vu_vanished"() noexcept
