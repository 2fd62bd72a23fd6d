"""What a run of time_to_quality.py is, and how contenders take turns on the machine."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIXTURE = {"prose": 0.7, "code": 0.3}
SHAPE = "llamita-5m"  # what the peers train, and what every contender's parameters are counted by
WARMUP = 0.05  # of the time, for all
WARM_UP_PASSES = 3
LAST_LOSSES = 20  # steps whose mean loss is shown beside the held-out loss


@dataclass(frozen=True)
class Job:
    """One run: what to train, with what, for how long. `data` holds prose/ and code/."""

    contender: str
    seed: int
    learning_rate: float
    batch_tokens: int
    sequence_length: int
    seconds: float
    slice_seconds: float
    threads: int
    data: Path
    directory: Path

    @property
    def rows(self) -> int:
        return self.batch_tokens // self.sequence_length

    @property
    def milliseconds(self) -> int:
        return round(self.seconds * 1000)


@dataclass
class Turn:
    """A contender's share of the machine: it runs until its slice is over, then waits."""

    pipe: Connection
    seconds: float
    slice_seconds: float
    active: float = 0.0
    steps: int = 0
    running: bool = False
    stopping: bool = False
    report: dict[str, Any] = field(default_factory=dict)
    _last: float = 0.0
    _slice_began: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=4))

    def begin(self) -> None:
        """Everything is compiled and nothing learnt: the clock runs from the next turn on."""
        started = time.perf_counter()
        self.report["startup_seconds"] = round(started - self._slice_began, 1)
        self._hand_over("ready")
        self._graphs, self._cpu = _graphs(), time.process_time()
        self.running = True

    def step(self, ahead: int = 1) -> bool:
        """After a step: whether no more fits. `ahead`: steps until a stop takes effect."""
        self._count()
        self.stopping = self.active + ahead * max(self._recent) > self.seconds
        if not self.stopping and self._last - self._slice_began >= self.slice_seconds:
            self._hand_over("slice")
        return self.stopping

    def finish(self, *, last_step: bool = False) -> None:
        """Stop the clock. `last_step`: a step was taken since `step` said that no more fits."""
        if "active_seconds" in self.report:
            return
        if last_step:
            self._count()
        self.report["active_seconds"] = round(self.active, 3)
        self.report["cpu_seconds"] = round(time.process_time() - self._cpu, 1)
        self.report["graphs_compiled_on_the_clock"] = _graphs() - self._graphs

    @property
    def milliseconds(self) -> int:
        """Active time so far."""
        now = self.active + time.perf_counter() - self._last
        return int(1000 * now) if self.running else 0

    def await_go(self) -> None:
        self.pipe.recv()
        self._last = self._slice_began = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        self._recent.append(now - self._last)
        self.active += now - self._last
        self._last = now
        self.steps += 1

    def _hand_over(self, why: str) -> None:
        self.pipe.send((why, self.active))
        self.await_go()


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


Outcome = tuple[Path, list[float], float]
"""A Hugging Face directory, its trainer's own last losses (nats a token), its last rate."""
