"""The process that trains: its lock, its signals, its arithmetic, its command line."""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from llamita.errors import UserError
from llamita.recipes.schema import Runtime


class RunLocked(UserError):
    """Another process trains this run."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """One process to a run directory.

    Raises:
        RunLocked: another process holds it; which one, as far as it said.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RunLocked(
                f"{run} is being trained by another process ({file.read().strip() or 'unknown'}); "
                "wait for it, stop it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            if [entry.name for entry in run.iterdir()] == [".lock"]:
                # Nothing was begun: leave no directory that looks like a run.
                (run / ".lock").unlink()
                run.rmdir()


@contextmanager
def deterministic(runtime: Runtime, device: torch.device) -> Iterator[None]:
    """Compiled training differs between processes without it (the embedding's gradient does)."""
    wanted = runtime.deterministic
    active = wanted == "always" or (wanted == "auto" and device.type == "cpu")
    before = torch.are_deterministic_algorithms_enabled()
    if active and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(active)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def stop_signals(tell: Sequence[Callable[[], None]] = ()) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM only joins the list; a second SIGINT stops at once.

    Args:
        tell: called on the first, inside the handler, in place of the line on standard error.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        for told in tell:
            told()
        if not tell:
            os.write(2, b"\nstopping after this step, with everything saved (Ctrl-C: at once)\n")

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, handle) for number in numbers]
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def command_line() -> str:
    """What the user typed, to be typed again."""
    program = Path(sys.argv[0]).name
    spoken = ["python", "-m", "llamita"] if program == "__main__.py" else [program]
    return shlex.join([*spoken, *sys.argv[1:]])
