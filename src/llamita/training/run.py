"""`train`: start a run, go on with it, or say that it is done."""

from __future__ import annotations

import json
import os
import platform
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llamita
from llamita.data.batch import Cursor
from llamita.durable import replace_synced
from llamita.model.decoder import Decoder, compile_model
from llamita.model.devices import choose_device
from llamita.model.huggingface import load_weights
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.planning.plan import SourceSize, TrainingPlan, describe, make_plan
from llamita.recipes.loading import dump_recipe, load_recipe, override_recipe
from llamita.recipes.schema import Constant, Recipe
from llamita.training.checkpoint import (
    TrainingState,
    clean_up,
    step_directories,
)
from llamita.training.environment import Environment, describe_memory, settle_environment
from llamita.training.final import write_final
from llamita.training.guards import StepGuard
from llamita.training.loop import Interrupted, Position, Trainer
from llamita.training.optimizer import build_optimizer, load_optimizer_state
from llamita.training.parallelism import World
from llamita.training.preparation import (
    Preparation,
    fingerprints,
    prepare,
)
from llamita.training.probe import probe
from llamita.training.process import command_line, deterministic, locked, stop_signals
from llamita.training.resume import check_may_go_on
from llamita.training.telemetry import EventLog


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: `final` is a Hugging Face directory."""

    run: Path
    final: Path
    step: int
    bits_per_byte: float | None


class RunInterrupted(Exception):
    """Stopped by a signal with everything saved; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def train(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    start_from: str | Path | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> TrainingResult | TrainingPlan:
    """Train what a recipe describes; the same call goes on with a run that was interrupted.

    Args:
        recipe: a recipe, its file, or a shipped recipe's name.
        out: the run's directory; default runs/NAME.
        overrides: `key.path=value`, applied to the recipe.
        start_from: as the recipe's `start_from`.
        dry_run: return the plan; nothing is allocated or written, and absent data are planned with
            their declared token counts.
        say: receives every line meant for people.

    Raises:
        UserError: anything the user can put right.
        RunInterrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
    """
    overrides = list(overrides)
    if start_from is not None:  # in place of the model that the recipe would begin with
        overrides += ["model=null", f"start_from={json.dumps(str(start_from))}"]
    if isinstance(recipe, Recipe):
        resolved = override_recipe(recipe, overrides)
    else:
        resolved = load_recipe(recipe, overrides)
    if dry_run:
        plan = prepare(resolved, allow_declared=True).plan
        for line in [*describe(plan), describe_memory(plan)]:
            say(line)
        return plan
    run = Path(out) if out is not None else Path("runs") / resolved.name
    device = choose_device(resolved.runtime.device)
    world = World.join(device)
    quiet: Callable[[str], None] = say if world.is_main else (lambda line: None)
    try:
        with ExitStack() as stack:
            if world.is_main:
                stack.enter_context(locked(run))
            stack.enter_context(deterministic(resolved.runtime, device))
            stop = stack.enter_context(stop_signals())
            return _train(resolved, run, world, quiet, stop)
    finally:
        world.leave()


def _train(
    recipe: Recipe, run: Path, world: World, say: Callable[[str], None], stop: list[int]
) -> TrainingResult:
    if world.is_main:
        clean_up(run)
    world.barrier()
    directories = step_directories(run)
    resume = directories[max(directories)] if directories else None
    preparation = prepare(recipe, resume=resume)
    plan, recorded = preparation.plan, preparation.recorded
    position = _position(preparation)
    changed = _check_resume(run, preparation, position) if resume else []
    last = len(plan.stages) - 1
    if (position.stage, position.stage_step) == (last, plan.stages[last].num_steps):
        return _already_done(preparation, run, position, world, say)
    for line in describe(plan):
        say(line)
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    environment = settle_environment(plan, recorded, world)
    compute, rows = environment.compute, environment.micro_batch_size
    say(describe_memory(plan, rows, compute.dtype, world.size))
    for reason in compute.reasons:
        say(f"  compute     {reason}")
    warnings = [*environment.differences(recorded), *preparation.warnings]
    for warning in warnings:
        say(f"  warning     {warning}")
    if world.is_main:
        replace_synced(run / "recipe.yaml", dump_recipe(recipe))
    events = EventLog(run / "events.jsonl" if world.is_main else Path(os.devnull))
    try:
        _announce(events, preparation, position, environment, changed, warnings)
        trainer = _build(preparation, run, environment, world, position, events, say, stop)
        events.write("probe", step=position.step, **probe(trainer, say))
        if resume is not None:
            say(f"going on from {resume}")
        return _run(trainer, stop)
    finally:
        events.close()


def _run(trainer: Trainer, stop: list[int]) -> TrainingResult:
    run, position, world = trainer.run_directory, trainer.position, trainer.world
    try:
        trainer.run()
    except Interrupted:
        trainer.events.write("interrupted", step=position.step)
        raise RunInterrupted(
            f"stopped at step {position.step}; saved as {run / f'step-{position.step}'}. "
            f"Go on with: {command_line()}",
            stop[0] if stop else signal.SIGTERM,
        ) from None
    if world.is_main:
        write_final(trainer.preparation, run)
    world.barrier()
    value = position.validation["bits_per_byte"] if position.validation else None
    trainer.events.write("end", step=position.step, final="final", bits_per_byte=value)
    shown = "" if value is None else f" at {value:.4f} bits per byte"
    trainer.say(f'done{shown}: {run / "final"}. Try: llamita generate {run} "…"')
    return TrainingResult(run, run / "final", position.step, value)


def _position(preparation: Preparation) -> Position:
    """Where the run stands: its own checkpoint, a branch's beginning, or the very beginning."""
    if preparation.resumed is not None and preparation.resumed.state is not None:
        return Position.from_json(preparation.resumed.state.values)
    recorded = preparation.recorded
    tokens = recorded.values["tokens"] if recorded else 0
    consumed = recorded.values["cursor"]["consumed"] if recorded else {}
    return Position(preparation.plan.first_step, 0, 0, tokens, Cursor(consumed, {}))


def _build(
    preparation: Preparation,
    run: Path,
    environment: Environment,
    world: World,
    position: Position,
    events: EventLog,
    say: Callable[[str], None],
    stop: list[int],
) -> Trainer:
    """Weights, optimizer, guard and random state as they were, or as they begin."""
    compute = environment.compute
    recipe, plan, recorded = preparation.recipe, preparation.plan, preparation.recorded
    torch.manual_seed(recipe.seed)
    model = Decoder(plan.config, padded_vocab_size=environment.padded_vocab_size)
    source = preparation.resumed or preparation.origin
    if source is not None:
        load_weights(model, source.directory)
    else:
        initialize(model, plan.parametrization, seed=recipe.seed, std=recipe.initializer_std)
    model.compute_dtype = compute.dtype
    model.to(compute.device)
    multipliers = learning_rate_multipliers(model, plan.parametrization)
    if compute.compile:
        compile_model(model)
    world.shard(model)
    optimizer = build_optimizer(model, recipe.optimizer, multipliers)
    guard = StepGuard(recipe.guard, compute.device)
    if recorded is not None:
        _restore(recorded, optimizer, guard, compute.device)
    return Trainer(
        preparation,
        run,
        model=model,
        optimizer=optimizer,
        guard=guard,
        compute=compute,
        world=world,
        position=position,
        micro_batch_size=environment.micro_batch_size,
        state_extra={
            "format": 1,
            "seed": recipe.seed,
            "parametrization": plan.parametrization,
            "longest_sequence": plan.longest_sequence,
            "datasets": fingerprints(preparation.datasets),
            "branch_point": {"step": plan.first_step, "consumed": dict(plan.consumed)},
            **environment.as_json(),
        },
        events=events,
        say=say,
        should_stop=lambda: bool(stop),
    )


def _restore(
    recorded: TrainingState,
    optimizer: torch.optim.Optimizer,
    guard: StepGuard,
    device: torch.device,
) -> None:
    """Put a checkpoint's tensors back. (A branch's first stage will reset the guard.)"""
    load_optimizer_state(optimizer, recorded.tensors)
    torch.set_rng_state(recorded.tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in recorded.tensors:
        torch.cuda.set_rng_state(recorded.tensors["rng.cuda"], device)
    prefix = "guard."
    guard.load_state(
        {
            name.removeprefix(prefix): tensor
            for name, tensor in recorded.tensors.items()
            if name.startswith(prefix)
        }
    )


# -- going on ---------------------------------------------------------------------------------


def _check_resume(run: Path, preparation: Preparation, position: Position) -> list[str]:
    old, plan = load_recipe(run / "recipe.yaml"), preparation.plan
    if old == preparation.recipe:
        return []
    # Its epochs are of no interest here, so any size will do for data that have left the recipe.
    sizes = {name: plan.sizes.get(name, SourceSize(2**62, declared=True)) for name in old.datasets}
    old_plan = make_plan(old, plan.config, plan.parametrization, sizes, limit_epochs=False)
    return check_may_go_on(old_plan, plan, position.stage, position.stage_step)


def _already_done(
    preparation: Preparation,
    run: Path,
    position: Position,
    world: World,
    say: Callable[[str], None],
) -> TrainingResult:
    final = run / "final"
    if world.is_main:
        write_final(preparation, run)
    world.barrier()
    value = position.validation["bits_per_byte"] if position.validation else None
    more = "add a stage"
    if isinstance(preparation.plan.stages[-1].stage.schedule, Constant):
        more += " or raise the last one's tokens"
    say(
        f"{run} is done: {position.step:,} steps. Its model is {final}. To train on, {more}, or "
        f"branch: llamita train RECIPE --from {run}/step-{position.step} --out DIR"
    )
    return TrainingResult(run, final, position.step, value)


def _announce(
    events: EventLog,
    preparation: Preparation,
    position: Position,
    environment: Environment,
    changed: list[str],
    warnings: list[str],
) -> None:
    plan = preparation.plan
    fields: dict[str, Any] = {
        "step": position.step,
        "last_step": plan.first_step + plan.num_steps,
        "plan": describe(plan),
        "environment": environment.as_json(),
        "versions": {
            "llamita": llamita.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "command": command_line(),
    }
    if preparation.resumed is None:
        events.write("start", start_from=preparation.recipe.start_from, **fields)
    else:
        events.write("resume", changed=changed, warnings=warnings, **fields)
    events.flush(durable=True)
