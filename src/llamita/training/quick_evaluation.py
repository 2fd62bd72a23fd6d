"""Benchmarks while a run goes on: when they are asked, what that costs, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llamita.planning.quantities import duration
from llamita.recipes.quick_evaluation import QuickEvaluation
from llamita.training.parallelism import World
from llamita.training.telemetry import EventLog


class Suite(Protocol):
    """What is asked (`evaluation.quick_suite.QuickSuite`)."""

    def ask(self, stopping: Callable[[], bool]) -> dict[str, Any] | None:
        """Scores and what belongs to them, as fields of an event; None where it was stopped."""

    def measure(self) -> tuple[Callable[[], object], float]:
        """Work to be timed, and how many times as long an evaluation takes."""


@dataclass
class Evaluator:
    """Asks a suite for no more than its share of the time.

    Every process of a run asks the same, since a sharded model answers only where all of them ask.

    Args:
        should_stop: asked while answers are computed; then they are dropped.
    """

    settings: QuickEvaluation
    suite: Suite
    world: World
    events: EventLog
    say: Callable[[str], None]
    should_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._spent = 0.0
        self._last: float | None = None

    def is_due(self, step: int) -> bool:
        every = self.settings.every_steps
        return every is not None and step % every == 0

    def evaluate(self, step: int, *, whatever_it_costs: bool) -> None:
        """Ask, unless it would take more than `max_share` of the time since this began."""
        if not whatever_it_costs and self.world.agree(self._costs_too_much()):
            self._leave_out(step)
            return
        began = time.monotonic()
        # Processes would have to agree on every pass: of several none stops in the middle.
        found = self.suite.ask(self.should_stop if self.world.size == 1 else lambda: False)
        if found is None:
            self.say(f"step {step}: the evaluation was stopped")
            return
        self._last = time.monotonic() - began
        self._spent += self._last
        share = self._spent / (time.monotonic() - self._begun)
        fields = {"seconds": round(self._last, 3), "share": round(share, 5), **found}
        self.events.write("evaluation", step=step, **fields)
        for line in describe_scores(found["scores"]):
            self.say(f"step {step}: {line}")
        for name, why in found["missing"].items():
            self.say(f"step {step}: {name} has no score: {why}")
        self.say(
            f"step {step}: evaluated in {duration(self._last)}; {share:.1%} of the time so far"
        )

    def _costs_too_much(self) -> bool:
        if self._last is None:  # how long it takes is not known yet
            return False
        elapsed = time.monotonic() - self._begun
        return self._spent + self._last > self.settings.max_share * (elapsed + self._last)

    def _leave_out(self, step: int) -> None:
        assert self._last is not None
        share = self._spent / (time.monotonic() - self._begun)
        self.events.write(
            "evaluation_left_out", step=step, seconds=round(self._last, 3), share=round(share, 5)
        )
        self.say(
            f"step {step}: not evaluated: the last took {duration(self._last)}, all so far "
            f"{share:.1%} of the time, and evaluation.max_share is {self.settings.max_share:.1%}"
        )


def describe_scores(scores: list[Mapping[str, Any]]) -> list[str]:
    """A line a score: its value, 95% interval, and whether guessing could have scored it."""
    lines = []
    for each in scores:
        ends = (each["value"], each["low"], each["high"])
        value, low, high = (
            f"{end:.1%}" if each["is_share"] else f"{end:.4f}" for end in map(float, ends)
        )
        luck = f", not above chance ({each['chance']:.1%})" if each["not_above_chance"] else ""
        items = f"{each['items']:,} item{'' if each['items'] == 1 else 's'}"
        lines.append(f"{each['task']} {each['metric']} {value} ({low} to {high}) of {items}{luck}")
    return lines
