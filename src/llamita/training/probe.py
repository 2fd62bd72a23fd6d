"""Before the first step: how long does each thing take that a run does over and over?"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llamita.architecture.counts import num_parameters
from llamita.architecture.lora import lora_parameters
from llamita.data.batch import Batch
from llamita.inference.generation import generate_tokens
from llamita.inference.sampling import Sampling
from llamita.inference.scoring import score_batch
from llamita.model.decoder import Decoder
from llamita.model.devices import synchronize
from llamita.planning.plan import StagePlan
from llamita.recipes.schema import Preference
from llamita.training.loop import Trainer
from llamita.training.objective import build_objective
from llamita.training.optimizer import ADAMW_STATE
from llamita.training.parallelism import local, whole
from llamita.training.quick_evaluation import Evaluator
from llamita.training.reference import LiveReference, Reference

_MEASURED_SECONDS = 0.5
_MOST_REPETITIONS = 20
_MEASURED_SHARE = 1 / 50  # of the steps to come, so that a short run is not held up
_SAMPLED_TOKENS = 8
_ADAMW_ELEMENTS = 1 << 22  # with gradients and moments 64 MB: more than most caches hold
_WRITTEN_BYTES = 32_000_000


@dataclass(frozen=True)
class Probe:
    """Seconds, measured now; None where the run will do nothing of the kind, or it failed.

    compile: what first calls took more than later ones, zero where nothing is compiled.
    forward_backward: of this process's share of a batch of `stage`. update: gradient norm,
    optimizer, running average. validation_pass: of `Judge.rows` rows, forward alone. sample_token:
    one token written. written_byte: hashed and synced in the run's directory, as checkpoints are.
    evaluation: of the recipe's quick suite, by a full pass of it.
    """

    stage: StagePlan
    compile: float
    forward_backward: float
    update: float
    validation_pass: float | None = None
    sample_token: float | None = None
    written_byte: float | None = None
    evaluation: float | None = None

    @property
    def step(self) -> float:
        return self.forward_backward + self.update

    def as_json(self) -> dict[str, float | None]:
        """The fields of a `probe` event."""
        return {
            "compile_seconds": self.compile,
            "step_seconds": self.step,
            "update_seconds": self.update,
            "validation_pass_seconds": self.validation_pass,
            "sample_token_seconds": self.sample_token,
            "evaluation_seconds": self.evaluation,
            "written_byte_seconds": self.written_byte,
        }


def probe(trainer: Trainer, *, validates: bool, samples: bool) -> Probe:
    """Measure; weights, moments, guard, data order and random state stay as they are.

    Args:
        validates, samples: whether the run is going to; else that is not measured.
    """
    device, plan = trainer.compute.device, trainer.plan
    stage = plan.stages[min(trainer.position.stage, len(plan.stages) - 1)]
    clock = _Clock(trainer)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        each, num_passes = _time_passes(trainer, stage, clock)
        scoring = _time_validation(trainer, stage, clock) if validates else None
        compiling = clock.first_calls if trainer.compute.compile else 0.0
        update = _time_update(trainer, clock)
        token = _time_sampling(trainer, clock) if samples else None
        asking = _time_evaluation(trainer.evaluator, clock)
    writing = _time_writing(trainer) if trainer.world.is_main else None
    return Probe(stage, compiling, each * num_passes, update, scoring, token, writing, asking)


class _Clock:
    """Times work that is done over and over.

    All processes repeat it equally often, for it may hold collectives.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._device, self._world = trainer.compute.device, trainer.world
        steps = trainer.last_step - trainer.position.step
        self._most = min(_MOST_REPETITIONS, int(steps * _MEASURED_SHARE))
        self.first_calls = 0.0
        """Seconds by which the first call of each kind of work exceeded later ones."""

    def best(self, work: Callable[[], object]) -> float:
        """The fastest of the calls after the first, two or as many as fill half a second.

        Not their median: whatever disturbs a few calls here is gone before most steps are taken. A
        median once foresaw 9m05s of a run of 4m21s.
        """
        first, second = self._once(work), self._once(work)
        more = max(1, min(self._most, int(_MEASURED_SECONDS / second)))
        later = [second, *(self._once(work) for _ in range(self._world.agree(more)))]
        best = min(later)
        self.first_calls += max(0.0, first - best)
        return best

    def _once(self, work: Callable[[], object]) -> float:
        synchronize(self._device)
        start = time.perf_counter()
        work()
        synchronize(self._device)
        return time.perf_counter() - start


