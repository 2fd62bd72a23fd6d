"""The one training loop: every stage of every recipe runs through `Trainer.run`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamita.data.batch import Batch, Cursor, StageData
from llamita.model.adapter_directory import weights_fingerprint
from llamita.model.adapters import learnt_state
from llamita.model.decoder import Decoder
from llamita.model.devices import synchronize
from llamita.planning.plan import StagePlan, steps_to_average
from llamita.recipes.schema import LastCheckpoints, Preference
from llamita.training.averaging import RunningAverage
from llamita.training.checkpoint import (
    TrainingState,
    prune,
    save_checkpoint,
    step_directories,
)
from llamita.training.devices import Compute, memory_used
from llamita.training.final import write_model
from llamita.training.guards import Diverged, StepGuard
from llamita.training.judging import Judge
from llamita.training.objective import Objective, build_objective
from llamita.training.optimizer import optimizer_state, without_padding
from llamita.training.parallelism import World
from llamita.training.position import Position
from llamita.training.preparation import Preparation
from llamita.training.profiling import StepProfiler, phase
from llamita.training.quick_evaluation import Evaluator
from llamita.training.reports import (
    Progress,
    memory_limit,
    tell_mixture,
    tell_pairs,
    tell_scores,
    total,
)
from llamita.training.schedule import learning_rate_factor
from llamita.training.stage_pairs import StagePairs
from llamita.training.step import TrainingStep
from llamita.training.telemetry import EventLog

_REFRESH_SECONDS = 1.0
"""A live panel is at most so old. Reading waits for a GPU, so not more often."""


class Interrupted(Exception):
    """The run was asked to stop; everything is saved."""


@dataclass(frozen=True)
class _Step:
    """What a step leaves on the device; read by the host only when it is reported."""

    step: int
    stage: int
    learning_rate: float
    tokens: int
    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor
    non_finite: Tensor
    metrics: Mapping[str, Tensor]


@dataclass
class _Clock:
    """Time spent stepping and waiting since the last report; validation and saving left out."""

    steps: int = 0
    tokens: int = 0
    stepping: float = 0.0
    waiting: float = 0.0


class Trainer:
    """Owns the tensors of a run and moves them along.

    Args:
        state_extra: what checkpoints record beside the position (versions, fingerprints, …).
        should_stop: asked after each step; true saves and raises Interrupted.
    """

    def __init__(
        self,
        preparation: Preparation,
        run: Path,
        *,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        guard: StepGuard,
        compute: Compute,
        world: World,
        position: Position,
        micro_batch_size: int,
        state_extra: dict[str, Any],
        events: EventLog,
        say: Callable[[str], None],
        should_stop: Callable[[], bool],
        average: RunningAverage | None = None,
    ) -> None:
        self.preparation, self.run_directory = preparation, run
        self.recipe, self.plan = preparation.recipe, preparation.plan
        self.model, self.optimizer, self.guard = model, optimizer, guard
        self.compute, self.world, self.position = compute, world, position
        self.micro_batch_size, self.state_extra = micro_batch_size, state_extra
        self.events, self.say, self.should_stop = events, say, should_stop
        self.step = TrainingStep(
            model,
            optimizer,
            guard,
            device=compute.device,
            clip_grad_norm=self.recipe.optimizer.clip_grad_norm,
            world=world,
        )
        self.average = average
        self.profiler: StepProfiler | None = None
        self.evaluator: Evaluator | None = None
        self.pairs: StagePairs | None = None
        self.last_step = self.plan.first_step + self.plan.num_steps
        self._pending: list[_Step] = []
        self._read_at, self._refreshing = 0.0, False
        self._clock = _Clock()
        self.judge = Judge(preparation, micro_batch_size)
        self._last: dict[str, float] = {}
        self._saved_at = max(step_directories(run), default=None)

    # -- the loop ---------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end of the recipe and save the last step.

        Raises:
            Interrupted: asked to stop; a checkpoint was written.
            Diverged: the loss stayed non-finite.
            UserError: a checkpoint could not be written.
        """
        position, stages = self.position, self.plan.stages
        self._open_pairs(stages[position.stage])
        if position.validation is None:
            self._validate()
        if position.step == self.plan.first_step and self.preparation.origin is not None:
            # Beside these its later answers and scores are to be read.
            self._sample()
            if self.evaluator is not None:
                self.evaluator.evaluate(position.step, whatever_it_costs=True)
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            while True:
                stage = stages[position.stage]
                if position.stage_step < stage.num_steps:
                    if position.stage_step == 0:
                        self._enter_stage(stage)
                    self._run_stage(stage, pool)
                if position.stage + 1 == len(stages) or position.ended_early:
                    return
                position.stage += 1
                position.stage_step = 0
                self._open_pairs(stages[position.stage])

    def _run_stage(self, stage: StagePlan, pool: ThreadPoolExecutor) -> None:
        position, data = self.position, self.stage_data(stage)
        objective = self.objective(stage)
        upcoming: Future[tuple[Batch, Cursor]] = pool.submit(data.batch, position.cursor)
        while position.stage_step < stage.num_steps:
            started = time.perf_counter()
            with phase("wait for data"):
                batch, cursor = upcoming.result()
            self._clock.waiting += time.perf_counter() - started
            if position.stage_step + 1 < stage.num_steps:
                upcoming = pool.submit(data.batch, cursor)
            factor = learning_rate_factor(stage.stage, position.stage_step, stage.batch_tokens)
            self._step(objective, batch, stage.learning_rate * factor)
            position.cursor = cursor
            self._refreshing = self._stale()
            due = self._refreshing or self._due(self.recipe.runtime.log_every_steps)
            if due or (self.profiler is not None and self.profiler.wants_quiet):
                # Steps are only queued on a GPU: the time between two reports must hold them all.
                synchronize(self.compute.device)
            self._clock.steps += 1
            self._clock.tokens += stage.batch_tokens
            self._clock.stepping += time.perf_counter() - started
            if self.profiler is not None:
                self.profiler.step_taken()
            self._after_step(stage)
            if position.ended_early:
                return

    def objective(self, stage: StagePlan) -> Objective:
        """What a stage, the one that is being run, learns by."""
        reference = None if self.pairs is None else self.pairs.reference
        return build_objective(stage.stage.objective, reference)

    def _step(self, objective: Objective, batch: Batch, learning_rate: float) -> None:
        position = self.position
        result = self.step(objective, batch, self.micro_batch_size, learning_rate)
        if self.average is not None:
            self.average.update(result.verdict.skip, batch.tokens.numel())
        position.step += 1
        position.stage_step += 1
        position.tokens += batch.tokens.numel()
        self._pending.append(
            _Step(
                position.step,
                position.stage,
                learning_rate,
                position.tokens,
                result.loss,
                result.grad_norm,
                result.verdict.skip,
                result.verdict.non_finite,
                result.metrics,
            )
        )

    def _after_step(self, stage: StagePlan) -> None:
        recipe, position = self.recipe, self.position
        stopping = self.world.any(self.should_stop())
        ending = position.stage_step == stage.num_steps
        named = recipe.checkpoints.final == f"step-{position.step}"
        saving = named or ending or self._due(recipe.checkpoints.every_steps)
        validating = (
            ending
            or self._due(recipe.validation.every_steps)
            or (saving and recipe.checkpoints.final == "best")
        )
        sampling = ending or self._due(recipe.samples.every_steps)
        evaluator = self.evaluator
        evaluating = evaluator is not None and evaluator.is_due(position.step)
        logging = self._due(recipe.runtime.log_every_steps)
        # What comes now takes time of its own: the steps are told before it.
        if any((stopping, saving, validating, sampling, evaluating, logging)):
            self._report()
        elif self._refreshing:
            self._read_pending()
            self._progress(line=False)
        if validating and self._validate() >= (recipe.validation.patience or math.inf):
            self._end_early()
            saving = ending = True
        if sampling or ending:
            self._sample()
        if evaluator is not None and (ending or (evaluating and not stopping)):
            evaluator.evaluate(position.step, whatever_it_costs=ending)
        if ending:
            self._tell_mixture(stage)
        if saving or stopping:
            # A stage's end is kept for good: it is what branches start from.
            self._save(keep=named or ending or self._due(recipe.checkpoints.keep_every_steps))
        if stopping and position.step < self.last_step:
            raise Interrupted

    def _due(self, every: int | None) -> bool:
        return every is not None and self.position.step % every == 0

    def _stale(self) -> bool:
        """Whether a person watches whose figures are a second old."""
        return self.events.live and time.perf_counter() - self._read_at >= _REFRESH_SECONDS

    # -- stages -----------------------------------------------------------------------------

    def stage_data(self, stage: StagePlan) -> StageData:
        objective = stage.stage.objective
        return StageData(
            {name: dataset.train for name, dataset in self.preparation.datasets.items()},
            stage.stage.mixture,
            sequence_length=stage.sequence_length,
            windows_per_step=stage.windows_per_step,
            seed=self.recipe.seed,
            document_masking=getattr(objective, "document_masking", False),
        )

    def _open_pairs(self, stage: StagePlan) -> None:
        """The reference of a stage that learns preferences; of another there is none."""
        self.pairs = None
        if not isinstance(stage.stage.objective, Preference):
            return
        begins = self.position.stage_step == 0
        self.pairs = StagePairs(
            stage,
            self.preparation.datasets,
            self.model,
            run=self.run_directory,
            weights=self._weights_fingerprint() if begins else None,
            rows=self.micro_batch_size,
            held_out_tokens=self.recipe.validation.tokens,
            compute=self.compute,
            world=self.world,
            say=self.say,
        )

    def _weights_fingerprint(self) -> str:
        """Of the model as it is: of the adapter and its base, where there is one."""
        adapted = self.preparation.adapted
        base = "" if adapted is None else adapted.fingerprint
        return base + weights_fingerprint(self.world.gather(learnt_state(self.model)))

    def _end_early(self) -> None:
        position = self.position
        position.ended_early = True
        assert position.without_gain is not None
        best = position.without_gain["value"]
        self.events.write("early_stop", step=position.step, **position.without_gain)
        self.say(
            f"step {position.step}: {position.without_gain['validations']} validations without a "
            f"gain over {best:.4f}; the run ends here (validation.patience)"
        )

    def _enter_stage(self, stage: StagePlan) -> None:
        self.guard.reset()
        self.position.cursor = self.position.cursor.enter_stage()
        self.events.write("stage", step=self.position.step, name=stage.stage.name)

    def _tell_mixture(self, stage: StagePlan) -> None:
        data, cursor = self.stage_data(stage), self.position.cursor
        tell_mixture(stage, data, cursor, step=self.position.step, events=self.events, say=self.say)

    # -- what the run says ------------------------------------------------------------------

    def _report(self) -> None:
        """Read the pending steps from the device, write them down, print a line."""
        if not self._pending:
            return
        self._read_pending()
        self._progress()
        self.events.flush()
        self._stop_if_lost()

    def _read_pending(self) -> None:
        for step in self._pending:
            loss, norm = float(step.loss), float(step.grad_norm)
            fields: dict[str, Any] = {"loss": loss, "grad_norm": norm}
            if bool(step.skipped):
                kind = "non_finite" if bool(step.non_finite) else "spike"
                fields["skipped"] = kind
                self.say(f"step {step.step}: skipped, {kind} (loss {loss:.4g}, norm {norm:.4g})")
            self.events.write(
                "step",
                step=step.step,
                stage=self.plan.stages[step.stage].stage.name,
                tokens=step.tokens,
                learning_rate=step.learning_rate,
                **fields,
                **{name: float(value) for name, value in step.metrics.items()},
            )
        self._last = {
            "loss": float(self._pending[-1].loss),
            "grad_norm": float(self._pending[-1].grad_norm),
            "learning_rate": self._pending[-1].learning_rate,
        }
        self._pending.clear()
        self._read_at = time.perf_counter()

    def _progress(self, *, line: bool = True) -> None:
        clock, position = self._clock, self.position
        stage = self.plan.stages[min(position.stage, len(self.plan.stages) - 1)]
        if not clock.steps:
            return
        rate = clock.tokens / clock.stepping
        flops = self.plan.stage_flops(stage)
        progress = Progress(
            step=position.step,
            last_step=self.last_step,
            stage=stage.stage.name,
            validation=position.validation or {},
            tokens_per_second=rate,
            mfu=rate * flops / (self.compute.matmul_rate * self.world.size),
            memory=memory_used(self.compute.device),
            data_wait=clock.waiting / clock.stepping,
            eta=(self.last_step - position.step) * clock.stepping / clock.steps,
            checkpoint=None if self._saved_at is None else f"step-{self._saved_at}",
            **self._last,
        )
        if line:
            self.say(progress.line())
        self.events.write(
            "progress",
            step=position.step,
            tokens_per_second=round(rate, 1),
            mfu=round(progress.mfu, 4),
            memory_bytes=progress.memory,
            memory_limit_bytes=memory_limit(self.compute.device),
            data_wait=round(progress.data_wait, 5),
            eta_seconds=round(progress.eta, 1),
            mixture={
                name: round(share, 5)
                for name, share in self.stage_data(stage).realised(position.cursor).items()
            },
        )
        self._clock = _Clock()

    def _stop_if_lost(self) -> None:
        limit = self.recipe.guard.max_consecutive_skips
        if int(self.guard.consecutive_non_finite) >= limit:
            saved = "nothing was saved yet"
            if self._saved_at is not None:
                saved = f"{self.run_directory / f'step-{self._saved_at}'} is the last checkpoint"
            raise Diverged(
                f"loss or gradients were not finite for {limit} steps running, at step "
                f"{self.position.step}; {saved}. Branch from it with a lower learning rate: "
                f"llamita train RECIPE --from {self.run_directory}/step-N "
                "--set optimizer.learning_rate=…"
            )

    # -- judging and writing ------------------------------------------------------------------

    def _validate(self) -> int:
        """Judge held-out data: bits per byte of text and of answers, the running average's too, and
        pairs while preferences are learnt.

        Returns:
            How many validations running have been no better than the best before them.
        """
        position = self.position
        scores = self.judge.score(self.model)
        pairs = {} if self.pairs is None else self.pairs.score()
        if not scores and not pairs:
            return 0
        position.validation = {"step": position.step}
        if scores:
            average = None
            if self.average is not None and not self.average.is_empty:
                with self.average.in_place():
                    average = total(self.judge.score(self.model))
            position.validation |= tell_scores(
                scores, average, step=position.step, events=self.events, say=self.say
            )
        if pairs:
            position.validation |= tell_pairs(
                pairs, step=position.step, events=self.events, say=self.say
            )
        return position.note_gain()

    def _sample(self) -> None:
        settings = self.recipe.samples
        for prompt in settings.prompts:
            text = self.judge.write(self.model, prompt, settings, self.recipe.seed)
            self.events.write("sample", step=self.position.step, prompt=prompt, text=text)
            self.say(f"  sample {prompt!r} → {text!r}")

    def _save(self, *, keep: bool = False) -> None:
        position, settings = self.position, self.recipe.checkpoints
        if keep and position.step not in position.kept:
            position.kept.append(position.step)
        position.note_best()
        weights = self.world.gather(learnt_state(self.model))
        tokenizer, adapted = self.preparation.tokenizer, self.preparation.adapted
        assert tokenizer is not None
        state = TrainingState({**self.state_extra, **position.as_json()}, self._state_tensors())
        # Steps reach the disk before the checkpoint that supersedes their recomputation.
        self.events.flush(durable=True)
        if self.world.is_main:
            save_checkpoint(
                self.run_directory,
                position.step,
                lambda directory: write_model(
                    directory, weights, self.plan.config, tokenizer, adapted=adapted
                ),
                state,
            )
            spared = {*position.kept, *([position.best["step"]] if position.best else [])}
            if isinstance(self.recipe.averaging, LastCheckpoints):
                spared |= set(steps_to_average(self.plan, self.recipe.averaging))
            prune(self.run_directory, settings.keep_last, spared)
        self.world.barrier()
        self._saved_at = position.step
        self.events.write("checkpoint", step=position.step, path=f"step-{position.step}")
        self.events.flush(durable=True)

    def _state_tensors(self) -> dict[str, Tensor]:
        state = optimizer_state(self.optimizer)
        if self.average is not None:
            state |= self.average.state()
        moments = self.world.gather(state)
        tensors = without_padding(moments, self.plan.config.vocab_size)
        tensors |= {f"guard.{name}": value.cpu() for name, value in self.guard.state().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.compute.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.compute.device)
        return tensors
