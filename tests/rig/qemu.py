"""QEMU as the front-end: a machine whose network card is a vhost-user device.

The guest's memory is a memfd that QEMU shares with the back-end. Commands go to the guest's agent over the second
serial port, machine events (memory hot-plug, reset) over QMP.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.rig.agent import Agent, GuestJob
from tests.rig.crash import check_crash
from tests.rig.image import GuestImage, cache_folder
from tests.rig.netns import Netns, parse_snmp
from tests.rig.process import Program, RigError, wait_until
from vhostuser.fds import Closing

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
GUEST_MAC = "52:54:00:76:68:02"

#: Seconds until the guest's agent answers; under emulation on a busy machine it takes about ten.
BOOT_TIMEOUT = 90.0
_MONITOR_TIMEOUT = 60.0  # seconds for an answer; on a machine that is busy with two guests it has taken more than 30


@dataclass(frozen=True)
class VhostUserNic:
    """A network card whose back-end is at ``socket``.

    Attributes:
        socket: the vhost-user socket.
        server: QEMU listens and the back-end connects.
        reconnect: seconds between QEMU's tries to connect again, 0 for none.
        queues: queue pairs.
        options: more properties of the device, for example ``disable-modern=on``.
        iommu: it is behind an emulated Intel IOMMU; the guest uses that with ``intel_iommu=on``.
    """

    socket: Path
    server: bool = False
    reconnect: int = 0
    queues: int = 1
    options: str = ""
    iommu: bool = False

    def arguments(self) -> list[str]:
        """QEMU's command line for it."""
        chardev = f"socket,id=nic,path={self.socket}"
        if self.server:
            chardev += ",server=on,wait=off"
        if self.reconnect:
            chardev += f",reconnect={self.reconnect}"
        # Debian 12's QEMU crashes under emulation when the driver of a vhost-user device uses MSI-X
        device = f"virtio-net-pci,netdev=net,mac={GUEST_MAC},vectors=0"
        if self.queues > 1:
            device += ",mq=on"
        if self.options:
            device += "," + self.options
        before: list[str] = []
        if self.iommu:
            # On the root bus it would have no ATS. Then a guest that invalidates lazily works on stale translations:
            # QEMU 7.2 tells of those only that it has seen itself.
            before = ["-device", "intel-iommu,device-iotlb=on", "-device", "pcie-root-port,id=downlink"]
            device += ",bus=downlink,iommu_platform=on,ats=on"
        netdev = f"vhost-user,id=net,chardev=nic,queues={self.queues}"
        return [*before, "-chardev", chardev, "-netdev", netdev, "-device", device]


@dataclass(frozen=True)
class VhostUserRng:
    """A random number generator whose back-end is at ``socket``."""

    socket: Path

    def arguments(self) -> list[str]:
        """QEMU's command line for it."""
        chardev = f"socket,id=rng,path={self.socket}"
        return ["-chardev", chardev, "-device", "vhost-user-rng-pci,chardev=rng,vectors=0"]


@dataclass(frozen=True)
class TapNic:
    """QEMU's own back-end on a tap, to prove the rig without ours and to compare with."""

    tap: str
    options: str = ""

    def arguments(self) -> list[str]:
        """QEMU's command line for it."""
        netdev = f"tap,id=net,ifname={self.tap},script=no,downscript=no,vhost=off"
        device = f"virtio-net-pci,netdev=net,mac={GUEST_MAC},vectors=0"
        return ["-netdev", netdev, "-device", device + (f",{self.options}" if self.options else "")]


