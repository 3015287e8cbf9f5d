/* Guest memory that vanishes: the compiled edition of virtio/guard.py.
 *
 * The peer can shrink the file behind a mapping. System calls then answer EFAULT, but a plain load raises SIGBUS. The
 * handler puts an anonymous page (a huge one's whole extent) under the address if it lies in a guarded range, counts
 * the fault for this thread and lets the access run again on zeros; its ring finds the count changed and breaks.
 * Any other SIGBUS goes to whoever was there before. Included by one module only: the tables must exist once. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

#define VU_GUARD_SLOTS 65536 /* as many mappings as Linux lets a process have (vm.max_map_count) */
static struct { volatile uintptr_t start, end; uintptr_t page; } vu_guarded[VU_GUARD_SLOTS];
static volatile int vu_guard_top;
static volatile int vu_guard_installed;
static struct sigaction vu_guard_previous;
static __thread unsigned long long vu_guard_count;

static void vu_on_sigbus(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    (void)number; (void)context;
    if (info->si_code == BUS_ADRALN) return (void)sigaction(SIGBUS, &vu_guard_previous, 0); /* no page is missing */
    for (int i = 0; i < vu_guard_top; i++) {
        if (at < vu_guarded[i].start || at >= vu_guarded[i].end) continue;
        uintptr_t page = vu_guarded[i].page;
        if (mmap((void *)(at & ~(page - 1)), page, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) break;
        vu_guard_count++;
        return;
    }
    sigaction(SIGBUS, &vu_guard_previous, 0);
}

/* Callers hold the GIL. 0, or -1 when all slots are taken. */
static int vu_guard(unsigned long long start, unsigned long long size, unsigned long long page) {
    if (!vu_guard_installed) {
        struct sigaction action = {0};
        action.sa_sigaction = vu_on_sigbus;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        if (sigaction(SIGBUS, &action, &vu_guard_previous)) return -1;
        vu_guard_installed = 1;
    }
    for (int i = 0; i < VU_GUARD_SLOTS; i++) {
        if (vu_guarded[i].end) continue;
        vu_guarded[i].page = page;
        vu_guarded[i].start = start;
        __atomic_store_n(&vu_guarded[i].end, start + size, __ATOMIC_RELEASE);
        if (i >= vu_guard_top) vu_guard_top = i + 1;
        return 0;
    }
    return -1;
}
static void vu_unguard(unsigned long long start) {
    for (int i = 0; i < vu_guard_top; i++)
        if (vu_guarded[i].end && vu_guarded[i].start == start) { vu_guarded[i].end = 0; vu_guarded[i].start = 0; return; }
}
static unsigned long long vu_vanished(void) { return vu_guard_count; }
