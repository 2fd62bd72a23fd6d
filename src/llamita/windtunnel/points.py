"""From a spec to the runs it means: a pure function, so that the same spec is the same study.

A point's key follows from what its run computes. Where two experiments mean the same run, it is
made once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamita.architecture.presets import PRESETS, Parametrization
from llamita.errors import UserError
from llamita.recipes.loading import apply_override, check_recipe, load_recipe
from llamita.recipes.schedules import Decay
from llamita.recipes.schema import Recipe
from llamita.windtunnel.sizes import Size, choose_sizes, make_sizes
from llamita.windtunnel.spec import (
    Axis,
    Batch,
    Bayesian,
    Coordinates,
    DecayStudySpec,
    Experiment,
    ScalingLaw,
    Spec,
    Spread,
    Sweep,
)

POINTS = "points"
_NOT_COMPUTED = ("name", "description", "runtime", "card", "track", "predicted", "checkpoints")
"""Keys of a recipe that change nothing of what a run computes."""
OWN_AXES = ("tokens_per_parameter", "warmup_share", "decay_share")
"""Axes of a sweep that are the experiment's own keys and not the recipe's."""


@dataclass(frozen=True)
class Point:
    """One run that a study makes.

    values: the axes' values, by key. trunk: the key of the run whose checkpoint this one goes on
    from, `start_step` that checkpoint's step. coordinates: steps after which a model is looked
    into; such a point is no training run.
    """

    key: str
    experiment: str
    size: Size
    parametrization: Parametrization
    seed: int
    values: Mapping[str, Any]
    recipe: Recipe
    num_tokens: int
    trunk: str | None = None
    start_step: int = 0
    coordinates: tuple[int, ...] = ()
    prunable: bool = False

    @property
    def name(self) -> str:
        """For people."""
        values = ", ".join(
            f"{key.rpartition('.')[2]} {_short(value)}" for key, value in self.values.items()
        )
        words = [self.experiment, self.size.name, self.parametrization, f"seed {self.seed}"]
        return " ".join(words) + (f", {values}" if values else "")

    def placed(self, study: Path) -> Recipe:
        """The recipe as it runs in a study's folder, where its trunk lies."""
        if self.trunk is None:
            return self.recipe
        checkpoint = study / POINTS / self.trunk / f"step-{self.start_step}"
        # The checkpoint says what the model is.
        return self.recipe.model_copy(update={"start_from": str(checkpoint), "model": None})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Cell:
    """What a sweep's run has beside its axes: where an optimiser searches by itself.

    example: one of its points, for what all of them have in common.
    """

    experiment: str
    sweep: Sweep
    size: Size
    parametrization: Parametrization
    seed: int
    example: Point

    @property
    def trials(self) -> int:
        assert isinstance(self.sweep.search, Bayesian)
        return self.sweep.search.trials


@dataclass
class Points:
    """All of a study's runs, trunks before their branches. searched: cells whose points a search
    by `tpe` chooses as it goes."""

    spec: Spec
    base: Mapping[str, Any]
    points: list[Point] = field(default_factory=list)
    searched: list[Cell] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Experiment → its points' keys: a point that two of them mean is under both."""

    @property
    def kinds(self) -> list[Point]:
        """The points that are known, and one of each search's: whatever is run is like one."""
        return [*self.points, *(cell.example for cell in self.searched)]

    def add(self, point: Point) -> None:
        keys = self.groups.setdefault(point.experiment, [])
        if point.key not in keys:
            keys.append(point.key)
        if all(point.key != other.key for other in self.points):
            self.points.append(point)


def load_base(spec: Spec, folder: Path) -> Recipe:
    """The recipe that a spec names: a file beside it, which lies in `folder`, or a shipped one.

    Raises:
        UserError: neither, or one that goes on from other weights.
    """
    beside = folder / spec.base
    base = load_recipe(beside if beside.exists() else spec.base)
    if base.start_from is not None or base.adapter is not None:
        raise UserError(
            f"base {spec.base}: a study trains from the very beginning; name a recipe without "
            "start_from and adapter"
        )
    return base


