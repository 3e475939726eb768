"""Confines the process that runs programs a model wrote.

| what | keeps from | needs |
|---|---|---|
| seccomp | network, other processes, privileges | any Linux on x86-64 or aarch64 |
| Landlock | all files but a few libraries | Linux 5.13, also in a container |
| namespaces | all files, as above, and gives a `/tmp`; seeing processes | root, or user namespaces |
| limits | CPU time, memory, threads, size of files | |

Seccomp is a must, and one of Landlock and namespaces; where both are to be had, both are used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import sysconfig
from collections.abc import Collection

from judges.sandbox import landlock, namespaces, seccomp

NOBODY = 65534
SCRATCH_BYTES = 16 << 20
_DIE_WITH_PARENT = 1


def readable() -> list[str]:
    """The standard library and the shared libraries of the system."""
    own = [sysconfig.get_paths()["stdlib"], sysconfig.get_config_var("LIBDIR") or ""]
    found = {*own, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"}
    return sorted(path for path in found if os.path.isdir(path))  # a directory before what is in it


def confine(without: Collection[str] = ()) -> list[str]:
    """Confines this process, all but for seccomp; returns what could not be had, with the reasons.

    As root it becomes nobody, or loses root's powers. Where it got namespaces it is in a child process from here on,
    while the parent waits.

    Args:
        without: `landlock`, `namespaces`: to be left out, for tests.
    """
    missing, files = [], readable()
    die_with_parent()
    scratch: list[str] = []
    root = os.geteuid() == 0
    try:
        if "namespaces" in without:
            raise OSError("namespaces: left out")
        namespaces.enter(files, SCRATCH_BYTES)
        scratch = [namespaces.SCRATCH]
        _fork()  # the first process of the PID namespace, with which all others end
        die_with_parent()
        _fork()  # which is not the first: that one is spared by signals such as the timer's of the parser
    except (OSError, StopIteration) as error:
        missing.append(str(error.strerror if isinstance(error, OSError) and error.strerror else error))
    if root and _readable_by_nobody():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    else:
        _drop_capabilities()
    die_with_parent()
    try:
        if "landlock" in without:
            raise OSError("Landlock: left out")
        landlock.restrict(files, [*scratch, *namespaces.DEVICES])
    except OSError as error:
        missing.append(str(error.strerror or error))
    if not seccomp.supported():
        missing.append("seccomp: not known on this machine")
    return missing


def sufficient(missing: Collection[str]) -> bool:
    """Whether what is left out still confines."""
    kinds = {reason.partition(":")[0] for reason in missing}
    return not (kinds - {"Landlock", "namespaces"}) and len(kinds) < 2


def die_with_parent() -> None:
    """To be killed when the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _fork() -> None:
    """Goes on in a child, for whose end the parent waits, and ends as it did."""
    pid = os.fork()
    if pid:
        for descriptor in (0, 1):
            os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(status if status >= 0 else 128 - status)


def _readable_by_nobody() -> bool:
    """Whether Python's library is: root may have it for itself, and without namespaces nobody would find it then."""
    os.seteuid(NOBODY)
    found = os.access(os.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    return found


def _drop_capabilities() -> None:
    """Those of root, or that a user namespace gave."""
    with contextlib.suppress(OSError):
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, nothing)
