"""Rules of alerts about what a model learns from pairs of answers. See `alerts`."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, stdev

from llamita.planning.quantities import number
from llamita.reporting.alert_rule import Alert, Facts, Rule
from llamita.reporting.events import Event
from llamita.reporting.tuning_events import learns_preferences

WINDOW, FEWEST = 100, 20
"""Steps whose means are looked at: a batch of a few pairs is right about all of them by chance."""
WORSE_ERRORS = 4.0
"""Standard errors above the loss that the reference itself has, which the first step shows."""
ALL_RIGHT = 0.995
"""Of the window's pairs: what is shown as 100%."""
OVERFIT, OVERFIT_TIMES = 0.01, 2
"""Two validations running 1% above the best: one may be noise of a small held-out set."""
UNLIKELY = -5.0
"""A margin of 5 leaves a loss of 0.007. Whatever makes the chosen answer itself less likely by so
much is no longer needed to tell the two apart."""


class _OfPairs(Rule):
    """A rule that sees the steps of a preference stage, and forgets them at its end."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._reset()

    def _reset(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW)
        self._end()

    def _take(self, event: Event, key: str) -> bool:
        """Whether the window has a new value, and enough of them."""
        if event["event"] in ("start", "stage"):
            self._reset()
        if event["event"] != "step" or "skipped" in event or not learns_preferences(event):
            return False
        self.values.append(number(event[key]))
        return len(self.values) >= FEWEST


class WorseThanReference(_OfPairs):
    kind = "preference_loss"

    def _reset(self) -> None:
        super()._reset()
        self.first: float | None = None
        self.begins = False

    def observe(self, event: Event) -> Alert | None:
        whole = self._take(event, "loss")
        if event["event"] == "stage":
            self.begins = True  # a stage gone on with does not show its first step
        if self.begins and self.values:
            self.first, self.begins = self.values[0], False
        if not whole or self.first is None or len(self.values) < WINDOW:
            return None
        mean, error = fmean(self.values), stdev(self.values) / math.sqrt(WINDOW)
        if mean <= self.first + WORSE_ERRORS * error:
            self._end()
            return None
        return self._raise(
            event["step"],
            f"the pairs are told apart worse than before the first step: loss {mean:.3f} over the "
            f"last {WINDOW} steps, {self.first:.3f} then",
            "The learning rate is too high: begin anew with `--set "
            f"{self.facts.stage_setting('learning_rate')}=…` at a third of it",
        )


class LearnedByHeart(_OfPairs):
    kind = "preference_overfitting"

    def _reset(self) -> None:
        super()._reset()
        self.best: tuple[float, int] | None = None  # loss, step
        self.above = 0

    def observe(self, event: Event) -> Alert | None:
        self._take(event, "accuracy")
        if event["event"] != "preference":
            return None
        value = number(event["loss"])
        if self.best is None or value < self.best[0]:
            self.best, self.above = (value, event["step"]), 0
            self._end()
            return None
        right = fmean(self.values) if len(self.values) >= FEWEST else 0.0
        if value <= self.best[0] * (1 + OVERFIT) or right < ALL_RIGHT:
            self.above = 0
            self._end()
            return None
        self.above += 1
        if self.above < OVERFIT_TIMES:
            return None
        return self._raise(
            event["step"],
            f"all pairs of the last {len(self.values)} steps were told right, while the loss of "
            f"those held out rises ({value:.4f}, {self.best[0]:.4f} at step {self.best[1]}): the "
            "model learns its pairs by heart",
            f"Train for fewer epochs ({self.facts.stage_setting('tokens')}), or let the run end by "
            "itself with `--set validation.patience=3`; `--set checkpoints.final=best` makes "
            "final/ from the best checkpoint that is kept",
        )


class BothUnlikely(_OfPairs):
    kind = "chosen_unlikely"

    def observe(self, event: Event) -> Alert | None:
        if not self._take(event, "rewards_chosen"):
            return None
        mean = fmean(self.values)
        if mean > UNLIKELY * (0.9 if self.active else 1.0):
            self._end()
            return None
        return self._raise(
            event["step"],
            f"the chosen answers' reward has fallen to {mean:.1f} over the last "
            f"{len(self.values)} steps: both answers become unlikely, and what the model writes "
            "instead nobody has judged",
            "End sooner, or stay closer to the reference with a lower learning rate or a higher β: "
            f"`--set {self.facts.stage_setting('objective.beta')}=…`; read the samples",
        )