def make_points(spec: Spec, base: Recipe) -> Points:
    """
    Raises:
        UserError: a size or a key that cannot be, an axis that changes nothing.
    """
    found = Points(spec, _base_keys(spec, base))
    sizes = make_sizes(spec.sizes)
    for name, experiment in spec.experiments.items():
        where = f"experiments.{name}"
        chosen = choose_sizes(sizes, experiment.sizes, where)
        parametrizations = experiment.parametrizations or [base_parametrization(found.base)]
        seeds = experiment.seeds or spec.seeds
        for parametrization, size, seed in itertools.product(parametrizations, chosen, seeds):
            maker = _Maker(found.base, name, experiment, size, parametrization, seed)
            if isinstance(experiment, Sweep) and isinstance(experiment.search, Bayesian):
                example = maker.point(_first(experiment.axes))
                cell = Cell(name, experiment, size, parametrization, seed, example)
                found.searched.append(cell)
                continue
            for point in maker.points():
                found.add(point)
    return found


def searched_point(base: Mapping[str, Any], cell: Cell, values: Mapping[str, Any]) -> Point:
    """The point of a cell at values that a search chose."""
    maker = _Maker(base, cell.experiment, cell.sweep, cell.size, cell.parametrization, cell.seed)
    return maker.point(values)


def axis_values(axis: Axis) -> list[Any]:
    return axis.values() if isinstance(axis, Spread) else axis


def _first(axes: Mapping[str, Axis]) -> dict[str, Any]:
    return {key: axis_values(axis)[0] for key, axis in axes.items()}


# -- the base -------------------------------------------------------------------------------------


def _base_keys(spec: Spec, base: Recipe) -> dict[str, Any]:
    data = base.model_dump()
    if isinstance(base.model, str):
        data["model"] = {"preset": base.model}
    for key, value in spec.overrides.items():
        set_key(data, key, value)
    return data


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """A recipe's key by its dotted path, in place."""
    apply_override(data, f"{key}={json.dumps(value)}")


def base_parametrization(base: Mapping[str, Any]) -> Parametrization:
    """Of a base recipe: its own, else its preset's."""
    named = base["parametrization"]
    if named is None and "preset" in (base["model"] or {}):
        named = PRESETS[base["model"]["preset"]].parametrization
    return named or "llama"


