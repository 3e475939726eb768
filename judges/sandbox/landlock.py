"""The files that a confined process may open: a Landlock rule set, which needs no privilege.

Source: Linux' Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_EXECUTE, _WRITE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REGULAR, _REFER, _TRUNCATE = (
    1 << 4,
    1 << 5,
    1 << 7,
    1 << 8,
    1 << 13,
    1 << 14,
)
_RIGHTS = (13, 14, 15, 15, 16)  # file-system rights that are known by version 1, 2, 3, 4 and 5
READ = _EXECUTE | _READ_FILE | _READ_DIR
WRITE = READ | _WRITE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REGULAR | _REFER | _TRUNCATE
_OF_A_FILE = _EXECUTE | _WRITE | _READ_FILE | _TRUNCATE


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Only what lies beneath these paths can be opened from now on; those that are not there are left out.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(system_call: int, *arguments: object) -> int:
        result = int(libc.syscall(ctypes.c_long(system_call), *arguments))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"Landlock: {os.strerror(number)}")
        return result

    version = call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    handled = (1 << _RIGHTS[min(version, len(_RIGHTS)) - 1]) - 1
    attributes = struct.pack("Q", handled)
    rules = call(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for paths, rights in ((readable, READ), (writable, WRITE)):
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            allowed = rights & handled & (-1 if os.path.isdir(path) else _OF_A_FILE)
            call(
                _ADD,
                ctypes.c_int(rules),
                ctypes.c_int(_PATH_BENEATH),
                struct.pack("=Qi", allowed, place),
                ctypes.c_uint(0),
            )
            os.close(place)
    if libc.prctl(ctypes.c_int(_NO_NEW_PRIVILEGES), *map(ctypes.c_ulong, (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), "Landlock: no_new_privs")
    call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)
