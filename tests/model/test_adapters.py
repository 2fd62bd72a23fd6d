"""LoRA on the decoder against PEFT, and against its own mathematics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamita.architecture.lora import Lora, lora_parameters, lora_targets
from llamita.errors import UserError
from llamita.model.adapters import (
    LoraLinear,
    adapter_state,
    adapters_off,
    add_adapters,
    freeze_to,
    has_adapters,
    merge_adapters,
)
from llamita.model.decoder import Decoder, TokenScores, compile_model, draws_random_numbers
from tests.model.adapted_models import our_base, peft_model, randomise
from tests.model.shapes import SHAPES, random_tokens

TOLERANCE = 5e-5
LORA = Lora(rank=4, alpha=6)


def _loss(model: Decoder) -> torch.Tensor:
    scores = model(random_tokens(), random_tokens(seed=2))
    assert isinstance(scores, TokenScores)
    return -scores.log_probs.mean()


def _gradients(model: Decoder) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    _loss(model).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_pefts(shape: str, tmp_path: Path) -> None:
    theirs = peft_model(shape)
    ours = our_base(shape, tmp_path)
    add_adapters(ours, LORA, seed=0)
    named = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters()}
    for name, tensor in adapter_state(ours).items():
        tensor.copy_(named[name.replace(".weight", ".default.weight")].detach())
    tokens, targets = random_tokens(), random_tokens(seed=2)
    logits = theirs(tokens).logits
    assert (ours(tokens) - logits).abs().max() <= TOLERANCE
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    found = _gradients(ours)
    assert set(found) == set(adapter_state(ours))
    for name, gradient in found.items():
        expected = named[name.replace(".weight", ".default.weight")].grad
        assert (gradient - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max())


def test_only_adapters_learn_and_they_are_as_many_as_counted(tmp_path: Path) -> None:
    model = our_base("llama-biases", tmp_path)
    lora = Lora(rank=3, alpha=1, targets=lora_targets("v_proj,down_proj"))
    add_adapters(model, lora, seed=0)
    learning = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert set(learning) == set(adapter_state(model))
    assert all(n.split(".")[-3] in lora.targets for n in learning)
    assert sum(learning.values()) == lora_parameters(model.config, lora)


def test_it_starts_as_the_base_and_as_peft_does(tmp_path: Path) -> None:
    model, again = our_base("llama-mha", tmp_path), our_base("llama-mha", tmp_path)
    before = model(random_tokens())
    add_adapters(model, Lora(rank=64, alpha=6), seed=3)
    add_adapters(again, Lora(rank=64, alpha=6, targets=("q_proj",)), seed=3)
    assert torch.equal(model(random_tokens()), before)
    first = model.model.layers[0].self_attn.q_proj
    assert isinstance(first, LoraLinear)
    assert not first.lora_B.weight.any()
    # kaiming_uniform(√5): uniform within ±1/√in, so of variance 1/(3·in).
    assert first.lora_A.weight.abs().max() <= 1 / 64**0.5
    assert float(first.lora_A.weight.detach().var()) == pytest.approx(1 / (3 * 64), rel=0.1)
    # Each is drawn by its own generator: other targets, or a rank of the same size, change nothing.
    assert torch.equal(first.lora_A.weight, again.model.layers[0].self_attn.q_proj.lora_A.weight)
    second = model.model.layers[1].self_attn.q_proj
    assert isinstance(second, LoraLinear)
    assert not torch.equal(first.lora_A.weight, second.lora_A.weight)


def test_off_is_the_base_and_on_again_after_an_error(tmp_path: Path) -> None:
    model = our_base("qwen2", tmp_path)
    before = model(random_tokens())
    add_adapters(model, LORA, seed=0)
    randomise(model)
    adapted = model(random_tokens())
    assert (adapted - before).abs().max() > 0.01
    with adapters_off(model):
        assert torch.equal(model(random_tokens()), before)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        1 / 0  # noqa: B018
    assert torch.equal(model(random_tokens()), adapted)


@pytest.mark.parametrize("shape", ["llama-biases", "minicpm-shaped", "qwen3"])
def test_merged_says_the_same_as_unmerged(shape: str, tmp_path: Path) -> None:
    model = our_base(shape, tmp_path)
    plain = {name: p.shape for name, p in model.named_parameters()}
    add_adapters(model, Lora(rank=4, alpha=6, rslora=True), seed=0)
    randomise(model)
    adapted = model(random_tokens())
    merge_adapters(model)
    assert (model(random_tokens()) - adapted).abs().max() <= 1e-4
    assert {name: p.shape for name, p in model.named_parameters()} == plain
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    with pytest.raises(UserError, match="no adapters to merge"):
        merge_adapters(model)


def test_a_second_adapter_is_refused(tmp_path: Path) -> None:
    model = our_base("llama-tied", tmp_path)
    assert not has_adapters(model)
    add_adapters(model, LORA, seed=0)
    assert has_adapters(model)
    with pytest.raises(UserError, match="has adapters already"):
        add_adapters(model, LORA, seed=0)


@pytest.mark.parametrize("shape", ["llama-biases", "llama-tied", "minicpm-shaped"])
def test_frozen_weights_in_the_compute_type_change_no_bit(shape: str, tmp_path: Path) -> None:
    model = our_base(shape, tmp_path)
    model.compute_dtype = torch.bfloat16
    add_adapters(model, LORA, seed=0)
    randomise(model)
    logits, gradients = model(random_tokens()), _gradients(model)
    freeze_to(model, torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert torch.equal(model(random_tokens()), logits)
    after = _gradients(model)
    assert all(torch.equal(after[name], gradients[name]) for name in gradients)


def test_dropout_is_on_a_only_and_only_under_training(tmp_path: Path) -> None:
    model = our_base("llama-untied", tmp_path)
    add_adapters(model, Lora(rank=4, alpha=6, dropout=0.5), seed=0)
    randomise(model)
    assert draws_random_numbers(model)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, LoraLinear)
    x = torch.randn(2000, 64)
    with torch.no_grad():
        low = layer(x) - torch.nn.functional.linear(x, layer.weight)
    torch.manual_seed(0)
    dropped = layer(x) - torch.nn.functional.linear(x, layer.weight)
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(x, 0.5) @ (layer.merged_weight() - layer.weight).T
    assert (dropped - expected).abs().max() <= 1e-4
    assert (dropped - low).abs().max() > 0.1
    assert not draws_random_numbers(our_base("llama-untied", tmp_path))


def _ready(dtype: torch.dtype, tmp_path: Path, dropout: float = 0.0) -> Decoder:
    model = our_base("qwen2", tmp_path)
    model.compute_dtype = dtype
    add_adapters(model, Lora(rank=4, alpha=6, dropout=dropout), seed=0)
    randomise(model)
    freeze_to(model, dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_computed_again_give_the_same_gradients(dtype: torch.dtype, tmp_path: Path) -> None:
    plain, forgetful = _ready(dtype, tmp_path), _ready(dtype, tmp_path)
    forgetful.checkpoint_blocks = True
    expected, found = _gradients(plain), _gradients(forgetful)
    assert len(found) == 2 * 7 * 3
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    torch._dynamo.reset()
    eager, compiled = _ready(dtype, tmp_path), _ready(dtype, tmp_path)
    compile_model(compiled)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.no_grad(), adapters_off(eager), adapters_off(compiled):
        assert abs(_loss(compiled) - _loss(eager)) <= tolerance
    expected, found = _gradients(eager), _gradients(compiled)
    assert abs(_loss(compiled) - _loss(eager)) <= tolerance
    for name, gradient in found.items():
        apart = (gradient - expected[name]).norm() / expected[name].norm()
        assert apart <= 5 * tolerance, name
