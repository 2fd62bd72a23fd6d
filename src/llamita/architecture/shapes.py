"""Shapes that can be built near a number of parameters, in the proportions of the presets.

Of a family everything follows from two whole numbers, the width (a multiple of head_dim) and the
depth: N = layers · (weights of a block) + what stands outside the blocks, so that the depths near
an N are found by division.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from llamita.architecture.config import ModelConfig, minicpm_multipliers
from llamita.architecture.counts import Counts, mixture_parameters, num_parameters
from llamita.architecture.presets import Parametrization, Preset, preset
from llamita.errors import UserError, did_you_mean

Groupings = tuple[tuple[int, float], ...]
Experts = tuple[int, int]
"""How many each MLP becomes, and how many of them a token passes through."""
HEAD_DIM = 64
_FEWEST_LAYERS = 2


@dataclass(frozen=True)
class Family:
    """Shapes of one kind; constants, context and vocabulary are those of the preset `base`.

    ffn_ratio: intermediate_size / hidden_size, rounded to `ffn_multiple` (halves downwards).
    aspects: the least, the usual and the largest hidden_size / num_hidden_layers.
    key_value_heads: attention heads → the numbers of KV heads that the family gives them, each
        with its distance (of logarithms) from the usual grouping; none: no such width is built.
    untied_from: hidden_size from which on the head is a matrix of its own; None: never.
    members: the presets that are of this family.
    """

    name: str
    base: str
    ffn_ratio: float
    ffn_multiple: int
    aspects: tuple[float, float, float]
    key_value_heads: Callable[[int], Groupings]
    untied_from: int | None
    widest: int
    members: tuple[str, ...]

    @cached_property
    def origin(self) -> Preset:
        return preset(self.base)

    @property
    def parametrization(self) -> Parametrization:
        return self.origin.parametrization

    @property
    def vocab_size(self) -> int:
        """The vocabulary that is taken where none is named."""
        return self.origin.config.vocab_size

    @property
    def context(self) -> int:
        """Tokens."""
        return self.origin.config.max_position_embeddings

    def build(self, width: int, layers: int, key_value_heads: int, vocab_size: int) -> ModelConfig:
        """The config of one shape of the family."""
        multiple = self.ffn_multiple
        changes: dict[str, object] = {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "intermediate_size": multiple * math.ceil(self.ffn_ratio * width / multiple - 0.5),
            "num_hidden_layers": layers,
            "num_attention_heads": width // HEAD_DIM,
            "num_key_value_heads": key_value_heads,
            "head_dim": HEAD_DIM,
            "tie_word_embeddings": self.untied_from is None or width < self.untied_from,
        }
        if self.parametrization == "minicpm":
            changes |= minicpm_multipliers(width, layers)
        return self.origin.config.replace(**changes)


@dataclass(frozen=True)
class Shape:
    """A shape that can be built.

    parameters: counted as was asked, of a mixture what a token passes through. relative_error:
        (parameters - asked) / asked, 0 where no number was asked for.
    preset: its name, where it is one (but for the vocabulary).
    """

    config: ModelConfig
    family: str
    parametrization: Parametrization
    parameters: int
    relative_error: float
    preset: str | None


def _eight_queries(heads: int) -> Groupings:
    """Groups of eight queries as TinyLlama's; where eight does not divide the heads, the nearest
    number that does, within a factor of two. Three heads or fewer are one group."""
    divisors = [number for number in range(1, heads + 1) if heads % number == 0]
    distance, group = min((abs(math.log(number / 8)), number) for number in divisors)
    return ((heads // group, distance),) if 4 <= group <= 16 or heads < 4 else ()


def _one_or_three_queries(heads: int) -> Groupings:
    """A KV head for each head; or one for three, as MiniCPM-1.2B has."""
    each = (heads, 0.0)
    return (each, (heads // 3, math.log(3))) if heads % 3 == 0 else (each,)


def _two_heads(heads: int) -> Groupings:
    """Two KV heads, as all the laptop presets have."""
    return ((2, 0.0),) if heads % 2 == 0 else ()


_MINICPM = ("9m", "30m", "70m", "0.1b", "0.17b", "0.2b", "0.5b", "1.2b", "2.4b")
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="tinyllama",
            base="tinyllama-1.1b",
            ffn_ratio=2.75,  # 5632 / 2048
            ffn_multiple=64,
            aspects=(64, 2048 / 22, 128),
            key_value_heads=_eight_queries,
            untied_from=0,
            widest=16384,
            members=("tinyllama-1.1b",),
        ),
        Family(
            name="minicpm",
            base="minicpm-1.2b",
            ffn_ratio=2.5,
            ffn_multiple=32,
            aspects=(28, 50, 60),  # the wind tunnel's lie at 40 to 56, MiniCPM-1.2B at 29.5
            key_value_heads=_one_or_three_queries,
            untied_from=None,
            widest=16384,
            members=tuple(f"minicpm-{size}" for size in _MINICPM),
        ),
        Family(
            name="llamita",
            base="llamita-15m",
            ffn_ratio=2.75,
            ffn_multiple=64,
            aspects=(28, 48, 96),
            key_value_heads=_two_heads,
            untied_from=512,
            widest=1024,
            members=("llamita-5m", "llamita-15m", "llamita-30m"),
        ),
    )
}


def find_family(name: str) -> Family:
    """The family of that name, or of the preset of that name.

    Raises:
        UserError: there is none; the message lists them.
    """
    for family in FAMILIES.values():
        if name == family.name or name in family.members:
            return family
    known = [*FAMILIES, *(member for family in FAMILIES.values() for member in family.members)]
    raise UserError(
        f"no family of shapes is called {name!r}.{did_you_mean(name, known)} The families are "
        f"{', '.join(FAMILIES)}; a preset's name stands for its family."
    )


@dataclass(frozen=True)
class _Column:
    """The shapes of one width: N = layers · block + rest. distance: of its KV heads' grouping."""

    width: int
    key_value_heads: int
    distance: float
    fewest: int
    most: int
    block: int
    rest: int

    def parameters(self, layers: int) -> int:
        return layers * self.block + self.rest


