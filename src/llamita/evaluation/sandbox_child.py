"""What the child of sandbox.py does: it shuts itself in, and only then takes the program.

It is run as a file by an interpreter that has nothing of llamita, so it imports the standard
library alone, and little of it: typing, json and pathlib would take longer than all the rest.
On its standard input come the length of a header in 8 digits, the header (marshal), the program,
and a secret; the secret stays in the pipe until the program has ended. On its standard output go
`refused` and why, or `ready`, and then the secret, or what `run` says went wrong.
"""

# ruff: noqa: PTH103, PTH112, PTH120, PTH123

from __future__ import annotations

import ctypes
import marshal
import os
import sys
from types import ModuleType

TYPE_CHECKING = False  # typing takes 10 ms to import
if TYPE_CHECKING:
    from typing import Any

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/landlock.h
_NEW_USER, _NEW_OTHERS = 0x10000000, 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 1 << 12, 1 << 14, 1 << 18
_RELATIME = 1 << 21
_DETACH = 2
_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVS = 1, 22, 38
_SIGKILL = 9
_READ, _READ_DIR, _WRITE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
_REMOVE_AND_MAKE = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8  # remove directory, file; make directory, file
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
# numpy's libraries would start threads, which is not allowed, and end the program.
_ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
_NULL, _NAME = "/dev/null", "<program>"


def main() -> None:
    read, write, leave = os.read, os.write, os._exit  # the program may put others in their place
    given, result, null = os.dup(0), os.dup(1), os.open(_NULL, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    header = marshal.loads(_take(given, int(_take(given, 8))))
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    sys.path += header["packages"]
    try:
        confine(header)
    except (OSError, ValueError) as error:
        write(result, f"refused {error}".encode())
        leave(1)
    write(result, b"ready\n")
    report = run(given, header["program"])
    write(result, read(given, 64) if report is None else report)
    leave(0)


def run(given: int, length: int) -> bytes | None:
    """Runs the program, so many bytes, to its end; `None` if it got there, else what stopped it:
    `failed` or `memory`, the line, a description."""
    module = ModuleType("program")  # not `__main__`: as lm-eval's judge runs it
    sys.modules[module.__name__] = module
    try:
        # No variable holds the text, where the program could read the tests that follow it.
        code = compile(
            _take(given, length).decode("utf-8", "surrogatepass"), _NAME, "exec", dont_inherit=True
        )
        exec(code, module.__dict__)
    except MemoryError:
        return b"memory 0 MemoryError"
    except BaseException as error:
        return f"failed {_line(error)} {_describe(error)}".encode("utf-8", "replace")
    return None


def _describe(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"{name}: the program ended before its tests had passed"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{name}: {text[:500]}" if text else name


def _line(error: BaseException) -> int:
    """The line of the program that was reached last, 0 if unknown."""
    found = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _NAME:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found or 0


def confine(header: dict[str, Any]) -> None:
    """Gives up, for good, all that the header's plan says.

    Raises:
        OSError: the kernel does not grant a layer; nothing may be run then.
    """
    plan, directory, readable = header["plan"], header["directory"], header["readable"]
    if plan["namespaces"]:
        _own_namespaces(new_user=plan["user"])
    if plan["mounts"]:
        _own_root(directory, readable)
        directory = _ROOM
    _limit(header["limits"])
    if plan["filter"]:
        _drop_capabilities()
        _call("prctl", _PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != header["parent"]:
            raise OSError("whoever started this has ended")
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    if plan["landlock"]:
        _landlock(readable, directory, writable=plan["mounts"])
    os.chdir(directory)
    if plan["filter"]:
        _filter(header["filter"])


def _take(given: int, count: int) -> bytes:
    """So many bytes of a pipe, and not one more."""
    found = b""
    while len(found) < count:
        found += (part := os.read(given, count - len(found)))
        if not part:
            raise EOFError("the parent has ended")
    return found


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library; integers are passed as long, as `syscall` and `prctl` take them.

    Raises:
        OSError: it returned -1.
    """
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found: int = getattr(_LIBRARY, name)(*passed)
    if found == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


_LIBRARY = ctypes.CDLL(None, use_errno=True)


def _own_namespaces(*, new_user: bool) -> None:
    """A network, names, messages and mounts of one's own; by way of a user namespace if need be."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEW_OTHERS | (_NEW_USER if new_user else 0))
    if new_user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


_ROOM = "/room-of-the-program"


def _own_root(root: str, readable: list[str]) -> None:
    """A root directory in memory, with nothing in it but `readable`, read-only, and a room to write
    in, which has a name of its own: what is readable may lie below /tmp."""
    _call("mount", None, b"/", None, _REC | _PRIVATE, None)
    room = root + _ROOM
    for place, size in ((root, b"size=1m,mode=755"), (room, b"size=16m,nr_inodes=1024,mode=755")):
        os.makedirs(place, exist_ok=True)
        _call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", _NOSUID | _NODEV, size)
    for path in readable:
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _call("mount", os.fsencode(path), os.fsencode(target), None, _BIND | _REC, None)
    # Each mount by itself, those below a bound one too: MS_RDONLY does not reach them.
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounted = [_unescaped(line.split(" ")[4]) for line in file]
    for target in mounted:
        if target != room and (target == root or target.startswith(f"{root}/")):
            # What a mount is restricted to may not be loosened, so it is said again.
            flags = os.statvfs(target).f_flag
            kept = flags & 0b1110 | flags & (1 << 10 | 1 << 11) | (_RELATIME if flags & 4096 else 0)
            _call("mount", None, os.fsencode(target), None, _REMOUNT | _BIND | _RDONLY | kept, None)
    os.chdir(root)
    _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/")


def _unescaped(field: str) -> str:
    """A field of mountinfo as it was: a space, say, is written there as a backslash and 040."""
    first, *others = field.split("\\")
    return first + "".join(chr(int(each[:3], 8)) + each[3:] for each in others)


def _limit(limits: dict[str, int]) -> None:
    import resource

    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:  # macOS has fewer
            continue
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def _drop_capabilities() -> None:
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("syscall", _CAPSET[os.uname().machine], version_3, (ctypes.c_uint32 * 6)())


def _landlock(readable: list[str], directory: str, *, writable: bool) -> None:
    """No file but these; of the rest of what Landlock knows (TCP, abstract sockets, signals to
    others), nothing. linux/landlock.h; its calls have the same numbers everywhere."""
    version = _call("syscall", 444, None, 0, 1)
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    network, scoped = 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0
    handled = (ctypes.c_uint64 * 3)(files, network, scoped)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _call("syscall", 444, handled, size, 0)
    for path in readable:
        allowed = _READ | _READ_DIR if os.path.isdir(path) else _READ
        _landlock_rule(rules, path, files & (allowed | (_WRITE if path == _NULL else 0)))
    allowed = _READ | _READ_DIR | (_WRITE | _TRUNCATE | _REMOVE_AND_MAKE if writable else 0)
    _landlock_rule(rules, directory, files & allowed)
    _call("syscall", 446, rules, 0)
    os.close(rules)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _landlock_rule(rules: int, path: str, allowed: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _call("syscall", 445, rules, 1, ctypes.byref(_PathBeneath(allowed, parent)), 0)
    os.close(parent)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter(instructions: bytes) -> None:
    program = _Program(len(instructions) // 8, instructions)
    _call("prctl", _SECCOMP, 2, ctypes.byref(program), 0, 0)


if __name__ == "__main__":
    main()
