"""Benchmarks that are asked while training goes on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from llamita.recipes.settings import Count, CountOrZero, Settings


class QuickEvaluation(Settings):
    """A few items of benchmarks, asked of the weights as they are. Needs the extra `eval`.

    Tasks of likelihoods alone: texts are written by `llamita eval`, of checkpoints.
    """

    tasks: Annotated[list[str], Field(min_length=1)]
    """Suites, lm-eval's tasks and groups, paths of task YAMLs or of your own questions."""
    every_steps: Count | None = None
    """Also at every stage's end, and before the first step of a run that starts from weights.
    null: only then."""
    limit: Count = 100
    """Items of each task, its first ones."""
    num_fewshot: CountOrZero | None = None
    """Examples in each prompt, in place of the tasks' own numbers."""
    data: str | None = None
    """A folder of datasets in their upstream schema, looked into before the hub."""
    offline: bool = False
    """Leave the hub alone."""
    chat: bool = False
    """Put questions through the data's chat template."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Of the time since training began. What would take more is left out, and that is said; at a
    stage's end and before the first step it is asked all the same."""

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"{', '.join(value)}: each can be named once")
        return value
