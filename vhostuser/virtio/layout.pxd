# The compiled edition of layout.py: the same names and numbers, as C constants. A test compares the two.
cdef enum:
    DESC_NEXT = 1
    DESC_WRITE = 2
    DESC_INDIRECT = 4
    DESC_AVAIL = 128
    DESC_USED = 32768
    WRAP = 32768
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_DESC = 2
    AVAIL_NO_INTERRUPT = 1
    USED_NO_NOTIFY = 1

    FAULT = -1
    MISS = -2
    FULL = -3

    IOMMU_READ = 1
    IOMMU_WRITE = 2
    ASK_NOTHING = 0
    ASK_TRANSLATION = 1
    ASK_DENIED = 2

    BURST = 64
    SEGMENTS = 1000
    POOL = 3072
    TABLE = 32768

    READABLE = 0
    WRITABLE = 1
    EITHER = 2

    GOOD = 0
    DROP = 1
    PARK = 2

    AVAIL_INDEX = -1
    HEAD_INDEX = -2
    NEXT_INDEX = -3
    CHAIN_LOOP = -4
    BAD_INDIRECT = -5
    VANISHED = -6
    UNPLACED = -7
    UNPOSITIONED = -8

    LOG_PAGE_SHIFT = 12

    KICKS = 0
    CALLS = 1
    CALLS_SUPPRESSED = 2
    CHAINS = 3
    CHAINS_DROPPED = 4
    RING_COUNTERS = 5

    AT_SLEEP = 0
    AT_WAKE = 1
    AT_KICK = 2
    AT_PORT = 3
    AT_SENT = 4
    AT_RECEIVED = 5
    AT_CALL = 6
    AT_CALLED = 7
    AT_NO_CALL = 8

    BUDGET = 256
    POLL_MS = 1
    POLL_PATIENCE = 8
    POLL_MS_MAX = 16

    WORK = 1
    PORT_IN = 2
    PORT_OUT = 4
    EVENT = 8
    KICK = 16
