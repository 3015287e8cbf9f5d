"""Becomes a program for which the processor has the old registers alone: ``small_registers.py PROGRAM ARGUMENT...``.

User-mode Linux 6.1 keeps the vector registers of its processes in a place that is too small on a processor with AMX,
whose kernel sets all of them or none: the first process dies. Where PTRACE_GETREGSET does not work for them it takes
older calls, which know the registers up to SSE. What runs in the guest must then not use any others.

A script, not a module of the package: nothing is imported that is not needed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
PTRACE, GETREGSET, NT_X86_XSTATE = 101, 0x4204, 0x202
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF
NUMBER, ARGUMENTS = 0, 16  # offsets in struct seccomp_data
ALLOW, FAIL = 0x7FFF0000, 0x00050000

FILTER = (
    (LOAD, 0, 0, NUMBER),
    (JUMP_IF_EQUAL, 0, 5, PTRACE),
    (LOAD, 0, 0, ARGUMENTS),
    (JUMP_IF_EQUAL, 0, 3, GETREGSET),
    (LOAD, 0, 0, ARGUMENTS + 2 * 8),
    (JUMP_IF_EQUAL, 0, 1, NT_X86_XSTATE),
    (RETURN, 0, 0, FAIL | errno.EINVAL),
    (RETURN, 0, 0, ALLOW),
)


#: For the command line of the guest's kernel, which hands it on to its programs.
NOTHING_ABOVE_SSE = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load"


def needed() -> bool:
    """Whether this processor has more registers than user-mode Linux 6.1 has room for."""
    return " amx_tile" in Path("/proc/cpuinfo").read_text()


def main() -> None:
    """Install the filter, which a program keeps that takes our place."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in FILTER))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(FILTER), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), f"prctl {call[0]}: {os.strerror(ctypes.get_errno())}")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
