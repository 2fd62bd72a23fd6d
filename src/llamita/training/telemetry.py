"""Writing events.jsonl, the truth about a run. Reading it is reporting's business."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends one JSON object a line. A torn last line from a crash is closed off, not joined."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        self._file.seek(0, os.SEEK_END)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, "time": round(time.time(), 3), **_finite(fields)}
        self._file.write(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def flush(self, *, durable: bool = False) -> None:
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush(durable=True)
        self._file.close()


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as the strings "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
