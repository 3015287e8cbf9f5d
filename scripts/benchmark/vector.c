/* What a vector of two costs against copying: header and frame of a packet lie in two places, and one request of io_uring
 * moves them at once, or moves one buffer into which, or out of which, we copy both.
 *
 *   gcc -O2 -o vector scripts/benchmark/vector.c && sudo unshare --net ./vector [SIZE]
 *
 * Frames of SIZE bytes (1500) in batches of 64. `out` is what a back-end writes to the tap, `in` what it reads after the
 * host has filled the tap's queue, which is not measured. The ways take turns; each line is the median of the rounds, in
 * thousands of frames for a second of this process's time, the kernel's part in it included.
 */
#include "tap.h"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/uio.h>
#include <time.h>

/* Not from net/if.h, which does not go together with linux/if.h. */
unsigned if_nametoindex(const char *name);

#define TAP "vector0"
#define BATCH 64
#define QUEUE 448   /* frames that the host gives at a time; the tap's queue holds 500 or more */
#define BUFFERS 512 /* of the guest, which take turns so that caches help no more than they would there */
#define ROOM 4096
#define MOST 2036 /* with its header in a slot of 2048 bytes */
#define ROUNDS 15
#define FRAMES 1344 /* three queues, 21 batches */

enum way { VECTOR, COPY, REGISTERED, WAYS };
static const char *const names[WAYS] = {
    "a vector of two: header, frame",
    "one buffer, copied by us",
    "one buffer, and the tap registered with io_uring",
};

static int tap, host;
static struct ring ring;
static char *guest;              /* buffers: the header, and the frame in a cache line of its own */
static char slots[BATCH][2048];  /* what is copied into or out of */
static struct iovec vectors[BATCH][2];
static unsigned next;

static char *header_of(unsigned buffer)
{
    return guest + (size_t)(buffer % BUFFERS) * ROOM;
}

static char *frame_of(unsigned buffer)
{
    return header_of(buffer) + 64;
}

/* One batch; how many frames it moved. */
static int turn(enum way way, int out, unsigned size)
{
    for (unsigned i = 0; i < BATCH; i++) {
        struct io_uring_sqe *entry = request(&ring, i);
        *entry = (struct io_uring_sqe){.fd = way == REGISTERED ? 0 : tap, .rw_flags = RWF_NOWAIT};
        entry->flags = way == REGISTERED ? IOSQE_FIXED_FILE : 0;
        if (way == VECTOR) {
            vectors[i][0] = (struct iovec){header_of(next + i), HEADER};
            vectors[i][1] = (struct iovec){frame_of(next + i), size};
            entry->opcode = out ? IORING_OP_WRITEV : IORING_OP_READV;
            entry->addr = (uintptr_t)vectors[i];
            entry->len = 2;
        } else {
            if (out) {
                memcpy(slots[i], header_of(next + i), HEADER);
                memcpy(slots[i] + HEADER, frame_of(next + i), size);
            }
            entry->opcode = out ? IORING_OP_WRITE : IORING_OP_READ;
            entry->addr = (uintptr_t)slots[i];
            entry->len = HEADER + size;
        }
    }
    int done = complete(&ring, BATCH);
    if (way != VECTOR && !out)
        for (int i = 0; i < done; i++) {
            memcpy(header_of(next + i), slots[i], HEADER);
            memcpy(frame_of(next + i), slots[i] + HEADER, size);
        }
    next += BATCH;
    return done;
}

/* The host's frames, for nobody's protocol. */
static void fill_queue(unsigned size)
{
    static char frame[MOST];
    memset(frame, 0xff, 6);
    frame[12] = (char)0x88, frame[13] = (char)0xb5;
    for (int i = 0; i < QUEUE; i++)
        if (send(host, frame, size, 0) < 0)
            die("send");
}

static double processor_time(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Thousands of frames for a second of processor time. */
static double measure(enum way way, int out, unsigned size)
{
    double spent = 0;
    int moved = 0;
    for (int frames = 0; frames < FRAMES; frames += QUEUE) {
        if (!out)
            fill_queue(size);
        double start = processor_time();
        for (int i = 0; i < QUEUE / BATCH; i++)
            moved += turn(way, out, size);
        spent += processor_time() - start;
    }
    if (moved != FRAMES) {
        fprintf(stderr, "%d of %d frames were moved\n", moved, FRAMES);
        exit(1);
    }
    return moved / spent / 1e3;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words)
{
    unsigned size = count > 1 ? atoi(words[1]) : 1500;
    if (count > 2 || size < 60 || size > MOST) {
        fprintf(stderr, "usage: vector [SIZE]    60 to %d bytes\n", MOST);
        return 2;
    }
    tap = open_tap(TAP);
    ring = open_ring(BATCH, tap);
    guest = map_buffers((size_t)BUFFERS * ROOM);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(TAP)};
    host = socket(AF_PACKET, SOCK_RAW, 0);
    if (host < 0 || bind(host, (void *)&address, sizeof address))
        die("packet socket");
    double rates[WAYS][2][ROUNDS];
    for (int round = -1; round < ROUNDS; round++) /* one before, to warm up */
        for (int way = 0; way < WAYS; way++)
            for (int out = 0; out < 2; out++)
                rates[way][out][round < 0 ? 0 : round] = measure(way, out, size);
    printf("%-50s %8s %8s\n", "one frame is", "out", "in");
    for (int way = 0; way < WAYS; way++) {
        for (int out = 0; out < 2; out++)
            qsort(rates[way][out], ROUNDS, sizeof(double), ascending);
        printf("%-50s %8.0f %8.0f\n", names[way], rates[way][1][ROUNDS / 2], rates[way][0][ROUNDS / 2]);
    }
}