# -- one cell of an experiment --------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """Makes the points of one experiment, size, parametrisation and seed."""

    base: Mapping[str, Any]
    experiment: str
    settings: Experiment
    size: Size
    parametrization: Parametrization
    seed: int

    def points(self) -> Iterator[Point]:
        settings = self.settings
        if isinstance(settings, Coordinates):
            yield self._coordinates(settings)
        elif isinstance(settings, Batch):
            for batch in settings.batch_tokens:
                yield self._constant(settings, batch)
        elif isinstance(settings, ScalingLaw):
            yield from self._law(settings)
        elif isinstance(settings, DecayStudySpec):
            yield from self._decays(settings)
        else:
            yield from self._grid(settings)

    # -- sweeps ---------------------------------------------------------------------------------

    def _grid(self, settings: Sweep) -> Iterator[Point]:
        axes = {key: axis_values(axis) for key, axis in settings.axes.items()}
        self._refuse_idle(axes)
        for values in itertools.product(*axes.values()):
            yield self.point(dict(zip(axes, values, strict=True)))

    def _refuse_idle(self, axes: Mapping[str, Sequence[Any]]) -> None:
        """
        Raises:
            UserError: an axis two of whose values mean the same run.
        """
        first = {key: values[0] for key, values in axes.items()}
        for key, values in axes.items():
            met: dict[str, Any] = {}
            for value in values:
                made = self.point({**first, key: value}).key
                if made in met:
                    raise UserError(
                        f"experiments.{self.experiment}.axes.{key}: {met[made]!r} and {value!r} "
                        "are the same run, so that the axis changes nothing there; leave one out, "
                        "or vary another key"
                    )
                met[made] = value

    def point(self, values: Mapping[str, Any]) -> Point:
        """One run of a sweep: warm-up, stable, decay."""
        sweep = self.settings
        assert isinstance(sweep, Sweep)
        for key in values:
            if key.partition(".")[0] in _NOT_COMPUTED:
                raise UserError(
                    f"experiments.{self.experiment}.axes.{key}: nothing that a run computes "
                    "depends on it; vary another key"
                )
        own = {key: float(values[key]) for key in OWN_AXES if key in values}
        ratio = own.get("tokens_per_parameter", sweep.tokens_per_parameter)
        if sweep.tokens is not None and "tokens_per_parameter" not in own:
            ratio = sweep.tokens / self.size.parameters
        warmup = own.get("warmup_share", sweep.warmup_share)
        decay = own.get("decay_share", sweep.decay_share)
        data = self._data({key: value for key, value in values.items() if key not in own})
        steps = self._steps(data, ratio)
        falling = _part(steps, decay)
        schedule = sweep.decay.model_dump() | {
            "kind": "wsd",
            "warmup_tokens": _part(steps, warmup) * data["batch_tokens"],
            "decay_tokens": falling * data["batch_tokens"],
        }
        prunable = isinstance(sweep.search, Bayesian) and sweep.search.prune
        every = max(1, steps // 10) if prunable else None
        self._stages(data, [("train", steps, schedule)], every)
        return self._point(data, values, steps, prunable=prunable)

    # -- batches, laws, decays --------------------------------------------------------------------

    def _coordinates(self, settings: Coordinates) -> Point:
        data = self._data({})
        steps = max(settings.steps)
        self._stages(data, [("train", steps, {"kind": "constant"})])
        return self._point(data, {}, steps, coordinates=tuple(sorted(settings.steps)))

    def _constant(self, settings: Batch, batch: int) -> Point:
        values = {"batch_tokens": batch}
        data = self._data(values)
        steps = self._steps(data, settings.tokens_per_parameter)
        schedule = {
            "kind": "constant",
            "warmup_tokens": _part(steps, settings.warmup_share) * batch,
        }
        self._stages(data, [("train", steps, schedule)], max(1, steps // settings.validations))
        return self._point(data, values, steps)

    def _law(self, settings: ScalingLaw) -> Iterator[Point]:
        batch = self._data({})["batch_tokens"]
        ends = [self._steps(self._data({}), ratio) for ratio in settings.tokens_per_parameter]
        decays = [_part(end, settings.decay_share) for end in ends]
        stable = [end - decay for end, decay in zip(ends, decays, strict=True)]
        trunk = self._trunk(stable, _part(min(ends), settings.warmup_share) * batch)
        yield trunk
        for ratio, start, falling in zip(
            settings.tokens_per_parameter, stable, decays, strict=True
        ):
            values = {"tokens_per_parameter": ratio}
            yield self._branch(trunk, start, falling, settings.decay, values)

    def _decays(self, settings: DecayStudySpec) -> Iterator[Point]:
        data = self._data({})
        steps = self._steps(data, settings.tokens_per_parameter)
        stable = {share: steps - _part(steps, share) for share in settings.shares}
        warmup = _part(steps, settings.warmup_share) * data["batch_tokens"]
        trunk = self._trunk(list(stable.values()), warmup)
        yield trunk
        for share, decay, (name, mixture) in itertools.product(
            settings.shares, settings.forms, settings.mixtures.items()
        ):
            form = _form_name(decay)
            values = {"decay.share": share, "decay.form": form, "decay.mixture": name}
            yield self._branch(trunk, stable[share], steps - stable[share], decay, values, mixture)

    def _trunk(self, ends: Sequence[int], warmup_tokens: int) -> Point:
        """A stable run whose stages end where branches begin: what ends a stage is kept."""
        data = self._data({})
        stops = sorted(set(ends))
        first = {"kind": "constant", "warmup_tokens": warmup_tokens}
        stages = [
            (f"to-step-{stop}", stop - start, {"kind": "constant"} if start else first)
            for start, stop in zip([0, *stops], stops, strict=False)
        ]
        self._stages(data, stages)
        return self._point(data, {}, stops[-1])

    def _branch(
        self,
        trunk: Point,
        start: int,
        steps: int,
        decay: Decay,
        values: Mapping[str, Any],
        mixture: Mapping[str, float] | None = None,
    ) -> Point:
        data = self._data({})
        self._stages(data, [("decay", steps, decay.model_dump())], mixture=mixture)
        data["start_from"] = f"{trunk.key}/step-{start}"
        data["initializer_std"] = None  # the trunk's weights come from there
        return self._point(data, values, start + steps, trunk=trunk.key, start_step=start)

    # -- recipes ----------------------------------------------------------------------------------

    def _data(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The base in this size, with all keys over it that are not of stages."""
        data: dict[str, Any] = json.loads(json.dumps(self.base))
        data["model"] = self.size.model(data["model"], self.parametrization)
        if self.parametrization != base_parametrization(self.base):
            data["initializer_std"] = None
        data["parametrization"], data["seed"] = self.parametrization, self.seed
        data |= {"samples": {}, "evaluation": None, "track": [], "predicted": None}
        data["validation"] |= {"every_steps": None, "patience": None}
        data["averaging"] = None
        data["checkpoints"] |= {"keep_last": 1, "keep_every_steps": None, "final": "last"}
        for key, value in [*self.settings.overrides.items(), *values.items()]:
            if key.startswith("stages"):
                raise UserError(
                    f"experiments.{self.experiment}: {key}: an experiment makes its own stages; "
                    "vary the optimizer's keys, tokens_per_parameter, warmup_share or decay_share"
                )
            set_key(data, key, value)
        return data

    def _steps(self, data: Mapping[str, Any], ratio: float) -> int:
        """Of D = ratio·N tokens, at least three: one to warm up, one stable, one to decay."""
        return max(3, round(ratio * self.size.parameters / int(data["batch_tokens"])))

    def _stages(
        self,
        data: dict[str, Any],
        stages: Sequence[tuple[str, int, dict[str, Any]]],
        validate_every: int | None = None,
        mixture: Mapping[str, float] | None = None,
    ) -> None:
        first = data["stages"][0]
        shares = dict(mixture or first["mixture"])
        data["stages"] = [
            {
                "name": name,
                "tokens": steps * data["batch_tokens"],
                "mixture": shares,
                "schedule": schedule,
                "objective": first["objective"],
            }
            for name, steps, schedule in stages
        ]
        unknown = set(shares) - set(data["datasets"])
        if not unknown:  # else the recipe's check says which
            data["datasets"] = {name: data["datasets"][name] for name in shares}
        data["validation"]["every_steps"] = validate_every

    def _point(
        self,
        data: dict[str, Any],
        values: Mapping[str, Any],
        steps: int,
        *,
        trunk: str | None = None,
        start_step: int = 0,
        coordinates: tuple[int, ...] = (),
        prunable: bool = False,
    ) -> Point:
        where = f"experiments.{self.experiment}, {self.size.name}"
        key = _key(data, coordinates)
        data["name"], data["description"] = key, ""
        recipe = check_recipe(data, where)
        return Point(
            key=key,
            experiment=self.experiment,
            size=self.size,
            parametrization=self.parametrization,
            seed=self.seed,
            values=dict(values),
            recipe=recipe,
            num_tokens=steps * recipe.batch_tokens,
            trunk=trunk,
            start_step=start_step,
            coordinates=coordinates,
            prunable=prunable,
        )


def _form_name(decay: Decay) -> str:
    words: list[str] = [decay.form]
    if decay.half_life_tokens is not None:
        words.append(f"half-life {decay.half_life_tokens}")
    if decay.final_fraction is not None:
        words.append(f"to {decay.final_fraction:g}")
    return " ".join(words)


def _part(steps: int, share: float) -> int:
    """Steps of a share, at least one."""
    return max(1, round(share * steps))


def _key(data: Mapping[str, Any], coordinates: Sequence[int]) -> str:
    computed = {key: value for key, value in data.items() if key not in _NOT_COMPUTED}
    text = json.dumps([computed, list(coordinates)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
