"""A machine of its own for a process: no network, no other processes, and a root with a few libraries in it.

By Linux namespaces: as root directly, else within a user namespace, where the system allows that. See namespaces(7),
user_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = (
    0x1, 0x2, 0x4, 0x8, 0x20, 0x1000, 0x4000, 0x40000,
)  # fmt: skip
_DETACH = 2
_KEPT = _NO_SUID | _NO_DEVICES | _NO_EXEC | 0x400 | 0x800  # with noatime, nodiratime: flags that may be locked
_PLACES = ("/mnt", "/media", "/srv", "/run", "/tmp", "/var")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
SCRATCH = "/tmp"
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def enter(readable: Sequence[str], scratch_bytes: int) -> None:
    """Moves this process there; what it starts from now on sees no processes but those that the first of them starts.

    Args:
        readable: directories that are there, read-only.
        scratch_bytes: what fits into its `/tmp`.

    Raises:
        OSError: the system does not allow it. The process is then where it was, or in namespaces that make no
            difference to it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments) < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, f"namespaces: {function}: {os.strerror(errno)}")

    def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind, options)]
        call("mount", *words[:3], ctypes.c_ulong(flags), words[3])

    user, group = os.geteuid(), os.getegid()
    own = 0 if user == 0 else _NEW_USER
    call("unshare", ctypes.c_int(own | _NEW_MOUNTS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS))
    if own:
        for name, text in {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount("none", "/", None, _RECURSIVE | _PRIVATE)
    paths = [os.path.realpath(path) for path in readable]
    root = next(
        place
        for place in _PLACES
        if os.path.isdir(place) and not any(path.startswith(f"{place}/") for path in [*paths, *readable])
    )
    mount("none", root, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    for path in readable:
        target = root + path
        if os.path.islink(path):  # `/lib` is one to `usr/lib` on many systems
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.path.realpath(path), target)
        elif os.path.isdir(path) and not os.path.exists(target):
            os.makedirs(target)
            _bind(mount, path, target)
    os.makedirs(f"{root}/dev")
    for path in DEVICES:
        open(root + path, "w").close()
        mount(path, root + path, None, _BIND)
    os.mkdir(root + SCRATCH)
    mount(
        "none",
        root + SCRATCH,
        "tmpfs",
        _NO_SUID | _NO_DEVICES | _NO_EXEC,
        f"mode=777,size={scratch_bytes},nr_inodes=1k",
    )
    os.chdir(root)
    call("syscall", ctypes.c_long(_PIVOT_ROOT[os.uname().machine]), b".", b".")
    call("umount2", b".", ctypes.c_int(_DETACH))
    os.chdir(SCRATCH)
    mount("none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    call("unshare", ctypes.c_int(_NEW_PIDS))  # last: after it, the end of the first process that is started ends all


def _bind(mount: object, path: str, target: str) -> None:
    """Read-only; a user namespace may not take back what the mount is restricted by already."""
    assert callable(mount)
    mount(path, target, None, _BIND)
    mount(
        path, target, None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES | os.statvfs(target).f_flag & _KEPT
    )
