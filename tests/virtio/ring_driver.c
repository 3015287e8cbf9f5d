/* A driver's side of a split virtqueue, in a process of its own, that tries hard to lose a notification.
 *
 * Each round it makes one to three chains available, kicks if the device asked for that, and waits until they are
 * used: for some while by looking, then by asking for a call and sleeping. Both sides so go to sleep and wake each other
 * all the time, often at the very moment that counts. A wait that lasts too long is a lost notification; a kick and
 * a look that nobody asked for then show that nothing else was wrong.
 *
 * Written from the virtio specification ("Split Virtqueues"), apart from the device's side. All fences are full.
 *
 *   ring_driver MEMFD SIZE DESC AVAIL USED NUM EVENT_IDX KICK CALL ROUNDS TIMEOUT_MS
 *
 * Addresses are offsets in the file. Prints one JSON object: rounds, kicks, calls, sleeps, and "lost": null, "kick" or
 * "call".
 */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PATIENCE = 1 << 18 }; /* looks, a millisecond or so */

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };

static char *memory;
static struct desc *desc;
static volatile uint16_t *avail, *used; /* flags, idx, ring ..., event */
static unsigned num, event_idx;
static int kick_fd, call_fd, timeout_ms;
static unsigned long rounds, kicks, calls, sleeps;
static uint64_t seed = 88172645463325252u;

static unsigned below(unsigned limit) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % limit;
}

static void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static uint16_t used_idx(void) { return __atomic_load_n(&used[1], __ATOMIC_ACQUIRE); }
static volatile uint16_t *used_event(void) { return &avail[2 + num]; }
static uint16_t avail_event(void) { return used[2 + 4 * num]; }

static void idle(unsigned steps) {
    while (steps--) __asm__ __volatile__("" ::: "memory");
}

static void kick(void) {
    uint64_t one = 1;
    if (write(kick_fd, &one, sizeof one) != sizeof one) perror("kick"), exit(1);
    kicks++;
}

/* Make chains available up to the index `to`, and kick if the device wants to know: whether it did. */
static int publish(uint16_t from, uint16_t to) {
    for (uint16_t i = from; i != to; i++) avail[2 + i % num] = i % num;
    __atomic_store_n(&avail[1], to, __ATOMIC_RELEASE);
    fence();
    int wanted = event_idx ? (uint16_t)(to - avail_event() - 1) < (uint16_t)(to - from) : !(used[0] & 1);
    if (wanted) kick();
    return wanted;
}

/* Sleep until called. 0: nobody called in time. */
static int slept(void) {
    struct pollfd call = {call_fd, POLLIN, 0};
    uint64_t count;
    sleeps++;
    if (poll(&call, 1, timeout_ms) <= 0) return 0;
    if (read(call_fd, &count, sizeof count) == sizeof count) calls++;
    return 1;
}

/* Look until the device has used everything up to `to`, or as often as seems interesting. A device that was kicked is
 * waited for, so that the next chain finds it about to sleep; one that was awake has to be met while it publishes. */
static void look(uint16_t to, int kicked) {
    static unsigned typical = 16;
    unsigned limit = !kicked ? below(2 * typical + 4) : below(8) ? PATIENCE : 0, looks = 0;
    while (looks < limit && used_idx() != to) idle(4), looks++;
    if (!kicked && looks < limit) typical = (7 * typical + looks) / 8;
    else if (!kicked && typical < 1000) typical++;
}

/* Wait until the device has used everything up to `to`. 0: a notification was lost. */
static int waited(uint16_t to, int kicked) {
    look(to, kicked);
    for (uint16_t seen; (seen = used_idx()) != to;) {
        if (event_idx) *used_event() = seen;
        else avail[0] = 0;
        fence();
        if (used_idx() == seen && !slept()) return 0;
    }
    if (!event_idx) avail[0] = 1; /* awake, it wants no calls; a used_event that was passed says so by itself */
    return 1;
}

/* What was lost: the device had used the chains and not called, or it slept and does use them once kicked. */
static const char *lost(uint16_t to) {
    if (used_idx() == to) return "\"call\"";
    kick();
    for (int i = 0; i < timeout_ms && used_idx() != to; i++) usleep(1000);
    return used_idx() == to ? "\"kick\"" : "\"everything\"";
}

int main(int argc, char **argv) {
    unsigned long word[12];
    if (argc != 12) return fprintf(stderr, "eleven words are needed\n"), 2;
    for (int i = 1; i < argc; i++) word[i] = strtoul(argv[i], NULL, 0);
    memory = mmap(NULL, word[2], PROT_READ | PROT_WRITE, MAP_SHARED, (int)word[1], 0);
    if (memory == MAP_FAILED) return perror("mmap"), 1;
    desc = (struct desc *)(memory + word[3]);
    avail = (volatile uint16_t *)(memory + word[4]);
    used = (volatile uint16_t *)(memory + word[5]);
    num = word[6], event_idx = word[7], kick_fd = word[8], call_fd = word[9], timeout_ms = word[11];
    for (unsigned i = 0; i < num; i++) desc[i] = (struct desc){word[2] - 64, 64, 0, 0};

    const char *verdict = "null";
    for (uint16_t at = avail[1], to; rounds < word[10]; rounds++, at = to) {
        to = at + 1 + below(3);
        int kicked = publish(at, to);
        if (!waited(to, kicked)) {
            verdict = lost(to);
            break;
        }
        idle(below(1u << below(12)));
    }
    printf("{\"rounds\": %lu, \"kicks\": %lu, \"calls\": %lu, \"sleeps\": %lu, \"lost\": %s}\n", rounds, kicks, calls,
           sleeps, verdict);
    return 0;
}
