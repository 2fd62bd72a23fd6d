"""Makes a study's runs: as many at once as there are slots, each in a process that makes many."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llamita.errors import UserError
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import POINTS, Point
from llamita.windtunnel.results import Journal, run_result
from llamita.windtunnel.worker import (
    Elsewhere,
    Ended,
    Judged,
    Message,
    Moved,
    Ready,
    Stopped,
    Task,
    work,
)

if TYPE_CHECKING:
    from llamita.windtunnel.costs import Cost

_TICK_SECONDS = 1.0
_ELSEWHERE_SECONDS = 10.0
"""How soon a run is asked for again that another process makes."""
_SPARE_BYTES = 64_000_000
"""With less than this free, a failed run is taken to have met a full disk."""
_STOPPING = "stopping: every run saves itself after its step (Ctrl-C: at once)"
_STARTS = 3
"""Times that a process may die before it is ready."""


class Watcher(Protocol):
    """Shows how a study goes on (`reporting.tunnel_board.Board`)."""

    def started(
        self,
        slot: int,
        key: str,
        name: str,
        *,
        tokens: int = 0,
        flops: float = 0.0,
        first_step: int = 0,
    ) -> None: ...
    def progress(self, slot: int, step: int, last_step: int, loss: float | None) -> None: ...
    def ended(self, slot: int, result: RunResult) -> None: ...
    def left(self, slot: int, *, done: bool = False) -> None: ...
    def say(self, line: str) -> None: ...


class Source(Protocol):
    """Chooses points as it goes, as a search does (`search.Search`)."""

    def next(self) -> Point | None:
        """One more, or None: it waits for results, or has no more."""

    def judged(self, point: Point, step: int, loss: float) -> bool:
        """Whether to stop the run there."""

    def ended(self, point: Point, result: RunResult) -> None: ...
    def beat(self) -> None:
        """Called often."""


class Share(Protocol):
    """Gives out the study's runs to several machines (`sharing.SharedRuns`)."""

    def claim(self) -> Sequence[Point]:
        """More for this one to make; none where none is to be had now."""

    def ended(self, point: Point) -> None:
        """The journal has a result of it."""

    def beat(self) -> None:
        """Called often."""


@dataclass(frozen=True)
class SlotPlan:
    device: str
    threads: int


@dataclass
class _Slot:
    """A process, and what it does."""

    number: int
    plan: SlotPlan
    process: BaseProcess
    connection: Connection
    lifeline: Connection
    ready: bool = False
    point: Point | None = None
    source: Source | None = None
    pruned: bool = False


