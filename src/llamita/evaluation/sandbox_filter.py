"""Which system calls a confined program may make: a seccomp filter, as the kernel reads it.

A list of what is allowed, so that what a later kernel adds stays shut. There is no call in it that
opens a connection, makes a process or a thread, runs a file, signals, traces or limits another
process, changes an owner, a mode or a mount, or makes memory that RLIMIT_AS does not count.

Instructions are struct sock_filter of linux/filter.h; what they read is struct seccomp_data of
linux/seccomp.h: the number at byte 0, the architecture at 4, six arguments of 8 bytes from 16 on.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

# By linux/audit.h. The numbers of calls are from asm/unistd_64.h and asm-generic/unistd.h.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: its number on x86_64, and on aarch64; None where there is no such call.
_Numbers = tuple[int | None, int | None]
_ALLOWED: dict[str, _Numbers] = {
    # files: what may be opened is for Landlock and the mounts to say
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "stat": (4, None),
    "lstat": (6, None),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "copy_file_range": (326, 285),
    "sendfile": (40, 71),
    "umask": (95, 166),
    "pipe": (22, None),
    "pipe2": (293, 59),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    # signals to oneself, time, waiting
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "wait4": (61, 260),
    "waitid": (247, 95),
    # asking who and where one is
    "getrandom": (318, 278),
    "getcpu": (309, 168),
    "sched_getaffinity": (204, 123),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getpgid": (121, 155),
    "getpgrp": (111, None),
    "getsid": (124, 156),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # a pair of connected sockets, which asyncio's loop wakes itself with; see _CHECKED
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
}

# Where a program has a directory that it may write to.
_NAMES: dict[str, _Numbers] = {
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
}

_OPEN: _Numbers = (2, None)
_OPENAT: _Numbers = (257, 56)
_WRITING = 0o3 | 0o100 | 0o1000  # O_ACCMODE, O_CREAT, O_TRUNC, of both architectures

_AF_UNIX, _SOCK_STREAM = 1, 1
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. F_SETOWN is not among them: with
# O_ASYNC it has the kernel signal any process of the user's.
_FCNTL = (0, 1, 2, 3, 4, 1030)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: none acts on a terminal or a device.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


@dataclass(frozen=True)
class _Check:
    """Holds if the argument, 0 to 5, is one of `values` after `mask`. 32 bits are compared, the
    upper ones of a pointer if `upper`; of ints the kernel reads no more."""

    argument: int
    values: Sequence[int]
    mask: int | None = None
    upper: bool = False


def can_filter(machine: str) -> bool:
    """Whether the calls of this architecture, by `os.uname().machine`, are known here."""
    return machine in _ARCHITECTURES


def system_call_filter(
    machine: str, pid: int, *, opens_to_write: bool, changes_names: bool
) -> bytes:
    """The filter for one process, an array of struct sock_filter.

    What is not allowed fails with EPERM; with ENOSYS from number 424 on (Linux 5.1), where the C
    library then tries an older call. A call of a foreign architecture ends the process.

    Args:
        machine: see `can_filter`.
        pid: of the process, which may signal itself.
        opens_to_write: whether a file may be opened to be written.
        changes_names: whether files may be made, renamed and deleted.
    """
    column = list(_ARCHITECTURES).index(machine)
    opening = [] if opens_to_write else [_WRITING]
    checked: list[tuple[_Numbers, list[_Check]]] = [
        (_OPEN, [_Check(1, (0,), mask) for mask in opening]),
        (_OPENAT, [_Check(2, (0,), mask) for mask in opening]),
        ((62, 129), [_Check(0, (pid,))]),  # kill
        ((234, 131), [_Check(0, (pid,))]),  # tgkill
        ((200, 130), [_Check(0, (pid,))]),  # tkill
        ((302, 261), [_Check(0, (0,))]),  # prlimit64: of itself
        ((72, 25), [_Check(1, _FCNTL)]),  # fcntl
        ((16, 29), [_Check(1, _IOCTL)]),  # ioctl
        ((53, 199), [_Check(0, (_AF_UNIX,)), _Check(1, (_SOCK_STREAM,), 0xF)]),  # socketpair
        ((44, 206), [_Check(4, (0,)), _Check(4, (0,), upper=True)]),  # sendto: to no address
    ]
    allowed = {**_ALLOWED, **(_NAMES if changes_names else {})}
    program = [
        _load(4),
        _jump(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _end(_KILL_PROCESS),
        _load(0),
    ]
    if machine == "x86_64":  # the x32 calls bear the architecture of x86_64, and this bit
        program += [_jump(_AT_LEAST, 0x40000000, 0, 1), _end(_KILL_PROCESS)]
    for numbers in allowed.values():
        if (number := numbers[column]) is not None:
            program += [_jump(_EQUAL, number, 0, 1), _end(_ALLOW)]
    for numbers, checks in checked:
        if (number := numbers[column]) is not None:
            block = [each for check in checks for each in _checked(check)] + [_end(_ALLOW)]
            program += [_jump(_EQUAL, number, 0, len(block)), *block]
    program += [_jump(_AT_LEAST, 424, 0, 1), _end(_ERRNO | 38), _end(_ERRNO | 1)]
    return b"".join(program)


_EQUAL, _AT_LEAST = 0x15, 0x35  # BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JGE | BPF_K
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def _instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _load(offset: int) -> bytes:
    return _instruction(0x20, 0, 0, offset)  # BPF_LD | BPF_W | BPF_ABS


def _jump(code: int, value: int, yes: int, no: int) -> bytes:
    return _instruction(code, yes, no, value)


def _end(action: int) -> bytes:
    return _instruction(0x06, 0, 0, action)  # BPF_RET | BPF_K


def _checked(check: _Check) -> list[bytes]:
    """Goes on to what follows if the check holds, and else ends with EPERM."""
    found = [_load(16 + 8 * check.argument + 4 * check.upper)]  # both are little-endian
    if check.mask is not None:
        found.append(_instruction(0x54, 0, 0, check.mask))  # BPF_ALU | BPF_AND | BPF_K
    for place, value in enumerate(check.values):
        found.append(_jump(_EQUAL, value, len(check.values) - place, 0))
    return [*found, _end(_ERRNO | 1)]
