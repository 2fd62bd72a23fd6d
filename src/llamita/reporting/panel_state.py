"""What the live panel knows of a run: its events, boiled down to what is drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamita.errors import UserError
from llamita.reporting.alerts import Alert, AlertFinder
from llamita.reporting.charts import History
from llamita.reporting.evaluation_events import name_of, scores_of, written
from llamita.reporting.events import Event, read_events
from llamita.reporting.tuning_events import (
    bits_per_byte_of,
    interval_of,
    is_chat,
    learns_preferences,
)

# Reading this much takes a second or two; the plots of a longer run begin where it went on.
_MOST_HISTORY_BYTES = 64 * 2**20


@dataclass
class RunState:
    """Fold events with `observe`; `clock` is the time that ages are counted from."""

    run: str = ""
    name: str = ""
    parameters: int = 0
    announced: Event = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    last_step: int = 0
    first_step: int = 0
    begun: float = field(default_factory=time.time)
    began_at: int = 0
    """The step that this process began from."""
    ready: bool = False
    """Whether the first step is behind it: before, it compiles and measures."""
    step: int = 0
    tokens: int = 0
    stage: str = ""
    learning_rate: float = 0.0
    loss: float | None = None
    grad_norm: float | None = None
    skipped: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    loss_history: History = field(default_factory=History)
    rate_history: History = field(default_factory=lambda: History(400))
    validations: list[tuple[int, float]] = field(default_factory=list)
    each_validation: dict[str, float] = field(default_factory=dict)
    own_validations: dict[str, list[float]] = field(default_factory=dict)
    """Each dataset's bits per byte, validation by validation."""
    pair_validations: list[tuple[int, float]] = field(default_factory=list)
    """Of held-out pairs: step, and the share whose chosen answer gained more."""
    pair_margin: tuple[float, float, float] | None = None
    """Mean and 95% interval over the last validation's pairs; None over several datasets."""
    batch_accuracy: float | None = None
    batch_margin: float | None = None
    """Of the last step's pairs; None in a stage that learns no preferences."""
    mixture: dict[str, float] = field(default_factory=dict)
    saved: str | None = None
    saved_time: float | None = None
    scores: list[str] = field(default_factory=list)
    """Of the last evaluation: each task, metric and score."""
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    finder: AlertFinder = field(default_factory=AlertFinder)
    past_alerts: list[Alert] = field(default_factory=list)
    ended: str | None = None

    def observe(self, event: Event) -> list[Alert]:
        """Take an event in; the alerts that it raises."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)
        raised = self.finder.observe(event)
        self.past_alerts += raised
        return raised

    def recall(self, event: Event) -> None:
        """Before a `resume`: what the run's earlier processes wrote, so that plots are whole."""
        path = Path(event.get("run", "")) / "events.jsonl"
        if not path.is_file() or path.stat().st_size > _MOST_HISTORY_BYTES:
            return
        try:
            events = read_events(path)
        except (OSError, UserError):
            return
        for earlier in events:
            if earlier["time"] < event["time"] and earlier.get("step", 0) <= event["step"]:
                self.observe(earlier)
        self.past_alerts = []

    # -- a method for each kind of event ----------------------------------------------------

    def _on_start(self, event: Event) -> None:
        recipe = event.get("recipe") or {}
        self.run, self.name = event.get("run", ""), recipe.get("name", "")
        self.parameters, self.announced = event.get("parameters", 0), event
        self.environment = event.get("environment") or {}
        self.stages = event.get("stages") or []
        self.last_step = event.get("last_step", 0)
        self.first_step = self.stages[0]["first_step"] if self.stages else event["step"]
        self.begun, self.began_at, self.step = event["time"], event["step"], event["step"]
        self.ready, self.ended = False, None
        if self.stages and not self.stage:
            self.stage = self.stages[0]["name"]

    def _on_resume(self, event: Event) -> None:
        self._on_start(event)
        if event["step"]:
            self.saved = f"step-{event['step']}"

    def _on_stage(self, event: Event) -> None:
        self.stage = event["name"]
        self.mixture = {}

    def _on_probe(self, event: Event) -> None:
        self.progress.setdefault("eta_seconds", event["rest_seconds"])
        self.progress.setdefault("time", event["time"])

    def _on_step(self, event: Event) -> None:
        self.ready = True
        self.step, self.tokens = event["step"], event["tokens"]
        self.stage, self.learning_rate = event["stage"], float(event["learning_rate"])
        self.loss, self.grad_norm = float(event["loss"]), float(event["grad_norm"])
        self.skipped += "skipped" in event
        if learns_preferences(event) != self.preferring:
            self.loss_history = History()  # nats a token and nats a pair share no axis
        known = learns_preferences(event)
        self.batch_accuracy = float(event["accuracy"]) if known else None
        self.batch_margin = float(event["margin"]) if known else None
        self.loss_history.add(self.step, self.loss)

    def _on_progress(self, event: Event) -> None:
        self.progress = event
        self.mixture = event.get("mixture") or self.mixture
        self.rate_history.add(event["step"], float(event["tokens_per_second"]))

    def _on_validation(self, event: Event) -> None:
        self.validations.append((event["step"], float(event["bits_per_byte"])))
        self.each_validation = {k: float(v) for k, v in event.get("datasets", {}).items()}
        for name, value in self.each_validation.items():
            self.own_validations.setdefault(name, []).append(value)

    def _on_preference(self, event: Event) -> None:
        self.pair_validations.append((event["step"], float(event["accuracy"])))
        scores = list(event["datasets"].values())
        self.pair_margin = interval_of(scores[0], "margin") if len(scores) == 1 else None

    def _on_evaluation(self, event: Event) -> None:
        self.scores = [f"{name_of(score)} {written(score)}" for score in scores_of(event)]

    def _on_sample(self, event: Event) -> None:
        self.samples = [*self.samples[-7:], (event["step"], event["prompt"], event["text"])]

    def _on_mixture(self, event: Event) -> None:
        self.mixture = event["realised"]

    def _on_checkpoint(self, event: Event) -> None:
        self.saved, self.saved_time = event["path"], event["time"]

    def _on_interrupted(self, event: Event) -> None:
        self.ended = "interrupted"

    def _on_early_stop(self, event: Event) -> None:
        self.ended = "early"

    def _on_end(self, event: Event) -> None:
        self.ended = self.ended or "done"

    # -- what follows from them ---------------------------------------------------------------

    @property
    def stage_record(self) -> dict[str, Any] | None:
        return next((s for s in self.stages if s["name"] == self.stage), None)

    @property
    def preferring(self) -> bool:
        """Whether the last step learned preferences."""
        return self.batch_margin is not None

    @property
    def chats(self) -> bool:
        """Whether samples are answers to questions."""
        return is_chat(self.announced.get("recipe") or {})

    @property
    def measure(self) -> tuple[str, list[float]]:
        """What is validated, by name, and its values: in a stage over one dataset of conversations
        its answers, else all that is held out together."""
        mixture = list((self.stage_record or {}).get("mixture") or {})
        names: list[str] | None = list(self.each_validation) or None
        values = [value for _, value in self.validations]
        if len(mixture) == 1 and mixture[0] in self.own_validations:
            of = bits_per_byte_of(self.announced, mixture)
            if of:
                names, values = mixture, self.own_validations[mixture[0]]
        return "bits per byte" + bits_per_byte_of(self.announced, names), values

    @property
    def share_done(self) -> float:
        total = self.last_step - self.first_step
        return (self.step - self.first_step) / total if total > 0 else 0.0

    def total_tokens(self) -> int:
        """Tokens at the recipe's end, those that a branch inherits included."""
        ahead = 0
        for stage in self.stages:
            left = stage["first_step"] + stage["num_steps"] - max(self.step, stage["first_step"])
            ahead += max(0, left) * stage["batch_tokens"]
        return self.tokens + ahead

    def eta(self, now: float) -> float | None:
        if "eta_seconds" not in self.progress:
            return None
        return max(0.0, float(self.progress["eta_seconds"]) - (now - float(self.progress["time"])))
