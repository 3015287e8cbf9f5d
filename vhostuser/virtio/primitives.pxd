cdef extern from "primitives.h" nogil:
    unsigned char load_u8 "vu_load_u8"(unsigned long long address) noexcept
    unsigned short load_u16 "vu_load_u16"(unsigned long long address) noexcept
    unsigned int load_u32 "vu_load_u32"(unsigned long long address) noexcept
    int load_i32 "vu_load_i32"(unsigned long long address) noexcept
    unsigned long long load_u64 "vu_load_u64"(unsigned long long address) noexcept
    void store_u8 "vu_store_u8"(unsigned long long address, unsigned char value) noexcept
    void store_u16 "vu_store_u16"(unsigned long long address, unsigned short value) noexcept
    void store_u32 "vu_store_u32"(unsigned long long address, unsigned int value) noexcept
    void store_u64 "vu_store_u64"(unsigned long long address, unsigned long long value) noexcept
    unsigned short load_acquire_u16 "vu_load_acquire_u16"(unsigned long long address) noexcept
    void store_release_u16 "vu_store_release_u16"(unsigned long long address, unsigned short value) noexcept
    unsigned int load_acquire_u32 "vu_load_acquire_u32"(unsigned long long address) noexcept
    void store_release_u32 "vu_store_release_u32"(unsigned long long address, unsigned int value) noexcept
    void set_bit "vu_set_bit"(unsigned long long address, int bit) noexcept
    void fence "vu_fence"() noexcept
    void copy "vu_copy"(unsigned long long to, unsigned long long source, unsigned long long size) noexcept
    void prefetch "vu_prefetch"(unsigned long long address) noexcept
    long read_fd "vu_read"(int fd, unsigned long long address, unsigned long long size) noexcept
    long write_fd "vu_write"(int fd, unsigned long long address, unsigned long long size) noexcept
    long readv "vu_readv"(int fd, unsigned long long iov, int count) noexcept
    long writev "vu_writev"(int fd, unsigned long long iov, int count) noexcept
    int poll "vu_poll"(unsigned long long set, int count, int milliseconds) noexcept
    unsigned long long clock "vu_clock"() noexcept
    int io_uring_enter "vu_io_uring_enter"(int fd, unsigned int submit, unsigned int complete) noexcept
    int sendmmsg "vu_sendmmsg"(int fd, unsigned long long messages, unsigned int count) noexcept
    int recvmmsg "vu_recvmmsg"(int fd, unsigned long long messages, unsigned int count) noexcept
    long drain "vu_drain"(int fd) noexcept
    long signal "vu_signal"(int fd, bint may_block) noexcept
