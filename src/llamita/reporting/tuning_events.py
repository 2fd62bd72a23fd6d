"""What events tell of tuning: pairs of answers, conversations, the adapter, and an early end.

A step that learned preferences has a margin beside its loss, which is then nats a pair. `start` and
`resume` tell each dataset's kind (`data_kinds`: text, chats or preferences); events of older runs
do not, and all of it counts as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llamita.planning.quantities import number
from llamita.reporting.events import Event

METRICS = ("rewards_chosen", "rewards_rejected", "margin", "accuracy")
"""What a step of a preference stage tells of its pairs, means over them."""
ENDS = ("mean", "low", "high")
"""Of a 95% confidence interval."""


def learns_preferences(step: Event) -> bool:
    """Whether a `step` event is of a preference stage."""
    return "margin" in step


def mapping(event: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A field that is an object; an empty one where it is missing or anything else."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def bits_per_byte_of(announced: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """What bits per byte are measured on: "", " of answers", or " of text and answers".

    Args:
        announced: a `start` or `resume`.
        names: datasets that were validated; None for all that are no pairs.
    """
    kinds = mapping(announced, "data_kinds")
    chosen = list(kinds) if names is None else list(names)
    found = {str(kinds.get(name, "text")) for name in chosen} - {"preferences"}
    if "chats" not in found:
        return ""
    return " of answers" if found == {"chats"} else " of text and answers"


def is_chat(recipe: Mapping[str, Any]) -> bool:
    """Whether samples are answers to questions, and not continuations."""
    return bool(mapping(recipe, "samples").get("chat"))


def tuning_line(announced: Sequence[Event]) -> str:
    """What learns, as the plan says it, and on which model; "" where a whole model learns."""
    for event in reversed(announced):
        lines = event.get("plan")
        for line in map(str, lines if isinstance(lines, list) else ()):
            name, _, told = line.strip().partition(" ")
            if name == "tuning":
                base = origin(announced)
                return told.strip() + (f"; base {base}" if base else "")
    return ""


def origin(announced: Sequence[Event]) -> str | None:
    """The model that a run began with, as its recipe calls it."""
    for event in announced:
        found = event.get("start_from") or mapping(event, "recipe").get("start_from")
        if found:
            return str(found)
    return None


def early_stop_text(event: Event) -> str:
    """Why a run ended before its recipe's end."""
    names = {"preference_loss": "held-out loss of pairs", "bits_per_byte": "bits per byte"}
    measure = str(event["measure"])
    many = event["validations"]
    return (
        f"{many} validation{'s' if many != 1 else ''} without a gain over "
        f"{number(event['value']):.4f} ({names.get(measure, measure)}); the run ended here "
        "(validation.patience)"
    )


def interval_of(score: Any, name: str) -> tuple[float, float, float]:
    """(mean, low, high) of a dataset's score in a `preference` event; NaN for what is unknown."""
    found = mapping(score, name) if isinstance(score, dict) else {}
    mean, low, high = (number(found.get(end)) for end in ENDS)
    return mean, low, high
