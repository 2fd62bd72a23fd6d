"""Rules of alerts about the machine: what slows a run down or endangers it. See `alerts`."""

from __future__ import annotations

from collections import deque
from statistics import median

from llamita.planning.quantities import duration, gigabytes, number
from llamita.reporting.alert_rule import Alert, Facts, Rule
from llamita.reporting.events import Event

DATA_WAIT = 0.10
"""Share of the time. A healthy run waits for less than 1%; a tenth is worth a copy of the data."""
THROUGHPUT_LOSS = 0.30
"""Turbo and heat move a rate by 10–20%; a third is another process or a throttled chip."""
MEMORY_SHARE = 0.92
"""Allocators lose some 5% to fragments, and validation and samples come on top of training."""
UNSAVED_SECONDS = 30 * 60
"""Half an hour is more than most people mind doing again."""

_REPORTS = 3  # a rate or a wait is judged by the median of at least so many progress events …
_REPORT_SECONDS = 10.0  # … that span this long: over less, a machine's breath looks like trouble
_BEFORE = 8  # progress events before a median is a level
_REMEMBERED = 500  # progress events that the level is taken from


class Reports:
    """The latest progress events of one stage and process, with one value of each."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.last: deque[tuple[float, float]] = deque()
        self.earlier: deque[float] = deque(maxlen=_REMEMBERED)

    def observe(self, event: Event) -> bool:
        """Whether there is something to judge."""
        if event["event"] in ("start", "resume", "stage"):
            # Another machine, or another length of sequence: another level.
            self.last.clear()
            self.earlier.clear()
        if event["event"] != "progress":
            return False
        now = float(event["time"])
        self.last.append((now, number(event[self.key])))
        while len(self.last) > _REPORTS and now - self.last[1][0] >= _REPORT_SECONDS:
            self.earlier.append(self.last.popleft()[1])
        return len(self.last) >= _REPORTS and now - self.last[0][0] >= _REPORT_SECONDS

    def level(self) -> float:
        return median(value for _, value in self.last)


class DataWait(Rule):
    kind = "data_wait"
    of_steps = False

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.reports = Reports("data_wait")

    def observe(self, event: Event) -> Alert | None:
        if not self.reports.observe(event):
            return None
        share = self.reports.level()
        if share <= (DATA_WAIT / 2 if self.active else DATA_WAIT):
            self._end()
            return None
        names = list(self.facts.recipe.get("datasets") or {"NAME": None})
        return self._raise(
            event["step"],
            f"steps wait for data {share:.0%} of the time",
            "Batches are read from the datasets' files by one thread: copy the datasets to a local "
            "disk that is not shared and go on with "
            f"`--set datasets.{names[0]}.path=…`, or end what else uses the disk and the CPU",
        )


class Throughput(Rule):
    kind = "throughput"
    of_steps = False

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.reports = Reports("tokens_per_second")

    def observe(self, event: Event) -> Alert | None:
        if not self.reports.observe(event) or len(self.reports.earlier) < _BEFORE:
            return None
        usual, now = median(self.reports.earlier), self.reports.level()
        if now >= usual * (1 - THROUGHPUT_LOSS / (2 if self.active else 1)):
            self._end()
            return None
        look = "`nvidia-smi`" if self.facts.device == "cuda" else "`top`"
        return self._raise(
            event["step"],
            f"{now:,.0f} tokens a second, {1 - now / usual:.0%} below this stage's usual "
            f"{usual:,.0f}",
            "Another process may be using the machine, or it is hot and has slowed down: look "
            f"with {look}",
        )


class Memory(Rule):
    kind = "memory"
    of_steps = False

    def observe(self, event: Event) -> Alert | None:
        limit = event.get("memory_limit_bytes") if event["event"] == "progress" else None
        if not limit:
            return None
        used = event["memory_bytes"]
        if used <= limit * (MEMORY_SHARE - (0.02 if self.active else 0)):
            self._end()
            return None
        rows = self.facts.micro_batch_size
        if rows and rows > 1:
            action = f"Go on with less a pass: `--set runtime.micro_batch_size={rows // 2}`"
        else:
            action = "End other programs; a new run fits with a shorter sequence_length"
        return self._raise(
            event["step"],
            f"{gigabytes(used)} of {gigabytes(limit)} memory are in use ({used / limit:.0%})",
            action,
        )


class Unsaved(Rule):
    kind = "unsaved"
    of_steps = False

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.since: float | None = None
        self.step = 0

    def observe(self, event: Event) -> Alert | None:
        if event["event"] in ("start", "resume", "checkpoint"):
            self.since, self.step = float(event["time"]), event["step"]
            self._end()
        if event["event"] != "progress" or self.since is None:
            return None
        age = float(event["time"]) - self.since
        if age <= UNSAVED_SECONDS:
            return None
        # A sixth of the way: checkpoints about every ten minutes.
        steps = max(1, round((event["step"] - self.step) * 600 / age))
        return self._raise(
            event["step"],
            f"{duration(age)} of work are not in a checkpoint; a power cut would lose them",
            f"Press Ctrl-C, which saves, and go on with `--set checkpoints.every_steps={steps}`",
        )


class SinkFailed(Rule):
    kind = "sink_failed"
    of_steps = False

    def observe(self, event: Event) -> Alert | None:
        if event["event"] in ("start", "resume"):
            self._end()
        if event["event"] != "sink_failed":
            return None
        return self._raise(
            event.get("step", 0),
            f"{event.get('name', 'a sink')} has failed and is left out: {event.get('error', '')}",
            "Training goes on and events.jsonl holds everything; run the same command again to "
            "bring it back",
        )
