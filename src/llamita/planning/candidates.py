"""From an N to shapes that can be built, and from a device's memory to the largest of them."""

from __future__ import annotations

from llamita.architecture.config import ModelConfig
from llamita.architecture.counts import Counts, flops_per_token, mixture_parameters, num_parameters
from llamita.architecture.shapes import Family, Shape, largest_shape, shapes_near
from llamita.errors import UserError, did_you_mean
from llamita.planning.answer import Candidate, Question
from llamita.planning.optimum import TRAINING_FLOPS, Point
from llamita.planning.quantities import gigabytes
from llamita.planning.quantities import tokens as short
from llamita.planning.solving import of_size

Experts = tuple[int, int]
_SHOWN, _ENOUGH = 3, 24
"""Shapes shown, and looked for: a limit on size rules out about half of them."""


def parse_experts(text: str) -> Experts:
    """`8/2`: eight experts, of which a token passes through two."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--experts {text}: write EXPERTS/PER_TOKEN, as in 8/2")
    experts, per_token = int(parts[0]), int(parts[1])
    if not 1 <= per_token <= experts:
        raise UserError(
            f"--experts {text}: a token passes through 1 to {experts} of {experts} experts"
        )
    return experts, per_token


def candidates(
    question: Question,
    point: Point,
    family: Family,
    *,
    vocab_size: int | None = None,
    experts: Experts | None = None,
) -> tuple[Candidate, ...]:
    """Shapes near the recommended N, each with the tokens and the loss that it would have.

    A budget is held to by a shape's own arithmetic, which is more than 6·N·D. In a mixture of
    experts N counts the parameters that a token passes through.

    Raises:
        UserError: the family has no shape near N.
    """
    law = question.law
    shapes = shapes_near(
        point.parameters,
        family,
        counts=law.counts,
        vocab_size=vocab_size,
        experts=experts,
        num=_ENOUGH,
    )
    most = question.limits.parameters * (1 + 1e-9)
    kept = [shape for shape in shapes if shape.parameters <= most]
    return tuple(_candidate(question, shape, experts) for shape in kept[:_SHOWN])


def _candidate(question: Question, shape: Shape, experts: Experts | None) -> Candidate:
    config, engine = shape.config, question.economics.training
    flops = flops_per_token(config, config.max_position_embeddings)
    if experts is not None:
        without = num_parameters(config, embedding=False)
        flops += TRAINING_FLOPS * (mixture_parameters(config, *experts).active - without)
    ratio = flops / (TRAINING_FLOPS * shape.parameters)
    trained = of_size(question, shape.parameters, flops_ratio=ratio)
    seconds = None if engine is None else engine.seconds(flops * trained.tokens)
    hourly = None if engine is None else engine.usd_per_hour
    return Candidate(
        config,
        shape.parametrization,
        parameters=shape.parameters,
        total_parameters=total_parameters(config, question.law.counts, experts),
        error=shape.relative_error,
        tokens=trained.tokens,
        loss=trained.loss,
        flops_per_token=flops,
        training_seconds=seconds,
        training_usd=None if seconds is None or hourly is None else hourly * seconds / 3600,
    )


def total_parameters(config: ModelConfig, counts: Counts, experts: Experts | None) -> int:
    """All parameters as the law counts them, those of every expert included."""
    count = num_parameters(config, embedding=counts == "total")
    if experts is None:
        return count
    dense = num_parameters(config, embedding=False)
    return count - dense + mixture_parameters(config, *experts).total


def active_parameters(config: ModelConfig, counts: Counts, experts: Experts | None) -> int:
    """The parameters that a token passes through, as the law counts them."""
    count = num_parameters(config, embedding=counts == "total")
    if experts is None:
        return count
    dense = num_parameters(config, embedding=False)
    return count - dense + mixture_parameters(config, *experts).active


def ceiling(
    name: str,
    memory: int,
    family: Family,
    *,
    counts: Counts,
    weights: str,
    context: int,
    vocab_size: int | None = None,
    experts: Experts | None = None,
) -> tuple[float, str]:
    """The most parameters, as a law counts them, that serve in a device's memory; and why, in
    words.

    Weights in the format `weights`, a key-value cache of `context` tokens and the runtime's own
    memory must fit. All experts of a mixture stand in memory, while N counts those that a token
    passes through.

    Raises:
        UserError: not even the smallest shape fits, or the format is unknown.
    """
    from llamita.architecture.memory import WEIGHT_BITS, serving_memory

    if weights not in WEIGHT_BITS:
        raise UserError(
            f"--weights {weights}: there is no such format.{did_you_mean(weights, WEIGHT_BITS)} "
            f"There are {', '.join(WEIGHT_BITS)}."
        )
    bits = WEIGHT_BITS[weights]

    def fits(config: ModelConfig) -> bool:
        needed = serving_memory(config, context, weight_bits=bits).total
        others = total_parameters(config, "total", experts) - num_parameters(config)
        return bool(needed + others * bits / 8 <= memory)

    shape = largest_shape(family, fits, vocab_size=vocab_size, experts=experts)
    held = total_parameters(shape.config, "total", experts)
    return float(active_parameters(shape.config, counts, experts)), (
        f"{name}'s {gigabytes(memory)} hold {short(held)} parameters in {weights} with "
        f"{context:,} tokens of context"
    )
