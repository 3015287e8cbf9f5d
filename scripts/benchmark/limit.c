/* What the kernel allows: the same frames into or out of a tap, in the same batches, with no ring and no guest.
 *
 *   limit write|read TAP SIZE BATCH
 *
 * Makes the tap as a back-end would (vnet_hdr of 12 bytes), brings it up, prints "ready" and goes on until it is killed:
 * BATCH requests a system call through io_uring. The buffers take turns and are as much memory as a driver's, so that caches
 * help no more than they help a guest. `write` writes frames of SIZE bytes as fast as
 * they go. `read` reads with RWF_NOWAIT and sleeps when there is nothing. Nothing is counted here: the kernel counts at
 * the tap, as it does for everybody else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HEADER 12       /* virtio_net_hdr_v1 */
#define LONGEST 65562   /* the header, 65535 bytes of IP, Ethernet header */
#define ROOM 65664      /* LONGEST, in whole cache lines */
#define MOST 256
#define BUFFERS 512     /* 32 MiB of them */

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

/* One batch, submitted and complete on return: how many requests did something. */
static int turn(struct ring *ring, uint8_t opcode, char *buffers, unsigned first, unsigned length, unsigned batch)
{
    unsigned tail = *ring->sq_tail, head = *ring->cq_head, left = batch;
    int done = 0;
    for (unsigned i = 0; i < batch; i++, tail++) {
        unsigned slot = tail & *ring->sq_mask;
        ring->sqes[slot] = (struct io_uring_sqe){
            .opcode = opcode,
            .flags = IOSQE_FIXED_FILE,
            .addr = (uintptr_t)(buffers + (size_t)((first + i) % BUFFERS) * ROOM),
            .len = length,
            .rw_flags = RWF_NOWAIT,
        };
        ring->sq_array[slot] = slot;
    }
    __atomic_store_n(ring->sq_tail, tail, __ATOMIC_RELEASE);
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
    return tap;
}

/* Shared memory, as a guest's: pages of the same size, and no fault later. */
static char *map_buffers(void)
{
    size_t size = (size_t)BUFFERS * ROOM;
    int fd = memfd_create("buffers", 0);
    if (fd < 0 || ftruncate(fd, size))
        die("memfd");
    char *buffers = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (buffers == MAP_FAILED)
        die("mmap");
    return buffers;
}

/* What DPDK's txonly sends: UDP over IPv4 for somebody else, which the kernel looks at as far as the ports. */
static void put_frame(uint8_t *frame, unsigned size)
{
    static const uint8_t start[] = {
        2, 0, 0, 0, 0, 0, 0x52, 0x54, 0, 0x76, 0x68, 3, 8, 0,                     /* Ethernet */
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2, /* IPv4 */
        0, 9, 0, 9, 0, 0, 0, 0,                                                /* UDP */
    };
    unsigned packet = size - 14, datagram = packet - 20, sum = 0;
    if (size < sizeof start) {
        memcpy(frame, start, size);
        return;
    }
    memcpy(frame, start, sizeof start);
    frame[16] = packet >> 8, frame[17] = packet;
    frame[38] = datagram >> 8, frame[39] = datagram;
    for (unsigned i = 14; i < 34; i += 2)
        sum += frame[i] << 8 | frame[i + 1];
    sum = ~(sum + (sum >> 16));
    frame[24] = sum >> 8, frame[25] = sum;
}

int main(int count, char **words)
{
    if (count != 5) {
        fprintf(stderr, "usage: limit write|read TAP SIZE BATCH\n");
        return 2;
    }
    int writing = !strcmp(words[1], "write");
    unsigned size = atoi(words[3]), batch = atoi(words[4]);
    if (size < 14 || HEADER + size > LONGEST || batch < 1 || batch > MOST) {
        fprintf(stderr, "SIZE is 14 to %d bytes, BATCH is 1 to %d\n", LONGEST - HEADER, MOST);
        return 2;
    }
    int tap = open_tap(words[2]);
    struct ring ring = open_ring(batch, tap);
    char *buffers = map_buffers();
    for (unsigned i = 0; i < BUFFERS; i++)
        put_frame((uint8_t *)buffers + (size_t)i * ROOM + HEADER, size);
    puts("ready");
    fflush(stdout);
    uint8_t opcode = writing ? IORING_OP_WRITE : IORING_OP_READ;
    unsigned length = writing ? HEADER + size : ROOM;
    for (unsigned first = 0;; first = (first + batch) % BUFFERS) {
        int done = turn(&ring, opcode, buffers, first, length, batch);
        if (!writing && !done)
            poll(&(struct pollfd){tap, POLLIN, 0}, 1, -1);
    }
}