class Qemu(Closing):
    """A running machine.

    Attributes:
        program: the QEMU process.
    """

    def __init__(
        self,
        image: GuestImage,
        devices: Sequence[VhostUserNic | VhostUserRng | TapNic],
        *,
        memory: float = 256,
        processors: int = 1,
        dimm_slots: int = 0,
        netns: Netns | None = None,
        name: str = "qemu",
        wait: bool = True,
        incoming: Path | None = None,
        kernel_words: str = "",
    ) -> None:
        """Start it and wait for the guest's agent.

        Args:
            image: what it boots.
            devices: its cards.
            memory: MiB.
            processors: virtual ones; the guest's driver uses as many queue pairs as it has processors.
            dimm_slots: how many DIMMs can be plugged in later.
            netns: where QEMU itself runs; only a :class:`TapNic` cares.
            name: for its files.
            wait: False to return at once, for a back-end that comes later; :meth:`attach` has to follow.
            incoming: listen there for a guest that migrates; :meth:`take_over` has to follow once it is here.
            kernel_words: more of the kernel's command line.

        Raises:
            RigError: QEMU ended, or the guest did not come up.
        """
        self._folder = tempfile.TemporaryDirectory(prefix=f"vhu-{name}-")
        self._home = folder = Path(self._folder.name)
        self._serial, self._monitor = folder / "agent.sock", folder / "qmp.sock"
        self.console = folder / "console.log"
        size = f"{memory}M" + (f",slots={dimm_slots},maxmem=4G" if dimm_slots else "")
        argv: list[str | Path] = [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none"),
            *accelerator(image),
            *("-machine", "q35,memory-backend=mem", "-smp", str(processors), "-m", size),
            *("-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on"),
            *("-kernel", image.kernel, "-initrd", image.initramfs, "-append", f"console=ttyS0 quiet {kernel_words}"),
            *("-serial", f"file:{self.console}"),
            *("-chardev", f"socket,id=agent,path={self._serial},server=on,wait=off", "-serial", "chardev:agent"),
            *("-qmp", f"unix:{self._monitor},server=on,wait=off"),
        ]
        for device in devices:
            argv += device.arguments()
        if incoming:
            argv += ["-incoming", f"unix:{incoming}"]
        self.program = Program(netns.argv(argv) if netns else argv, folder / "qemu.log", core_folder=folder)
        self._agent: Agent | None = None
        self._qmp: Monitor | None = None
        try:
            if incoming:
                self._qmp = Monitor(self._connect(self._monitor))
            elif wait:
                self.attach()
        except BaseException:
            self.close()
            raise

    def attach(self) -> None:
        """Connect to the guest's agent and to QEMU's monitor, and wait until the guest serves commands.

        Raises:
            RigError: QEMU ended, or the guest did not come up.
        """
        self._agent = Agent(self._connect(self._serial).detach())
        self._qmp = Monitor(self._connect(self._monitor))
        self.wait_ready()

    def take_over(self, source: Qemu) -> None:
        """Have the guest that came from another machine: its agent, and the jobs that run in it, come along."""
        self._agent, source._agent = source.agent, None
        self._agent.move(self._connect(self._serial).detach())

    @property
    def agent(self) -> Agent:
        """Runs commands in the guest."""
        assert self._agent is not None, "not attached"
        return self._agent

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor."""
        assert self._qmp is not None, "not attached"
        return self._qmp

    def _connect(self, path: Path) -> socket.socket:
        def attempt() -> socket.socket | None:
            stream = socket.socket(socket.AF_UNIX)
            try:
                stream.connect(str(path))
            except OSError:
                stream.close()
                return None
            return stream

        stream = self.program.wait_for(attempt, 20, f"{path.name}")
        assert stream is not None
        return stream

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the guest serves commands. Raises RigError with the end of its console."""
        try:
            self.agent.wait_ready(timeout)
        except RigError as error:
            console = self.console.read_text(errors="replace")[-2000:] if self.console.exists() else ""
            raise self.program.failure(f"{error}\nconsole: {console}") from None

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

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return what it returns. Raises RigError with QEMU's refusal."""
        return self.monitor.execute(command, arguments)

    def reset(self) -> None:
        """Reset the machine and wait until the guest serves commands again. Raises RigError."""
        self.qmp("system_reset")
        self.wait_ready()

    def plug_dimm(self, name: str, megabytes: int) -> None:
        """Plug in a DIMM and put it to use in the guest, for movable memory only so that it can be unplugged."""
        before = self._memory_blocks()
        self.qmp("object-add", qom_type="memory-backend-memfd", id=f"{name}-memory", size=megabytes * MIB, share=True)
        self.qmp("device_add", driver="pc-dimm", id=name, memdev=f"{name}-memory")
        wait_until(lambda: self._memory_blocks() > before, 20, f"the memory of {name} in the guest")
        self.run(
            "for block in /sys/devices/system/memory/memory*; do "
            "[ $(cat $block/state) = online ] || echo online_movable >$block/state; done"
        )

    def unplug_dimm(self, name: str) -> None:
        """Ask the guest for a DIMM back and remove it. Raises RigError when the guest keeps it."""
        self.qmp("device_del", id=name)
        self.monitor.wait_event("DEVICE_DELETED", name, 60)
        self.qmp("object-del", id=f"{name}-memory")

    def _memory_blocks(self) -> int:
        return int(self.run("ls -d /sys/devices/system/memory/memory* | wc -l"))

    def close(self) -> None:
        """End the machine, whatever the guest does. Harmless when it was closed already.

        Raises:
            CrashError: QEMU crashed, now or before; everything is closed nevertheless.
        """
        if not self._home.exists():
            return
        self.program.stop(5)
        if self._agent is not None:
            self._agent.close()
        if self._qmp is not None:
            self._qmp.close()
        self._agent = self._qmp = None
        with self._folder:
            check_crash(self.program, Path(shutil.which(QEMU) or QEMU), self._home)


