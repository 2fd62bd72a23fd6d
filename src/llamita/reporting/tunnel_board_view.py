"""A running study's state, and its board drawn for a window of any size. No terminal, no thread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamita.planning.quantities import duration, metric
from llamita.planning.quantities import tokens as short
from llamita.reporting.charts import bar
from llamita.reporting.panel_lines import Line, bottom, clip, cut, framed, pad, printable, titled

if TYPE_CHECKING:
    from llamita.windtunnel.findings import RunResult

_LEAST_COLUMNS, _LEAST_ROWS = 24, 8
_FAILURES_KEPT = 5
_EXPECTED_COUNTS_SECONDS = 300.0
_ENDED_BADLY = ("diverged", "failed", "killed")
LOOKED_INTO = "looked into"
_COUNTED = ("done", LOOKED_INTO, "diverged", "pruned", "failed", "killed")


@dataclass
class Running:
    """A run that goes. tokens, flops: what it takes from `first_step` to its last; nought where
    nobody said. speed_since: when and at which step its first news came, which leaves its
    start-up out of its speed, and what an earlier session computed."""

    key: str
    name: str
    tokens: int
    flops: float
    first_step: int
    step: int = 0
    last_step: int = 0
    loss: float | None = None
    speed_since: tuple[float, int] | None = None
    speed: float | None = None
    """Steps a second."""

    @property
    def share(self) -> float:
        """Of its steps, those that are behind it."""
        return self._share_of(self.step)

    @property
    def share_before(self) -> float:
        """Of its steps, those that an earlier session took."""
        return self._share_of(self.speed_since[1]) if self.speed_since else 0.0

    def _share_of(self, step: int) -> float:
        steps = self.last_step - self.first_step
        return min(1.0, max(0.0, (step - self.first_step) / steps)) if steps > 0 else 0.0

    def speed_text(self) -> str:
        if self.speed is None:
            return ""
        steps = self.last_step - self.first_step
        if self.tokens and steps > 0:
            return f"{short(self.speed * self.tokens / steps)} tokens/s"
        return f"{self.speed:.3g} steps/s"


@dataclass
class BoardState:
    """What is known of a study. best: experiment → its lowest loss and that run's name.

    planned_done: planned FLOPs of ended runs, by which the rest is known; spent: FLOPs that runs
    of this session computed, by which its speed is.
    """

    name: str
    total: int = 0
    flops: float = 0.0
    expected: float | None = None
    began: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    running: dict[int, Running] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    planned_done: float = 0.0
    spent: float = 0.0

    @property
    def ended(self) -> int:
        return sum(self.counts.values())

    @property
    def flops_left(self) -> float:
        return max(0.0, self.flops - self.planned_done - self._under_way)

    @property
    def share(self) -> float:
        """Of the FLOPs, or of the runs where those are unknown."""
        if self.flops > 0:
            return 1 - self.flops_left / self.flops
        return self.ended / self.total if self.total else 0.0

    @property
    def _under_way(self) -> float:
        return sum(each.share * each.flops for each in self.running.values())

    def flops_per_second(self, now: float) -> float | None:
        """Over all slots together, since the first run of this session began."""
        before = sum(each.share_before * each.flops for each in self.running.values())
        computed = self.spent + self._under_way - before
        if self.began is None or now <= self.began or computed <= 0:
            return None
        return computed / (now - self.began)

    def _foreseen_rate(self, now: float) -> float | None:
        """The measured rate; with an expected one, that as if it had been measured for some minutes
        before: what comes first is compiling, and would foresee hours."""
        measured = self.flops_per_second(now)
        if not self.expected or not self.flops:
            return measured
        expected = self.flops / self.expected
        if measured is None or self.began is None:
            return expected
        known, weight = now - self.began, min(_EXPECTED_COUNTS_SECONDS, self.expected)
        return (measured * known + expected * weight) / (known + weight)

    def eta(self, now: float) -> float | None:
        """Seconds: FLOPs left over FLOPs a second. None where runs are left whose FLOPs nobody
        planned, as a search's are."""
        if self.total and self.ended >= self.total:
            return 0.0
        if self.flops_left <= 0:
            return None
        rate = self._foreseen_rate(now)
        return None if rate is None else self.flops_left / rate

    # -- what happens ----------------------------------------------------------------------

    def progress(
        self, slot: int, step: int, last_step: int, loss: float | None, now: float
    ) -> None:
        run = self.running.get(slot)
        if run is None:
            return
        run.step, run.last_step = step, last_step
        run.loss = loss if loss is not None and math.isfinite(loss) else run.loss
        if run.speed_since is None:
            run.speed_since = (now, step)
            return
        then, before = run.speed_since
        if now > then and step > before:
            run.speed = (step - before) / (now - then)

    def leave(self, slot: int, counted: str = "") -> None:
        run = self.running.pop(slot, None)
        if counted:
            self.counts[counted] = self.counts.get(counted, 0) + 1
            done = run.flops if run is not None else 0.0
            self.planned_done += done
            self.spent += done

    def end(self, slot: int, result: RunResult) -> str:
        """Count an ended run; returns a line about it."""
        run = self.running.get(slot)
        if run is not None and run.key == result.key:
            del self.running[slot]
        else:  # it never began: its trunk failed, or an earlier session made it
            run = None
        name = printable(run.name if run is not None else _name(result))
        self.counts[result.status] = self.counts.get(result.status, 0) + 1
        self.planned_done += run.flops if run is not None and run.flops else result.flops
        if run is not None:
            self.spent += result.flops * (1 - run.share_before)
        told = self._outcome(result, name)
        return f"{self.ended}/{self.total or '?'} {name}: {told}"

    def _outcome(self, result: RunResult, name: str) -> str:
        after = f"after {short(result.tokens)} tokens, {duration(result.seconds)}"
        if result.loss is None:
            reason = f": {printable(result.reason)}" if result.reason else ""
            if result.status in _ENDED_BADLY:
                self.failures.append(f"{name}: {result.status}{reason}")
                del self.failures[:-_FAILURES_KEPT]
            return f"{result.status} {after}{reason}"
        experiment = printable(result.experiment)
        if experiment not in self.best or result.loss < self.best[experiment][0]:
            self.best[experiment] = (result.loss, name)
        return f"{result.loss:.4f} bits per byte {after}"

    def summary(self, now: float) -> str:
        """Where the study stands, in a line."""
        parts = [f"{self.ended} of {self.total or '?'} runs ended"]
        if self.flops > 0:
            parts[0] += f", {self.share:.0%} of the FLOPs"
        if self.running:
            parts.append(f"{len(self.running)} running")
        lost = [f"{count} {status}" for status, count in self.counted() if status != "done"]
        parts += [", ".join(lost)] if lost else []
        eta = self.eta(now)
        if eta:
            parts.append(f"about {duration(eta)} to go")
        return "; ".join(parts)

    def counted(self) -> list[tuple[str, int]]:
        return [(status, self.counts[status]) for status in _COUNTED if status in self.counts]


