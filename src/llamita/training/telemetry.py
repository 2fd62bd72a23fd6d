"""Writing events.jsonl, the truth about a run. Reading it is reporting's business."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamita.errors import UserError


class EventLog:
    """Appends one JSON object a line. A torn last line from a crash is closed off, not joined.

    Raises:
        UserError: the events cannot be written, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
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

    def flush(self, *, durable: bool = False) -> None:
        with self._explained():
            self._file.flush()
            if durable and self._path != Path(os.devnull):  # which cannot be made durable
                os.fsync(self._file.fileno())

    def close(self) -> None:
        try:
            self.flush(durable=True)
        finally:
            with self._explained():
                self._file.close()

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
