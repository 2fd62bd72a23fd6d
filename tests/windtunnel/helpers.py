"""Studies of runs so small that they take a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamita.windtunnel.findings import RunResult, Status
from llamita.windtunnel.points import Point, Points, load_base, make_points
from llamita.windtunnel.spec import load_spec
from tests.training.helpers import tiny_values

SIZES: dict[str, Any] = {"rule": "width", "hidden_sizes": [16, 32, 48], "layers": 1, "head_dim": 16}
RATES = {"kind": "sweep", "axes": {"optimizer.learning_rate": [0.001, 0.01]}}


def write_spec(folder: Path, data: Path, experiments: dict[str, Any], **changes: Any) -> Path:
    """A spec beside its base recipe; `changes` replace whole keys of the spec."""
    base = tiny_values(
        data,
        datasets={n: {"path": str(data / n), "max_epochs": 2000} for n in ("prose", "code")},
        runtime={"compile": "never", "dtype": "float32"},
        checkpoints={"every_steps": 20},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(json.dumps(base), "utf-8")
    spec = {"name": "study", "base": "base.yaml", "sizes": SIZES, "experiments": experiments}
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec | changes), "utf-8")
    return path


def points_of(folder: Path, data: Path, experiments: dict[str, Any], **changes: Any) -> Points:
    path = write_spec(folder, data, experiments, **changes)
    spec = load_spec(path)
    return make_points(spec, load_base(spec, folder))


def result_of(point: Point, status: Status = "done", loss: float | None = None) -> RunResult:
    return RunResult(
        key=point.key,
        experiment=point.experiment,
        status=status,
        size=point.size.name,
        hidden_size=point.size.hidden_size,
        layers=1,
        parameters=point.size.parameters,
        total_parameters=1,
        parametrization=point.parametrization,
        seed=point.seed,
        tokens=point.num_tokens,
        batch_tokens=128,
        values=point.values,
        loss=loss,
        curve=((0, 4.0), (100, 3.0)),
    )
