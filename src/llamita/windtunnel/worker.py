"""A process that makes one run after the other, so that imports, memory maps and compiled graphs
are paid for once."""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from llamita.errors import UserError
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import POINTS, Point
from llamita.windtunnel.results import run_result

LOG = "log.txt"


@dataclass(frozen=True)
class Task:
    """A run to make. overrides: of its recipe's `runtime`, settled for the study."""

    point: Point
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """Everything is imported."""


@dataclass(frozen=True)
class Moved:
    """Where the run stands. loss: of the last step, or None before one was reported."""

    step: int
    last_step: int
    loss: float | None


@dataclass(frozen=True)
class Judged:
    """A validation. tokens: seen so far."""

    step: int
    loss: float


@dataclass(frozen=True)
class Ended:
    """result: None of a point that only looked, and `measured` is what it saw."""

    result: RunResult | None = None
    measured: dict[str, Any] | None = None


@dataclass(frozen=True)
class Stopped:
    """Asked to, with everything saved."""


@dataclass(frozen=True)
class Elsewhere:
    """Another process makes this run."""

    reason: str


Message = Ready | Moved | Judged | Ended | Stopped | Elsewhere


def work(
    connection: Connection, lifeline: Connection, study: Path, device: str, threads: int
) -> None:
    """Make the points that come down `connection`, until None comes.

    Args:
        lifeline: never written to; when it ends, the study's process is gone.
        threads: of the CPU, for this process.
    """
    os.setsid()  # a terminal's Ctrl-C goes to the study's process, which tells us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # but while a run listens for it
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    import torch

    import llamita.training.run  # noqa: F401 - imported before the first run's clock starts

    torch.set_num_threads(threads)
    # Half a million objects of libraries, which each later collection would look through.
    gc.collect()
    gc.freeze()
    connection.send(Ready())
    while (task := connection.recv()) is not None:
        connection.send(_make(task, study, device, threads, connection))
        gc.collect()


def _die_with(lifeline: Connection) -> None:
    """At once and without saving: the run's checkpoints stand, and nobody would take its result."""
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def _make(task: Task, study: Path, device: str, threads: int, connection: Connection) -> Message:
    from llamita.training.guards import Diverged
    from llamita.training.process import RunLocked
    from llamita.training.run import RunInterrupted

    point = task.point
    run = study / POINTS / point.key
    with _log(run) as log:
        try:
            if point.coordinates:
                return Ended(measured=_look(point, device))
            _train(task, study, run, device, threads, connection, log)
            return Ended(run_result(point, study, "done"))
        except RunInterrupted:
            return Stopped()
        except RunLocked as error:
            return Elsewhere(str(error))
        except Diverged as error:
            return Ended(run_result(point, study, "diverged", str(error)))
        except UserError as error:
            log.write(f"{error}\n")
            return Ended(run_result(point, study, "failed", str(error)))
        except Exception as error:
            # Whatever it is, it is this run's: the others go on, and the log has it whole.
            traceback.print_exc(file=log)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return Ended(run_result(point, study, "failed", reason))


@contextmanager
def _log(run: Path) -> Iterator[TextIO]:
    """What the run says, as `train` would say it on a terminal. Beside the run and not in it: a
    run's directory that was never begun is to stay away."""
    path = run.with_suffix(f".{LOG}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        yield file


def _look(point: Point, device: str) -> dict[str, Any]:
    from llamita.windtunnel.coordinates import measure_coordinates

    asked = point.recipe.runtime.device
    chosen = device if asked == "auto" else None
    return measure_coordinates(point.recipe, steps=point.coordinates, device=chosen)


def _train(
    task: Task,
    study: Path,
    run: Path,
    device: str,
    threads: int,
    connection: Connection,
    log: TextIO,
) -> None:
    from llamita.training.run import train

    point, overrides = task.point, [*task.overrides]
    if point.recipe.runtime.threads is None:
        overrides.append(f"runtime.threads={threads}")

    def say(line: str) -> None:
        log.write(f"{line}\n")
        log.flush()

    train(
        point.placed(study),
        out=run,
        overrides=overrides,
        device=device if point.recipe.runtime.device == "auto" else None,
        say=say,
        observers=[_Teller(connection)],
    )


class _Teller:
    """Tells the study's process how a run goes on."""

    live = False

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_step = 0

    def observe(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "forecast":
            self._last_step = event["last_step"]
            self._connection.send(Moved(event["step"], self._last_step, None))
        elif kind == "step":
            self._loss = event["loss"]
        elif kind == "progress":
            loss = self._loss if isinstance(self._loss, float) else None
            self._connection.send(Moved(event["step"], self._last_step, loss))
        elif kind == "validation" and isinstance(event["bits_per_byte"], float):
            self._connection.send(Judged(event["step"], event["bits_per_byte"]))

    def stopping(self) -> None:
        """In place of a line on standard error."""

    def close(self) -> None:
        """The connection is the next run's too."""
