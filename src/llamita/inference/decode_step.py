"""One token more for each of some rows: a decoder's forward pass with as few operations as can be.

At a batch of one a step is as long as reading the weights takes, and with some 1,500 small
operations as much again. Here weights that meet the same input are one matrix, products are put
to the CPU's library the way round in which it is fastest, and residuals are added by them.

Shapes: R rows, H hidden size, D head_dim, I intermediate size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.model.cache import CacheRows
from llamita.model.decoder import Attention, Block, Decoder, Linear, RMSNorm
from llamita.model.quantized import projections
from llamita.model.rope import rotary_tables


def is_plain(model: Decoder) -> bool:
    """Whether every projection is a weight and nothing else: no adapter, no codes."""
    return all(type(layer) is Linear for _, layer in projections(model))


class DecodeStep:
    """Stands for a plain decoder where each row reads one token; says what the decoder says, up
    to rounding.

    It takes no memory beside the decoder's, unless it is given `alone`: parameters become views
    of the joined matrices.

    Args:
        model: its parameters in `compute_dtype` and frozen; see `is_plain`.
        context: positions that rows may have.
        alone: a row without others is multiplied in this type, by a copy of the weights in it.
    """

    def __init__(self, model: Decoder, context: int, alone: torch.dtype | None = None) -> None:
        assert is_plain(model), "adapters and quantised weights go through the decoder itself"
        config = model.config
        self._model = model
        self._layers = [_Layer(block, model, alone) for block in model.model.layers]  # type: ignore[arg-type]
        self._head = _Weight(model.head_weight, None, alone)
        device = model.model.norm.weight.device
        places = torch.arange(context, device=device)
        cos, sin = rotary_tables(config, places, context)
        self._cos = torch.cat((cos, cos), dim=-1)[:, None]
        self._sin = torch.cat((-sin, sin), dim=-1)[:, None]

    def __call__(self, tokens: Tensor, rows: CacheRows) -> Tensor:
        """Tokens (R, 1) to the logits behind them, (R, V) float32; keys and values go to `rows`."""
        model, config = self._model, self._model.config
        x = F.embedding(tokens[:, 0], model.model.embed_tokens.weight)
        if config.embedding_multiplier != 1.0:
            x = x * config.embedding_multiplier
        x = x.to(model.compute_dtype)
        at = rows.positions[:, 0]
        rotary = self._cos[at], self._sin[at]
        for number, layer in enumerate(self._layers):
            x = layer(x, rotary, rows, number)
        x = _norm(x, model.model.norm)
        logits = self._head(x)[:, : config.vocab_size].float()
        return logits if config.logits_scaling == 1.0 else logits / config.logits_scaling


class _Layer:
    """A block's weights, joined, and what it does to (R, H)."""

    def __init__(self, block: Block, model: Decoder, alone: torch.dtype | None) -> None:
        config, attention, mlp = model.config, block.self_attn, block.mlp
        self.block = block
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.scale = config.head_dim, attention.scale
        self.eps, self.share = config.rms_norm_eps, block.residual_multiplier
        self.qkv = _Weight(*_joined(attention.q_proj, attention.k_proj, attention.v_proj), alone)
        self.out = _Weight(attention.o_proj.weight, attention.o_proj.bias, alone)
        self.gate_up = _Weight(*_joined(mlp.gate_proj, mlp.up_proj), alone)
        self.down = _Weight(mlp.down_proj.weight, mlp.down_proj.bias, alone)
        self.head_norms = _head_norms(attention, self.heads, self.kv_heads)

    def __call__(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], rows: CacheRows, layer: int
    ) -> Tensor:
        block = self.block
        mixed = self._attention(_norm(x, block.input_layernorm), rotary, rows, layer)
        x = self.out.added(x, mixed, self.share)
        gate_up = self.gate_up(_norm(x, block.post_attention_layernorm))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down.added(x, F.silu(gate).mul_(up), self.share)

    def _attention(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], rows: CacheRows, layer: int
    ) -> Tensor:
        qkv = self.qkv(x).view(len(x), -1, self.head_dim)
        turning, value = qkv[:, : -self.kv_heads], qkv[:, -self.kv_heads :]
        wide = turning.float()
        if self.head_norms is not None:
            wide = _normed(wide, self.eps).to(x.dtype).mul(self.head_norms).float()
        cos, sin = rotary
        # Halves change places, and the sines have their signs: `rotate` of a whole table.
        turned = torch.addcmul(wide * cos, wide.roll(self.head_dim // 2, -1), sin).to(x.dtype)
        query, key = turned[:, : self.heads], turned[:, self.heads :]
        keys, values = rows.append(layer, key[:, :, None], value[:, :, None])
        # Heads that share keys are as good as several queries of one head.
        grouped = query.reshape(len(x), self.kv_heads, -1, self.head_dim)
        mixed = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=rows.mask, scale=self.scale
        )
        return mixed.reshape(len(x), -1)


class _Weight:
    """A weight (out, in) and its bias (out), and a copy of the weight for a row without others."""

    def __init__(self, weight: Tensor, bias: Tensor | None, alone: torch.dtype | None) -> None:
        self.weight, self.bias = weight, bias
        self.copy = None if alone is None else weight.to(alone)

    def __call__(self, x: Tensor) -> Tensor:
        """x (R, in) · weightᵀ + bias."""
        if self.copy is not None and len(x) == 1:
            found = F.linear(x.to(self.copy.dtype), self.copy).to(x.dtype)
        elif _turned(x):
            found = _rows(self.weight @ _paired(x).t(), len(x))
        else:
            return F.linear(x, self.weight, self.bias)
        return found if self.bias is None else found.add_(self.bias)

    def added(self, x: Tensor, change: Tensor, share: float) -> Tensor:
        """x + share · (change · weightᵀ + bias)."""
        if self.copy is not None and len(x) == 1:
            return torch.add(x, self(change), alpha=share)
        if self.bias is not None:
            x = torch.add(x, self.bias, alpha=share)
        if not _turned(x):
            return torch.addmm(x, change, self.weight.t(), alpha=share)
        rows = len(x)
        x, change = _paired(x), _paired(change)
        return _rows(torch.addmm(x.t(), self.weight, change.t(), alpha=share), rows)


def _joined(*layers: Linear) -> tuple[Tensor, Tensor | None]:
    """The weights of layers one below the other, (all their outs, in), and their biases; the
    layers' own weights become views of it."""
    joined = torch.cat([layer.weight.data for layer in layers])
    start = 0
    for layer in layers:
        layer.weight.data = joined[start : start + layer.out_features]
        start += layer.out_features
    biases = [layer.bias.data for layer in layers if layer.bias is not None]
    return joined, torch.cat(biases) if biases else None


def _head_norms(attention: Attention, heads: int, kv_heads: int) -> Tensor | None:
    """The weights of query and key norms, a head a row, where there are such norms."""
    if attention.q_norm is None or attention.k_norm is None:
        return None
    query, key = attention.q_norm.weight.data, attention.k_norm.weight.data
    return torch.cat((query.expand(heads, -1), key.expand(kv_heads, -1)))


def _turned(x: Tensor) -> bool:
    """Whether the weight goes first: MKL's product of 2 to 8 rows takes half the time then."""
    return x.device.type == "cpu"


def _paired(x: Tensor) -> Tensor:
    """One row as two, and three as four: a row more costs nothing, and an odd one does."""
    return torch.cat((x, x[-1:])) if len(x) in (1, 3) else x


def _rows(turned: Tensor, count: int) -> Tensor:
    """(out, R or more) to (count, out)."""
    return turned[:, :count].t().contiguous()


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, RMSNorm)
    return _normed(x.float(), norm.eps).to(x.dtype) * norm.weight


def _normed(x: Tensor, eps: float) -> Tensor:
    """x / rms(x), by the length of x: fewer operations than by a mean of squares."""
    size = x.shape[-1]
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * length.square_().div_(size).add_(eps).rsqrt_()
