"""What all settings of a recipe have in common: strictness, and numbers as people write them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole_number(value: object) -> object:
    """Let `2e9` and `"2e9"` stand for whole numbers; pydantic's own int refuses both."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, not {value}")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"expected a whole number, not {value!r}")
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(_whole_number), Field(gt=0)]
CountOrZero = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
