"""Memory of what an answer proposes, as bars: training on one device and on eight, and serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from llamita.architecture.memory import WEIGHT_BITS, serving_memory, training_memory
from llamita.planning.answer import Answer
from llamita.planning.recipe_answer import RecipeAnswer
from llamita.reporting.plan_canvas import PlanFigure
from llamita.reporting.plan_plots import memory_bars

_SERVED = ("bfloat16", "q8_0", "q4_0")
_FAR = 4
Items = list[tuple[str, Mapping[str, float]]]


def memory_figures(answer: Answer | RecipeAnswer) -> list[PlanFigure]:
    """One figure, or none where no shape or no device is known."""
    if isinstance(answer, RecipeAnswer):
        needs = answer.needs
        found: Items = [
            (f"{each.ranks} device{'s' if each.ranks > 1 else ''}", asdict(each.memory))
            for each in needs
        ]
        return [memory_bars(found, needs[0].device_memory)] if needs else []
    if not answer.candidates or answer.candidates[0].total_parameters != (
        answer.candidates[0].parameters
    ):
        return []  # mixtures of experts are not trained yet, so that nothing is known of theirs
    config = answer.candidates[0].config
    context = config.max_position_embeddings
    found = [
        (
            f"training, {ranks} GPU{'s' if ranks > 1 else ''}",
            asdict(training_memory(config, 1, context, ranks=ranks, device_type="cuda")),
        )
        for ranks in (1, 8)
    ]
    for name in _SERVED:
        served = serving_memory(config, context, weight_bits=WEIGHT_BITS[name])
        found.append((f"serving, {name}", asdict(served)))
    engine = None if answer.question is None else answer.question.economics.training
    limit = None if engine is None else engine.hardware.device.memory_bytes
    most = max(sum(parts.values()) for _, parts in found)
    # A line far beyond the bars would leave nothing to see of them.
    return [memory_bars(found, limit if limit and limit < _FAR * most else None)]
