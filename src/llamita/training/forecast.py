"""The plan that a run writes down before its first step: time, arithmetic, memory and loss.

`llamita plan --check` (planning/check.py) compares it with what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llamita.data.packed_stream import PackedStream
from llamita.planning.plan import StagePlan, TrainingPlan
from llamita.planning.quantities import duration
from llamita.recipes.schema import Preference
from llamita.training.compilation import graphs_met
from llamita.training.environment import Environment
from llamita.training.loop import Trainer
from llamita.training.position import Position
from llamita.training.probe import Probe, checkpoint_bytes, parameters_that_learn, probe

_FINAL_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Ahead:
    """How often a run will do what it does beside its steps, from where it stands."""

    validations: int
    checkpoints: int
    samples: int
    evaluations: int = 0
    """That are made whatever they cost."""
    evaluations_due: int = 0
    """That are made as far as their share of the time allows."""


def what_lies_ahead(plan: TrainingPlan, position: Position) -> Ahead:
    """As `Trainer` decides it step by step, up to the recipe's end."""
    recipe, last = plan.recipe, plan.first_step + plan.num_steps

    def due(every: int | None) -> set[int]:
        if every is None:
            return set()
        return set(range((position.step // every + 1) * every, last + 1, every))

    ends, end = set(), plan.first_step
    for stage in plan.stages:
        end += stage.num_steps
        if end > position.step:
            ends.add(end)
    saving = due(recipe.checkpoints.every_steps) | ends
    named = recipe.checkpoints.final.removeprefix("step-")
    if named.isdigit() and position.step < int(named) <= last:
        saving.add(int(named))
    validating = due(recipe.validation.every_steps) | ends
    if recipe.checkpoints.final == "best":
        validating |= saving
    begins = position.validation is None
    starts_from_weights = recipe.start_from is not None and position.step == plan.first_step
    sampling = 0
    if recipe.samples.prompts:
        sampling = len(due(recipe.samples.every_steps) | ends) + starts_from_weights
    asking, asking_due = 0, 0
    if recipe.evaluation is not None:
        asking = len(ends) + starts_from_weights
        asking_due = len(due(recipe.evaluation.every_steps) - ends)
    return Ahead(len(validating) + begins, len(saving), sampling, asking, asking_due)


def write_forecast(trainer: Trainer, environment: Environment) -> None:
    """Measure, write down what is to come, and say how long it takes.

    The event is on the disk before the first step is taken.
    """
    ahead = what_lies_ahead(trainer.plan, trainer.position)
    probed = probe(trainer, validates=ahead.validations > 0, samples=ahead.samples > 0)
    planned = forecast(trainer, environment, probed, ahead)
    rest = planned["parts"]["steps"]["seconds"]
    step = trainer.position.step
    trainer.events.write("probe", step=step, **probed.as_json(), rest_seconds=rest)
    trainer.events.write("forecast", **planned)
    trainer.events.flush(durable=True)
    trainer.say(describe_forecast(planned, probed))


def forecast(
    trainer: Trainer, environment: Environment, probed: Probe, ahead: Ahead
) -> dict[str, Any]:
    """The fields of a `forecast` event: what this process is to do from here on, and to take."""
    plan, position = trainer.plan, trainer.position
    stages = _stages(plan, position, probed)
    steps, stepping, tokens, flops = (
        sum(stage[key] for stage in stages) for key in ("steps", "seconds", "tokens", "flops")
    )
    parts = {"steps": (steps, stepping), **_beside_steps(trainer, probed, ahead)}
    if probed.evaluation is not None:
        parts["evaluation"] = _evaluations(trainer, probed.evaluation, ahead, stepping)
    measured = {name: part for name, part in parts.items() if part[1] is not None}
    rate = environment.compute.matmul_rate * environment.processes
    predicted = trainer.recipe.predicted
    return {
        "step": position.step,
        "last_step": trainer.last_step,
        "steps": steps,
        "tokens": tokens,
        "flops": flops,
        "seconds": sum(part[1] for part in measured.values()),
        "parts": {
            name: {"count": count, "seconds": seconds}
            for name, (count, seconds) in measured.items()
        },
        "left_out": _left_out(trainer, [name for name in parts if name not in measured]),
        "stages": stages,
        "devices": environment.processes,
        "tokens_per_second": tokens / stepping,
        "mfu": flops / stepping / rate,
        "memory": {**asdict(environment.memory), "total": environment.memory.total},
        "predicted": None if predicted is None else predicted.model_dump(mode="json"),
    }


def _stages(plan: TrainingPlan, position: Position, probed: Probe) -> list[dict[str, Any]]:
    """What is still to come of each stage. Passes are taken to last in proportion to FLOPs."""

    def flops(stage: StagePlan) -> int:
        return stage.batch_tokens * plan.stage_flops(stage)

    found, first = [], plan.first_step
    for stage in plan.stages:
        steps = min(stage.num_steps, first + stage.num_steps - position.step)
        first += stage.num_steps
        if steps <= 0:
            continue
        each = probed.forward_backward * flops(stage) / flops(probed.stage) + probed.update
        found.append(
            {
                "name": stage.stage.name,
                "first_step": first - steps,
                "steps": steps,
                "tokens": steps * stage.batch_tokens,
                "flops": steps * flops(stage),
                "seconds": steps * each,
            }
        )
    return found


def _beside_steps(
    trainer: Trainer, probed: Probe, ahead: Ahead
) -> dict[str, tuple[int, float | None]]:
    """How often, and seconds in all, or None where that could not be measured."""
    recipe = trainer.recipe
    found: dict[str, tuple[int, float | None]] = {}
    if probed.validation_pass is not None:
        passes = trainer.judge.num_passes
        # The running average is scored too, once it holds a step.
        scorings = ahead.validations
        if trainer.average is not None:
            scorings += ahead.validations - (trainer.position.validation is None)
        whole = scorings * passes + _pair_passes(trainer)
        found["validation"] = (ahead.validations, whole * probed.validation_pass)
        reference = _reference_passes(trainer)
        if reference:
            found["reference"] = (reference, reference * probed.validation_pass)
    saving = None
    if probed.written_byte is not None:
        final = parameters_that_learn(trainer) * _FINAL_BYTES[recipe.checkpoints.final_dtype]
        saving = probed.written_byte * (ahead.checkpoints * checkpoint_bytes(trainer) + final)
    found["saving"] = (ahead.checkpoints, saving)
    if probed.sample_token is not None:
        tokens = ahead.samples * len(recipe.samples.prompts) * recipe.samples.max_tokens
        found["samples"] = (ahead.samples, tokens * probed.sample_token)
    return found


def _evaluations(trainer: Trainer, each: float, ahead: Ahead, stepping: float) -> tuple[int, float]:
    """How many times the quick suite is asked, and seconds in all: those at ends, and of the others
    as many as their share allows of the time that steps and evaluations take."""
    settings = trainer.recipe.evaluation
    assert settings is not None
    count, share = ahead.evaluations + ahead.evaluations_due, settings.max_share
    if share < 1:
        allowed = int(share * stepping / (1 - share) / each)
        count = min(count, max(ahead.evaluations, allowed))
    return count, count * each


def _pairs_ahead(trainer: Trainer) -> list[tuple[StagePlan, bool]]:
    """The stages to come that learn preferences, and whether their reference is yet to be made."""
    first, found = trainer.plan.first_step, []
    for stage in trainer.plan.stages:
        begins, first = first, first + stage.num_steps
        if isinstance(stage.stage.objective, Preference) and first > trainer.position.step:
            found.append((stage, begins >= trainer.position.step))
    return found


def _reference_passes(trainer: Trainer) -> int:
    """Forward passes by which references are computed before their stages."""
    rows = 0
    for stage, to_be_made in _pairs_ahead(trainer):
        objective = stage.stage.objective
        assert isinstance(objective, Preference)
        if to_be_made and objective.reference != "live":
            rows += sum(
                trainer.preparation.datasets[name].train.num_windows(stage.sequence_length)
                for name in stage.stage.mixture
            )
    return -(-rows // (trainer.micro_batch_size * trainer.world.size))


def _pair_passes(trainer: Trainer) -> int:
    """Forward passes over held-out pairs: by the reference, and at each validation."""
    passes, position = 0, trainer.position
    for stage, to_be_made in _pairs_ahead(trainer):
        rows = sum(
            len(stream.held_out_rows(stage.sequence_length, trainer.recipe.validation.tokens))
            for name in stage.stage.mixture
            if isinstance(stream := trainer.preparation.datasets[name].validation, PackedStream)
        )
        every = trainer.recipe.validation.every_steps
        left = min(stage.num_steps, trainer.last_step - position.step)
        times = 1 + to_be_made + (0 if every is None else left // every)
        passes += times * -(-rows // (trainer.micro_batch_size * trainer.world.size))
    return passes


def _left_out(trainer: Trainer, unmeasured: Sequence[str]) -> list[str]:
    """What the seconds do not hold."""
    found = [f"{name}, which could not be measured" for name in unmeasured]
    found += ["waiting for data", "other work on this machine"]
    lengths = {stage.sequence_length for stage in trainer.plan.stages}
    if trainer.compute.compile and len(lengths) > 1:
        found.append("compiling again for another sequence length")
    return found


def describe_forecast(planned: Mapping[str, Any], probed: Probe) -> str:
    """The plan's time in a line."""
    compiled = ""
    if probed.compile:
        found, missed = graphs_met()
        kept = f", {found} of {found + missed} graphs kept from before" if found else ""
        compiled = f"compiled in {duration(probed.compile)}{kept}; "
    others = [name for name in planned["parts"] if name != "steps"]
    more = ""
    if others:
        *before, last = others
        names = f"{', '.join(before)} and {last}" if before else last
        more = f"; {duration(planned['seconds'])} with {names}"
    return (
        f"  time        {compiled}about {probed.step:.3g} s a step, "
        f"{duration(planned['parts']['steps']['seconds'])} for the {planned['steps']:,} steps to "
        f"come{more}"
    )