def _name(result: RunResult) -> str:
    return f"{result.experiment} {result.size} {result.parametrization} seed {result.seed}"


# -- drawn -----------------------------------------------------------------------------------------


def draw_board(state: BoardState, width: int, height: int, now: float) -> list[Line]:
    """At most `height` lines of `width` columns. What matters less is left out of a small window:
    failures first, then what was best, then running ones."""
    if width < _LEAST_COLUMNS or height < _LEAST_ROWS:
        return [[(f"{state.ended}/{state.total or '?'} runs"[:width], "")]]
    inner = width - 4
    head = _overview(state, inner, now)
    room = height - 2 - len(head)
    running = _shown([_running(each, inner) for each in _in_order(state)], room)
    room -= len(running)
    best = _headed("best so far, bits per byte", _best(state, inner), room, inner)
    room -= len(best)
    failures = _headed("lost", _failures(state, inner), room, inner)
    body = [*head, *running, *best, *failures]
    right = f"{len(state.running)} running" if state.running else ""
    top = titled(printable(state.name), right, width)
    return [top, *(framed(line, width) for line in body), bottom(width)]


def _in_order(state: BoardState) -> list[Running]:
    return [state.running[slot] for slot in sorted(state.running)]


def _shown(lines: list[Line], room: int) -> list[Line]:
    """As many as fit, and how many more there are."""
    if len(lines) <= room:
        return lines
    kept = max(0, room - 1)
    return [*lines[:kept], [(f"… {len(lines) - kept} more", "dim")]] if room > 0 else []


