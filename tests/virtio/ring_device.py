"""A device's side of a virtqueue in a process of its own; ``ring_driver.c`` is the other one.

It is the pump of a disabled transmit ring, which uses chains and throws them away. Reads one JSON object from the
command line, says "ready" and where its code is, runs until its standard input ends, and prints the counters.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import vhostuser
from vhostuser.devices.net.pump import NetPump
from vhostuser.virtio.memory import GuestMemory, Mapping


def main() -> None:
    """Be the device until the standard input ends."""
    told = json.loads(sys.argv[1])
    memory = GuestMemory([Mapping(os.dup(told["memfd"]), 0, told["size"], 0, 0)])
    pump = NetPump(0, told["features"])
    ring = pump.tx
    ring.configure(told["num"], tuple(told["areas"]), told["event_idx"], False)
    ring.adopt(memory)
    ring.set_kick(told["kick"])
    ring.set_call(told["call"])
    ring.start(0)
    thread = threading.Thread(target=pump.run)
    thread.start()
    print("ready", *vhostuser.__path__, flush=True)
    sys.stdin.read()
    pump.wake()
    thread.join()
    print(json.dumps(pump.counters()))
    pump.close()
    memory.close()


if __name__ == "__main__":
    main()
