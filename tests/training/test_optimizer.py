"""Decay groups, per-tensor learning rates on real updates, initialisation, state by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import Parametrization, preset
from llamita.data.batch import Batch
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.model.initialization import initialize, learning_rate_multipliers
from llamita.recipes.schema import AdamW, LanguageModelling
from llamita.training.objective import build_objective
from llamita.training.optimizer import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
    without_padding,
)

SMALL = ModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    attention_bias=True,
    logits_scaling=4.0,
    max_position_embeddings=32,
)


def built(config: ModelConfig, parametrization: Parametrization = "llama") -> Decoder:
    model = Decoder(config)
    initialize(model, parametrization, seed=3)
    return model


def batch(vocab_size: int, rows: int = 4, length: int = 16, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (rows, length + 1), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:].clone(), None, torch.zeros(rows).numpy())


def backward(model: Decoder, data: Batch, micro: int, z_loss: float = 0.0) -> float:
    """Loss and gradients as the loop computes them, in micro-batches of `micro` rows."""
    objective = build_objective(LanguageModelling(z_loss=z_loss))
    count = objective.count(data)
    total = 0.0
    for part in data.split(micro):
        found = objective.loss_sum(model, part)
        (found.loss / count).backward()
        total += float(found.reported)
    return total / count


def optimizer_of(
    model: Decoder, parametrization: Parametrization = "llama", **settings: object
) -> torch.optim.AdamW:
    values = AdamW.model_validate({"learning_rate": 0.01, **settings})
    return build_optimizer(model, values, learning_rate_multipliers(model, parametrization))


def group_of(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    return {name: group for group in optimizer.param_groups for name in group["names"]}


def test_every_parameter_is_in_one_group_and_matrices_alone_decay() -> None:
    model = built(SMALL)
    groups = group_of(optimizer_of(model, weight_decay=0.1))
    parameters = dict(model.named_parameters())
    assert groups.keys() == parameters.keys()
    for name, group in groups.items():
        decays = parameters[name].dim() == 2 and name != "model.embed_tokens.weight"
        assert group["weight_decay"] == (0.1 if decays else 0.0), name
    assert any(name.endswith("bias") for name in groups)


def test_norms_and_embeddings_do_not_shrink_where_nothing_pulls() -> None:
    """With zero gradients an update is decay alone: matrices shrink by lr·0.1, the rest stays."""
    model = built(SMALL)
    optimizer = optimizer_of(model, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decays = parameter.dim() == 2 and name != "model.embed_tokens.weight"
        wanted = before[name] * (1 - 0.01 * 0.1) if decays else before[name]
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("follows", "shrinks_by"),
    [("scaled_learning_rate", 0.01 / 4 * 0.1), ("base_learning_rate", 0.01 * 0.1)],
)
def test_what_the_decay_of_scaled_matrices_follows(follows: str, shrinks_by: float) -> None:
    model = built(SMALL, "minicpm")
    optimizer = optimizer_of(model, "minicpm", weight_decay=0.1, weight_decay_follows=follows)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = before[name] * (1 - shrinks_by)
    ours = dict(model.named_parameters())[name].detach()
    torch.testing.assert_close(ours, wanted, rtol=3e-7, atol=0)
    # The head's rate is not scaled, so that both ways are one there.
    head = dict(model.named_parameters())["lm_head.weight"].detach()
    torch.testing.assert_close(head, before["lm_head.weight"] * (1 - 0.001), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("name", "matrix_rate", "std", "residual", "divisor"),
    [
        # Oracles 17 and 18 of the planning facts.
        ("minicpm-2.4b", 0.00111111, 0.0333333, 0.221359, 9),
        ("minicpm-1.2b", 0.00166667, 0.0408248, 0.194145, 6),
    ],
)
def test_minicpm_at_its_real_width(
    name: str, matrix_rate: float, std: float, residual: float, divisor: float
) -> None:
    """AdamW's first update is lr·sign(gradient) wherever the gradient is well above eps, so that
    the rates are read off the weights; the spread of the initial weights is measured on them."""
    config = preset(name).config
    assert config.residual_multiplier == pytest.approx(residual, abs=1e-5)
    assert config.logits_scaling == divisor
    model = built(config.replace(num_hidden_layers=1, vocab_size=64), "minicpm")
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        if parameter.dim() == 2:
            wanted = 0.1 if key == "model.embed_tokens.weight" else std
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.01), key
            assert abs(float(parameter.detach().mean())) < 0.02 * wanted, key
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), key
    optimizer = optimizer_of(model, "minicpm", weight_decay=0.0, eps=1e-16)
    before = {key: p.detach().clone() for key, p in parameters.items()}
    backward(model, batch(64, rows=1, length=16), micro=1)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    seen = set()
    for key, parameter in parameters.items():
        moved = (parameter.detach() - before[key]).abs()
        moved = moved[moved > 0]  # rows of tokens that did not occur have no gradient
        in_block = parameter.dim() == 2 and key != "model.embed_tokens.weight"
        wanted = matrix_rate if in_block else 0.01
        assert float(moved.median()) == pytest.approx(wanted, abs=1e-5 * wanted + 1e-7), key
        seen.add(in_block)
    assert seen == {True, False}


@pytest.mark.parametrize("parametrization", ["llama", "tinyllama"])
def test_other_parametrizations_learn_at_one_rate(parametrization: Parametrization) -> None:
    model = built(SMALL, parametrization)
    assert set(learning_rate_multipliers(model, parametrization).values()) == {1.0}


def test_tinyllamas_initialisation_at_its_width() -> None:
    config = preset("tinyllama-1.1b").config.replace(num_hidden_layers=1, vocab_size=64)
    model = built(config, "tinyllama")
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2:
            continue
        wanted = math.sqrt(2 / 5 / 2048)
        if name.endswith("down_proj.weight"):
            wanted = 1 / math.sqrt(5632) / 1
        assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.01), name


def test_updates_are_torchs_adamw() -> None:
    """Against torch's plain AdamW, its groups written by hand, over ten steps of our gradients."""
    ours, theirs = built(SMALL), built(SMALL)
    optimizer = optimizer_of(ours, weight_decay=0.1)
    matrices = [p for n, p in theirs.named_parameters() if p.dim() == 2 and "embed_tokens" not in n]
    others = [p for n, p in theirs.named_parameters() if p.dim() < 2 or "embed_tokens" in n]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
        fused=False,
    )
    for step in range(10):
        rate = 0.01 * (step + 1) / 10
        optimizer.zero_grad()
        backward(ours, batch(50, seed=step), micro=4)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            other.grad = mine.grad.clone()
        set_learning_rate(optimizer, rate)
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.step()
        reference.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7, msg=name)


