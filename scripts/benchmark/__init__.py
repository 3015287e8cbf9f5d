"""The benchmark: this back-end and its peers, measured in turn on one machine. Runs as ``scripts/bench``.

Absolute rates drift on shared machines, so every figure comes with those of the peers from the same minute: round by
round, each contender once (A B C A B C ..., never all of A first), and ratios are taken within a round. Contenders get
the same frames from the same driver, on the same cores, and are counted by the kernel and by the driver, never by
themselves.

    runs        what a measurement is, and running its contenders in turn
    subjects    the contenders: our back-end, DPDK's, the kernel's limit
    observe     what the kernel knows about a link and a process
    programs    the C programs: a load and the kernel's limit
    frames      packets a second, both ways, small and of 64 KiB; queue pairs
    narrow      DPDK's back-end for user-mode Linux
    guests      TCP and round trips with a real guest; what an idle one costs
    start       time to the first packet
    growth      many guests in one process
    revision    another revision of this repository as a contender
    machine     where it was measured
    report      JSON, tables, the README's block
    plots       the same as pictures
"""
