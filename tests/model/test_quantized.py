"""A quantised base against bitsandbytes' own layers, with PEFT's adapters on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from llamita.architecture.lora import Lora, Quantization
from llamita.model.adapter_directory import Base, save_adapter
from llamita.model.adapters import (
    adapter_state,
    adapters_off,
    add_adapters,
    freeze_to,
    merge_adapters,
)
from llamita.model.decoder import Decoder, compile_model
from llamita.model.huggingface import load_model
from llamita.model.quantized import (
    QuantizedWeight,
    quantization_loss,
    quantize_base,
    quantized_weights,
)
from tests.model.adapted_models import our_base, randomise, stored_base
from tests.model.shapes import random_tokens, transformers_model

KINDS: tuple[Quantization, ...] = ("nf4", "int8")
LORA = Lora(rank=4, alpha=6, targets=("q_proj", "down_proj"))
SHAPE = "llama-biases"


def _bitsandbytes(
    kind: Quantization, linear: nn.Linear, dtype: torch.dtype = torch.float32
) -> nn.Module:
    sides, bias = (linear.in_features, linear.out_features), linear.bias is not None
    if kind == "nf4":
        layer = bnb.nn.Linear4bit(*sides, bias, dtype, compress_statistics=True, quant_type="nf4")
        settings = {"compress_statistics": True, "quant_type": "nf4", "requires_grad": False}
        layer.weight = bnb.nn.Params4bit(linear.weight.detach().clone(), **settings)
    else:
        layer = bnb.nn.Linear8bitLt(*sides, bias, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone())
    # PEFT and bitsandbytes quantise when a layer is moved to its device.
    return layer.to("cpu")


def _theirs(kind: Quantization) -> nn.Module:
    """Transformers' model on bitsandbytes' layers, with PEFT's adapters."""
    model: Any = transformers_model(SHAPE)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(parent, name, _bitsandbytes(kind, linear))
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=list(LORA.targets))
    adapted = get_peft_model(model, settings).train()
    randomise(adapted)
    return adapted


def _ours(kind: Quantization, directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    model = our_base(SHAPE, directory)
    model.compute_dtype = dtype
    quantize_base(model, kind)
    add_adapters(model, LORA, seed=0)
    randomise(model)
    freeze_to(model, dtype)
    return model


def _gradients(model: Decoder) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    logits = model(random_tokens())
    assert isinstance(logits, torch.Tensor)
    logits.float().square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_and_its_gradient_are_bitsandbytes(
    kind: Quantization, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 80)  # 240 blocks of 64: less than a whole block of their scales
    theirs = _bitsandbytes(kind, linear, dtype).train()
    ours = QuantizedWeight(linear.weight, kind)
    x = torch.randn(2, 9, 192, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected = theirs(x)
    found = ours(y, linear.bias.detach())
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    assert torch.equal(found, expected)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(y.grad, x.grad)
    assert (ours.dequantize() - linear.weight).abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_pefts(kind: Quantization, tmp_path: Path) -> None:
    theirs, ours = _theirs(kind), _ours(kind, tmp_path)
    named = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters()}
    for name, tensor in adapter_state(ours).items():
        tensor.copy_(named[name.replace(".weight", ".default.weight")].detach())
    logits = theirs(random_tokens()).logits
    assert (ours(random_tokens()) - logits).abs().max() <= 5e-5
    logits.square().mean().backward()
    for name, gradient in _gradients(ours).items():
        expected = named[name.replace(".weight", ".default.weight")].grad
        assert expected is not None
        assert (gradient - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_give_the_same_bits_and_less_of_them(
    kind: Quantization, tmp_path: Path
) -> None:
    model = our_base(SHAPE, tmp_path)
    again = copy.deepcopy(model)
    names = [n for n, _ in model.named_parameters() if n.endswith("_proj.weight")]
    weights = sum(model.get_parameter(name).numel() for name in names)
    quantize_base(model, kind)
    quantize_base(again, kind)
    found = dict(quantized_weights(model))
    assert list(found) == names
    assert not any(name in dict(model.named_parameters()) for name in names)
    for (_, one), (_, other) in zip(found.items(), quantized_weights(again), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))
    # QLoRA: 4 bits, 8/64 for scales, 32/(64·256) for theirs; a table of 256 numbers comes on top.
    bits = 4 + 8 / 64 if kind == "nf4" else 8
    tables = len(names) * (256 * 4 + 8 + 4) if kind == "nf4" else 0
    rows = sum(w.shape[0] for w in found.values()) * 4 if kind == "int8" else 0
    assert sum(w.nbytes for w in found.values()) <= weights * bits / 8 + tables + rows + 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_is_the_same(kind: Quantization, tmp_path: Path) -> None:
    torch._dynamo.reset()
    eager, compiled = _ours(kind, tmp_path), _ours(kind, tmp_path)
    compile_model(compiled)
    expected, found = _gradients(eager), _gradients(compiled)
    assert set(found) == set(adapter_state(eager))
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_dequantised_weight_is_kept_for_the_backward_pass(
    compiled: bool, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    model = _ours("nf4", tmp_path, torch.bfloat16)
    if compiled:
        compile_model(model)
    sizes = {weight.shape[0] * weight.shape[1] for _, weight in quantized_weights(model)}
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() if tensor.is_floating_point() else 0)
        return tensor

    tokens = random_tokens(1, 3)  # so few that no activation is as large as a weight
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens)
    assert kept
    assert not sizes & set(kept)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_merging_keeps_what_was_trained(kind: Quantization, tmp_path: Path) -> None:
    model = _ours(kind, tmp_path)
    plain = dict(our_base(SHAPE, tmp_path).named_parameters())
    adapted = model(random_tokens())
    codes = {name: weight.dequantize() for name, weight in quantized_weights(model)}
    merge_adapters(model)
    assert (model(random_tokens()) - adapted).abs().max() <= 1e-4
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in plain.items()
    }
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(untouched), codes[untouched])


@torch.no_grad()
def test_an_adapter_directory_brings_its_quantised_base_back(tmp_path: Path) -> None:
    base = stored_base(SHAPE, tmp_path / "base")
    model = load_model(base)
    quantize_base(model, "nf4")
    add_adapters(model, LORA, seed=0)
    randomise(model)
    record = Base("../base", None, "nf4")
    save_adapter(tmp_path / "adapter", adapter_state(model), LORA, record, model.config)
    expected = model(random_tokens())
    assert torch.equal(load_model(tmp_path / "adapter")(random_tokens()), expected)
    merged = load_model(tmp_path / "adapter", merge=True)
    assert (merged(random_tokens()) - expected).abs().max() <= 1e-4
    assert not list(quantized_weights(merged))
    with adapters_off(model):
        moved = (model(random_tokens()) - load_model(base)(random_tokens())).abs().max()
    assert moved > 0.01  # the base is not what it was: the loss below is about something


def test_loss_of_quantisation() -> None:
    torch.manual_seed(0)
    weight = torch.randn(512, 512)
    far = QuantizedWeight(weight, "nf4").dequantize()
    loss = quantization_loss({"a": weight, "b": weight, "c": weight}, {"a": far, "b": weight})
    alone = float((far - weight).norm() / weight.norm())
    assert loss.worst == "a"
    assert loss.worst_relative_rms == pytest.approx(alone, rel=1e-4)
    assert loss.relative_rms == pytest.approx(alone / 2**0.5, rel=1e-4)
    # What NF4 does to normal weights in blocks of 64.
    assert 0.08 < alone < 0.11