def _time_passes(trainer: Trainer, stage: StagePlan, clock: _Clock) -> tuple[float, float]:
    """Seconds of a micro-batch forward and backward, and how many of them a step has."""
    batch, _ = trainer.stage_data(stage).batch(trainer.position.cursor)
    rows = trainer.world.rows(batch)
    micro = rows.rows(0, trainer.micro_batch_size).to(trainer.compute.device)
    objective = build_objective(stage.stage.objective, _stand_in(stage))

    def work() -> None:
        torch.autograd.backward(objective.loss_sum(trainer.model, micro).loss)

    return clock.best(work), len(rows.tokens) / len(micro.tokens)


def _time_update(trainer: Trainer, clock: _Clock) -> float:
    """Seconds of what a step does with its gradients, which must be there and are gone after.

    The optimizer is ordered to leave everything as it is. Muon computes all the same; fused AdamW
    returns at once, so that it is timed on a tensor of its own. Where orders are not heeded, AdamW
    alone is timed.
    """
    step, optimizer, average = trainer.step, trainer.optimizer, trainer.average
    skip = torch.ones((), dtype=torch.bool, device=step.device)

    def work() -> None:
        gradients = [p.grad for p in step.parameters if p.grad is not None]
        whole(nn.utils.get_total_norm(gradients))
        if step.on_device:
            optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.step()
        if average is not None:
            average.update(skip, 1)

    seconds = clock.best(work)
    optimizer.zero_grad()
    elements = sum(
        local(parameter).numel()
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["state_names"] == ADAMW_STATE
    )
    timed = nn.Parameter(torch.zeros(min(elements, _ADAMW_ELEMENTS), device=step.device))
    timed.grad = torch.zeros_like(timed)
    adamw = torch.optim.AdamW([timed], fused=True)
    return seconds + clock.best(adamw.step) * elements / timed.numel()


def _stand_in(stage: StagePlan) -> Reference | None:
    """In place of a reference that is opened as the stage is entered; takes the same time."""
    objective = stage.stage.objective
    if not isinstance(objective, Preference):
        return None
    return LiveReference() if objective.reference == "live" else _NoReference()


class _NoReference:
    def log_probs(self, model: Decoder, batch: Batch) -> Tensor:
        assert batch.examples is not None
        return torch.zeros(batch.examples.shape, device=batch.examples.device)


def _time_validation(trainer: Trainer, stage: StagePlan, clock: _Clock) -> float | None:
    """Seconds of a forward pass as validation makes them, and as a reference is computed."""
    if trainer.judge.num_passes:
        return clock.best(lambda: trainer.judge.one_pass(trainer.model))
    if not isinstance(stage.stage.objective, Preference):
        return None
    batch, _ = trainer.stage_data(stage).batch(trainer.position.cursor)
    micro = batch.rows(0, trainer.micro_batch_size).to(trainer.compute.device)

    def work() -> None:
        with torch.no_grad():
            score_batch(trainer.model, micro)

    return clock.best(work)


def _time_sampling(trainer: Trainer, clock: _Clock) -> float:
    """Seconds of a token, written one by one as samples are."""
    tokenizer, settings = trainer.preparation.tokenizer, trainer.recipe.samples
    assert tokenizer is not None
    prompt = tokenizer.encode_prompt(settings.prompts[0])
    sampling = Sampling(temperature=settings.temperature, seed=trainer.recipe.seed)
    count = min(settings.max_tokens, _SAMPLED_TOKENS)

    def work() -> None:
        list(generate_tokens(trainer.model, prompt, max_tokens=count, sampling=sampling))

    with torch.compiler.set_stance("force_eager"):
        return clock.best(work) / count


def _time_evaluation(evaluator: Evaluator | None, clock: _Clock) -> float | None:
    """Seconds of asking the whole suite."""
    if evaluator is None:
        return None
    work, times = evaluator.suite.measure()
    return clock.best(work) * times


def _time_writing(trainer: Trainer) -> float | None:
    """Seconds a byte that is written to the run's directory, hashed and made durable."""
    content = os.urandom(min(_WRITTEN_BYTES, checkpoint_bytes(trainer)))
    start = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=trainer.run_directory) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return None  # so full a disk that the first checkpoint will say so
    hashlib.blake2b(content)
    return (time.perf_counter() - start) / len(content)


def checkpoint_bytes(trainer: Trainer) -> int:
    """Bytes of a checkpoint's tensors: what learns in float32, moments, and the running average."""
    moments = sum(
        parameter.numel() * (2 if group["state_names"] == ADAMW_STATE else 1)
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    )
    copies = 1 if trainer.average is None else 2
    return int(4 * (copies * parameters_that_learn(trainer) + moments))


def parameters_that_learn(trainer: Trainer) -> int:
    """Parameters of a checkpoint, of this process's model: all, or the adapter's."""
    lora, config = trainer.plan.lora, trainer.plan.config
    return num_parameters(config) if lora is None else lora_parameters(config, lora)
