"""Rules of alerts about what the model learns, or does not. See `alerts`."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median, stdev

from llamita.planning.quantities import number
from llamita.reporting.alert_rule import Alert, Facts, Rule
from llamita.reporting.events import Event
from llamita.reporting.tuning_events import learns_preferences

SPIKES, SPIKE_WINDOW = 3, 100
"""At six σ chance skips one step in many millions. One is an odd batch, three in 100 a habit."""
CLIPPED_SHARE, CLIP_WINDOW = 0.99, 500
"""Warm-up is clipped as a rule; 500 steps on end are no longer warm-up but the level."""
RISE, RISE_BLOCK, RISE_BLOCKS, RISE_ERRORS = 0.01, 100, 3, 4.0
"""The means of three blocks of 100 steps, each 1% and four standard errors above the best block."""
OVERFIT, OVERFIT_TIMES = 0.01, 2
"""Two validations running 1% above the best: one may be noise of a small held-out set."""
ANSWERS_TIMES = 3
"""Of answers fewer are held out: that each of three validations is above the one before it by
chance happens to one in 24 orders, and seldom while training gets better."""
VANISHED_RATE, VANISHED_STEPS, VANISHED_SHARE = 1e-4, 100, 0.05
"""A decay to zero ends below a ten-thousandth for a ten-thousandth of its steps, not for 5%."""


class Spikes(Rule):
    kind = "spikes"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.skipped: deque[int] = deque()

    def observe(self, event: Event) -> Alert | None:
        if event["event"] != "step":
            return None
        step = event["step"]
        if event.get("skipped") == "spike":
            self.skipped.append(step)
        while self.skipped and self.skipped[0] <= step - SPIKE_WINDOW:
            self.skipped.popleft()
        if len(self.skipped) < SPIKES:
            if not self.skipped:
                self._end()
            return None
        return self._raise(
            step,
            f"{len(self.skipped)} of the last {SPIKE_WINDOW} steps were skipped as spikes",
            "If it goes on, the learning rate is too high: branch with "
            f"{self.facts.branch(self.facts.lower_rate())}, or start anew with a longer warm-up "
            "(stages.0.schedule.warmup_tokens)",
        )


class NonFinite(Rule):
    kind = "non_finite"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.last = 0

    def observe(self, event: Event) -> Alert | None:
        if event["event"] != "step":
            return None
        if event.get("skipped") != "non_finite":
            if self.active and event["step"] >= self.last + SPIKE_WINDOW:
                self._end()
            return None
        self.last = event["step"]
        return self._raise(
            event["step"],
            "loss or gradients were not finite; the step was not taken",
            "If it comes again, rule out the number type (`--set runtime.dtype=float32`) or branch "
            f"with {self.facts.branch(self.facts.lower_rate())}",
        )


class Clipped(Rule):
    kind = "clipped"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.over: deque[bool] = deque(maxlen=CLIP_WINDOW)
        self.norms: deque[float] = deque(maxlen=CLIP_WINDOW)

    def observe(self, event: Event) -> Alert | None:
        if event["event"] in ("start", "resume", "stage"):
            self.over.clear()
            self.norms.clear()
        limit = self.facts.setting("optimizer", "clip_grad_norm")
        if event["event"] != "step" or limit is None:
            return None
        self.norms.append(number(event["grad_norm"]))
        self.over.append(self.norms[-1] > limit)
        if len(self.over) < CLIP_WINDOW:
            return None
        if sum(self.over) < CLIP_WINDOW * (CLIPPED_SHARE - (0.09 if self.active else 0)):
            self._end()
            return None
        usual = median(self.norms)
        return self._raise(
            event["step"],
            f"gradients were clipped in nearly all of the last {CLIP_WINDOW} steps (norm about "
            f"{usual:.3g}, limit {limit:g}), so that the limit no longer tells odd steps from "
            "others",
            f"Branch with {self.facts.branch(f'--set optimizer.clip_grad_norm={2 * usual:.1g}')}, "
            "or with a lower optimizer.learning_rate",
        )


class Rising(Rule):
    kind = "rising_loss"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._reset()

    def _reset(self) -> None:
        self.block: list[float] = []
        self.best: tuple[float, float] | None = None  # mean and its standard error
        self.above = 0
        self._end()

    def observe(self, event: Event) -> Alert | None:
        if event["event"] in ("start", "stage"):
            self._reset()
        if event["event"] != "step" or "skipped" in event:  # skipped ones taught nothing
            return None
        if learns_preferences(event):
            return None  # near 0 a hundredth more means nothing: see alerts_of_preferences
        self.block.append(number(event["loss"]))
        if len(self.block) < RISE_BLOCK:
            return None
        mean, error = fmean(self.block), stdev(self.block) / math.sqrt(RISE_BLOCK)
        self.block = []
        if self.best is None or mean < self.best[0]:
            self.best = mean, error
        margin = max(RISE * self.best[0], RISE_ERRORS * math.hypot(error, self.best[1]))
        if mean <= self.best[0] + margin:
            self.above = 0
            self._end()
            return None
        self.above += 1
        if self.above < RISE_BLOCKS:
            return None
        return self._raise(
            event["step"],
            f"the loss has risen: {mean:.3f} over the last {RISE_BLOCK} steps, {self.best[0]:.3f} "
            "at its best in this stage",
            "The learning rate is too high, or the data have changed: branch from a checkpoint "
            f"before the rise with {self.facts.branch(self.facts.lower_rate())}",
        )


class Overfitting(Rule):
    kind = "overfitting"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.losses: deque[float] = deque(maxlen=RISE_BLOCK)
        self._reset()

    def _reset(self) -> None:
        self.losses.clear()
        self.best: tuple[float, float, int] | None = None  # bits per byte, training loss, step
        self.above = self.harder = 0
        self.last = math.inf
        self._end()

    def observe(self, event: Event) -> Alert | None:
        if event["event"] in ("start", "stage"):
            self._reset()
        if event["event"] == "step" and "skipped" not in event and not learns_preferences(event):
            self.losses.append(number(event["loss"]))
        if event["event"] != "validation" or not self.losses:
            return None
        value, training = number(event["bits_per_byte"]), fmean(self.losses)
        self.harder = self.harder + 1 if value > self.last else 0
        self.last = value
        if self.best is None or value < self.best[0]:
            self.best, self.above = (value, training, event["step"]), 0
            self._end()
            return None
        answers = self.facts.learns_answers
        rising = answers and self.harder >= ANSWERS_TIMES
        if training >= self.best[1] or (value <= self.best[0] * (1 + OVERFIT) and not rising):
            self.above = 0
            self._end()
            return None
        self.above += 1
        if self.above < OVERFIT_TIMES and not rising:
            return None
        what, data = ("answers get", "conversations") if answers else ("text gets", "data")
        action = (
            f"Train for fewer epochs ({self.facts.stage_setting('tokens')}), or let the run end by "
            "itself with `--set validation.patience=3`"
            if answers
            else "Train on fewer tokens (fewer epochs) or on more text"
        )
        return self._raise(
            event["step"],
            f"held-out {what} harder ({value:.4f} bits per byte, {self.best[0]:.4f} at step "
            f"{self.best[2]}) while the training loss still falls: the model learns its {data} by "
            "heart",
            f"{action}; `--set checkpoints.final=best` makes final/ from the best checkpoint that "
            "is kept",
        )


class VanishedRate(Rule):
    kind = "learning_rate"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.peak, self.low, self.steps = 0.0, 0, 0

    def observe(self, event: Event) -> Alert | None:
        if event["event"] in ("start", "stage"):
            self.peak, self.low, self.steps = 0.0, 0, 0
            self._end()
        if event["event"] != "step":
            return None
        rate = number(event["learning_rate"])
        self.peak = max(self.peak, rate)
        self.steps += 1
        self.low = self.low + 1 if rate <= VANISHED_RATE * self.peak else 0
        if self.low < max(VANISHED_STEPS, VANISHED_SHARE * self.steps):
            if not self.low:
                self._end()
            return None
        return self._raise(
            event["step"],
            f"the learning rate is {rate:.1e}: the last {self.low:,} steps have taught next to "
            "nothing",
            "End the stage earlier, or give its schedule a floor (schedule.final_fraction); "
            "half_life_tokens must suit the stage's length",
        )
