"""User-mode Linux as the front-end: a Linux kernel in a process, with a vhost-user driver of its own.

It connects to a back-end that already listens, sends need_reply with everything, passes sockets rather than eventfds as
call descriptors, and needs a back-end that offers BACKEND_REQ.
"""

from __future__ import annotations

import os
import pty
import sys
import tempfile
import tty
from pathlib import Path

from tests.rig import small_registers
from tests.rig.agent import Agent, GuestJob
from tests.rig.image import GuestImage
from tests.rig.netns import parse_snmp
from tests.rig.process import Program, RigError
from tests.rig.qemu import BOOT_TIMEOUT, configure_guest
from vhostuser.fds import Closing

#: The virtio device id of a network card, which user-mode Linux wants beside the socket.
NETWORK_DEVICE = 1


class Uml(Closing):
    """A running user-mode Linux.

    Attributes:
        program: its process (with helper processes of its own as children).
        agent: runs commands in the guest.
    """

    def __init__(self, image: GuestImage, socket: Path, *, memory: int = 192) -> None:
        """Start it against the back-end at ``socket`` and wait for the guest's agent.

        Raises:
            RigError: it ended, or the guest did not come up.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-uml-")
        small = small_registers.needed()
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        self.agent = Agent(ours)
        self.program = Program(
            [
                # it starts helper processes that outlive it; in a process namespace they end with it
                *("unshare", "--pid", "--fork", "--kill-child"),
                *((sys.executable, small_registers.__file__) if small else ()),
                *(image.uml, f"mem={memory}M", f"initrd={image.initramfs}", "quiet", "console=tty0"),
                *("con=null", "con0=null,fd:1", "ssl=null", f"ssl1=tty:{os.ttyname(theirs)}"),
                f"virtio_uml.device={socket}:{NETWORK_DEVICE}",
                *((small_registers.NOTHING_ABOVE_SSE,) if small else ()),
            ],
            Path(self._folder.name) / "console.log",
            # guest memory is a file there, which must allow executable mappings
            env={"TMPDIR": "/dev/shm"},
            # it spins when its standard input is at the end
            keep_stdin=True,
        )
        try:
            self.agent.wait_ready(BOOT_TIMEOUT)
        except RigError as error:
            failure = self.program.failure(str(error))
            self.close()
            raise failure from None
        finally:
            os.close(theirs)

    def run(self, command: str, timeout: float = 60.0) -> str:
        """Run a shell command in the guest. Raises RigError when it fails."""
        return self.agent.run(command, timeout)

    def start(self, command: str) -> GuestJob:
        """Start a shell command in the background of the guest."""
        return self.agent.start(command)

    def configure(self, address: str, link: str = "eth0") -> None:
        """Give the guest's card an address (with prefix length) and bring it up."""
        configure_guest(self.agent, address, link)

    def snmp(self, protocol: str, counter: str) -> int:
        """One counter of the guest's /proc/net/snmp."""
        return parse_snmp(self.run("cat /proc/net/snmp"), protocol, counter)

    def close(self) -> None:
        """End it and the processes that it started."""
        self.program.kill()
        self.agent.close()
        self._folder.cleanup()