def test_a_skipped_step_leaves_everything_as_it_was() -> None:
    """Even with NaN in the gradients: fused AdamW obeys found_inf."""
    model = built(SMALL)
    optimizer = optimizer_of(model)
    backward(model, batch(50), micro=4)
    optimizer.step()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: t.clone() for name, t in optimizer_state(optimizer).items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(torch.equal(t, moments[name]) for name, t in optimizer_state(optimizer).items())


def test_state_by_name_round_trips_and_does_not_share_memory() -> None:
    model = built(SMALL)
    optimizer = optimizer_of(model)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, batch(50, seed=step), micro=4)
        optimizer.step()
    state = {name: tensor.clone() for name, tensor in optimizer_state(optimizer).items()}
    assert len(state) == 3 * len(list(model.parameters()))
    other = Decoder(SMALL)
    other.load_state_dict(model.state_dict())
    # Groups in another order, as another grouping of the same names would have them.
    again = optimizer_of(other)
    again.param_groups.reverse()
    load_optimizer_state(again, state)
    for one, model_of in ((optimizer, model), (again, other)):
        one.zero_grad()
        backward(model_of, batch(50, seed=9), micro=4)
        one.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    loaded = optimizer_state(again)
    assert all(not torch.equal(loaded[f"step.{n}"], state[f"step.{n}"]) for n in ["lm_head.weight"])


def test_state_of_another_model_is_refused() -> None:
    model = built(SMALL)
    optimizer = optimizer_of(model)
    assert optimizer_state(optimizer) == {}
    backward(model, batch(50), micro=4)
    optimizer.step()
    state = optimizer_state(optimizer)
    missing = {k: v for k, v in state.items() if k != "exp_avg.model.norm.weight"}
    with pytest.raises(UserError, match=r"exp_avg\.model\.norm\.weight is missing"):
        load_optimizer_state(optimizer_of(built(SMALL)), missing)
    wider = built(SMALL.replace(intermediate_size=96))
    with pytest.raises(UserError, match=r"shape \(64, 32\), expected \(96, 32\)"):
        load_optimizer_state(optimizer_of(wider), state)


def test_padding_of_the_vocabulary_is_no_part_of_saved_state() -> None:
    model = Decoder(SMALL, padded_vocab_size=64)
    initialize(model, "llama", seed=3)
    optimizer = optimizer_of(model)
    backward(model, batch(50), micro=4)
    optimizer.step()
    state = without_padding(optimizer_state(optimizer), 50)
    assert state["exp_avg.lm_head.weight"].shape == (50, 32)
    plain = optimizer_of(built(SMALL))
    load_optimizer_state(plain, state)
    again = optimizer_of(model)
    load_optimizer_state(again, state)
    whole = optimizer_state(again)
    assert whole["exp_avg.lm_head.weight"].shape == (64, 32)
    assert torch.equal(whole["exp_avg.lm_head.weight"][50:], torch.zeros(14, 32))


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_accumulation_changes_neither_loss_nor_gradients(micro: int, z_loss: float) -> None:
    """Weighted by tokens: rows of very unequal numbers of tokens that learn."""
    data = batch(50, rows=4)
    data.targets[0, 2:] = IGNORE
    data.targets[1, 9:] = IGNORE
    data.targets[3, :] = IGNORE
    whole, parts = built(SMALL), built(SMALL)
    loss = backward(whole, data, 4, z_loss)
    assert backward(parts, data, micro, z_loss) == pytest.approx(loss, rel=1e-6)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=2e-5, atol=1e-7, msg=name)


def test_the_loss_is_cross_entropy_and_its_z_term() -> None:
    model, data = built(SMALL), batch(50)
    data.targets[0, :5] = IGNORE
    logits = model(data.tokens)
    assert isinstance(logits, Tensor)
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), data.targets.flatten(), reduction="sum"
    )
    learns = data.targets != IGNORE
    drift = logits.double().logsumexp(-1).square()[learns].sum()
    objective = build_objective(LanguageModelling(z_loss=0.1))
    loss, reported, _ = objective.loss_sum(model, data)
    assert objective.count(data) == 4 * 16 - 5
    assert float(reported) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float((wanted + 0.1 * drift).detach()), rel=1e-5)


def test_one_batch_is_learned_by_heart() -> None:
    model, data = built(SMALL.replace(logits_scaling=1.0)), batch(50, rows=2)
    optimizer = optimizer_of(model, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        loss = backward(model, data, micro=2)
        optimizer.step()
    assert loss < 0.05 < math.log(50)
