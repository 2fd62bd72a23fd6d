"""Where a run stands: what a checkpoint says of it beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llamita.data.batch import Cursor


@dataclass
class Position:
    """Where a run stands. All of it goes into checkpoints."""

    step: int
    stage: int
    stage_step: int
    tokens: int
    cursor: Cursor
    best: dict[str, Any] | None = None
    kept: list[int] = field(default_factory=list)
    validation: dict[str, Any] | None = None

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
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Position:
        cursor = Cursor(values["cursor"]["consumed"], values["cursor"]["stage_start"])
        names = ("step", "stage", "stage_step", "tokens", "best", "kept", "validation")
        return cls(cursor=cursor, **{name: values[name] for name in names})
