"""`train`: start a run, go on with it, or say that it is done."""

from __future__ import annotations

import json
import os
import platform
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llamita
from llamita.architecture.memory import head_chunk_tokens
from llamita.data.batch import Cursor
from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.model.attention_kernels import attention_kernels
from llamita.model.decoder import Decoder, compile_model
from llamita.model.devices import choose_device
from llamita.model.float8 import use_float8
from llamita.model.huggingface import load_weights
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.planning.plan import SourceSize, TrainingPlan, describe, make_plan
from llamita.planning.quantities import gigabytes
from llamita.recipes.loading import dump_recipe, load_recipe, override_recipe
from llamita.recipes.schema import Constant, ExponentialAverage, Recipe
from llamita.training.averaging import RunningAverage
from llamita.training.checkpoint import (
    TrainingState,
    clean_up,
    step_directories,
)
from llamita.training.compilation import keep_compiled_code, make_room_for_graphs
from llamita.training.devices import forget_peak_memory, map_large_blocks, peak_memory
from llamita.training.environment import Environment, describe_memory, settle_environment
from llamita.training.final import final_bits_per_byte, write_final
from llamita.training.forecast import write_forecast
from llamita.training.guards import StepGuard
from llamita.training.loop import Interrupted, Trainer
from llamita.training.optimizer import build_optimizer, load_optimizer_state
from llamita.training.parallelism import World
from llamita.training.position import Position
from llamita.training.preparation import (
    Preparation,
    fingerprints,
    prepare,
)
from llamita.training.process import command_line, deterministic, locked, stop_signals
from llamita.training.profiling import StepProfiler
from llamita.training.quick_evaluation import Evaluator
from llamita.training.reports import planned
from llamita.training.resume import check_may_go_on
from llamita.training.telemetry import EventLog, Observer


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: `final` is a Hugging Face directory; `bits_per_byte` is of the last step, or
    of the average where `final` is one, and None where nothing was measured."""

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
    device: str | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
    observers: Sequence[Observer] = (),
    profile: bool = False,
) -> TrainingResult | TrainingPlan:
    """Train what a recipe describes; the same call goes on with a run that was interrupted.

    Args:
        recipe: a recipe, its file, or a shipped recipe's name.
        out: the run's directory; default runs/NAME.
        overrides: `key.path=value`, applied to the recipe.
        start_from: as the recipe's `start_from`.
        dry_run: return the plan; nothing is allocated or written, and absent data are planned with
            their declared token counts.
        device, dtype: in place of the recipe's `runtime.device` and `runtime.dtype`.
        say: receives every line meant for people.
        observers: see the run's events as they are written, on this thread, in the first process;
            `observe(event)` and at the end `close()`. The recipe's `track` adds its own.
        profile: put this call's third to fifth step under torch.profiler and write RUN/profile, a
            trace and tables of where the time went; then train on.

    Raises:
        UserError: anything the user can put right.
        RunInterrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
    """
    if dry_run and profile:
        raise UserError("--profile needs steps to watch, and --dry-run takes none; leave out one")
    overrides = list(overrides)
    overrides += [f"runtime.device={device}"] if device is not None else []
    overrides += [f"runtime.dtype={dtype}"] if dtype is not None else []
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
    where = choose_device(resolved.runtime.device)
    world = World.join(where)
    quiet: Callable[[str], None] = say if world.is_main else (lambda line: None)
    try:
        with ExitStack() as stack:
            if world.is_main:
                stack.enter_context(locked(run))
            stack.enter_context(deterministic(resolved.runtime, where))
            tell = [each.stopping for each in observers if hasattr(each, "stopping")]
            stop = stack.enter_context(stop_signals(tell if world.is_main else ()))
            return _train(resolved, run, world, quiet, stop, observers, profile, stack)
    finally:
        world.leave()


def _train(
    recipe: Recipe,
    run: Path,
    world: World,
    say: Callable[[str], None],
    stop: list[int],
    observers: Sequence[Observer],
    profile: bool,
    stack: ExitStack,
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
    at_end = (position.stage, position.stage_step) == (last, plan.stages[last].num_steps)
    if at_end or position.ended_early:
        return _already_done(preparation, run, position, world, say)
    watching = [*observers, *_sinks(recipe, run)] if world.is_main else []
    for line in describe(plan):
        say(line)
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    if recipe.evaluation is not None:
        # Its libraries take memory, which is no part of what training takes.
        import_module("llamita.evaluation.quick_suite")
    environment = settle_environment(plan, recorded, world)
    compute = environment.compute
    if recipe.adapter is not None and compute.device.type == "cpu":
        map_large_blocks()
    say(describe_memory(plan, environment))
    for reason in compute.reasons:
        say(f"  compute     {reason}")
    warnings = [*environment.differences(recorded), *preparation.warnings]
    for warning in warnings:
        say(f"  warning     {warning}")
    if world.is_main:
        replace_synced(run / "recipe.yaml", dump_recipe(recipe))
    path = run / "events.jsonl" if world.is_main else Path(os.devnull)
    events = EventLog(path, watching, say)
    try:
        _announce(events, run, preparation, position, environment, changed, warnings)
        forget_peak_memory(compute.device)
        baseline = peak_memory(compute.device)
        stack.enter_context(attention_kernels(environment.attention))
        trainer = _build(preparation, run, environment, world, position, events, say, stop)
        trainer.evaluator = _evaluator(trainer)
        if profile and world.is_main:
            trainer.profiler = _profiler(trainer)
        write_forecast(trainer, environment)
        if resume is not None:
            say(f"going on from {resume}")
        forget_peak_memory(compute.device)  # compiling is over
        return _run(trainer, stop, partial(_tell_memory, trainer, environment, baseline))
    finally:
        events.close()


def _run(trainer: Trainer, stop: list[int], tell_memory: Callable[[], None]) -> TrainingResult:
    run, position, world = trainer.run_directory, trainer.position, trainer.world
    try:
        trainer.run()
        tell_memory()
    except Interrupted:
        tell_memory()
        trainer.events.write("interrupted", step=position.step)
        raise RunInterrupted(
            f"stopped at step {position.step}; saved as {run / f'step-{position.step}'}. "
            f"Go on with: {command_line()}",
            stop[0] if stop else signal.SIGTERM,
        ) from None
    if world.is_main:
        write_final(trainer.preparation, run)
    world.barrier()
    value = final_bits_per_byte(trainer.recipe, position.validation)
    trainer.events.write("end", step=position.step, final="final", bits_per_byte=value)
    shown = "" if value is None else f" at {value:.4f} bits per byte"
    if world.is_main:
        trainer.events.flush(durable=True)
        _report(run, trainer.say)
    chat = " --chat" if _converses(trainer.preparation) else ""
    trainer.say(f'done{shown}: {run / "final"}. Try: llamita generate {run}{chat} "…"')
    return TrainingResult(run, run / "final", position.step, value)


def _converses(preparation: Preparation) -> bool:
    """Whether the model has learnt from conversations."""
    return any(dataset.manifest.kind != "text" for dataset in preparation.datasets.values())


def _report(run: Path, say: Callable[[str], None]) -> None:
    """RUN/report.html. The model is safe already: a page that cannot be written is no failure."""
    from llamita.reporting.report import write_report

    try:
        say(f"report: {write_report(run)}")
    except UserError as error:
        say(f"no report was written: {error}")


def _evaluator(trainer: Trainer) -> Evaluator | None:
    """What asks the recipe's quick suite; what of it cannot be had is said."""
    settings, tokenizer = trainer.recipe.evaluation, trainer.preparation.tokenizer
    if settings is None:
        return None
    from llamita.evaluation.quick_suite import QuickSuite

    assert tokenizer is not None
    length = trainer.plan.stages[0].sequence_length
    suite = QuickSuite(settings, trainer.model, tokenizer, trainer.micro_batch_size * length)
    for each in suite.missing:
        trainer.say(f"  warning     evaluation leaves out {each.task}: {each.why}")
    return Evaluator(
        settings, suite, trainer.world, trainer.events, trainer.say, trainer.should_stop
    )


