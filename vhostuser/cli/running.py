"""Serving guests until SIGTERM or SIGHUP: each has a device, an endpoint and a server of its own, in one Trio program.

At the start all of them must be there, or none is served; then the program gives up every privilege that none of them
needs any more. Later each ends alone: its session at its front-end's fault, itself when its port fails. The program
ends when none is left, or on such a signal.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from vhostuser import edition
from vhostuser.device import Device
from vhostuser.errors import PortError, VhostUserError, first_of
from vhostuser.fds import OwnedFd
from vhostuser.limits import STANDARD, Limits
from vhostuser.privileges import NOTHING, Capability, User, drop
from vhostuser.runtime.groups import allow_interrupts
from vhostuser.runtime.serve import Server
from vhostuser.transport.access import ANYBODY, Access
from vhostuser.transport.endpoints import Connector, Endpoint, from_fd, listen
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.userfault import open_source

log = logging.getLogger("vhostuser")

#: Moments that --timeline keeps of each queue group: some thousand round trips.
MOMENTS = 1 << 16


@dataclass(frozen=True)
class Guest:
    """What it takes to serve one guest.

    Attributes:
        name: for messages.
        make: opens the device.
        socket_path, fd: where the front-end is; one of them.
        client: connect to the path rather than listen.
        access: who may connect, or be connected to.
        limits: what a front-end may take.
        counters: the file to write counters to.
        timeline: the file to write the last moments of each queue group to.
        audit_log: whether dirty logs are held against what was written.
        postcopy: whether to offer post-copy migration.
        inband: whether to offer kicks and calls as messages.
    """

    name: str
    make: Callable[[], Device]
    socket_path: str | None = None
    fd: int | None = None
    client: bool = False
    access: Access = ANYBODY
    limits: Limits = STANDARD
    counters: Path | None = None
    timeline: Path | None = None
    audit_log: bool = False
    postcopy: bool = False
    inband: bool = False

    async def endpoint(self) -> Endpoint:
        """Where its front-ends come from. Raises EndpointError."""
        if self.socket_path is None:
            assert self.fd is not None
            return from_fd(self.fd, self.limits, self.access)
        if self.client:
            return Connector(self.socket_path, self.limits, self.access)
        endpoint = await listen(self.socket_path, self.limits, self.access)
        log.info("listening on %s", self.socket_path)
        return endpoint

    def open_device(self) -> Device:
        """Its device. Raises PortError."""
        device = self.make()
        device.inband = self.inband
        if self.timeline is not None:
            device.record(MOMENTS)
        return device

    @property
    def capabilities(self) -> Capability:
        """What it takes to reach its front-end again: a listening one's socket may be another user's."""
        return Capability.DAC_OVERRIDE if self.client else NOTHING

    def check_reports(self) -> None:
        """Warn of files that could be written at the start only."""
        for option, path in (("--counters", self.counters), ("--timeline", self.timeline)):
            if path is not None and not os.access(path.parent, os.W_OK, effective_ids=True):
                log.warning("%s %s: cannot be written any more: folder of another user", option, path)

    @contextmanager
    def watch(self) -> Iterator[WriteWatch | None]:
        """What dirty logs are audited with, for as long as the block runs; None if they are not. Raises PortError."""
        if not self.audit_log:
            yield None
            return
        try:
            watch = WriteWatch()
        except OSError as error:
            raise PortError(f"--audit-log: {error.strerror}") from error
        with closing(watch):
            yield watch

    @contextmanager
    def userfaults(self) -> Iterator[OwnedFd | None]:
        """What makes userfaultfds, for as long as the block runs; None without post-copy. Raises PortError."""
        if not self.postcopy:
            yield None
            return
        if not edition.compiled():
            raise PortError("--postcopy: a page that is waited for would stop all of an interpreted data path")
        with open_source() as source:
            yield source

    def report(self, device: Device, server: Server) -> None:
        """Write the files that are asked for."""
        if self.counters is not None:
            _replace("--counters", self.counters, json.dumps(server.counters(), indent=1) + "\n")
        if self.timeline is not None:
            _replace("--timeline", self.timeline, "".join(_lines(device)))


def _replace(option: str, path: Path, content: str) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    scratch = path.with_name(path.name + ".new")
    try:
        scratch.write_text(content)
        scratch.replace(path)
    except OSError as error:
        log.warning("%s %s: %s", option, path, error.strerror)


def _lines(device: Device) -> Iterator[str]:
    """A line of JSON for each moment of each queue group."""
    for group, timeline in enumerate(device.timelines):
        for moment in timeline.moments():
            yield json.dumps({"group": group, **moment._asdict()}) + "\n"


def run(guests: Sequence[Guest], verbose: int, user: User | None = None) -> None:
    """Serve guests until SIGTERM, as `user`; exits with status 1 and a sentence when that cannot be."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    log.setLevel(level)
    _check_edition()
    _allow_descriptors()
    allow_interrupts()
    try:
        trio.run(Program(guests, partial(_drop_privileges, user)).run)
    except* VhostUserError as errors:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {first_of(errors)}") from None


