"""What all rules of alerts share: the alert, what is known of the run, and raising once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llamita.reporting.events import Event
from llamita.reporting.tuning_events import bits_per_byte_of


@dataclass(frozen=True)
class Alert:
    """Raised at `step`. `kind` names the rule; `message` and `action` are sentences."""

    step: int
    kind: str
    message: str
    action: str

    def line(self) -> str:
        return f"alert at step {self.step}: {self.message}. {self.action}"


@dataclass
class Facts:
    """What rules need to know beside the event at hand."""

    recipe: dict[str, Any] = field(default_factory=dict)
    micro_batch_size: int | None = None
    device: str = "cpu"
    checkpoint: str | None = None
    stage: str | None = None
    announced: Event = field(default_factory=dict)

    def observe(self, event: Event) -> None:
        match event["event"]:
            case "start" | "resume":
                self.recipe, self.announced = event.get("recipe") or {}, event
                environment = event.get("environment") or {}
                self.micro_batch_size = environment.get("micro_batch_size")
                self.device = environment.get("device", "cpu")
                if event["event"] == "resume" and event["step"]:
                    self.checkpoint = f"step-{event['step']}"
            case "checkpoint":
                self.checkpoint = event["path"]
            case "stage":
                self.stage = event["name"]
            case "step":
                self.stage = event.get("stage", self.stage)

    def setting(self, section: str, key: str) -> Any:
        return (self.recipe.get(section) or {}).get(key)

    @property
    def learns_answers(self) -> bool:
        """Whether the stage learns from conversations alone."""
        stages = self.announced.get("stages") or []
        mixture = next((s.get("mixture") or {} for s in stages if s.get("name") == self.stage), {})
        return bool(mixture) and bits_per_byte_of(self.announced, mixture) == " of answers"

    def stage_setting(self, key: str) -> str:
        """A key of the stage's, as `--set` takes it."""
        names = [stage.get("name") for stage in self.recipe.get("stages") or []]
        return f"stages.{names.index(self.stage) if self.stage in names else 0}.{key}"

    def branch(self, changes: str) -> str:
        """How to go on differently. What was computed is fixed, so only a branch may."""
        return f"`llamita train RECIPE --from RUN/{self.checkpoint or 'step-N'} {changes}`"

    def lower_rate(self) -> str:
        rate = self.setting("optimizer", "learning_rate")
        value = f"{rate / 2:.2g}" if rate else "…"
        return f"--set optimizer.learning_rate={value}"


class Rule(ABC):
    kind: ClassVar[str]
    of_steps: ClassVar[bool] = True

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.active: Alert | None = None

    @abstractmethod
    def observe(self, event: Event) -> Alert | None:
        """Take an event in; the alert, if its condition begins with it."""

    def _raise(self, step: int, message: str, action: str) -> Alert | None:
        """Whether this is news; if not, the standing alert keeps its step and takes the words."""
        begun = self.active is None
        first = step if self.active is None else self.active.step
        self.active = Alert(first, self.kind, message, action)
        return self.active if begun else None

    def _end(self) -> None:
        self.active = None
