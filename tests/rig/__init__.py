"""Real peers for the tests, the demo and the long acceptance runs.

Everything here starts programs that are not ours and knows nothing of how the back-end works inside: it sees a
command line, a socket, a tap and a counters file. All of it is plain blocking Python; each started program has one
owner that ends it by its process id.

    image     the guest: a Debian kernel, user-mode Linux and an initramfs, built once and cached
    process   started programs and waiting for what they do
    crash     where a program crashed
    netns     network namespaces, what the kernel counts in them, and frames in and out of a tap
    agent     running commands inside a guest
    qemu uml  machines whose network card is a vhost-user device
    testpmd   DPDK, as a front-end without a machine and as a back-end to compare with
    backend   our own program under test
    traffic   payload-checking traffic between guest and host
"""
