"""LoRA as numbers (arXiv 2106.09685): which projections, of what rank, and what that adds up to.

A frozen weight W (out, in) gets a learned term: W + s·B·A with A (r, in), B (out, r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError, did_you_mean

Quantization = Literal["nf4", "int8"]
"""What a frozen base may be stored in: 4-bit NormalFloat (QLoRA, arXiv 2305.14314) or int8."""

QUANTIZATIONS: tuple[Quantization, ...] = ("nf4", "int8")
ALL_LINEAR = "all-linear"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_WITHOUT_ADAPTERS = {
    "embed_tokens": "the embedding is a look-up table",
    "lm_head": "the head may share its matrix with the embedding, and it is scored in chunks",
    "norm": "a norm has a vector, which no low rank makes smaller",
}


def _canonical(target: str) -> str:
    if target in PROJECTIONS:
        return target
    leaf = target.split(".")[-1]
    for name, reason in _WITHOUT_ADAPTERS.items():
        if name in target:
            raise UserError(
                f"LoRA targets: {target!r} gets no adapter, because {reason}; "
                f"choose among {', '.join(PROJECTIONS)}"
            )
    if leaf in PROJECTIONS:
        raise UserError(
            f"LoRA targets: {target!r} names a projection of particular layers; adapters go to all "
            f"layers alike, so write {leaf!r}"
        )
    raise UserError(
        f"LoRA targets: there is no projection {target!r}.{did_you_mean(target, PROJECTIONS)} "
        f"Choose among {', '.join(PROJECTIONS)}, or write {ALL_LINEAR!r}"
    )


def lora_targets(targets: str | Sequence[str]) -> tuple[str, ...]:
    """The projections that get adapters, each once, in alphabetical order.

    Args:
        targets: `all-linear` (the seven projections of a block), one name, several separated by
            commas, or a sequence of names.

    Raises:
        UserError: an unknown name, one of a part that gets no adapter, or none at all.
    """
    if isinstance(targets, str):
        targets = PROJECTIONS if targets == ALL_LINEAR else targets.split(",")
    if ALL_LINEAR in targets:
        raise UserError(f"LoRA targets: {ALL_LINEAR!r} stands alone; leave the other names out")
    chosen = {_canonical(target.strip()) for target in targets if target.strip()}
    if not chosen:
        raise UserError(
            f"LoRA targets: none given; write {ALL_LINEAR!r}, or choose among "
            f"{', '.join(PROJECTIONS)}"
        )
    return tuple(sorted(chosen))


@dataclass(frozen=True)
class Lora:
    """One adapter: rank, scale, dropout, the projections it goes to, and what the base is kept in.

    Attributes:
        rank: r; it may exceed the smaller side of a matrix, where the excess is of no use.
        alpha: what the scale is made of.
        dropout: the probability of each element of A's input to be 0 in training.
        targets: names of projections, through `lora_targets`.
        rslora: scale by alpha/√r instead of alpha/r (arXiv 2312.03732).
        quantization: what the frozen base is stored in while the adapter learns; None as it is.

    Raises:
        UserError: an impossible number or an unknown name.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = tuple(sorted(PROJECTIONS))
    rslora: bool = False
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"LoRA rank {self.rank!r}: write a whole number, 1 or more")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"LoRA alpha {self.alpha!r}: write a number above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout {self.dropout!r}: write a number from 0 to below 1")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise UserError(
                f"quantisation {self.quantization!r}: write one of {', '.join(QUANTIZATIONS)}, or "
                "leave it out"
            )
        object.__setattr__(self, "targets", lora_targets(self.targets))

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by: alpha/r, or alpha/√r with `rslora`."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def replace(self, **changes: object) -> Lora:
        """A copy with some values changed, checked like a new one."""
        return replace(self, **changes)  # type: ignore[arg-type]


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of a block's seven matrices, by name."""
    hidden, wide = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (wide, hidden),
        "up_proj": (wide, hidden),
        "down_proj": (hidden, wide),
    }


def lora_parameters(config: ModelConfig, lora: Lora) -> int:
    """Parameters that learn: r·(in + out) for each adapted matrix of each layer."""
    shapes = projection_shapes(config)
    sides = sum(sum(shapes[target]) for target in lora.targets)
    return config.num_hidden_layers * lora.rank * sides
