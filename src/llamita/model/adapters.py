"""Low-rank adapters on a decoder's projections (LoRA, arXiv 2106.09685).

The order in which a model is made ready: its weights in float32, then `quantize_base` if it is to
be quantised, `add_adapters`, `freeze_to`, and compilation or sharding last.
Parameters keep their names; an adapter's are `…q_proj.lora_A.weight` and `…lora_B.weight`, which
are PEFT's without its prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.architecture.lora import Lora
from llamita.errors import UserError
from llamita.model.decoder import Decoder, Linear
from llamita.model.initialization import generator_of
from llamita.model.quantized import QuantizedLinear, projections, replace_projection


class LoraLinear(Linear):
    """A frozen linear layer plus scaling · B·A·x.

    A (r, in) and B (out, r) are float32 masters, cast to the input's type at use. The scale is
    applied to A·x, the smallest tensor on the way.

    Attributes:
        active: whether the low-rank term counts; see `adapters_off`.
    """

    def __init__(self, frozen: Linear, lora: Lora) -> None:
        with torch.device("meta"):
            super().__init__(frozen.in_features, frozen.out_features, bias=False)
        self.weight, self.bias = frozen.weight, frozen.bias
        self.quantized = frozen.quantized if isinstance(frozen, QuantizedLinear) else None
        device = self.weight.device if self.quantized is None else self.quantized.device
        with torch.device(device):
            self.lora_A = Linear(self.in_features, lora.rank, bias=False)
            self.lora_B = Linear(lora.rank, self.out_features, bias=False)
        self.scaling = lora.scaling
        self.dropout = lora.dropout
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        frozen = super().forward(x) if self.quantized is None else self.quantized(x, self.bias)
        if not self.active:
            return frozen
        # Nobody here calls train() and eval(): only what is differentiated is training.
        if self.dropout and self.training and torch.is_grad_enabled():
            x = F.dropout(x, self.dropout)
        low: Tensor = self.lora_B(self.lora_A(x) * self.scaling)
        return frozen + low

    def merged_weight(self) -> Tensor:
        """W + scaling · B·A, float32; of a quantised W, what its codes stand for."""
        weight = self.weight if self.quantized is None else self.quantized.dequantize()
        product = self.lora_B.weight.float() @ self.lora_A.weight.float()
        return weight.float() + self.scaling * product


def _adapted(model: Decoder) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def has_adapters(model: Decoder) -> bool:
    return next(_adapted(model), None) is not None


@torch.no_grad()
def add_adapters(model: Decoder, lora: Lora, *, seed: int) -> None:
    """Puts an adapter on each target of each block; only A and B learn from then on.

    A starts from kaiming_uniform(√5), that is uniform within ±1/√in, and B from zero, so that the
    model says at first what it said before (PEFT's default). Each A is drawn by a generator of its
    own on the CPU, seeded by `seed` and its name, as `initialize` does.

    Raises:
        UserError: the model has adapters already.
    """
    if has_adapters(model):
        raise UserError("the model has adapters already: merge them before others are added")
    model.requires_grad_(False)
    for name, module in list(projections(model)):
        if name.split(".")[-1] not in lora.targets:
            continue
        layer = LoraLinear(module, lora)
        bound = 1 / math.sqrt(layer.in_features)
        values = torch.empty(lora.rank, layer.in_features)
        values.uniform_(-bound, bound, generator=generator_of(seed, f"{name}.lora_A.weight"))
        layer.lora_A.weight.copy_(values)
        replace_projection(model, name, layer)


def frozen_dtype(model: Decoder, name: str, dtype: torch.dtype) -> torch.dtype:
    """What a frozen parameter is stored in where products are in `dtype`; see `freeze_to`."""
    multiplied = model.config.embedding_multiplier != 1.0
    return torch.float32 if multiplied and name == "model.embed_tokens.weight" else dtype


def freeze_to(model: Decoder, dtype: torch.dtype) -> None:
    """Stores frozen parameters in `dtype`, the compute type, which halves them for bfloat16.

    The model says the same to the bit: those weights would be cast at each use. An embedding whose
    output is multiplied stays as it is, because the product is taken before the cast. Quantised
    weights are none of its business.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(frozen_dtype(model, name, dtype))


def adapter_state(model: Decoder) -> dict[str, Tensor]:
    """The tensors of A and B by name, sharing memory with the parameters (sharded if they are)."""
    return {
        f"{name}.{part}.weight": getattr(module, part).weight.detach()
        for name, module in _adapted(model)
        for part in ("lora_A", "lora_B")
    }


def learnt_state(model: Decoder) -> dict[str, Tensor]:
    """What a checkpoint holds: the adapters, where there are any, else every tensor."""
    return adapter_state(model) if has_adapters(model) else model.state_dict()


@contextmanager
def adapters_off(model: Decoder) -> Iterator[None]:
    """The base alone, inside this context: what the model was before its adapters."""
    layers = [module for _, module in _adapted(model)]
    before = [layer.active for layer in layers]
    try:
        for layer in layers:
            layer.active = False
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


@torch.no_grad()
def merge_adapters(model: Decoder) -> None:
    """Folds adapters into their weights, in float32: what remains is a plain decoder in float32.

    A quantised base is written out as what its codes stand for, adapted or not: that is what the
    adapter was trained on. All parameters may learn again.

    Raises:
        UserError: there is no adapter to merge (merged already).
    """
    if not has_adapters(model):
        raise UserError("the model has no adapters to merge; they may have been merged already")
    for name, module in list(projections(model)):
        if isinstance(module, LoraLinear):
            weight = module.merged_weight()
        elif isinstance(module, QuantizedLinear):
            weight = module.quantized.dequantize()
        else:
            continue
        with torch.device("meta"):
            plain = Linear(module.in_features, module.out_features, bias=False)
        plain.weight, plain.bias = nn.Parameter(weight), module.bias
        replace_projection(model, name, plain)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    model.requires_grad_(True)
