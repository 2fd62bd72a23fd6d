"""Generated code, run where it can do no harm, and judged.

A program runs in a child process (sandbox_child.py) that gives up, before it reads the program as
Python, everything but computing: system calls by a seccomp filter (sandbox_filter.py), files by
Landlock and by a root directory of its own, the network and more by namespaces, capabilities, and
memory, time and file sizes by limits. Which of these a machine has is found out by an attack on
each combination, once; where files and network cannot be shut, nothing is run unless the caller
says so.

A program has passed if its last statement was reached. The child proves that with a secret that it
reads only then. What stands all the same: tests run in the program's own process, as in every
harness of HumanEval, so a program that was written against the tests (an object that equals
everything) or against this very file (it looks for the secret's pipe) passes. It harms no one but
its own score.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import tempfile
from pathlib import Path

from llamita.errors import UserError
from llamita.evaluation.sandbox_filter import can_filter
from llamita.evaluation.sandbox_process import START_SECONDS, Outcome, Protection, run_child

__all__ = ["Outcome", "Protection", "about", "protect", "run_python"]

_LEAST_MEMORY = 64 * 1024**2  # the interpreter takes 40
# The best first.
_PLANS = (
    Protection(filter=True, landlock=True, mounts=True, namespaces=True, user=True),
    Protection(filter=True, landlock=True, mounts=True, namespaces=True),
    Protection(filter=True, mounts=True, namespaces=True, user=True),
    Protection(filter=True, mounts=True, namespaces=True),
    Protection(filter=True, landlock=True),
    Protection(filter=True),
)


def run_python(
    program: str,
    *,
    seconds: float = 10.0,
    memory_bytes: int = 1024**3,
    unsafe: bool = False,
    protection: Protection | None = None,
) -> Outcome:
    """Run a program to its end, shut in, with nothing but the standard library and the packages
    installed beside llamita; what it prints is discarded. May be called from several threads.

    It is a module named `program`, not `__main__`. Hashes of strings are the same in each run.

    Args:
        seconds: of the wall, from when the program begins. memory_bytes: of address space, the
            interpreter's 40 MB included. unsafe: run it also where files or network cannot be
            shut. protection: other than the best this machine has (`protect`).

    Raises:
        UserError: this machine cannot shut a program in, or has ceased to; a limit is too low.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds {seconds}: give a program more than 0 seconds, and an end")
    if memory_bytes < _LEAST_MEMORY:
        raise UserError(f"memory_bytes {memory_bytes:,}: Python needs {_LEAST_MEMORY:,} or more")
    chosen = protection or protect(unsafe=unsafe)
    if not (chosen.is_safe or unsafe):
        raise UserError(_UNSAFE)
    outcome = run_child(program, chosen, seconds, memory_bytes)
    if isinstance(outcome, str):
        raise UserError(
            f"a program could not be shut in, so it was not run: {outcome}. It could a moment ago: "
            "look for a limit on processes, memory or namespaces that has been reached"
        )
    return outcome


def protect(*, unsafe: bool = False) -> Protection:
    """The best protection that withstands an attack here; found out once a process (0.1 s).

    Raises:
        UserError: it leaves files or network open, and the caller does not say `unsafe`.
    """
    found = _best()
    if not (found.is_safe or unsafe):
        raise UserError(_UNSAFE)
    return found


_UNSAFE = (
    "generated code cannot be run safely on this machine: that needs Linux on x86_64 or aarch64, "
    "with seccomp, and either Landlock (kernel 5.13 or later) or user namespaces. In a container, "
    "allow one of these, or run this outside. To run code that may read your files and more all "
    "the same, in a machine that you can throw away, say --unsafe-code"
)


def about() -> str:
    """What protects this machine from generated code, for people: several lines."""
    return "\n".join(["Generated code runs with:", *(f"  - {line}" for line in _best().lines())])


@functools.cache
def _best() -> Protection:
    if os.name != "posix":
        raise UserError("generated code is run on Linux (and, with --unsafe-code, macOS) only")
    for plan in _PLANS:
        if plan.filter and not (sys.platform == "linux" and can_filter(os.uname().machine)):
            continue
        if _withstands(plan) if plan.is_safe else _can_be_had(plan):
            return plan
    return Protection()


def _can_be_had(plan: Protection) -> bool:
    return run_child("", plan, START_SECONDS, 1024**3) == Outcome("passed")


def _withstands(plan: Protection) -> bool:
    """Whether the plan can be carried out here, and a program then fails at all that it must not
    do, and can do what it may."""
    with tempfile.TemporaryDirectory(prefix="llamita-attack-") as directory:
        secret = Path(directory, "secret")
        secret.write_text("secret")
        attack = _ATTACK.format(secret=str(secret), pid=os.getpid(), writes=plan.mounts)
        outcome = run_child(attack, plan, START_SECONDS, 1024**3)
        return outcome == Outcome("passed") and list(Path(directory).iterdir()) == [secret]


_ATTACK = """
import decimal, hashlib, os, random, signal, socket

def stopped(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return
    raise AssertionError(action)

stopped(open, {secret!r})
stopped(open, {secret!r}, "w")
stopped(open, {secret!r} + "-new", "w")
stopped(os.remove, {secret!r})
stopped(os.chmod, {secret!r}, 0o777)
stopped(os.listdir, "/proc")
stopped(os.fork)
stopped(os.kill, {pid}, 0)
stopped(socket.socket)
stopped(socket.socket, socket.AF_UNIX)
stopped(os.execv, "/bin/true", ["true"])
random.random(), decimal.Decimal(1) / 3, hashlib.sha256(b"x"), open(os.devnull, "w")
assert os.listdir() == []
if {writes}:
    with open("note", "w") as file:
        file.write("x")
    os.remove("note")
else:
    stopped(open, "note", "w")
"""
