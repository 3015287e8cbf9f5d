/* A driver's side of a virtqueue, split or packed, in a process of its own, that tries hard to lose a notification.
 *
 * Each round it makes one to three chains available, kicks if the device asked for that, and waits until they are
 * used: for some while by looking, then by asking for a call and sleeping. Both sides so go to sleep and wake each other
 * all the time, often at the very moment that counts. A wait that lasts too long is a lost notification; a kick and
 * a look that nobody asked for then show that nothing else was wrong.
 *
 * Written from the virtio specification ("Split Virtqueues", "Packed Virtqueues"), apart from the device's side. All
 * fences are full. Chains have one descriptor, and positions count them from the start on, modulo 2^16.
 *
 *   ring_driver PACKED MEMFD SIZE DESC DRIVER DEVICE NUM EVENT_IDX KICK CALL ROUNDS TIMEOUT_MS
 *
 * Addresses are offsets in the file, NUM is a power of two. Prints one JSON object: rounds, kicks, calls, sleeps, and "lost": null, "kick" or
 * "call".
 */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PATIENCE = 1 << 18 }; /* looks, a millisecond or so */

struct desc { uint64_t addr; uint32_t len; uint16_t id, flags; };

static struct desc *desc;
static volatile uint16_t *driver, *device; /* the areas of either side */
static unsigned packed, num, event_idx;
static int kick_fd, call_fd, timeout_ms;
static unsigned long rounds, kicks, calls, sleeps;
static uint64_t buffer;

static unsigned below(unsigned limit) {
    static uint64_t seed = 88172645463325252u;
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % limit;
}

static void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* ---- split: avail and used are flags, idx, ring ..., event --------------------------------------------------------- */

enum { NO_NOTIFY = 1 };

static void split_add(uint16_t at, uint16_t to) {
    for (uint16_t i = at; i != to; i++) {
        /* in a split ring id and flags are flags and next, all 0 */
        desc[i % num] = (struct desc){buffer, 64, 0, 0};
        driver[2 + i % num] = i % num;
    }
    __atomic_store_n(&driver[1], to, __ATOMIC_RELEASE);
}

static int split_wants_kick(uint16_t at, uint16_t to) {
    uint16_t event = device[2 + 4 * num];
    return event_idx ? (uint16_t)(to - event - 1) < (uint16_t)(to - at) : !(device[0] & NO_NOTIFY);
}

static uint16_t split_used(uint16_t at) {
    (void)at;
    return __atomic_load_n(&device[1], __ATOMIC_ACQUIRE);
}

static void split_ask(uint16_t seen, int asked) {
    if (!event_idx) driver[0] = asked ? 0 : NO_NOTIFY;
    else if (asked) driver[2 + num] = seen; /* one that was passed says by itself that no call is wanted */
}

/* ---- packed: each area is off_wrap and flags, one word ------------------------------------------------------------- */

enum { AVAIL = 1 << 7, USED = 1 << 15, WRAP = 1 << 15, ENABLE = 0, DISABLE = 1, AT_DESC = 2 };

static int wrap_of(uint16_t position) { return !(position / num & 1); }
static uint32_t word_of(uint16_t position) { return position % num | (wrap_of(position) ? WRAP : 0); }

static void packed_add(uint16_t at, uint16_t to) {
    for (uint16_t i = to; i-- != at;) { /* the first one last: with it the device sees all */
        struct desc *slot = &desc[i % num];
        slot->addr = buffer, slot->len = 64, slot->id = i % num;
        __atomic_store_n(&slot->flags, wrap_of(i) ? AVAIL : USED, __ATOMIC_RELEASE);
    }
}

static int packed_wants_kick(uint16_t at, uint16_t to) {
    uint32_t event = *(volatile uint32_t *)device;
    if ((event >> 16 & 3) != AT_DESC) return (event >> 16 & 3) != DISABLE;
    for (uint16_t i = at; i != to; i++)
        if (word_of(i) == (event & 0xffff)) return 1;
    return 0;
}