def _columns(
    family: Family, counts: Counts, vocab_size: int, experts: Experts | None
) -> Iterator[_Column]:
    least, _, largest = family.aspects
    for width in range(HEAD_DIM, family.widest + 1, HEAD_DIM):
        fewest = max(_FEWEST_LAYERS, math.ceil(width / largest))
        most = math.floor(width / least)
        if most < fewest:
            continue
        for heads, distance in family.key_value_heads(width // HEAD_DIM):
            config = family.build(width, 1, heads, vocab_size)
            without = num_parameters(config, embedding=False)
            rest = width + (num_parameters(config) - without if counts == "total" else 0)
            active = without if experts is None else mixture_parameters(config, *experts).active
            yield _Column(width, heads, distance, fewest, most, active - width, rest)


def shapes_near(
    parameters: float,
    family: Family,
    *,
    counts: Counts,
    vocab_size: int | None = None,
    experts: Experts | None = None,
    tolerance: float = 0.1,
    num: int = 3,
) -> list[Shape]:
    """The `num` shapes of a family that come nearest to N parameters.

    To whole per cent the nearer comes first, because no scaling law tells sizes that are closer
    apart; among equals a preset, then what is nearest to the family's usual depth and grouping.

    Args:
        counts: what N counts, `total` with the embedding and the head, or `non-embedding`.
        vocab_size: by default the family's.
        experts: N counts what a token passes through if each MLP of the shape becomes so many.
        tolerance: how far N may be missed, as a share of it.

    Raises:
        UserError: no shape lies within the tolerance; the message says which sizes there are.
    """
    vocabulary = vocab_size or family.vocab_size
    found = _candidates(family, counts, vocabulary, experts, parameters, tolerance)
    if not found:
        raise _out_of_reach(family, counts, vocabulary, experts, parameters, tolerance)
    presets = _presets(family)

    def order(candidate: tuple[_Column, int]) -> tuple[float, float, float]:
        column, layers = candidate
        error = abs(column.parameters(layers) / parameters - 1)
        if (column.width, layers, column.key_value_heads) in presets:
            return round(error, 2), -1.0, error
        distance = abs(math.log(column.width / layers / family.aspects[1]))
        return round(error, 2), distance + column.distance, error

    return [
        _shape(family, column, layers, vocabulary, parameters)
        for column, layers in sorted(found, key=order)[:num]
    ]


def _candidates(
    family: Family,
    counts: Counts,
    vocab_size: int,
    experts: Experts | None,
    parameters: float,
    tolerance: float,
) -> list[tuple[_Column, int]]:
    """All widths and depths within the tolerance."""
    return [
        (column, layers)
        for column in _columns(family, counts, vocab_size, experts)
        for layers in range(
            max(column.fewest, _layers(column, parameters * (1 - tolerance), math.ceil)),
            min(column.most, _layers(column, parameters * (1 + tolerance), math.floor)) + 1,
        )
    ]


def largest_shape(
    family: Family,
    fits: Callable[[ModelConfig], bool],
    *,
    vocab_size: int | None = None,
    experts: Experts | None = None,
) -> Shape:
    """The shape of most parameters, embedding and head included, for which `fits` holds.

    With `experts`, of most parameters that a token passes through.

    `fits` must hold for a shallower model of the same width wherever it holds for a deeper one, as
    it does where memory is the limit.

    Raises:
        UserError: not even the smallest fits.
    """
    vocabulary = vocab_size or family.vocab_size
    columns = list(_columns(family, "total", vocabulary, experts))
    best: tuple[_Column, int] | None = None
    # Widest first: most of what is narrower than the best cannot exceed it at any depth.
    for column in reversed(columns):
        floor = column.fewest - 1
        if best is not None:
            floor = max(floor, _layers(column, best[0].parameters(best[1]), math.floor))

        def fits_at(layers: int, column: _Column = column) -> bool:
            return fits(family.build(column.width, layers, column.key_value_heads, vocabulary))

        if floor >= column.most or not fits_at(floor + 1):
            continue
        low, high = floor + 1, column.most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits_at(middle) else (low, middle - 1)
        best = (column, low)
    if best is None:
        smallest = min(column.parameters(column.fewest) for column in columns)
        raise UserError(
            f"no model of the {family.name} family fits: the smallest with a vocabulary of "
            f"{vocabulary:,} has {smallest:,} parameters; allow more memory, a shorter context, "
            "fewer bits, or a smaller vocabulary"
        )
    column, layers = best
    return _shape(family, column, layers, vocabulary, column.parameters(layers))


def _layers(column: _Column, parameters: float, rounded: Callable[[float], int]) -> int:
    return rounded((parameters - column.rest) / column.block)


def _presets(family: Family) -> dict[tuple[int, int, int], str]:
    """(width, layers, KV heads) → name of the preset."""
    configs = {name: preset(name).config for name in family.members}
    return {
        (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads): name
        for name, config in configs.items()
    }


def _shape(family: Family, column: _Column, layers: int, vocab_size: int, wanted: float) -> Shape:
    count = column.parameters(layers)
    return Shape(
        config=family.build(column.width, layers, column.key_value_heads, vocab_size),
        family=family.name,
        parametrization=family.parametrization,
        parameters=count,
        relative_error=(count - wanted) / wanted,
        preset=_presets(family).get((column.width, layers, column.key_value_heads)),
    )


def _out_of_reach(
    family: Family,
    counts: Counts,
    vocab_size: int,
    experts: Experts | None,
    parameters: float,
    tolerance: float,
) -> UserError:
    sizes = [
        column.parameters(min(max(near, column.fewest), column.most))
        for column in _columns(family, counts, vocab_size, experts)
        for near in (
            _layers(column, parameters, math.floor),
            _layers(column, parameters, math.ceil),
        )
    ]
    below = max((size for size in sizes if size <= parameters), default=None)
    above = min((size for size in sizes if size > parameters), default=None)
    what = "parameters" if counts == "total" else "parameters without embeddings"
    start = f"no shape of the {family.name} family has about {parameters:,.0f} {what}"
    if above is None:
        return UserError(f"{start}: the largest has {below:,}; ask for that, or for fewer")
    if below is not None:
        return UserError(
            f"{start} within {tolerance:.0%}: the nearest have {below:,} and {above:,}; ask for "
            "one of them"
        )
    if counts == "non-embedding":
        return UserError(f"{start}: the smallest has {above:,}; ask for that, or for more")
    remedy = "ask for that, or for more"
    power = 2 ** math.floor(math.log2(vocab_size))
    while power >= 256:  # the bytes alone are 256 tokens
        if _candidates(family, counts, power, experts, parameters, tolerance):
            remedy = f"--vocab-size {power} would do, or ask for more parameters"
            break
        power //= 2
    return UserError(
        f"{start} with a vocabulary of {vocab_size:,}: the smallest has {above:,}; {remedy}"
    )