def _profiler(trainer: Trainer) -> StepProfiler:
    folder = trainer.run_directory / "profile"

    def finished(fields: dict[str, Any], lines: list[str]) -> None:
        trainer.events.write("profile", step=trainer.position.step, **fields)
        for line in [*lines, f"the trace and all operators: {folder}"]:
            trainer.say(line)

    to_come = trainer.last_step - trainer.position.step
    return StepProfiler(folder, trainer.compute.device, to_come, finished)


def _tell_memory(trainer: Trainer, environment: Environment, baseline: int) -> None:
    """What training took, beside what was expected."""
    peak, planned = peak_memory(environment.compute.device), environment.memory
    trainer.events.write(
        "memory",
        step=trainer.position.step,
        estimate=asdict(planned),
        baseline_bytes=baseline,
        peak_bytes=peak,
    )
    trainer.say(
        f"memory: {gigabytes(max(0, peak - baseline))} at the peak, "
        f"{gigabytes(planned.total)} planned "
        f"(beside {gigabytes(baseline)} that the process held before)"
    )


def _position(preparation: Preparation) -> Position:
    """Where the run stands: its own checkpoint, a branch's beginning, or the very beginning."""
    if preparation.resumed is not None and preparation.resumed.state is not None:
        return Position.from_json(preparation.resumed.state.values)
    recorded = preparation.recorded
    tokens = recorded.values["tokens"] if recorded else 0
    consumed = recorded.values["cursor"]["consumed"] if recorded else {}
    return Position(preparation.plan.first_step, 0, 0, tokens, Cursor(consumed, {}))


