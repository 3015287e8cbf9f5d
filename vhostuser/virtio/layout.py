"""Numbers that the ring modules share: the virtio specification's, and our own limits.

``layout.pxd`` is the compiled edition: the same names as C constants, so that a loop without the GIL can use them.
"""

# descriptor flags, virtio 1.2 section 2.7.5
DESC_NEXT = 1
DESC_WRITE = 2
DESC_INDIRECT = 4
# and the two of a packed ring's wrap counters, section 2.8.1
DESC_AVAIL = 1 << 7
DESC_USED = 1 << 15
WRAP = 1 << 15  #: the wrap counter beside a slot's number, in positions and event suppression
# flags of a packed ring's event suppression structures, section 2.8.10
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2
# avail.flags and used.flags, sections 2.7.6 and 2.7.8
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

# what translating a guest address may answer besides a number of iovecs
FAULT = -1  #: it is nowhere
MISS = -2  #: it is not known yet: ask the front-end
FULL = -3  #: more pieces than the caller has room for

# what an IOMMU allows, as IOTLB messages have it
IOMMU_READ = 1
IOMMU_WRITE = 2
# what a ring has to ask the front-end
ASK_NOTHING = 0
ASK_TRANSLATION = 1  #: where an address is
ASK_DENIED = 2  #: nothing: tell it that the driver used an address in a way that is not allowed

BURST = 64  #: chains a burst holds; larger bursts measured no faster
SEGMENTS = 1000  #: iovecs of one chain: a readv takes 1024 (UIO_MAXIOV), less what a device adds
POOL = 3072  #: iovecs of a burst; one of usual chains fits whole
TABLE = 32768  #: descriptors of the largest indirect table: the largest ring, section 2.7.5.3.1

# what a device expects of a ring's buffers
READABLE = 0
WRITABLE = 1
EITHER = 2

# how one chain came out; below zero it broke the ring
GOOD = 0
DROP = 1  #: badly built but harmless: give it back unused
PARK = 2  #: not translated yet: leave it in the ring

# why a ring is broken
AVAIL_INDEX = -1
HEAD_INDEX = -2
NEXT_INDEX = -3
CHAIN_LOOP = -4
BAD_INDIRECT = -5
VANISHED = -6
UNPLACED = -7
UNPOSITIONED = -8

LOG_PAGE_SHIFT = 12  #: a page of the dirty log, always 4096 bytes

# counters of a ring
KICKS = 0
CALLS = 1
CALLS_SUPPRESSED = 2
CHAINS = 3
CHAINS_DROPPED = 4
RING_COUNTERS = 5

# what a moment of a timeline is, in the order of its names
AT_SLEEP = 0  #: the thread is about to wait
AT_WAKE = 1  #: the wait is over
AT_KICK = 2  #: a ring's kick was the reason, and is consumed
AT_PORT = 3  #: the port was the reason
AT_SENT = 4  #: the port has taken packets
AT_RECEIVED = 5  #: packets were read from the port
AT_CALL = 6  #: buffers are used, the driver is about to be signalled
AT_CALLED = 7  #: and was
AT_NO_CALL = 8  #: buffers are used, the driver wants no signal

BUDGET = 256  #: chains a direction may move before it is the other's turn
# how often rings without a kick descriptor are looked at, milliseconds: as seldom as the last line after two seconds
# without a chain, and as often as the first from the next chain on
POLL_MS = 1
POLL_PATIENCE = 8  #: looks in vain until the pause grows by a millisecond
POLL_MS_MAX = 16

# what a turn leaves to be done or waited for; a mask
WORK = 1  #: more work is ready
PORT_IN = 2  #: wait until the port can be read
PORT_OUT = 4  #: wait until the port can be written
EVENT = 8  #: something for the control side: a broken ring, a failed port, a chain for a Python device
KICK = 16  #: wait until the driver adds buffers
