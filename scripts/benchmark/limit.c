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
#include "tap.h"
#include <poll.h>

#define LONGEST 65562   /* the header, 65535 bytes of IP, Ethernet header */
#define ROOM 65664      /* LONGEST, in whole cache lines */
#define MOST 256
#define BUFFERS 512     /* 32 MiB of them */

/* One batch of requests with a buffer each; how many did something. */
static int turn(struct ring *ring, uint8_t opcode, char *buffers, unsigned first, unsigned length, unsigned batch)
{
    for (unsigned i = 0; i < batch; i++)
        *request(ring, i) = (struct io_uring_sqe){
            .opcode = opcode,
            .flags = IOSQE_FIXED_FILE,
            .addr = (uintptr_t)(buffers + (size_t)((first + i) % BUFFERS) * ROOM),
            .len = length,
            .rw_flags = RWF_NOWAIT,
        };
    return complete(ring, batch);
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
    char *buffers = map_buffers((size_t)BUFFERS * ROOM);
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