def _headed(title: str, lines: list[Line], room: int, width: int) -> list[Line]:
    """Lines under a heading; nothing where the first of them would not fit."""
    if not lines or room < 2:
        return []
    return [clip([(title, "dim")], width), *_shown(lines, room - 1)]


def _overview(state: BoardState, width: int, now: float) -> list[Line]:
    done, rest = bar(state.share, width)
    eta, rate = state.eta(now), state.flops_per_second(now)
    left = "" if eta is None else "done" if eta == 0 else f"ETA {duration(eta)}"
    gone = "" if state.began is None else duration(now - state.began)
    parts: Line = [
        (f"{state.share:.0%}", "value"),
        (f"  {state.ended:,}/{state.total or '?'} runs", ""),
        (f"  {left}", "accent"),
        (f"  {gone}", "dim"),
    ]
    if rate is not None:
        parts.append((f"  {metric(rate, 'FLOP/s')}", "dim"))
    lines = [[(done, "good" if state.share >= 1 else "accent"), (rest, "frame")]]
    lines.append(clip(parts, width))
    counts: Line = []
    for status, count in state.counted():
        bad = status in _ENDED_BADLY
        counts += [(f"{status} ", "warn" if bad else "dim"), (f"{count:,}  ", "value")]
    return [*lines, clip(counts, width)] if counts else lines


def _middle_cut(name: str, width: int) -> str:
    """Runs differ at their names' ends, so that the middle goes."""
    if len(name) <= width:
        return name
    head = max(1, (width - 1) // 2)
    return f"{name[:head]}…{name[len(name) - max(0, width - 1 - head) :]}"


def _running(run: Running, width: int) -> Line:
    loss = "" if run.loss is None else f"{run.loss:.4f}"
    percent = f"{run.share:>4.0%}"
    if width < 48:
        name = _middle_cut(printable(run.name), width - 13)
        return [*pad([(name, "")], width - 12), (percent, "value"), (f" {loss}", "")]
    speed = run.speed_text() if width >= 72 else ""
    room = 18 if width >= 72 else 0
    cells = max(8, min(24, width // 5))
    done, rest = bar(run.share, cells)
    left = width - cells - room - 14
    named = pad([(_middle_cut(printable(run.name), left), "")], left)
    line: Line = [*named, (" ", ""), (done, "accent"), (rest, "frame"), (f" {percent}", "value")]
    line.append((f" {loss:>7}", "loss"))
    if room:
        line.append((f"{speed:>{room}}", "dim"))
    return clip(line, width)


def _best(state: BoardState, width: int) -> list[Line]:
    """The loss, then the run's name, which begins with its experiment's."""
    lines: list[Line] = []
    for experiment in sorted(state.best):
        loss, name = state.best[experiment]
        told = name if name.startswith(experiment) else f"{experiment}: {name}"
        told = _middle_cut(told, width - 9)
        lines.append(clip([(f"{loss:.4f}  ", "bits"), (told, "")], width))
    return lines


def _failures(state: BoardState, width: int) -> list[Line]:
    """The latest first."""
    return [clip([(cut(each, width), "warn")], width) for each in reversed(state.failures)]
