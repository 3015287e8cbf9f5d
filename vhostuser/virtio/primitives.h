/* The compiled edition of virtio/primitives.py: same names, same answers, no Python.
 *
 * Addresses are those of this process. A load or store of guest memory is volatile: it happens once, where it is
 * written, whole. System calls answer -errno. */
#ifndef VHOSTUSER_PRIMITIVES_H
#define VHOSTUSER_PRIMITIVES_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long vu_address;
#define VU_AT(type, address) ((type *)(uintptr_t)(address))

static inline unsigned short vu_load_u16(vu_address a) { return *VU_AT(volatile uint16_t, a); }
static inline unsigned int vu_load_u32(vu_address a) { return *VU_AT(volatile uint32_t, a); }
static inline int vu_load_i32(vu_address a) { return *VU_AT(volatile int32_t, a); }
static inline unsigned long long vu_load_u64(vu_address a) { return *VU_AT(volatile uint64_t, a); }
static inline unsigned char vu_load_u8(vu_address a) { return *VU_AT(volatile uint8_t, a); }
static inline void vu_store_u8(vu_address a, unsigned char v) { *VU_AT(volatile uint8_t, a) = v; }
static inline void vu_store_u16(vu_address a, unsigned short v) { *VU_AT(volatile uint16_t, a) = v; }
static inline void vu_store_u32(vu_address a, unsigned int v) { *VU_AT(volatile uint32_t, a) = v; }
static inline void vu_store_u64(vu_address a, unsigned long long v) { *VU_AT(volatile uint64_t, a) = v; }
static inline unsigned short vu_load_acquire_u16(vu_address a) { return __atomic_load_n(VU_AT(uint16_t, a), __ATOMIC_ACQUIRE); }
static inline void vu_store_release_u16(vu_address a, unsigned short v) { __atomic_store_n(VU_AT(uint16_t, a), v, __ATOMIC_RELEASE); }
static inline unsigned int vu_load_acquire_u32(vu_address a) { return __atomic_load_n(VU_AT(uint32_t, a), __ATOMIC_ACQUIRE); }
static inline void vu_store_release_u32(vu_address a, unsigned int v) { __atomic_store_n(VU_AT(uint32_t, a), v, __ATOMIC_RELEASE); }
static inline void vu_set_bit(vu_address a, int bit) { __atomic_fetch_or(VU_AT(uint8_t, a), (uint8_t)(1u << bit), __ATOMIC_SEQ_CST); }
static inline void vu_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void vu_copy(vu_address to, vu_address from, unsigned long long size) {
    memcpy(VU_AT(void, to), VU_AT(void, from), size);
}

/* syscall(2) rather than the functions: those look for a cancelled thread before and after, of which there are none. */
static inline long vu_read(int fd, vu_address address, unsigned long long size) {
    long n = syscall(SYS_read, fd, VU_AT(void, address), (size_t)size);
    return n < 0 ? -errno : n;
}
static inline long vu_write(int fd, vu_address address, unsigned long long size) {
    long n = syscall(SYS_write, fd, VU_AT(void, address), (size_t)size);
    return n < 0 ? -errno : n;
}
static inline long vu_readv(int fd, vu_address iov, int count) {
    long n = syscall(SYS_readv, fd, VU_AT(struct iovec, iov), (long)count);
    return n < 0 ? -errno : n;
}
static inline long vu_writev(int fd, vu_address iov, int count) {
    long n = syscall(SYS_writev, fd, VU_AT(struct iovec, iov), (long)count);
    return n < 0 ? -errno : n;
}
static inline void vu_prefetch(vu_address address) { __builtin_prefetch(VU_AT(char, address)); }
static inline int vu_poll(vu_address set, int count, int milliseconds) {
    int n = poll(VU_AT(struct pollfd, set), count, milliseconds);
    return n < 0 ? -errno : n;
}
static inline unsigned long long vu_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* the vDSO answers: no system call */
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}
/* 426 on every architecture; the flag is IORING_ENTER_GETEVENTS. */
static inline int vu_io_uring_enter(int fd, unsigned submit, unsigned complete) {
    long n = syscall(426, fd, submit, complete, 1, (void *)0, 0);
    return n < 0 ? -errno : (int)n;
}
static inline int vu_sendmmsg(int fd, vu_address messages, unsigned count) {
    long n = syscall(SYS_sendmmsg, fd, VU_AT(struct mmsghdr, messages), count, MSG_DONTWAIT);
    return n < 0 ? -errno : (int)n;
}
static inline int vu_recvmmsg(int fd, vu_address messages, unsigned count) {
    long n = syscall(SYS_recvmmsg, fd, VU_AT(struct mmsghdr, messages), count, MSG_DONTWAIT, (void *)0);
    return n < 0 ? -errno : (int)n;
}
/* The file description belongs to the peer as well: its O_NONBLOCK is not ours to change, so reading asks for
 * RWF_NOWAIT. A pipe refuses that flag on older kernels; then poll has said that there is something to read. */
static inline long vu_drain(int fd) {
    uint64_t words[64];
    struct iovec v = {words, sizeof words};
    ssize_t n = preadv2(fd, &v, 1, -1, RWF_NOWAIT);
    if (n < 0 && errno == EOPNOTSUPP) n = read(fd, words, sizeof words);
    return n < 0 ? -errno : n;
}
/* An eventfd has no non-blocking write of its own (pwritev2 refuses), so a descriptor that may block is asked first.
 * The peer can still fill it in between; then the write lasts until a signal (see runtime.groups) interrupts it. */
static inline long vu_signal(int fd, int may_block) {
    uint64_t one = 1;
    if (may_block) {
        struct pollfd p = {fd, POLLOUT, 0};
        if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT)) return -EAGAIN;
    }
    ssize_t n = write(fd, &one, sizeof one);
    return n < 0 ? -errno : n;
}
#endif
