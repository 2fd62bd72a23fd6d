"""A study's directory: its spec, its record, its journal."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.recipes.loading import dump_recipe, load_recipe
from llamita.recipes.schema import Recipe
from llamita.windtunnel.points import Points, make_points
from llamita.windtunnel.results import Journal
from llamita.windtunnel.spec import Spec, load_spec
from llamita.windtunnel.storage import Storage, default_storage

SPEC, BASE, STUDY = "spec.yaml", "base.yaml", "study.json"


@dataclass(frozen=True)
class Study:
    """A spec's runs, and those that have ended, in their directory."""

    directory: Path
    points: Points
    journal: Journal

    @property
    def spec(self) -> Spec:
        return self.points.spec


def open_study(directory: Path) -> Study:
    """
    Raises:
        UserError: there is none; its spec is not readable any more.
    """
    file = directory / SPEC
    if not file.is_file():
        raise UserError(
            f"{directory} is no study: there is no {file}; llamita tunnel run makes one"
        )
    spec = load_spec(file)
    points = make_points(spec, load_recipe(directory / BASE))
    return Study(directory, points, Journal(directory))


def begin_study(study: Study, file: Path, base: Recipe) -> None:
    """Lay down what a study goes on by: its spec, and which data its runs read.

    Raises:
        UserError: the data are not those that earlier runs of this study read.
    """
    from llamita.data.shards import open_dataset  # without torch, but not without numpy

    prints = {path: open_dataset(Path(path)).fingerprint for path in _data_paths(study)}
    record = study.directory / STUDY
    known: dict[str, Any] = json.loads(record.read_text("utf-8")) if record.exists() else {}
    for path, fingerprint in prints.items():
        if known.get("datasets", {}).get(path, fingerprint) != fingerprint:
            raise UserError(
                f"{study.directory}: {path} is not the data that its runs have read so far; put "
                "those back, or choose another --out"
            )
    study.directory.mkdir(parents=True, exist_ok=True)
    if not (study.directory / SPEC).exists() or not file.samefile(study.directory / SPEC):
        replace_synced(study.directory / SPEC, file.read_text("utf-8"))
    replace_synced(study.directory / BASE, dump_recipe(base, defaults=False))
    known |= {"datasets": known.get("datasets", {}) | prints, "spec": str(file)}
    known.setdefault("id", uuid.uuid4().hex)
    replace_synced(record, json.dumps(known, indent=1) + "\n")


def _data_paths(study: Study) -> list[str]:
    recipes = [point.recipe for point in study.points.kinds]
    return sorted({str(each.path) for recipe in recipes for each in recipe.datasets.values()})


def storage_of(study: Study) -> Storage:
    """The spec's, or a file of its own. The study has begun."""
    recorded = json.loads((study.directory / STUDY).read_text("utf-8"))
    url = study.spec.storage or default_storage(study.directory)
    data = {path: recorded["datasets"][path] for path in _data_paths(study)}
    return Storage(url, study.spec.name, data, recorded["id"], study.journal)


def remember(study: Study, facts: Mapping[str, str]) -> None:
    """Keep what is to be known of the study besides its runs."""
    record = study.directory / STUDY
    known = json.loads(record.read_text("utf-8"))
    replace_synced(record, json.dumps(known | {"facts": dict(facts)}, indent=1) + "\n")