class Pinned(NamedTuple):
    """One processor of a guest, whose packets leave by the queue pair of the same number."""

    guest: Qemu
    processor: int

    def start(self, command: str) -> GuestJob:
        """Start a shell command in the background, on this processor."""
        return self.guest.start(f"taskset -c {self.processor} {command}")


class Monitor:
    """The QMP connection: one JSON object a line, answers and events mixed."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._stream.settimeout(_MONITOR_TIMEOUT)
        self._lines = stream.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._next()  # the greeting
        self.execute("qmp_capabilities", {})

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """Run a command; ``_`` in a name of an argument becomes ``-``. Raises RigError."""
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        with suppress(BrokenPipeError):  # it died: what it had to say comes first, then the end
            self._stream.sendall(json.dumps({"execute": command, "arguments": words}).encode() + b"\n")
        while True:
            try:
                answer = self._next()
            except TimeoutError:
                raise RigError(f"QMP {command}: no answer in {_MONITOR_TIMEOUT:g} s") from None
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise RigError(f"QMP {command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_event(self, event: str, device: str, timeout: float) -> None:
        """Wait for an event about a device. Raises RigError."""
        self._stream.settimeout(timeout)
        while True:
            for known in self._events:
                if known["event"] == event and known.get("data", {}).get("device") == device:
                    self._events.remove(known)
                    return
            try:
                self._events.append(self._next())
            except TimeoutError:
                raise RigError(f"no {event} for {device} in {timeout:g} s") from None

    def _next(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionResetError:  # it died with our question unread
            line = b""
        if not line:
            raise RigError("QEMU closed its monitor")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._stream.close()


def configure_guest(agent: Agent, address: str, link: str = "eth0") -> None:
    """Give a guest's card an address (with prefix length), once its driver has found it, and bring it up."""
    agent.run(
        f"for i in $(seq 200); do [ -e /sys/class/net/{link} ] && break; usleep 20000; done; "
        f"ip addr add {address} dev {link} && ip link set {link} up"
    )


def accelerator(image: GuestImage) -> list[str]:
    """QEMU's words for the accelerator: KVM where it runs our kernel, else emulation.

    A machine may have /dev/kvm and still not run a stock kernel under it, so it is tried once and the answer is
    kept until the machine reboots.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return ["-accel", "tcg", "-cpu", "max"]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = cache_folder() / f"kvm-{boot}"
    if not answer.exists():
        answer.write_text("works" if _kvm_works(image) else "does not work")
    if answer.read_text() == "works":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg", "-cpu", "max"]


def _kvm_works(image: GuestImage) -> bool:
    """Whether a machine without devices reaches the guest's agent under KVM."""
    argv = [QEMU, "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-m", "256", "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", "quiet"]
    argv += ["-serial", "null", "-serial", "stdio"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tried:
        assert tried.stdout is not None
        agent = Agent(os.dup(tried.stdout.fileno()))
        try:
            agent.wait_ready(15)
        except RigError:
            return False
        else:
            return True
        finally:
            agent.close()
            tried.kill()
