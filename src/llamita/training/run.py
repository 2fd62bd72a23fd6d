"""`train`: start a run, go on with it, or say that it is done."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import llamita
from llamita.architecture.memory import training_memory
from llamita.data.batch import Cursor
from llamita.errors import UserError
from llamita.model.decoder import Decoder, compile_model
from llamita.model.devices import choose_device
from llamita.model.huggingface import load_weights
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.planning.plan import SourceSize, TrainingPlan, describe, make_plan
from llamita.planning.quantities import gigabytes
from llamita.recipes.loading import dump_recipe, load_recipe, override_recipe
from llamita.recipes.schema import Recipe
from llamita.training.checkpoint import (
    TrainingState,
    clean_up,
    step_directories,
    write_atomically,
)
from llamita.training.devices import Compute, choose_compute, free_memory
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
from llamita.training.resume import check_may_go_on
from llamita.training.telemetry import EventLog

# Past this many tokens a pass, matrix products on two to sixteen cores gain nothing more.
_CPU_MICRO_BATCH_TOKENS = 8192


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
        for line in [*describe(plan), *_describe_memory(plan)]:
            say(line)
        return plan
    run = Path(out) if out is not None else Path("runs") / resolved.name
    device = choose_device(resolved.runtime.device)
    world = World.join(device)
    quiet: Callable[[str], None] = say if world.is_main else (lambda line: None)
    try:
        with _locked(run, world), _deterministic(resolved, device), _signals() as stop:
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
    compute = choose_compute(
        recipe.runtime, plan.flops, recorded=recorded.values if recorded else None
    )
    rows = _micro_batch_size(plan, compute, world, recorded)
    for line in _describe_memory(plan, rows, compute.dtype, world.size):
        say(line)
    for reason in compute.reasons:
        say(f"  compute     {reason}")
    environment = _environment(compute, rows, world)
    warnings = _differences(recorded, environment) if recorded else []
    for warning in warnings:
        say(f"  warning     {warning}")
    if world.is_main:
        write_atomically(run / "recipe.yaml", dump_recipe(recipe))
    events = EventLog(run / "events.jsonl" if world.is_main else Path(os.devnull))
    try:
        _announce(events, preparation, position, environment, changed, warnings)
        trainer = _build(
            preparation, run, compute, world, position, rows, environment, events, say, stop
        )
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
            f"Go on with: {_command()}",
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
    compute: Compute,
    world: World,
    position: Position,
    rows: int,
    environment: dict[str, Any],
    events: EventLog,
    say: Callable[[str], None],
    stop: list[int],
) -> Trainer:
    recipe, plan, recorded = preparation.recipe, preparation.plan, preparation.recorded
    torch.manual_seed(recipe.seed)
    model = Decoder(plan.config, padded_vocab_size=_padded_vocab(plan, compute))
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
        load_optimizer_state(optimizer, recorded.tensors)
        torch.set_rng_state(recorded.tensors["rng.cpu"])
        if compute.device.type == "cuda" and "rng.cuda" in recorded.tensors:
            torch.cuda.set_rng_state(recorded.tensors["rng.cuda"], compute.device)
        # A branch begins with a new stage, which resets the guard.
        guard.load_state(
            {
                name.removeprefix("guard."): tensor
                for name, tensor in recorded.tensors.items()
                if name.startswith("guard.")
            }
        )
    branch = {"step": plan.first_step, "consumed": dict(plan.consumed)}
    return Trainer(
        preparation,
        run,
        model=model,
        optimizer=optimizer,
        guard=guard,
        compute=compute,
        world=world,
        position=position,
        micro_batch_size=rows,
        state_extra={
            "format": 1,
            "parametrization": plan.parametrization,
            "datasets": fingerprints(preparation.datasets),
            "branch_point": branch,
            **environment,
        },
        events=events,
        say=say,
        should_stop=lambda: bool(stop),
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
    say(
        f"{run} is done: {position.step:,} steps. Its model is {final}. To train on, raise the "
        "last stage's tokens or add a stage, or branch: llamita train RECIPE --from "
        f"{run}/step-{position.step} --out DIR"
    )
    return TrainingResult(run, final, position.step, value)


def _differences(recorded: TrainingState, environment: dict[str, Any]) -> list[str]:
    """What would change the bits of the same computation."""
    return [
        f"{key} was {recorded.values[key]}, is {value}: the run goes on, with other rounding"
        for key, value in environment.items()
        if recorded.values.get(key) != value
    ]


# -- the ground to stand on -----------------------------------------------------------------------


def _environment(compute: Compute, rows: int, world: World) -> dict[str, Any]:
    """What the bits of a run depend on beside its recipe and data."""
    return {
        "device": compute.device.type,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "compile": compute.compile,
        "micro_batch_size": rows,
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _announce(
    events: EventLog,
    preparation: Preparation,
    position: Position,
    environment: dict[str, Any],
    changed: list[str],
    warnings: list[str],
) -> None:
    plan = preparation.plan
    fields: dict[str, Any] = {
        "step": position.step,
        "last_step": plan.first_step + plan.num_steps,
        "plan": describe(plan),
        "environment": environment,
        "versions": {
            "llamita": llamita.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "command": _command(),
    }
    if preparation.resumed is None:
        events.write("start", start_from=preparation.recipe.start_from, **fields)
    else:
        events.write("resume", changed=changed, warnings=warnings, **fields)
    events.flush(durable=True)


def _micro_batch_size(
    plan: TrainingPlan, compute: Compute, world: World, recorded: TrainingState | None
) -> int:
    """Rows of a forward pass: as asked; as before; else the most that memory and sense allow."""
    asked = plan.recipe.runtime.micro_batch_size
    if asked is not None:
        return asked
    if recorded is not None:
        return int(recorded.values["micro_batch_size"])
    return default_micro_batch_size(
        plan,
        world.size,
        free_memory(compute.device),
        _CPU_MICRO_BATCH_TOKENS if compute.device.type == "cpu" else None,
        compute.dtype,
    )


def default_micro_batch_size(
    plan: TrainingPlan, ranks: int, memory: int, max_tokens: int | None, dtype: torch.dtype
) -> int:
    """The largest common divisor of the stages' rows whose estimate fits in 80% of `memory`."""
    shares = [stage.windows_per_step // ranks for stage in plan.stages]
    length = plan.longest_sequence
    best = 1
    for rows in range(1, min(shares) + 1):
        if any(share % rows for share in shares):
            continue
        estimate = training_memory(
            plan.config, rows, length, compute_bytes=dtype.itemsize, ranks=ranks
        )
        if estimate.total > 0.8 * memory or (max_tokens and rows * length > max_tokens):
            break
        best = rows
    return best


def _describe_memory(
    plan: TrainingPlan,
    rows: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    ranks: int = 1,
) -> list[str]:
    rows = rows or plan.recipe.runtime.micro_batch_size or 1
    estimate = training_memory(
        plan.config, rows, plan.longest_sequence, compute_bytes=dtype.itemsize, ranks=ranks
    )
    where = "" if ranks == 1 else f" on each of {ranks} devices"
    return [
        f"  memory      about {gigabytes(estimate.total)}{where} at micro-batch {rows} × "
        f"{plan.longest_sequence:,}: weights {gigabytes(estimate.weights)}, gradients "
        f"{gigabytes(estimate.gradients)}, AdamW {gigabytes(estimate.optimizer)}, casts "
        f"{gigabytes(estimate.weight_casts)}, activations {gigabytes(estimate.activations)}, "
        f"logits {gigabytes(estimate.logits)}"
    ]


def _padded_vocab(plan: TrainingPlan, compute: Compute) -> int:
    """Tensor cores want multiples of 128 in the head's product; a CPU does not care."""
    size = plan.config.vocab_size
    return -(-size // 128) * 128 if compute.device.type == "cuda" else size


@contextmanager
def _locked(run: Path, world: World) -> Iterator[None]:
    """One process (or one torchrun group) to a run directory."""
    if not world.is_main:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{run} is being trained by another process ({file.read().strip() or 'unknown'}); "
                "wait for it, stop it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@contextmanager
def _deterministic(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Compiled training differs between processes without it (the embedding's gradient does)."""
    wanted = recipe.runtime.deterministic
    active = wanted == "always" or (wanted == "auto" and device.type == "cpu")
    before = torch.are_deterministic_algorithms_enabled()
    if active and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(active)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM asks the loop to stop; a second SIGINT stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        os.write(2, b"\nstopping after this step; everything will be saved (again: stop at once)\n")

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, handle) for number in numbers]
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _command() -> str:
    """What the user typed, to be typed again."""
    program = Path(sys.argv[0]).name
    return shlex.join([program, *sys.argv[1:]])
