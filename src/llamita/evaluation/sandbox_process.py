"""The child process that a program is run in, and what is said of how it ended."""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llamita.evaluation.sandbox_filter import system_call_filter

Why = Literal["passed", "failed", "timeout", "memory"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
# -I but for the hash seed, so that a program that depends on a set's order is judged alike each
# time: the environment, which -E would have it ignore, is made here. -S saves 5 ms.
_PYTHON = (sys.executable, "-s", "-P", "-S", "-B", str(_CHILD))
START_SECONDS = 60.0  # it takes 0.05; this is for a machine that is busy
_MOST_RESULT = 16 * 1024
_MOST_PROGRAM = 4 * 1024 * 1024
# The libraries that the interpreter and its modules load, and what they ask the system.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom")


_LIMITS_TEXT = "time, memory, output, size and number of open files"


@dataclass(frozen=True)
class Outcome:
    """passed: the program reached its end. why: it did, or raised, ended early or was killed
    (failed), or used up its time or memory. detail: for people, as far as the program can be
    believed; "" if it passed."""

    why: Why
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.why == "passed"


@dataclass(frozen=True)
class Protection:
    """Which layers shut a program in.

    filter: seccomp's. landlock: rules on files, and more. mounts: a root directory of its own.
    namespaces: of network, mounts and so on. user: also one of users, which makes the others
    possible for who is not root.
    """

    filter: bool = False
    landlock: bool = False
    mounts: bool = False
    namespaces: bool = False
    user: bool = False

    @property
    def is_safe(self) -> bool:
        """Whether files and network are shut, and programs cannot be left behind."""
        return self.filter and (self.landlock or self.mounts)

    def lines(self) -> list[str]:
        """What is in force, a sentence each, and what is not."""
        found = [f"a process of its own, with limits on {_LIMITS_TEXT}"]
        if self.filter:
            found.append(
                "a seccomp filter: no sockets, no further processes or threads, no signals to "
                "others, no change of owners or modes; capabilities are dropped"
            )
        if self.mounts:
            found.append(
                "a root directory of its own: Python and its libraries, read-only, and 16 MiB of "
                "memory to write files to"
            )
        if self.landlock:
            found.append("Landlock: nothing but Python and its libraries can be read")
        if self.namespaces:
            found.append("namespaces: a network with nobody in it, and no shared memory")
        if self.is_safe and not self.mounts:
            found.append(
                "nothing can be written, not even to the current directory; that a file exists, "
                "and its size, can be seen"
            )
        if not self.is_safe:
            found.append(
                "NOT SAFE: files can be read"
                + ("" if self.filter else " and written, the network used, processes started")
            )
        return found


@functools.cache
def _readable() -> list[str]:
    """What a program may read: outermost directories first, none inside another."""
    paths = {name: sysconfig.get_path(name) for name in ("stdlib", "platstdlib")} | {
        "library": sysconfig.get_config_var("LIBDIR")
    }
    found = {str(each) for each in (*_SYSTEM, *paths.values(), *_packages()) if each}
    kept: list[str] = []
    for path in sorted({os.path.normpath(each) for each in found} | set(_SYSTEM_FILES), key=len):
        # A system link (/lib → usr/lib) is bound, or opened, as what it leads to.
        if Path(path).exists() and not any(path.startswith(f"{each}/") for each in kept):
            kept.append(path)
    return kept


def _packages() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def run_child(
    program: str, protection: Protection, seconds: float, memory_bytes: int
) -> Outcome | str:
    """The outcome, or why the child could not be shut in and the program was not run."""
    source = program.encode("utf-8", "surrogatepass")
    if len(source) > _MOST_PROGRAM:
        return Outcome("failed", f"the program is longer than {_MOST_PROGRAM:,} bytes")
    secret = secrets.token_hex(16).encode()
    with tempfile.TemporaryDirectory(
        prefix="llamita-sandbox-", ignore_cleanup_errors=True
    ) as directory:
        try:
            process = subprocess.Popen(
                _PYTHON,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:  # no more processes, no memory
            return f"{sys.executable}: {error.strerror}"
        try:
            limits = _limits(seconds, memory_bytes)
            _send(process, _header(protection, directory, process.pid, limits, len(source)))
            _send(process, source + secret)
            assert process.stdin is not None
            process.stdin.close()
            return _judge(process, program, secret, seconds)
        finally:
            # The group, and before its leader is waited for, so that no other can have its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _environment() -> dict[str, str]:
    """What the interpreter starts with; the program sees none of it."""
    kept = {"PYTHONHASHSEED": "0"}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):  # it may not start without
        kept["LD_LIBRARY_PATH"] = libraries
    return kept


def _header(
    protection: Protection, directory: str, pid: int, limits: dict[str, int], length: int
) -> bytes:
    instructions = b""
    if protection.filter:
        instructions = system_call_filter(
            os.uname().machine,
            pid,
            opens_to_write=protection.mounts or protection.landlock,
            changes_names=protection.mounts,
        )
    header: dict[str, Any] = {
        "plan": asdict(protection),
        "directory": directory,
        "readable": _readable() if protection.is_safe else [],
        "packages": _packages(),
        "parent": os.getpid(),
        "filter": instructions,
        "program": length,
        "limits": limits,
    }
    text = marshal.dumps(header)
    return f"{len(text):08}".encode() + text


def _limits(seconds: float, memory_bytes: int) -> dict[str, int]:
    """By the names of `resource`, without their RLIMIT_."""
    return {
        "AS": memory_bytes,
        "CPU": math.ceil(seconds) + 1,  # ends it even if nobody is left to watch
        "FSIZE": 16 * 1024**2,
        "NOFILE": 64,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
    }


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    left = memoryview(data)
    with contextlib.suppress(BrokenPipeError):  # it has ended; `_judge` says how
        while left:
            left = left[process.stdin.write(left) or 0 :]


def _judge(
    process: subprocess.Popen[bytes], program: str, secret: bytes, seconds: float
) -> Outcome | str:
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    ready, passed = b"ready\n", b"ready\n" + secret
    deadline, found, running = time.monotonic() + START_SECONDS, b"", False
    while True:
        if not running and found.startswith(ready):
            running, deadline = True, time.monotonic() + seconds
        if found.startswith(passed):
            return Outcome("passed")
        if len(found) > _MOST_RESULT:
            break
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(math.ceil(left * 1000)):
            if time.monotonic() < deadline:
                continue
            if running:
                return Outcome("timeout", f"still running after {seconds:g} s")
            return f"the child did not begin within {START_SECONDS:g} s"
        part = os.read(pipe, 65536)
        if not part:
            break
        found += part
    if not running:
        return _why_not(process, found)
    return _failure(process, found.removeprefix(ready), program)


def _why_not(process: subprocess.Popen[bytes], found: bytes) -> str:
    if found.startswith(b"refused "):
        return found.removeprefix(b"refused ").decode("utf-8", "replace")
    return f"{sys.executable} ended with {_ending(process)} before the program began"


def _failure(process: subprocess.Popen[bytes], report: bytes, program: str) -> Outcome:
    """From what the child reports, or a program in its name: it can say nothing better than that
    it failed."""
    why, _, rest = report.decode("utf-8", "replace").partition(" ")
    if why not in ("memory", "failed"):
        if len(report) > _MOST_RESULT:
            return Outcome("failed", "the program writes into the judge's channel")
        ending = _ending(process)
        return Outcome("failed", f"the program ended before its tests had passed ({ending})")
    line, _, detail = rest[:1000].partition(" ")
    lines = program.splitlines()
    if line.isdecimal() and 0 < int(line) <= len(lines):
        detail += f" (line {line}: {lines[int(line) - 1].strip()[:200]})"
    # It may be shown in a terminal, which must not obey it.
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in detail)
    return Outcome("memory" if why == "memory" else "failed", shown)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that has closed its output; one that has not ended is ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    code = process.poll()
    if code is None:
        return "its output closed"
    return f"status {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
