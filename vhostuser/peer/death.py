"""Why a process ended: what it printed last, and where it was, from its core and gdb where both can be had.

Must not know: vhost-user.

A death's *signature* is short, and the same each time that the same fault kills the same program: addresses differ from
run to run, so it has functions and distances from their beginnings, or from the beginning of the file. An assertion or
a sanitizer says better itself where it was.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

GDB_TIMEOUT = 60.0  # seconds; a large program's symbols take a few
_DEPTH = 12  # frames looked at
_LAST_LINES = 30

#: Where a fault shows that lies with the caller.
_LIBRARIES = ("libc.so", "libc_malloc_debug.so", "libglib-2.0.so", "libstdc++.so", "ld-linux")
_ASSERTION = re.compile(r"(?P<where>[\w.~-]+): Assertion `(?P<what>.*)' failed")
_GLIB = re.compile(r"ERROR:[^:]+:\d+:(?P<where>\w+): (?P<what>assertion failed.*|code should not be reached)")
_SANITIZER = re.compile(
    r"(?:ERROR|WARNING): (?P<tool>\w+Sanitizer): (?P<what>[\w-]+).*?#\d+ \S+ in (?P<where>\w+)", re.S
)
_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\):.*?\n(?P<last>\w[\w.]*(?:Error|Exception|Group)[^\n]*)", re.S
)
_PYTHON_FRAME = re.compile(r'File "[^"]*?(?P<file>[^/"]+)", line \d+,? in (?P<where>\w+)')
_PLACE = re.compile(r"^(.* in section .*|No symbol matches .*)\naddress ([0-9a-f]+)$", re.M)
_SYMBOL = re.compile(r"^(?P<name>\S+)(?: \+ (?P<distance>\d+))? in section")


@dataclass(frozen=True)
class Death:
    """How a process ended.

    Attributes:
        status: its exit status, or minus the number of the signal that killed it.
        frames: where it was, innermost first, each as far as it is known: ``function+distance`` or ``file+offset``.
        output: the last lines that it printed.
    """

    status: int
    frames: tuple[str, ...]
    output: str

    @property
    def by_signal(self) -> bool:
        """Whether a signal killed it."""
        return self.status < 0

    @property
    def cause(self) -> str:
        """The signal's name, or the exit status in words."""
        if not self.by_signal:
            return f"exit status {self.status}"
        try:
            return signal.Signals(-self.status).name
        except ValueError:
            return f"signal {-self.status}"

    @property
    def signature(self) -> str:
        """What is the same whenever the same fault kills it. Where it was matters for a signal alone."""
        place = _told(self.output) or " < ".join(self.frames[:1]) or ("place unknown" if self.by_signal else "")
        return f"{self.cause}: {place}" if place else self.cause

    def __str__(self) -> str:
        return "\n".join([self.signature, *(f"  at {frame}" for frame in self.frames), self.output]).rstrip()


def explain(status: int, output: str, core: Path | None, program: Path) -> Death:
    """Say how a process ended.

    Args:
        status: as :attr:`Death.status`.
        output: all that it printed.
        core: its memory as the kernel kept it, if it did.
        program: the file that it ran.
    """
    frames = _frames(core, program) if core is not None and shutil.which("gdb") else ()
    return Death(status, frames, "\n".join(output.splitlines()[-_LAST_LINES:]))


def _told(output: str) -> str:
    """What the program itself said of its end."""
    if found := _SANITIZER.search(output):
        return f"{found['tool']} {found['what']} in {found['where']}"
    if found := _ASSERTION.search(output):
        return f"assertion `{found['what']}' in {found['where']}"
    if found := _GLIB.search(output):
        return f"{found['what']} in {found['where']}"
    if found := _TRACEBACK.search(output):
        places = _PYTHON_FRAME.findall(found[0])
        return f"{found['last'].partition(':')[0]} in {places[-1][1] if places else '?'}"
    return ""


def _frames(core: Path, program: Path) -> tuple[str, ...]:
    """Ask gdb where the faulting thread was; nothing if it does not say."""
    each = ("info symbol $pc", 'printf "address %lx\\n", (unsigned long)$pc', "up")
    told = _gdb(core, program, *each * _DEPTH, "info proc mappings")
    names: dict[str, None] = {}  # at the outermost frame `up` stays where it is
    for symbol, address in _PLACE.findall(told):
        file = _in_file(told, int(address, 16))
        if names or not file.startswith(_LIBRARIES):
            found = _SYMBOL.match(symbol)
            names[f"{found['name']}+{found['distance'] or 0}" if found else file] = None
    return tuple(name for name in names if name)


def _in_file(told: str, address: int) -> str:
    """The mapped file that an address lies in, and how far from its beginning; empty for none."""
    for line in told.splitlines():
        words = line.split()
        if len(words) >= 5 and words[0].startswith("0x") and int(words[0], 16) <= address < int(words[1], 16):
            return f"{Path(words[-1]).name}+{address - int(words[0], 16) + int(words[3], 16):#x}"
    return ""


def _gdb(core: Path, program: Path, *commands: str) -> str:
    asked = [word for command in commands for word in ("-ex", command)]
    words = ["gdb", "-batch", "-nx", *asked, str(program), str(core)]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GDB_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout
