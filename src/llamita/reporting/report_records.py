"""One run as a report sees it: worked out from its events and its recipe, from nothing else."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from llamita.errors import UserError
from llamita.planning.quantities import number
from llamita.reporting.evaluation_events import SCORE_ENDS, name_of, scores_of
from llamita.reporting.events import Event, read_events
from llamita.reporting.report_incidents import Incident, incidents_of
from llamita.reporting.report_series import (
    Floats,
    Table,
    elapsed_seconds,
    finite,
    recorded,
    smoothed,
    thin,
)
from llamita.reporting.tuning_events import (
    ENDS,
    METRICS,
    interval_of,
    learns_preferences,
    mapping,
)

_PROGRESS = ("tokens_per_second", "mfu", "memory_bytes", "data_wait")
_FIELDS: dict[str, tuple[str, ...]] = {
    "step": ("tokens", "loss", "grad_norm", "learning_rate"),
    "progress": _PROGRESS,
    "validation": ("bits_per_byte",),
    "preference": ("loss", "accuracy", "datasets"),
    "evaluation": ("scores", "seconds", "share"),
    "early_stop": ("measure", "value", "validations"),
    **dict.fromkeys(("start", "resume", "probe", "stage", "sample", "mixture"), ()),
    **dict.fromkeys(("checkpoint", "interrupted", "end"), ()),
}
"""What a report needs of each kind, beside `step`. Of other kinds it needs nothing."""
POSITIONS = ("step", "tokens", "seconds")
DATASET = "datasets/"
"""Prefix of the columns that hold one dataset's bits per byte."""
INTERVALS = ("margin", "accuracy")
"""Of held-out pairs: columns `margin/mean/NAME`, `margin/low/NAME` and so on, a dataset each."""


@dataclass(frozen=True)
class Span:
    """A stage: from after step `start` to step `end`. Positions are (step, tokens, seconds)."""

    name: str
    start: tuple[float, float, float]
    end: tuple[float, float, float]


@dataclass(frozen=True)
class RunRecord:
    """What a report says of one run."""

    directory: Path
    name: str
    events: Sequence[Event]
    recipe_text: str | None
    recipe: Mapping[str, Any]
    steps: Table
    progress: Table
    validation: Table
    preference: Table
    """Held-out pairs; empty for a run that learned no preferences."""
    evaluation: Table
    """Benchmarks asked while it trained; empty for a run that asked none."""
    stages: Sequence[Span]
    checkpoints: Sequence[tuple[float, float, float]]
    resumes: Sequence[tuple[float, float, float]]
    incidents: Sequence[Incident]
    not_understood: int
    """Events that lack what an event of their kind has."""
    seconds: float
    """Since the first event, without the pauses between two processes."""
    tokens_per_second: float
    """Tokens over seconds of stepping, NaN where no line was written."""

    def of(self, kind: str) -> list[Event]:
        """All events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    def last(self, kind: str) -> Event:
        """The last event of a kind, or an empty one."""
        found = self.of(kind)
        return found[-1] if found else {}

    @property
    def announced(self) -> list[Event]:
        """`start` and each `resume`."""
        return [event for event in self.events if event["event"] in ("start", "resume")]

    @property
    def first_step(self) -> int:
        """Steps taken before this run began: above 0 for a branch."""
        found = self.announced
        return int(number(found[0].get("step", 0))) if found else 0

    @property
    def last_step(self) -> int:
        """The last step that was recorded."""
        steps = self.steps.columns["step"]
        return int(steps[-1]) if steps else self.first_step

    @property
    def num_parameters(self) -> int | None:
        """As announced: by its own field, or in the plan's first line."""
        for event in reversed(self.announced):
            if isinstance(event.get("parameters"), int):
                return int(event["parameters"])
            lines = event.get("plan")
            if isinstance(lines, list) and lines:
                found = re.search(r": ([\d,]+) parameters", str(lines[0]))
                if found:
                    return int(found[1].replace(",", ""))
        return None

    @property
    def bits_per_byte(self) -> float:
        """Of what the run was for, if it ended, else of the last validation; NaN without any."""
        ended = number(self.last("end").get("bits_per_byte"))
        if math.isfinite(ended):
            return ended
        values = self.validation.columns["bits_per_byte"]
        return number(values[-1]) if values else math.nan

    @property
    def ends_with_preferences(self) -> bool:
        """Whether the last step learned preferences: what the run is judged by then."""
        return learns_preferences(self.last("step"))

    @property
    def tokens_trained(self) -> int:
        """Tokens that this run itself trained on."""
        tokens = finite(self.steps.columns["tokens"])
        known = tokens[np.isfinite(tokens)]
        return int(known[-1] - _tokens_before(self.steps)) if len(known) else 0

    @property
    def state(self) -> str:
        """One word or a few: did it end?"""
        # What is written after them, such as the memory that training took, changes neither.
        telling = ("start", "resume", "step", "interrupted", "end")
        last = next((e for e in reversed(self.events) if e["event"] in telling), {"event": ""})
        if last["event"] == "end":
            return "finished early" if self.last("early_stop") else "finished"
        if last["event"] == "interrupted":
            return f"interrupted at step {last.get('step', 0):,}"
        if not len(self.steps):
            return "begun, no step recorded yet"
        return f"no end recorded: running, or stopped after step {self.last_step:,}"


def read_run(directory: Path) -> RunRecord:
    """Read a run's events and recipe.

    Raises:
        UserError: no such directory, no events in it, or a recipe.yaml that is no YAML.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {what}: name a run's directory, such as runs/small")
    told = read_events(directory)
    events = [event for event in told if _is_whole(event)]
    if not events:
        raise UserError(f"{directory / 'events.jsonl'} holds no events: nothing was recorded")
    text, recipe = _read_recipe(directory / "recipe.yaml")
    announced = [event["recipe"] for event in events if isinstance(event.get("recipe"), dict)]
    recipe = recipe or (announced[-1] if announced else {})
    elapsed = elapsed_seconds(events)
    steps = _steps(events, elapsed)
    whole = Table(steps, len(steps["step"]))
    place = _Place(whole, events, elapsed)
    skipped = [row for row, kind in enumerate(steps["skipped"]) if kind is not None]
    return RunRecord(
        directory=directory,
        name=_name(recipe, events, directory),
        events=events,
        recipe_text=text,
        recipe=recipe,
        steps=thin(
            steps,
            ("loss", "grad_norm", "learning_rate", *(name for name in METRICS if name in steps)),
            skipped,
        ),
        progress=_progress(events, place),
        validation=_validation(events, place),
        preference=_preference(events, place),
        evaluation=_evaluation(events, place),
        stages=_stages(events, place),
        checkpoints=_places_of("checkpoint", events, place),
        resumes=_places_of("resume", events, place),
        incidents=incidents_of(events, steps),
        not_understood=len(told) - len(events),
        seconds=elapsed[-1],
        tokens_per_second=_mean_rate(events, place),
    )


def _is_whole(event: Event) -> bool:
    """Whether it has the fields that docs/train.md names, as far as a report needs them."""
    kind, step = event["event"], event.get("step")
    if not isinstance(kind, str):
        return False
    if kind in _FIELDS and (isinstance(step, bool) or not isinstance(step, int)):
        return False
    return all(field in event for field in _FIELDS.get(kind, ()))


def _read_recipe(path: Path) -> tuple[str | None, dict[str, Any]]:
    if not path.is_file():
        return None, {}
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    return text, values if isinstance(values, dict) else {}


def _name(recipe: Mapping[str, Any], events: Sequence[Event], directory: Path) -> str:
    if recipe.get("name"):
        return str(recipe["name"])
    for event in events:
        if isinstance(event.get("plan"), list) and event["plan"]:
            return str(event["plan"][0]).rpartition(": ")[0] or directory.resolve().name
    return directory.resolve().name


# -- tables -----------------------------------------------------------------------------------


class _Place:
    """From a step to (step, tokens, seconds)."""

    def __init__(self, steps: Table, events: Sequence[Event], elapsed: Sequence[float]) -> None:
        self._steps = steps.columns["step"]
        self._tokens = finite(steps.columns["tokens"])
        self._before = _tokens_before(steps)
        self._elapsed = {id(event): seconds for event, seconds in zip(events, elapsed, strict=True)}

    def of(self, event: Event) -> tuple[float, float, float]:
        step = number(event.get("step"))
        return (step, self.tokens(step), round(self._elapsed[id(event)], 3))

    def tokens(self, step: float) -> float:
        """Tokens trained on once `step` steps have been taken."""
        row = bisect.bisect_right(self._steps, step) - 1
        found = float(self._tokens[row]) if row >= 0 else self._before
        return found if math.isfinite(found) else 0.0


def _tokens_before(steps: Table) -> float:
    """Tokens trained on before the first step recorded, whose batch is as large as the second's."""
    tokens = finite(steps.columns["tokens"][:2])
    if len(tokens) < 2:
        return 0.0
    numbers = steps.columns["step"]
    batch = (tokens[1] - tokens[0]) / max(1, numbers[1] - numbers[0])
    before = float(tokens[0] - batch)
    return before if math.isfinite(before) else 0.0


def _steps(events: Sequence[Event], elapsed: Sequence[float]) -> dict[str, list[Any]]:
    found = [
        (event, round(seconds, 3))
        for event, seconds in zip(events, elapsed, strict=True)
        if event["event"] == "step" and isinstance(event.get("step"), int)
    ]
    columns: dict[str, list[Any]] = {
        name: [recorded(event.get(name)) for event, _ in found]
        for name in ("step", "tokens", "loss", "grad_norm", "learning_rate", "skipped")
    }
    columns["seconds"] = [seconds for _, seconds in found]
    left_out = np.array([kind is not None for kind in columns["skipped"]], dtype=bool)
    pairs = np.array([learns_preferences(event) for event, _ in found], dtype=bool)
    if pairs.any():
        columns |= {name: [recorded(event.get(name)) for event, _ in found] for name in METRICS}
    for name in ("loss", "grad_norm", *(name for name in METRICS if name in columns)):
        mean = _smoothed_by_unit(finite(columns[name]), left_out, pairs)
        columns[f"{name}_smoothed"] = [
            float(f"{value:.6g}") if math.isfinite(value) else None for value in mean
        ]
    return columns


def _smoothed_by_unit(
    values: Floats, left_out: NDArray[np.bool_], pairs: NDArray[np.bool_]
) -> Floats:
    """A loss is nats a token or nats a pair: no mean is of both."""
    cuts = np.flatnonzero(np.diff(pairs)) + 1
    parts = zip(np.split(values, cuts), np.split(left_out, cuts), strict=True)
    return np.concatenate([smoothed(part, out) for part, out in parts])


def _progress(events: Sequence[Event], place: _Place) -> Table:
    found = [
        event
        for event in events
        if event["event"] == "progress" and isinstance(event.get("step"), int)
    ]
    return thin(
        {**_positions(found, place), **{n: [recorded(e.get(n)) for e in found] for n in _PROGRESS}},
        _PROGRESS,
    )


def _mean_rate(events: Sequence[Event], place: _Place) -> float:
    trained = seconds = 0.0
    tokens = None
    for event in events:
        if event["event"] in ("start", "resume", "progress") and isinstance(event.get("step"), int):
            now = place.tokens(event["step"])
            rate = number(event.get("tokens_per_second"))
            if tokens is not None and rate > 0 and event["event"] == "progress":
                trained, seconds = trained + now - tokens, seconds + (now - tokens) / rate
            tokens = now
    return trained / seconds if seconds > 0 else math.nan


def _validation(events: Sequence[Event], place: _Place) -> Table:
    found = list({event.get("step"): event for event in _all(events, "validation")}.values())
    names: dict[str, None] = {}
    for event in found:
        if isinstance(event.get("datasets"), dict):
            names.update(dict.fromkeys(event["datasets"]))
    columns = _positions(found, place)
    columns["bits_per_byte"] = [recorded(event.get("bits_per_byte")) for event in found]
    if any("average" in event for event in found):
        columns["average"] = [recorded(event.get("average")) for event in found]
    for name in names:
        columns[DATASET + name] = [
            recorded((event.get("datasets") or {}).get(name)) for event in found
        ]
    return thin(columns, [name for name in columns if name not in POSITIONS])


def _preference(events: Sequence[Event], place: _Place) -> Table:
    found = list({event["step"]: event for event in _all(events, "preference")}.values())
    names = dict.fromkeys(name for event in found for name in mapping(event, "datasets"))
    columns = _positions(found, place)
    for key in ("loss", "accuracy"):
        columns[key] = [recorded(event.get(key)) for event in found]
    for name in names:
        scores = [mapping(event, "datasets").get(name) for event in found]
        for what in INTERVALS:
            intervals = [interval_of(score, what) for score in scores]
            for column, end in zip(zip(*intervals, strict=True), ENDS, strict=True):
                columns[f"{what}/{end}/{name}"] = [recorded(value) for value in column]
    return thin(columns, [name for name in columns if name not in POSITIONS])


def _evaluation(events: Sequence[Event], place: _Place) -> Table:
    found = list({event["step"]: event for event in _all(events, "evaluation")}.values())
    scores = [{name_of(score): score for score in scores_of(event)} for event in found]
    columns = _positions(found, place)
    for name in dict.fromkeys(name for each in scores for name in each):
        for end in SCORE_ENDS:
            columns[f"{end}/{name}"] = [recorded(each.get(name, {}).get(end)) for each in scores]
    return thin(columns, [name for name in columns if name not in POSITIONS])


def _positions(found: Sequence[Event], place: _Place) -> dict[str, list[Any]]:
    places = [place.of(event) for event in found]
    return {
        "step": [int(step) for step, _, _ in places],
        "tokens": [int(tokens) for _, tokens, _ in places],
        "seconds": [seconds for _, _, seconds in places],
    }


def _all(events: Sequence[Event], kind: str) -> list[Event]:
    """Events of a kind that say at which step."""
    return [e for e in events if e["event"] == kind and isinstance(e.get("step"), int)]


def _places_of(
    kind: str, events: Sequence[Event], place: _Place
) -> list[tuple[float, float, float]]:
    return list({event["step"]: place.of(event) for event in _all(events, kind)}.values())


def _stages(events: Sequence[Event], place: _Place) -> list[Span]:
    begun = list({str(event.get("name")): event for event in _all(events, "stage")}.values())
    found = _all(events, "step")
    if not found or not begun:
        return []
    ends = [place.of(event) for event in begun[1:]] + [place.of(found[-1])]
    return [
        Span(str(event.get("name")), place.of(event), end)
        for event, end in zip(begun, ends, strict=True)
        if end[0] > event["step"]
    ]
