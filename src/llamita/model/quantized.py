"""A frozen base kept in 4 or 8 bits while adapters learn on it (QLoRA, arXiv 2305.14314).

Codes and scales are bitsandbytes' (extra `quantize`), and so are the numbers they stand for. A
product writes the weight out in the input's type, uses it and lets it go, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.architecture.lora import PROJECTIONS, QUANTIZATIONS, Quantization
from llamita.errors import UserError
from llamita.model.decoder import Decoder, Linear

_BLOCK = 64  # weights that share a scale (arXiv 2305.14314, section 3)
_STATISTICS_BLOCK = 256  # scales that share a scale of their own: "double quantisation"


def _require_bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise UserError(
            "a quantised base needs bitsandbytes: pip install 'llamita[quantize]', or leave "
            "quantisation out"
        ) from error
    return bitsandbytes.functional


def projections(model: Decoder) -> Iterator[tuple[str, Linear]]:
    """The linear layers of all blocks by name; not their adapters, nor the head."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name.split(".")[-1] in PROJECTIONS:
            yield name, module


def replace_projection(model: Decoder, name: str, layer: Linear) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def _encode(weight: Tensor, kind: Quantization) -> list[Tensor]:
    """Codes and scales of a weight (out, in): the same bits for the same weight."""
    functional = _require_bitsandbytes()
    if kind == "int8":
        # One scale a row; bitsandbytes takes float16 there (LLM.int8, arXiv 2208.07339).
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return [codes, scales]
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    nested = state.state2
    assert nested.blocksize == _STATISTICS_BLOCK
    return [codes, state.absmax, nested.absmax, nested.code, state.offset]


def _decode(parts: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that codes and scales stand for."""
    if len(parts) == 2:
        codes, scales = parts
        return codes.to(dtype, copy=True).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))
    codes, absmax, nested, table, offset = parts
    ops = torch.ops.bitsandbytes
    scales = ops.dequantize_blockwise(absmax, nested, table, _STATISTICS_BLOCK, torch.float32)
    weight: Tensor = ops.dequantize_4bit(codes, scales + offset, _BLOCK, "nf4", shape, dtype)
    return weight


# Both directions are opaque to the compiler. Were they not, it would see that forward and backward
# write the same weight out, and would keep it from one to the other: a dequantised model.
@torch.library.custom_op("llamita::quantized_linear", mutates_args=())
def _quantized_linear(
    x: Tensor, parts: list[Tensor], bias: Tensor | None, rows: int, columns: int
) -> Tensor:
    """x (…, in) times the transposed weight, plus bias: (…, out)."""
    return F.linear(x, _decode(parts, (rows, columns), x.dtype), bias)


@_quantized_linear.register_fake
def _(x: Tensor, parts: list[Tensor], bias: Tensor | None, rows: int, columns: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


@torch.library.custom_op("llamita::quantized_linear_backward", mutates_args=())
def _quantized_linear_backward(
    gradient: Tensor, parts: list[Tensor], rows: int, columns: int
) -> Tensor:
    """A gradient (…, out) times the weight: (…, in)."""
    return gradient @ _decode(parts, (rows, columns), gradient.dtype)


@_quantized_linear_backward.register_fake
def _(gradient: Tensor, parts: list[Tensor], rows: int, columns: int) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], columns)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, parts, _, ctx.rows, ctx.columns = inputs
    ctx.save_for_backward(*parts)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    parts = list(ctx.saved_tensors)
    grad_x = _quantized_linear_backward(gradient, parts, ctx.rows, ctx.columns)
    return grad_x, [None] * len(parts), None, None, None


_quantized_linear.register_autograd(_backward, setup_context=_setup)


class QuantizedWeight(nn.Module):
    """A weight (out, in) as codes and scales.

    They are buffers that no state contains: whoever resumes quantises the same base again.
    """

    def __init__(self, weight: Tensor, kind: Quantization) -> None:
        super().__init__()
        self.kind = kind
        self.shape = (weight.shape[0], weight.shape[1])
        encoded = _encode(weight.detach(), kind)
        self.num_parts = len(encoded)
        for number, part in enumerate(encoded):
            self.register_buffer(f"part_{number}", part, persistent=False)

    @property
    def parts(self) -> list[Tensor]:
        return [getattr(self, f"part_{number}") for number in range(self.num_parts)]

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return _decode(self.parts, self.shape, dtype)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else bias.to(x.dtype)
        out: Tensor = _quantized_linear(x, self.parts, bias, *self.shape)
        return out


class QuantizedLinear(Linear):
    """A linear layer without a weight of its own: `quantized` has it."""

    def __init__(self, frozen: Linear, kind: Quantization) -> None:
        with torch.device("meta"):
            super().__init__(frozen.in_features, frozen.out_features, bias=False)
        self.quantized = QuantizedWeight(frozen.weight, kind)
        self.register_parameter("weight", None)
        self.bias = frozen.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.quantized(x, self.bias)
        return out


@torch.no_grad()
def quantize_projection(model: Decoder, name: str, layer: Linear, kind: Quantization) -> None:
    """Puts codes and scales in the place of one layer's weight, which is float32."""
    assert type(layer) is Linear, f"{name}: quantise before adapters are added, and once"
    replace_projection(model, name, QuantizedLinear(layer, kind))


@torch.no_grad()
def quantize_base(model: Decoder, kind: Quantization) -> None:
    """Quantises the seven projections of every block in place; all else stays as it is.

    `nf4`: 4-bit NormalFloat in blocks of 64, their scales in 8 bits (4.13 bits a weight). `int8`:
    one scale a row (8 bits a weight), products in the input's type. Each weight is freed as its
    codes stand. It comes before `add_adapters` and `freeze_to`, so that what is quantised is the
    base as it is stored.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    assert kind in QUANTIZATIONS, kind
    _require_bitsandbytes()
    names = [name for name, _ in projections(model)]
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, Linear)
        quantize_projection(model, name, module, kind)


def quantized_weights(model: Decoder) -> Iterator[tuple[str, QuantizedWeight]]:
    """What is quantised in a model, under the names its weights had."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            yield f"{name.removesuffix('.quantized')}.weight", module


class QuantizationLoss(NamedTuple):
    """How far quantisation moved the weights it touched.

    Attributes:
        relative_rms: √(Σ(w' − w)² / Σw²) over all of them, 0.07 meaning 7%.
        worst: the name of the weight that moved most by the same measure.
        worst_relative_rms: that weight's figure.
    """

    relative_rms: float
    worst: str
    worst_relative_rms: float


@torch.no_grad()
def quantization_loss(
    original: Mapping[str, Tensor], dequantised: Mapping[str, Tensor]
) -> QuantizationLoss:
    """Compares weights by name, those of `dequantised`; equal ones count as not moved."""
    moved = total = 0.0
    worst, most = "", -1.0
    for name, tensor in dequantised.items():
        wide = original[name].double()
        error = float((tensor.double() - wide).square().sum())
        size = float(wide.square().sum())
        moved, total = moved + error, total + size
        share = math.sqrt(error / size) if size else 0.0
        if share > most:
            worst, most = name, share
    return QuantizationLoss(math.sqrt(moved / total) if total else 0.0, worst, max(most, 0.0))