static uint16_t packed_used(uint16_t at) {
    for (;; at++) {
        uint16_t flags = __atomic_load_n(&desc[at % num].flags, __ATOMIC_ACQUIRE);
        if (!(flags & AVAIL) != !(flags & USED) || !(flags & USED) != !wrap_of(at)) return at;
    }
}

static void packed_ask(uint16_t seen, int asked) {
    uint32_t word = asked ? (event_idx ? AT_DESC << 16 | word_of(seen) : ENABLE << 16) : DISABLE << 16;
    *(volatile uint32_t *)driver = word;
}

/* ---- either -------------------------------------------------------------------------------------------------------- */

/* The position behind the last chain that was used, when those before `at` were. */
static uint16_t used(uint16_t at) { return packed ? packed_used(at) : split_used(at); }

static void idle(unsigned steps) {
    while (steps--) __asm__ __volatile__("" ::: "memory");
}

static void kick(void) {
    uint64_t one = 1;
    if (write(kick_fd, &one, sizeof one) != sizeof one) perror("kick"), exit(1);
    kicks++;
}

/* Make chains available up to the position `to`, and kick if the device wants to know: whether it did. */
static int publish(uint16_t at, uint16_t to) {
    (packed ? packed_add : split_add)(at, to);
    fence();
    int wanted = (packed ? packed_wants_kick : split_wants_kick)(at, to);
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
static void look(uint16_t at, uint16_t to, int kicked) {
    static unsigned typical = 16;
    unsigned limit = !kicked ? below(2 * typical + 4) : below(8) ? PATIENCE : 0, looks = 0;
    while (looks < limit && used(at) != to) idle(4), looks++;
    if (!kicked && looks < limit) typical = (7 * typical + looks) / 8;
    else if (!kicked && typical < 1000) typical++;
}

/* Wait until the device has used everything up to `to`. 0: a notification was lost. */
static int waited(uint16_t at, uint16_t to, int kicked) {
    look(at, to, kicked);
    while ((at = used(at)) != to) {
        (packed ? packed_ask : split_ask)(at, 1);
        fence();
        if (used(at) == at && !slept()) return 0;
    }
    (packed ? packed_ask : split_ask)(at, 0);
    return 1;
}

/* What was lost: the device had used the chains and not called, or it slept and does use them once kicked. */
static const char *lost(uint16_t at, uint16_t to) {
    if (used(at) == to) return "\"call\"";
    kick();
    for (int i = 0; i < timeout_ms && used(at) != to; i++) usleep(1000);
    return used(at) == to ? "\"kick\"" : "\"everything\"";
}

int main(int argc, char **argv) {
    unsigned long word[13];
    if (argc != 13) return fprintf(stderr, "twelve words are needed\n"), 2;
    for (int i = 1; i < argc; i++) word[i] = strtoul(argv[i], NULL, 0);
    char *memory = mmap(NULL, word[3], PROT_READ | PROT_WRITE, MAP_SHARED, (int)word[2], 0);
    if (memory == MAP_FAILED) return perror("mmap"), 1;
    packed = word[1], buffer = word[3] - 64, desc = (struct desc *)(memory + word[4]);
    driver = (volatile uint16_t *)(memory + word[5]);
    device = (volatile uint16_t *)(memory + word[6]);
    num = word[7], event_idx = word[8], kick_fd = word[9], call_fd = word[10], timeout_ms = word[12];

    const char *verdict = "null";
    for (uint16_t at = 0, to; rounds < word[11]; rounds++, at = to) {
        to = at + 1 + below(3);
        int kicked = publish(at, to);
        if (!waited(at, to, kicked)) {
            verdict = lost(at, to);
            break;
        }
        idle(below(1u << below(12)));
    }
    printf("{\"rounds\": %lu, \"kicks\": %lu, \"calls\": %lu, \"sleeps\": %lu, \"lost\": %s}\n", rounds, kicks, calls,
           sleeps, verdict);
    return 0;
}
