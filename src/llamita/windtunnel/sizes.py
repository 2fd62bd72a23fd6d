"""Families of sizes by rule: width alone, depth alone, deep and thin, the paper's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.counts import num_parameters
from llamita.architecture.presets import PRESETS, Parametrization
from llamita.errors import UserError, did_you_mean
from llamita.windtunnel.spec import DepthSizes, PaperSizes, Shape, Sizes, ThinSizes, WidthSizes

_PAPER = "minicpm-"


@dataclass(frozen=True)
class Size:
    """A name and config.json's keys of shape."""

    name: str
    keys: Mapping[str, int]

    @property
    def hidden_size(self) -> int:
        return self.keys["hidden_size"]

    @property
    def layers(self) -> int:
        return self.keys["num_hidden_layers"]

    @property
    def parameters(self) -> int:
        """Without embeddings."""
        return num_parameters(ModelConfig(vocab_size=1, **self.keys), embedding=False)

    def model(
        self, base: str | Mapping[str, Any] | None, parametrization: Parametrization
    ) -> dict[str, Any]:
        """A recipe's `model` of this shape: what else the base says stays."""
        keys: dict[str, Any] = {"preset": base} if isinstance(base, str) else dict(base or {})
        keys.update(self.keys)
        neutral = dict.fromkeys(minicpm_multipliers(1, 1), 1.0)
        scaled = minicpm_multipliers(self.hidden_size, self.layers)
        return keys | (scaled if parametrization == "minicpm" else neutral)


def make_sizes(sizes: Sizes) -> list[Size]:
    """
    Raises:
        UserError: a size that cannot be built, an unknown name, two sizes of one name.
    """
    if isinstance(sizes, PaperSizes):
        found = [_of_the_paper(name) for name in sizes.names]
    elif isinstance(sizes, WidthSizes):
        found = [
            _shape(hidden, sizes.layers, sizes.head_dim, sizes.ffn_ratio)
            for hidden in sizes.hidden_sizes
        ]
    elif isinstance(sizes, DepthSizes):
        found = [
            _shape(sizes.hidden_size, layers, sizes.head_dim, sizes.ffn_ratio)
            for layers in sizes.layers
        ]
    elif isinstance(sizes, ThinSizes):
        found = [_thin(sizes, layers) for layers in sizes.layers]
    else:
        found = [_listed(each) for each in sizes]
    names = [size.name for size in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"sizes: two are called {name}; give one another name, or leave it out")
    for size in found:
        size.parameters  # noqa: B018 - a shape that cannot be built is refused here
    return found


def choose_sizes(sizes: Sequence[Size], names: Sequence[str] | None, where: str) -> list[Size]:
    """Those of these names; all for None."""
    if names is None:
        return list(sizes)
    there = {size.name: size for size in sizes}
    for name in names:
        if name not in there:
            raise UserError(
                f"{where}.sizes: there is no {name!r} (there are {', '.join(there)})."
                f"{did_you_mean(name, there)}"
            )
    return [there[name] for name in names]


def _name(hidden: int, layers: int) -> str:
    return f"{hidden}x{layers}"


def _of_the_paper(name: str) -> Size:
    known = [each.removeprefix(_PAPER) for each in PRESETS if each.startswith(_PAPER)]
    if name not in known:
        raise UserError(
            f"sizes.names: there is no {name!r} (there are {', '.join(known)})."
            f"{did_you_mean(name, known)}"
        )
    config = PRESETS[_PAPER + name].config
    return Size(name, {key: getattr(config, key) for key in SHAPE_KEYS})


SHAPE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def _shape(hidden: int, layers: int, head_dim: int, ffn_ratio: float) -> Size:
    if hidden % head_dim:
        below = hidden // head_dim * head_dim
        near = [value for value in (below, below + head_dim) if value]
        raise UserError(
            f"sizes: hidden_size {hidden} is not a multiple of head_dim {head_dim}; write "
            f"{' or '.join(map(str, near))}, or another head_dim"
        )
    heads = hidden // head_dim
    values = (hidden, _ffn(hidden, ffn_ratio), layers, heads, heads, head_dim)
    return Size(_name(hidden, layers), dict(zip(SHAPE_KEYS, values, strict=True)))


def _ffn(hidden: int, ratio: float) -> int:
    """To a multiple of eight, which products want."""
    return max(8, round(hidden * ratio / 8) * 8)


def _thin(sizes: ThinSizes, layers: int) -> Size:
    """The width whose parameters come nearest, in whole heads."""

    def distance(heads: int) -> float:
        size = _shape(heads * sizes.head_dim, layers, sizes.head_dim, sizes.ffn_ratio)
        return abs(math.log(size.parameters / sizes.parameters))

    # Parameters of a layer are about (4 + 3·ratio)·hidden².
    near = math.sqrt(sizes.parameters / layers / (4 + 3 * sizes.ffn_ratio)) / sizes.head_dim
    heads = min((max(1, math.floor(near)), math.ceil(near)), key=distance)
    if distance(heads) > math.log(1.5):
        raise UserError(
            f"sizes: no {layers} layers of heads of {sizes.head_dim} come near "
            f"{sizes.parameters:,} parameters; write fewer layers, or a smaller head_dim"
        )
    return _shape(heads * sizes.head_dim, layers, sizes.head_dim, sizes.ffn_ratio)


def _listed(shape: Shape) -> Size:
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    name = shape.name or _name(hidden, shape.num_hidden_layers)
    if hidden % heads:
        raise UserError(
            f"sizes: {name}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        )
    values = (
        hidden,
        shape.intermediate_size or _ffn(hidden, 2.5),
        shape.num_hidden_layers,
        heads,
        shape.num_key_value_heads or heads,
        hidden // heads,
    )
    return Size(name, dict(zip(SHAPE_KEYS, values, strict=True)))
