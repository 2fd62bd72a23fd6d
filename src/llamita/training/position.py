"""Where a run stands: what a checkpoint says of it beside tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamita.data.batch import Cursor


@dataclass
class Position:
    """Where a run stands. All of it goes into checkpoints.

    validation: the last one's step and figures. best: step and figure of the checkpoint that did
    best, as `measure` names it. without_gain: the best figure of all validations, and how many came
    after it. ended_early: no step follows, whatever the recipe says.
    """

    step: int
    stage: int
    stage_step: int
    tokens: int
    cursor: Cursor
    best: dict[str, Any] | None = None
    kept: list[int] = field(default_factory=list)
    validation: dict[str, Any] | None = None
    without_gain: dict[str, Any] | None = None
    ended_early: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "tokens": self.tokens,
            "cursor": {
                "consumed": dict(self.cursor.consumed),
                "stage_start": dict(self.cursor.stage_start),
            },
            "best": self.best,
            "kept": self.kept,
            "validation": self.validation,
            "without_gain": self.without_gain,
            "ended_early": self.ended_early,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Position:
        cursor = Cursor(values["cursor"]["consumed"], values["cursor"]["stage_start"])
        names = ("step", "stage", "stage_step", "tokens", "best", "kept", "validation")
        later = {  # than the first checkpoints that were written
            name: values[name] for name in ("without_gain", "ended_early") if name in values
        }
        return cls(cursor=cursor, **{name: values[name] for name in names}, **later)

    def note_best(self) -> None:
        """Before a checkpoint is written: whether it is the best so far by its own validation."""
        if self.validation is None or self.validation["step"] != self.step:
            return
        name, value = measure(self.validation)
        if self.best is None or name not in self.best or value < self.best[name]:
            self.best = {"step": self.step, name: value}

    def note_gain(self) -> int:
        """After a validation: how many have been no better than the best before them."""
        assert self.validation is not None
        name, value = measure(self.validation)
        before = self.without_gain
        if before is None or before["measure"] != name or value < before["value"]:
            self.without_gain = {"measure": name, "value": value, "validations": 0}
        else:
            self.without_gain = {**before, "validations": before["validations"] + 1}
        count: int = self.without_gain["validations"]
        return count


def measure(validation: Mapping[str, Any]) -> tuple[str, float]:
    """What a validation is judged by, lower being better: the loss of held-out pairs while
    preferences are trained, else bits per byte."""
    name = "preference_loss" if "preference_loss" in validation else "bits_per_byte"
    return name, validation[name]
