"""Runs a command as a container runtime would that refuses io_uring: no_uring.py COMMAND..."""

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_LESS_ELSE, RETURN = 0x20, 0x35, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
FIRST, LAST = 425, 427  # io_uring_setup, _enter and _register, on every architecture

# Load the call's number; below FIRST or above LAST it is allowed.
program = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in [
        (LOAD, 0, 0, 0),
        (JUMP_IF_LESS_ELSE, 0, 2, FIRST),
        (JUMP_IF_LESS_ELSE, 1, 0, LAST + 1),
        (RETURN, 0, 0, EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
)
memory = ctypes.create_string_buffer(program)


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]


libc = ctypes.CDLL(None, use_errno=True)
loaded = Filter(len(program) // 8, ctypes.addressof(memory))
for call in [(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0)]:
    if libc.prctl(*call):
        raise OSError(ctypes.get_errno(), "prctl")
os.execvp(sys.argv[1], sys.argv[1:])