def _model(preparation: Preparation, environment: Environment) -> Decoder:
    """The decoder on its device, with the weights that the run goes on from or begins with."""
    recipe, plan, compute = preparation.recipe, preparation.plan, environment.compute
    rows, adapted = environment.padded_vocab_size, preparation.adapted
    source = preparation.resumed or preparation.origin
    if adapted is not None:
        model = adapted.build(rows, compute.dtype, compute.device, recipe.seed)
        model.config = plan.config
    else:
        model = Decoder(plan.config, padded_vocab_size=rows)
    if adapted is None and source is None:
        initialize(model, plan.parametrization, seed=recipe.seed, std=recipe.initializer_std)
    elif source is not None and (adapted is None or adapted.adapter is not None):
        load_weights(model, source.directory)
    model.compute_dtype = compute.dtype
    frozen = None if adapted is None else plan.config.vocab_size
    model.head_chunk_size = head_chunk_tokens(compute.device.type, frozen)
    model.checkpoint_blocks = environment.activation_checkpointing
    return model.to(compute.device)


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
    model = _model(preparation, environment)
    # What scales with a model's width are its own matrices, and not an adapter's.
    scaling = "llama" if preparation.adapted is not None else plan.parametrization
    multipliers = learning_rate_multipliers(model, scaling)
    if compute.float8:
        use_float8(model)
    if compute.compile:
        keep_compiled_code()
        make_room_for_graphs(f"{plan.config} {recipe.adapter} {compute.dtype} {compute.float8}")
        compile_model(model)
    world.shard(model)
    optimizer = build_optimizer(model, recipe.optimizer, multipliers)
    guard = StepGuard(recipe.guard, compute.device)
    average = None
    if isinstance(recipe.averaging, ExponentialAverage):
        average = RunningAverage(model, recipe.averaging)
    if recorded is not None:
        _restore(recorded, optimizer, guard, average, compute.device)
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
        average=average,
    )


def _restore(
    recorded: TrainingState,
    optimizer: torch.optim.Optimizer,
    guard: StepGuard,
    average: RunningAverage | None,
    device: torch.device,
) -> None:
    """Put a checkpoint's tensors back. (A branch's first stage will reset the guard.)"""
    load_optimizer_state(optimizer, recorded.tensors)
    if average is not None:
        average.load_state(recorded.tensors)
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
    value = final_bits_per_byte(preparation.recipe, position.validation)
    more = "add a stage"
    if isinstance(preparation.plan.stages[-1].stage.schedule, Constant):
        more += " or raise the last one's tokens"
    say(
        f"{run} is done: {position.step:,} steps. Its model is {final}. To train on, {more}, or "
        f"branch: llamita train RECIPE --from {run}/step-{position.step} --out DIR"
    )
    return TrainingResult(run, final, position.step, value)


def _sinks(recipe: Recipe, run: Path) -> list[Observer]:
    """What the recipe's `track` names.

    Raises:
        UserError: a package is missing, or wants an account.
    """
    if not recipe.track:
        return []
    from llamita.reporting.sinks import make_sinks

    return list(make_sinks(recipe.track, run))


def _announce(
    events: EventLog,
    run: Path,
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
        "run": str(run),
        "data_kinds": {name: d.manifest.kind for name, d in preparation.datasets.items()},
        **planned(plan),
    }
    if preparation.resumed is None:
        events.write("start", start_from=preparation.recipe.start_from, **fields)
    else:
        events.write("resume", changed=changed, warnings=warnings, **fields)
    events.flush(durable=True)
