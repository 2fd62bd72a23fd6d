"""From a study's results to its findings: each experiment by its own method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llamita.errors import UserError
from llamita.windtunnel.batch_law import fit_batch_law
from llamita.windtunnel.coordinates import check_coordinates
from llamita.windtunnel.decay import study_decays
from llamita.windtunnel.findings import (
    BatchLaw,
    CoordinateCheck,
    DecayStudy,
    Findings,
    LawStudy,
    RunResult,
    Transfer,
)
from llamita.windtunnel.points import Points, axis_values
from llamita.windtunnel.results import Journal
from llamita.windtunnel.scaling import study_law
from llamita.windtunnel.spec import (
    Batch,
    Coordinates,
    DecayStudySpec,
    Experiment,
    ScalingLaw,
    Sweep,
)
from llamita.windtunnel.transfer import find_transfers

_T = TypeVar("_T")


def find(points: Points, journal: Journal, facts: Mapping[str, str]) -> Findings:
    """What can be said of what is there. Whatever an experiment lacks is in `refusals`."""
    refusals: dict[str, str] = {}

    def each(kind: type[Experiment], analyse: Callable[[Sequence[RunResult]], _T]) -> list[_T]:
        found = []
        for name, experiment in points.spec.experiments.items():
            if not isinstance(experiment, kind):
                continue
            try:
                found.append(analyse(_runs(points, journal, name)))
            except UserError as error:
                refusals[name] = str(error)
        return found

    coordinates: list[CoordinateCheck] = []
    for name, experiment in points.spec.experiments.items():
        if isinstance(experiment, Coordinates):
            coordinates += _coordinates(points, journal, name, refusals)
    transfers = _transfers(points, journal, refusals)
    batch_laws: list[BatchLaw] = each(Batch, fit_batch_law)
    decays: list[DecayStudy] = each(DecayStudySpec, study_decays)
    trunks = {point.key: point.trunk for point in points.points if point.trunk is not None}
    laws: list[LawStudy] = each(
        ScalingLaw, lambda runs: study_law(runs, trunks, name=points.spec.name)
    )
    return Findings(
        name=points.spec.name,
        runs=tuple(journal.runs[key] for key in _keys(points, journal)),
        coordinates=tuple(coordinates),
        transfers=transfers,
        batch_law=batch_laws[0] if batch_laws else None,
        decays=tuple(decays),
        law=laws[0] if laws else None,
        refusals=refusals,
        facts=facts,
    )


def _keys(points: Points, journal: Journal) -> list[str]:
    """Of the spec's runs, in its order, those that are there."""
    names = points.spec.experiments
    found = [key for name in names for key in _experiment_keys(points, journal, name)]
    return list(dict.fromkeys(key for key in found if key in journal.runs))


def _experiment_keys(points: Points, journal: Journal, name: str) -> list[str]:
    """A search's runs are known by what the journal says of them."""
    listed = points.groups.get(name, [])
    searched = any(cell.experiment == name for cell in points.searched)
    found = [run.key for run in journal.runs.values() if searched and run.experiment == name]
    return [*listed, *(key for key in found if key not in listed)]


def _runs(points: Points, journal: Journal, name: str) -> list[RunResult]:
    keys = _experiment_keys(points, journal, name)
    return [journal.runs[key] for key in keys if key in journal.runs]


def _transfers(points: Points, journal: Journal, refusals: dict[str, str]) -> tuple[Transfer, ...]:
    """Sweeps of one axis are read together, so that two parametrisations may have grids of their
    own."""
    by_axis: dict[str, list[RunResult]] = {}
    names: dict[str, list[str]] = {}
    for name, experiment in points.spec.experiments.items():
        if not isinstance(experiment, Sweep):
            continue
        if len(experiment.axes) > 1:
            refusals[name] = (
                f"{len(experiment.axes)} axes are varied at once, and an optimum over sizes is of "
                "one: its runs are listed, and nothing is fitted"
            )
            continue
        axis, values = next(iter(experiment.axes.items()))
        if not all(_has_logarithm(value) for value in axis_values(values)):
            refusals[name] = (
                f"{axis}: a parabola is laid through the logarithm of values above 0, and not all "
                "of these are: its runs are listed, and nothing is fitted"
            )
            continue
        by_axis.setdefault(axis, []).extend(_runs(points, journal, name))
        names.setdefault(axis, []).append(name)
    found: list[Transfer] = []
    for axis, runs in by_axis.items():
        try:
            found += find_transfers(runs, axis)
        except UserError as error:
            refusals.update(dict.fromkeys(names[axis], str(error)))
    return tuple(found)


def _has_logarithm(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _coordinates(
    points: Points, journal: Journal, name: str, refusals: dict[str, str]
) -> list[CoordinateCheck]:
    measured: dict[str, dict[int, list[Any]]] = {}
    for key in points.groups.get(name, []):
        record = journal.coordinates.get(key)
        if record is not None:
            widths = measured.setdefault(record["parametrization"], {})
            widths.setdefault(record["hidden_size"], []).append(record["measured"])
    found = []
    for parametrization, widths in measured.items():
        try:
            found.append(check_coordinates(parametrization, widths))
        except UserError as error:
            refusals[f"{name} ({parametrization})"] = str(error)
    if not measured:
        refusals[name] = "nothing has been measured yet; run the study"
    return found