@dataclass
class Runner:
    """
    Args:
        points: those to be made, journal or no journal.
        settle: overrides of a point's `runtime`.
        cost: what a point takes; the longest are begun first.
        share: where it is there, the points are made as it gives them out.
        keep_models: leave the weights of ended runs where they are; else only of trunks.
    """

    study: Path
    points: Sequence[Point]
    journal: Journal
    slots: Sequence[SlotPlan]
    watcher: Watcher
    cost: Callable[[Point], Cost]
    settle: Callable[[Point], Sequence[str]] = lambda point: ()
    sources: Sequence[Source] = ()
    share: Share | None = None
    keep_models: bool = False
    _queue: list[Point] = field(default_factory=list)
    _elsewhere: dict[str, float] = field(default_factory=dict)
    _held: list[_Slot] = field(default_factory=list)
    _deaths: int = 0
    _told: bool = False

    def run(self, stop: Sequence[int]) -> None:
        """Until everything is made, or `stop` holds a signal: then every run saves and stops.

        Raises:
            UserError: the disk is full, or no process can be started.
        """
        count = len(self.slots)
        if self.share is None:
            self._queue = self._to_be_made(self.points)
            count = count if self.sources else min(count, len(self._queue))
        try:
            for number, plan in enumerate(self.slots[:count]):
                self._held.append(self._start(number, plan))
            while self._go_on(bool(stop)):
                self._hear()
        finally:
            self._release()

    # -- what is to be made -----------------------------------------------------------------------

    def _to_be_made(self, points: Sequence[Point]) -> list[Point]:
        """Longest first, with the branches that wait for it counted to a trunk."""
        missing = [point for point in points if not self.journal.is_final(point.key)]
        trunks = {point.trunk for point in missing if self._lacks_checkpoint(point)}
        wanted = [
            point for point in points if point.key in trunks or not self.journal.is_final(point.key)
        ]
        after: dict[str, float] = {}
        for point in wanted:
            if point.trunk is not None:
                after[point.trunk] = max(after.get(point.trunk, 0.0), self.cost(point).flops)
        looking = [point for point in wanted if point.coordinates]
        running = [point for point in wanted if not point.coordinates]
        running.sort(key=lambda point: -(self.cost(point).flops + after.get(point.key, 0.0)))
        return [*looking, *running]

    def _lacks_checkpoint(self, point: Point) -> bool:
        if point.trunk is None:
            return False
        return not (self.study / POINTS / point.trunk / f"step-{point.start_step}").is_dir()

    def _next(self) -> tuple[Point | None, Source | None]:
        """What can be begun now."""
        point = self._next_ready()
        if point is None and self.share is not None:
            self._queue += self._to_be_made(self.share.claim())
            point = self._next_ready()
        if point is not None:
            return point, None
        for source in self.sources:
            chosen = source.next()
            if chosen is not None:
                return chosen, source
        return None, None

    def _next_ready(self) -> Point | None:
        now = time.monotonic()
        for point in list(self._queue):
            if self._elsewhere.get(point.key, 0.0) <= now and self._is_ready(point):
                self._queue.remove(point)
                return point
        return None

    def _is_ready(self, point: Point) -> bool:
        if point.trunk is None or not self._lacks_checkpoint(point):
            return True
        pending = [each.key for each in self._queue]
        busy = [slot.point.key for slot in self._held if slot.point is not None]
        if point.trunk in pending or point.trunk in busy:
            return False
        self._queue.remove(point)
        reason = f"the run that it goes on from, {point.trunk}, did not come so far"
        self._record(0, point, run_result(point, self.study, "failed", reason))
        return False

    # -- slots ------------------------------------------------------------------------------------

    def _start(self, number: int, plan: SlotPlan) -> _Slot:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        held, lifeline = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, lifeline, self.study, plan.device, plan.threads)
        )
        with _environment({"OMP_NUM_THREADS": str(plan.threads)}):
            process.start()
        theirs.close()
        lifeline.close()
        return _Slot(number, plan, process, ours, held)

    def _go_on(self, stopping: bool) -> bool:
        """Give idle slots work; whether there is anything to wait for."""
        if stopping and not self._told:
            self._told = True
            self.watcher.say(_STOPPING)
        for source in self.sources:
            source.beat()
        if self.share is not None:
            self.share.beat()
        for slot in self._held:
            if slot.point is not None and (stopping or slot.pruned):
                # Again and again: one that comes before the run watches for it is lost.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.process.pid or 0, signal.SIGTERM)
            elif slot.ready and slot.point is None and not stopping:
                self._give(slot)
        if any(slot.point is not None for slot in self._held):
            return True
        return not stopping and (bool(self._queue) or any(not slot.ready for slot in self._held))

    def _give(self, slot: _Slot) -> None:
        point, source = self._next()
        if point is None:
            return
        slot.point, slot.source, slot.pruned = point, source, False
        slot.connection.send(Task(point, tuple(self.settle(point))))
        cost = self.cost(point)
        self.watcher.started(
            slot.number,
            point.key,
            point.name,
            tokens=cost.tokens,
            flops=cost.flops,
            first_step=point.start_step,
        )

    def _hear(self) -> None:
        """What the processes have to say, or that one is gone."""
        heard = wait([slot.connection for slot in self._held], timeout=_TICK_SECONDS)
        for slot in list(self._held):
            if slot.connection not in heard:
                continue
            try:
                message: Message = slot.connection.recv()
            except (EOFError, OSError):
                self._bury(slot)
            else:
                self._take(slot, message)

    def _take(self, slot: _Slot, message: Message) -> None:
        point = slot.point
        if isinstance(message, Ready):
            slot.ready, self._deaths = True, 0
            return
        assert point is not None
        if isinstance(message, Moved):
            self.watcher.progress(slot.number, message.step, message.last_step, message.loss)
        elif isinstance(message, Judged):
            if slot.source is not None and slot.source.judged(point, message.step, message.loss):
                slot.pruned = True
        elif isinstance(message, Elsewhere):
            if point.key not in self._elsewhere:
                self.watcher.say(f"{point.name}: {message.reason}; asking again later")
            self._elsewhere[point.key] = time.monotonic() + _ELSEWHERE_SECONDS
            self._queue.append(point)
            slot.point = None
            self.watcher.left(slot.number)
        else:
            slot.point = None
            self._ended(slot, point, message)

    def _ended(self, slot: _Slot, point: Point, message: Ended | Stopped) -> None:
        if isinstance(message, Stopped):
            if slot.pruned:
                reason = "worse than the median of the others at this step"
                result = run_result(point, self.study, "pruned", reason)
                self._record(slot.number, point, result, slot.source)
            else:
                self.watcher.left(slot.number)
        elif message.result is None:
            assert message.measured is not None
            self.journal.add_coordinates(point, message.measured)
            if self.share is not None:
                self.share.ended(point)
            self.watcher.left(slot.number, done=True)
        else:
            self._record(slot.number, point, message.result, slot.source)

    def _record(
        self, number: int, point: Point, result: RunResult, source: Source | None = None
    ) -> None:
        self.journal.add(result)
        if source is not None:
            source.ended(point, result)
        elif self.share is not None:
            self.share.ended(point)
        self.watcher.ended(number, result)
        if result.status == "failed":
            self._refuse_full_disk(result.reason)
        trunks = {each.trunk for each in self.points}
        ended = self.journal.is_final(point.key)  # else it is to go on from what it saved
        if ended and not self.keep_models and point.key not in trunks:
            self._forget_weights(point)

    def _refuse_full_disk(self, reason: str) -> None:
        free = shutil.disk_usage(self.study).free
        if free < _SPARE_BYTES:
            raise UserError(
                f"{self.study}: {free / 1e6:.0f} MB are free, and a run failed: {reason}. Finished "
                "runs are kept; free some space and run the same command again"
            )

    def _forget_weights(self, point: Point) -> None:
        """An ended run's events say all that a study wants to know of it."""
        run = self.study / POINTS / point.key
        for directory in [*run.glob("step-*"), run / "final"]:
            shutil.rmtree(directory, ignore_errors=True)
        (run / "latest").unlink(missing_ok=True)

    def _bury(self, slot: _Slot) -> None:
        """A process is gone: its run is a result, and another takes its place."""
        slot.process.join()
        code = slot.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if slot.point is not None:
            reason = f"its process ended {how}; the same command tries it again"
            result = run_result(slot.point, self.study, "killed", reason)
            self._record(slot.number, slot.point, result, slot.source)
        elif not slot.ready:
            self._deaths += 1
            if self._deaths >= _STARTS:
                raise UserError(f"a process for runs ended {how} before it was ready")
        slot.connection.close()
        slot.lifeline.close()
        self._held[self._held.index(slot)] = self._start(slot.number, slot.plan)

    def _release(self) -> None:
        """Let idle processes end; one that is busy still is not waited for."""
        for slot in self._held:
            with contextlib.suppress(OSError):
                if slot.point is None:
                    slot.connection.send(None)
                else:
                    slot.process.kill()
        for slot in self._held:
            slot.process.join(timeout=10)
            slot.lifeline.close()
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()
            slot.connection.close()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """For a process that is about to start."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
