"""What may change when a run goes on, and what refuses."""

from __future__ import annotations

from typing import Any

from llamita.errors import UserError
from llamita.planning.plan import StagePlan, TrainingPlan
from llamita.training.schedule import learning_rate_factor

MAY_CHANGE = (
    "name",
    "description",
    "runtime",
    "averaging",
    "checkpoints",
    "validation",
    "samples",
    "evaluation",
    "guard",
    "track",
    "predicted",
    "card",
    "datasets.*.path",
    "datasets.*.tokens",
    "datasets.*.max_epochs",
)
"""Keys that do not change what was computed so far. Stages that have not begun may change too, and
so may the current stage's tokens and schedule where the steps taken keep their learning rates."""


def changed_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Paths at which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list({**old, **new})
        return [
            path
            for key in keys
            for path in changed_keys(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [prefix.removesuffix(".")]


def check_may_go_on(old_plan: TrainingPlan, plan: TrainingPlan, stage: int, done: int) -> list[str]:
    """The keys that changed, if a run may go on with them.

    Args:
        stage: number of the current stage. done: steps taken in it.

    Raises:
        UserError: a change that would contradict what was computed already.
    """
    before, after = old_plan.recipe.model_dump(), plan.recipe.model_dump()
    stages_before, stages_after = before.pop("stages"), after.pop("stages")
    changed = changed_keys(before, after)
    refused = [path for path in changed if not _is_free(path)]
    if "optimizer.kind" in refused:  # then most of its other keys come and go with it
        refused = [path for path in refused if not path.startswith("optimizer.")]
        refused.append("optimizer.kind")
    inherited = {path.rpartition(".")[2] for path in refused}  # a stage's own follow from these
    for number in range(stage):
        past = changed_keys(stages_before[number], _at(stages_after, number))
        refused += [f"stages.{number}.{path}".removesuffix(".") for path in past]
    current = _check_current(old_plan, plan, stage, done)
    refused += [path for path in current if path.rpartition(".")[2] not in inherited]
    if refused:
        raise UserError(
            f"this run has taken {done:,} steps of stage {stage} with other settings; it cannot "
            f"go on with a changed {', '.join(refused)}. Put them back, start a new run with "
            "another --out, or branch from a checkpoint with --from. What may change: "
            f"{', '.join(MAY_CHANGE)}, stages not yet begun, and the length of the current one"
        )
    return changed + [f"stages.{path}" for path in _list_changes(stages_before, stages_after)]


def _check_current(old: TrainingPlan, new: TrainingPlan, number: int, done: int) -> list[str]:
    if number >= len(new.stages):
        return ["stages"]
    before, after = old.stages[number], new.stages[number]
    path = f"stages.{number}"
    if done == 0:
        return []
    fixed = ("name", "mixture", "objective")
    refused = [
        f"{path}.{key}" for key in fixed if getattr(before.stage, key) != getattr(after.stage, key)
    ]
    refused += [
        f"{path}.{key}"
        for key in ("batch_tokens", "sequence_length", "learning_rate")
        if getattr(before, key) != getattr(after, key)
    ]
    if after.num_steps < done:
        refused.append(f"{path}.tokens (fewer than the {done * before.batch_tokens:,} trained)")
    elif not refused and not _same_past(before, after, done):
        refused.append(f"{path} (its learning rates so far would have been others)")
    return refused


def _same_past(before: StagePlan, after: StagePlan, done: int) -> bool:
    if before.stage == after.stage:
        return True
    return all(
        learning_rate_factor(before.stage, step, before.batch_tokens)
        == learning_rate_factor(after.stage, step, after.batch_tokens)
        for step in range(done)
    )


def _is_free(path: str) -> bool:
    parts = path.split(".")
    if parts[0] == "datasets" and len(parts) > 2:
        return parts[2] in ("path", "tokens", "max_epochs")
    # A dataset added to the recipe is free: the stages that use it are checked themselves.
    return parts[0] in MAY_CHANGE or parts[0] == "datasets"


def _list_changes(before: list[Any], after: list[Any]) -> list[str]:
    return [
        f"{number}.{path}".removesuffix(".")
        for number in range(max(len(before), len(after)))
        for path in changed_keys(_at(before, number), _at(after, number))
    ]


def _at(items: list[Any], number: int) -> Any:
    return items[number] if number < len(items) else None
