"""The system calls that a confined process may make: an allow list for the kernel's seccomp filter.

What is not on the list fails with EPERM, as if the user had no right to it, so that a program gets an exception and not
a mysterious end. Not on it: sockets, starting processes (threads may be), signals to others, ptrace and the memory of
others, mounts, namespaces, io_uring, shared memory, keys, clocks, owners and modes of files, truncation but by a
file that is open for writing. Of fcntl only commands are that Python needs: by others the kernel sends a signal to any
process when a file can be read.

Source: Linux' Documentation/userspace-api/seccomp_filter.rst and include/uapi/linux/{seccomp,filter,audit}.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

# Numbers on x86-64 and, where the call exists there, on aarch64.
_CALLS = """
read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124,
mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -, nanosleep 35 101, getpid 39 172, exit 60 93, uname 63 160,
flock 73 32, fsync 74 82, fdatasync 75 83, ftruncate 77 46, getdents 78 -, getcwd 79 17,
chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, unlink 87 -, readlink 89 -, umask 95 166,
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174,
getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getpgid 121 155,
rt_sigpending 127 136, rt_sigtimedwait 128 137, sigaltstack 131 132, statfs 137 43, fstatfs 138 44, arch_prctl 158 -,
gettid 186 178, readahead 187 213, time 201 -, futex 202 98, sched_getaffinity 204 123, epoll_create 213 -,
getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21,
mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38, readlinkat 267 78, faccessat 269 48,
pselect6 270 72, ppoll 271 73, set_robust_list 273 99, epoll_pwait 281 22, fallocate 285 47, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, renameat2 316 276, getrandom 318 278,
statx 332 291, rseq 334 293, faccessat2 439 439, membarrier 324 283, close_range 436 436, getcpu 309 168,
copy_file_range 326 285, sendfile 40 71
"""
_CLONE, _CLONE3, _TGKILL, _IOCTL, _FCNTL, _OPENAT, _OPEN = {
    "x86_64": (56, 435, 234, 16, 72, 257, 2), "aarch64": (220, 435, 131, 29, 25, 56, -1),
}.get(platform.machine(), (-1,) * 7)  # fmt: skip
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_PRCTL_NO_NEW_PRIVILEGES, _PRCTL_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOTTY, _ENOSYS = 1, 25, 38
_CLONE_THREAD = 0x10000
# Commands of fcntl: duplicates and whether they are inherited, flags, locks. Neither an owner (8, 15), a signal (10), a
# lease (1024) nor a notice (1026).
_F_GETFL, _F_SETFL, _O_ASYNC = 3, 4, 0x2000
_FCNTL_COMMANDS = (0, 1, 2, _F_GETFL, 5, 6, 7, 36, 37, 38, 1030)
# Before version 3 Landlock lets a file be emptied that may be read, or that is opened for neither (access mode 3).
_O_TRUNC, _O_ACCMODE = 0x200, 3
# Offsets in struct seccomp_data, of little-endian low words: all that the kernel takes of these arguments.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06


def supported() -> bool:
    """Whether we have the numbers of this machine's system calls."""
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def install() -> None:
    """Confines this process, and what it starts, for good. To be called in a process with one thread.

    Raises:
        OSError: the kernel does not do it.
    """
    code = _filter(os.getpid())
    memory = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(memory)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    for what in ((_PRCTL_NO_NEW_PRIVILEGES, 1, 0), (_PRCTL_SECCOMP, _FILTER, ctypes.addressof(program))):
        if prctl(*what, 0, 0):
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")


def _filter(pid: int) -> bytes:
    """The filter's instructions; `pid` may send signals to itself."""
    column = 1 if platform.machine() == "x86_64" else 2
    calls = [entry.split()[column] for entry in _CALLS.replace("\n", "").split(",")]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in sorted(int(call) for call in calls if call != "-"):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, errno in ((_IOCTL, _ENOTTY), (_CLONE3, _ENOSYS)):  # for clone3 the C library then uses clone
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno)]
    commands = [
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        *(each for number in _FCNTL_COMMANDS for each in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW))),
        (_EQUAL, 0, 3, _F_SETFL),
        (_LOAD, 0, 0, _THIRD_ARGUMENT),
        (_ANY_BIT, 1, 0, _O_ASYNC),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
    code += [(_EQUAL, 0, len(commands), _FCNTL), *commands]
    for number, flags in ((_OPENAT, _THIRD_ARGUMENT), (_OPEN, _SECOND_ARGUMENT)):
        if number >= 0:  # aarch64 has no open
            code += [
                (_EQUAL, 0, 6, number),
                (_LOAD, 0, 0, flags),
                (_AND, 0, 0, _O_TRUNC | _O_ACCMODE),
                (_EQUAL, 2, 0, _O_TRUNC),
                (_EQUAL, 1, 0, _O_TRUNC | _O_ACCMODE),
                (_RETURN, 0, 0, _ALLOW),
                (_RETURN, 0, 0, _ERRNO | _EPERM),
            ]
    code += [
        (_EQUAL, 0, 4, _CLONE),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_EQUAL, 0, 3, _TGKILL),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, pid),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
