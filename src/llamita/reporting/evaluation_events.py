"""What events tell of benchmarks that were asked while a run trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamita.planning.quantities import number
from llamita.reporting.events import Event

Score = Mapping[str, Any]

SCORE_ENDS = ("value", "low", "high")
"""Of a score: itself and the ends of its 95% interval."""


def scores_of(event: Event) -> list[Score]:
    """The scores of an `evaluation` event that have what a score has."""
    found = event.get("scores")
    return [each for each in found if _is_whole(each)] if isinstance(found, list) else []


def _is_whole(score: Any) -> bool:
    return isinstance(score, dict) and all(key in score for key in ("task", "metric", *SCORE_ENDS))


def name_of(score: Score) -> str:
    """A task with its metric, of which it may have several."""
    return f"{score['task']} {score['metric']}"


def written(score: Score, end: str = "value") -> str:
    """A score, or an end of its interval: a share in per cent."""
    value = number(score.get(end))
    return f"{value:.1%}" if score.get("is_share") else f"{value:.4f}"
