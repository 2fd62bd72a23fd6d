"""The step: clipping by the optimizer's own scale, and devices whose optimizer takes no orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llamita.architecture.config import ModelConfig
from llamita.data.batch import Batch
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.recipes.schema import AdamW, Guard, LanguageModelling
from llamita.training.guards import StepGuard
from llamita.training.objective import LossSum, build_objective
from llamita.training.optimizer import build_optimizer
from llamita.training.parallelism import World
from llamita.training.step import TrainingStep, fused_optimizer_takes_orders

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=32,
)
CPU = torch.device("cpu")
# A rate and eps at which an update is nearly proportional to its gradient.
SETTINGS = AdamW(learning_rate=1.0, betas=(0.0, 0.0), eps=100.0, weight_decay=0.0)


def _batch(seed: int) -> Batch:
    tokens = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:], None, np.zeros(4, dtype=np.int64))


def _step(clip: float | None) -> TrainingStep:
    model = Decoder(CONFIG)
    initialize(model, "llama", std=0.3)
    optimizer = build_optimizer(model, SETTINGS, learning_rate_multipliers(model, "llama"))
    return TrainingStep(model, optimizer, StepGuard(Guard(), CPU), device=CPU, clip_grad_norm=clip)


def _weights(step: TrainingStep) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in step.parameters]


def _take(step: TrainingStep, rows: int = 4, rate: float = 1.0) -> Tensor:
    return step(build_objective(LanguageModelling()), _batch(0), rows, rate).grad_norm


def test_the_cpus_fused_adamw_takes_orders() -> None:
    assert fused_optimizer_takes_orders(CPU)


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_is_torchs(share: float) -> None:
    """By the optimizer's scale or by torch.nn.utils: the same weights. Above the norm, none."""
    norm = float(_take(_step(None)))
    ours, host = _step(share * norm), _step(share * norm)
    host.on_device = False
    _take(ours)
    _take(host)
    for our, their in zip(_weights(ours), _weights(host), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-8)
    unclipped = _step(None)
    _take(unclipped)
    same = all(torch.equal(a, b) for a, b in zip(_weights(ours), _weights(unclipped), strict=True))
    assert same == (share > 1)


@pytest.mark.parametrize("on_device", [True, False])
def test_a_bad_step_moves_nothing(on_device: bool) -> None:
    step = _step(1.0)
    step.on_device = on_device
    _take(step)
    with torch.no_grad():
        step.model.model.norm.weight[0] = torch.inf
    before = _weights(step)
    result = step(build_objective(LanguageModelling()), _batch(1), 4, 1.0)
    assert bool(result.verdict.non_finite)
    for now, then in zip(_weights(step), before, strict=True):
        assert torch.equal(now, then)


def test_an_optimizer_that_ignores_orders_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        def __init__(self, parameters: list[nn.Parameter], **_: object) -> None:
            self.parameter = parameters[0]

        @torch.no_grad()
        def step(self) -> None:
            self.parameter -= 0.1

    monkeypatch.setattr(torch.optim, "AdamW", Deaf)
    assert not fused_optimizer_takes_orders(CPU)


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_change_only_rounding(rows: int) -> None:
    whole, split = _step(1.0), _step(1.0)
    torch.testing.assert_close(_take(whole), _take(split, rows))
    for our, their in zip(_weights(whole), _weights(split), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


class Telling:
    """Counts rows; its loss is a parameter, its metrics what the tokens say."""

    def count(self, batch: Batch) -> int:
        return len(batch.tokens)

    def loss_sum(self, model: Decoder, batch: Batch) -> LossSum:
        loss = model.model.norm.weight.sum() * len(batch.tokens)
        metrics = {"first": batch.tokens[:, 0].sum(), "last": batch.tokens[:, -1].sum()}
        return LossSum(loss, loss.detach(), metrics)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_metrics_are_means_over_the_batch(rows: int) -> None:
    batch = _batch(0)
    result = _step(None)(Telling(), batch, rows, 1.0)
    assert result.metrics.keys() == {"first", "last"}
    assert float(result.metrics["first"]) == pytest.approx(float(batch.tokens[:, 0].float().mean()))
    assert float(result.metrics["last"]) == pytest.approx(float(batch.tokens[:, -1].float().mean()))
    assert float(result.loss) == CONFIG.hidden_size


def test_metrics_cross_processes_with_the_loss() -> None:
    """In one collective: each costs a wait."""
    sums = []

    class Twins(World):
        def sum(self, tensor: Tensor) -> Tensor:
            sums.append(tensor)
            return tensor.mul_(2)

    step, batch = _step(None), _batch(0)
    step.world = Twins()
    means = step.gradients(Telling(), batch.split(2), count=8)
    assert len(sums) == 1
    assert float(means.loss) == CONFIG.hidden_size
    assert float(means.metrics["first"]) == pytest.approx(float(batch.tokens[:, 0].float().mean()))


def test_a_batch_without_anything_to_learn() -> None:
    step, batch = _step(None), _batch(0)
    batch = replace(batch, targets=torch.full_like(batch.targets, IGNORE))
    before = _weights(step)
    result = step(build_objective(LanguageModelling()), batch, 2, 1.0)
    assert float(result.loss) == float(result.grad_norm) == 0
    assert not bool(result.verdict.skip)
    for now, then in zip(_weights(step), before, strict=True):
        assert torch.equal(now, then)
