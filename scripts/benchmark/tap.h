/* A tap as a back-end opens it, and batches of requests to it through io_uring. */
#ifndef TAP_H
#define TAP_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HEADER 12 /* virtio_net_hdr_v1 */

struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* With `file` registered, as number 0. */
static struct ring open_ring(unsigned entries, int file)
{
    struct io_uring_params params = {0};
    struct ring ring = {.fd = (int)syscall(SYS_io_uring_setup, entries, &params)};
    if (ring.fd < 0)
        die("io_uring_setup");
    size_t sq = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *base = mmap(NULL, sq > cq ? sq : cq, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
                      IORING_OFF_SQ_RING);
    ring.sqes = mmap(NULL, params.sq_entries * sizeof *ring.sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                     ring.fd, IORING_OFF_SQES);
    if (base == MAP_FAILED || ring.sqes == MAP_FAILED)
        die("mmap");
    ring.sq_tail = (void *)(base + params.sq_off.tail);
    ring.sq_mask = (void *)(base + params.sq_off.ring_mask);
    ring.sq_array = (void *)(base + params.sq_off.array);
    ring.cq_head = (void *)(base + params.cq_off.head);
    ring.cq_tail = (void *)(base + params.cq_off.tail);
    ring.cq_mask = (void *)(base + params.cq_off.ring_mask);
    ring.cqes = (void *)(base + params.cq_off.cqes);
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &file, 1))
        die("IORING_REGISTER_FILES");
    return ring;
}

/* Where the request with this place in the next batch is written. */
static struct io_uring_sqe *request(struct ring *ring, unsigned place)
{
    unsigned slot = (*ring->sq_tail + place) & *ring->sq_mask;
    ring->sq_array[slot] = slot;
    return &ring->sqes[slot];
}

/* One batch, submitted and complete on return: how many requests did something. */
static int complete(struct ring *ring, unsigned batch)
{
    unsigned head = *ring->cq_head, left = batch;
    int done = 0;
    __atomic_store_n(ring->sq_tail, *ring->sq_tail + batch, __ATOMIC_RELEASE);
    while (left || __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) - head < batch) {
        int took = (int)syscall(SYS_io_uring_enter, ring->fd, left, batch, IORING_ENTER_GETEVENTS, NULL, 0);
        if (took < 0 && errno != EINTR)
            die("io_uring_enter");
        if (took > 0)
            left -= took;
    }
    for (unsigned i = 0; i < batch; i++, head++) {
        int result = ring->cqes[head & *ring->cq_mask].res;
        if (result < 0 && result != -EAGAIN) {
            errno = -result;
            die("the tap");
        }
        done += result >= 0;
    }
    __atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
    return done;
}

/* Made, with a vnet_hdr of 12 bytes and the offloads of a modern driver, and up. */
static int open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header = HEADER, tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK), control = socket(AF_INET, SOCK_DGRAM, 0);
    unsigned offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (tap < 0 || ioctl(tap, TUNSETIFF, &request) || ioctl(tap, TUNSETVNETHDRSZ, &header))
        die(name);
    if (ioctl(tap, TUNSETOFFLOAD, offloads))
        die("TUNSETOFFLOAD");
    if (ioctl(control, SIOCGIFFLAGS, &request))
        die("SIOCGIFFLAGS");
    request.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &request))
        die("SIOCSIFFLAGS");
    close(control);
    return tap;
}

/* Shared memory, as a guest's: pages of the same size, and no fault later. */
static char *map_buffers(size_t size)
{
    int fd = memfd_create("buffers", 0);
    if (fd < 0 || ftruncate(fd, size))
        die("memfd");
    char *buffers = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (buffers == MAP_FAILED)
        die("mmap");
    return buffers;
}

#endif
