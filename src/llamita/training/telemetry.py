"""Writing events.jsonl, the truth about a run. Reading it is reporting's business."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llamita.errors import UserError


class Observer(Protocol):
    """Sees a run's events as they are written, on the thread that trains: be quick.

    One that raises is left out for the rest of the run, which goes on. If it has a method
    `stopping`, that is called, inside the signal's handler, when the run is asked to stop.
    """

    live: bool
    """Whether a person watches: then `progress` is written about once a second, too."""

    def observe(self, event: dict[str, Any]) -> None:
        """Take an event, exactly as its line in events.jsonl reads."""

    def close(self) -> None:
        """The process will write no more events of this run."""


class EventLog:
    """Appends one JSON object a line. A torn last line from a crash is closed off, not joined.

    Args:
        observers: get each event after it was written.
        say: told when an observer failed.

    Raises:
        UserError: the events cannot be written, as on a full disk.
    """

    def __init__(
        self,
        path: Path,
        observers: Sequence[Observer] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self._path = path
        self._observers = list(observers)
        self._say = say
        self._step = 0
        self._file = path.open("a+b")
        self._file.seek(0, os.SEEK_END)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, "time": round(time.time(), 3), **_finite(fields)}
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._explained():
            self._file.write(line)
        self._step = event.get("step", self._step)
        for observer in list(self._observers):
            try:
                observer.observe(json.loads(line))
            except Exception as error:
                self._drop(observer, error)

    @property
    def live(self) -> bool:
        """Whether an observer is watched by a person."""
        return any(observer.live for observer in self._observers)

    def flush(self, *, durable: bool = False) -> None:
        with self._explained():
            self._file.flush()
            if durable and self._path != Path(os.devnull):  # which cannot be made durable
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the observers, then the file."""
        try:
            for observer in list(self._observers):
                try:
                    observer.close()
                except Exception as error:
                    self._drop(observer, error)
            self.flush(durable=True)
        finally:
            with self._explained():
                self._file.close()

    def _drop(self, observer: Observer, error: Exception) -> None:
        """Go on without it, and say so: nobody's plots are worth a run."""
        self._observers.remove(observer)
        name = type(observer).__name__
        told = f"{type(error).__name__}: {error}"
        self._say(
            f"warning: {name} failed and is left out from here on ({told}). Training goes on, and "
            "events.jsonl holds everything; run the same command again to bring it back"
        )
        self.write("sink_failed", step=self._step, name=name, error=told)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"could not write {self._path}: {error.strerror or error}. Checkpoints are "
                "untouched; free some space and run the same command again"
            ) from error


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as the strings "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