def _check_edition() -> None:
    if edition.compiled():
        return
    if os.environ.get("VHOSTUSER_REQUIRE_COMPILED") == "1":
        raise SystemExit(f"VHOSTUSER_REQUIRE_COMPILED is set, but the data path is {edition.name()}")
    log.warning("the data path is %s, which is several times slower than compiled", edition.name())


def _allow_descriptors() -> None:
    """Take all descriptors that we may have: a queue pair needs eleven, and shells give 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _drop_privileges(user: User | None, needed: Capability) -> None:
    """Keep what is needed, and not even that which only root has to be given: a user named is one that gets along."""
    if user is not None:
        needed &= ~int(Capability.DAC_OVERRIDE)
    kept = drop(Capability(needed), user)
    log.info("user %d, %s kept, no new privileges", os.getuid(), kept)


def _obeyed() -> list[signal.Signals]:
    """The signals that we obey. Who starts us with SIGHUP ignored, as nohup does, wants us to outlive a terminal."""
    ending = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    return [*ending, signal.SIGUSR1]


class Program:
    """Guests, and their servers.

    Args:
        guests: all of them are served, or none.
        prepared: called with what the guests need of the process from then on, when all of them are there.
    """

    def __init__(self, guests: Sequence[Guest], prepared: Callable[[Capability], None] | None = None) -> None:
        self._guests = guests
        self._prepared = prepared
        self._served: list[tuple[Guest, Device, Server]] = []
        self._complete = trio.Event()
        self._failure: VhostUserError | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or until no guest is left.

        Raises:
            EndpointError, PortError: a guest cannot be served from the start, or the last one that failed did.
        """
        with trio.open_signal_receiver(*_obeyed()) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals, nursery.cancel_scope)
                async with trio.open_nursery() as serving:
                    for guest in self._guests:
                        await serving.start(self._serve, guest)
                    self._prepare()
                    self._complete.set()
                    # Modules, tables and devices stay until the end. A collection that looks through them stops the
                    # event loop for 30 ms, and for 200 ms when it has to share its processor: too long for a reply.
                    gc.freeze()
                    log.info("serving %s", "one guest" if len(self._guests) == 1 else f"{len(self._guests)} guests")
                nursery.cancel_scope.cancel()
                if self._failure is not None:
                    raise self._failure

    def _prepare(self) -> None:
        if self._prepared is None:
            return
        needed = NOTHING
        for guest, device, _ in self._served:
            needed |= guest.capabilities | device.capabilities
        self._prepared(needed)
        for guest in self._guests:
            guest.check_reports()

    async def _serve(self, guest: Guest, task_status: trio.TaskStatus[None]) -> None:
        async with await guest.endpoint() as endpoint:
            with guest.watch() as watch, guest.userfaults() as userfaults:
                device = guest.open_device()
                server = Server(device, endpoint, watch, userfaults)
                self._served.append((guest, device, server))
                try:
                    task_status.started()
                    await self._complete.wait()
                    await server.run()
                except* VhostUserError as errors:
                    self._failed(guest, first_of(errors))
                finally:
                    self._served.remove((guest, device, server))
                    device.close()
                    guest.report(device, server)

    def _failed(self, guest: Guest, error: BaseException) -> None:
        assert isinstance(error, VhostUserError)
        self._failure = error
        if len(self._guests) > 1:
            log.error("%s is served no longer: %s", guest.name, error)

    async def _obey(self, signals: Any, scope: trio.CancelScope) -> None:
        async for number in signals:
            if number == signal.SIGUSR1:
                for guest, device, server in self._served:
                    guest.report(device, server)
            else:
                log.info("ended by %s", signal.Signals(number).name)
                scope.cancel()
