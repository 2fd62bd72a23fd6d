"""From a journal to findings, page, law and recipe. The runs' losses come from known laws, so that
what is found can be compared with what was planted."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import llamita
from llamita.cli import app
from llamita.errors import UserError
from llamita.planning.laws import Law, find_law
from llamita.planning.plan import TrainingPlan
from llamita.recipes.loading import load_recipe
from llamita.windtunnel.findings import RunResult
from llamita.windtunnel.points import POINTS, Point, load_base, make_points
from llamita.windtunnel.recipe import tunnel_recipe
from llamita.windtunnel.results import Journal
from llamita.windtunnel.spec import load_spec
from llamita.windtunnel.study import Study, begin_study
from llamita.windtunnel.verb import tunnel_run, tunnel_show
from tests.windtunnel.helpers import write_spec

RATE = 0.01
NOISE = 0.002
SIZES = {"rule": "width", "hidden_sizes": [32, 48, 64, 96], "layers": 2, "head_dim": 16}
EXPERIMENTS: dict[str, Any] = {
    "rate": {
        "kind": "sweep",
        "axes": {"optimizer.learning_rate": {"low": 0.001, "high": 0.1, "points": 7}},
        "tokens_per_parameter": 10,
    },
    "law": {"kind": "law", "tokens_per_parameter": [5, 10, 20, 40, 80], "seeds": [0]},
    "decay": {
        "kind": "decay",
        "sizes": ["32x2"],
        "tokens_per_parameter": 20,
        "shares": [0.2, 0.02],
        "forms": ["linear"],
    },
}


def planted(parameters: float, tokens: float) -> float:
    return 0.7 + 12.0 / parameters**0.3 + 18.0 / tokens**0.28


def loss_of(point: Point, noise: float) -> float:
    loss = planted(point.size.parameters, point.num_tokens) + noise
    if "optimizer.learning_rate" in point.values:
        loss += 0.03 * math.log(point.values["optimizer.learning_rate"] / RATE) ** 2
    if point.values.get("decay.share") == 0.02:
        loss += 0.1
    return loss


def result(point: Point, loss: float) -> RunResult:
    start = point.start_step * point.recipe.batch_tokens
    return RunResult(
        key=point.key,
        experiment=point.experiment,
        status="done",
        size=point.size.name,
        hidden_size=point.size.hidden_size,
        layers=point.size.layers,
        parameters=point.size.parameters,
        total_parameters=2 * point.size.parameters,
        parametrization=point.parametrization,
        seed=point.seed,
        tokens=point.num_tokens,
        batch_tokens=point.recipe.batch_tokens,
        values=point.values,
        loss=loss,
        curve=((start, 4.0), (point.num_tokens, loss)),
        seconds=1.0,
        flops=1e9,
    )


@pytest.fixture(scope="module")
def study(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("planted")
    overrides = {"parametrization": "minicpm"}
    path = write_spec(
        folder, tiny_data, EXPERIMENTS, sizes=SIZES, seeds=[0, 1, 2], overrides=overrides
    )
    spec = load_spec(path)
    base = load_base(spec, folder)
    points = make_points(spec, base)
    directory = folder / "study"
    directory.mkdir()
    made = Study(directory, points, Journal(directory))
    begin_study(made, path, base)
    random = np.random.default_rng(0)
    for point in points.points:
        made.journal.add(result(point, loss_of(point, random.normal(0, NOISE))))
        # A run's trunk is there, so that nothing is to be made again.
        for branch in points.points:
            if branch.trunk == point.key:
                step = directory / POINTS / point.key / f"step-{branch.start_step}"
                step.mkdir(parents=True, exist_ok=True)
    return made


@pytest.fixture(scope="module")
def said(study: Study) -> list[str]:
    lines: list[str] = []
    tunnel_show(study.directory, say=lines.append)
    return lines


def test_the_planted_rate_is_found_and_stays(study: Study, said: list[str]) -> None:
    found = tunnel_show(study.directory, say=lambda line: None)
    (transfer,) = found.transfers
    assert transfer.parametrization == "minicpm"
    assert transfer.transferred == pytest.approx(RATE, rel=0.15)
    assert transfer.transferred_interval is not None
    low, high = transfer.transferred_interval
    assert low < RATE < high
    assert transfer.exponent == pytest.approx(0, abs=0.3)
    assert any("optimizer.learning_rate, minicpm: " in line for line in said)


def test_the_planted_law_is_found(study: Study, said: list[str]) -> None:
    law = find_law(study.directory / "law.yaml")
    assert isinstance(law, Law)
    assert law.counts == "non-embedding"
    assert law.loss == "bits per byte"
    for parameters, tokens in ((5e4, 1e6), (2e5, 4e6)):
        assert law.at(parameters, tokens) == pytest.approx(planted(parameters, tokens), rel=0.01)
    assert any("left out: predicted" in line for line in said)


def test_the_worse_decay_is_said_to_be_worse(said: list[str]) -> None:
    (line,) = [line for line in said if line.startswith("decay: ")]
    assert line.startswith("decay: 32x2: best is 20%"), line
    assert re.search(r"2% end 0\.\d+ higher", line), line


def test_page_and_figures_are_written(study: Study, said: list[str]) -> None:
    page = (study.directory / "report.html").read_text("utf-8")
    assert "tunnel run" in page
    assert list((study.directory / "figures").glob("*.png"))
    assert said[-1] == f"report: {study.directory / 'report.html'}"


def test_a_study_that_is_whole_makes_nothing(study: Study) -> None:
    lines: list[str] = []
    spec = study.directory.parent / "spec.yaml"
    tunnel_run(spec, out=study.directory, say=lines.append)
    assert any("done" in line for line in lines)
    assert not list((study.directory / POINTS).glob("*.log.txt"))


def test_a_dry_run_says_every_run_and_makes_none(tiny_data: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny_data, {"law": EXPERIMENTS["law"]}, sizes=SIZES)
    lines: list[str] = []
    tunnel_run(spec, out=tmp_path / "study", dry_run=True, say=lines.append)
    assert sum("tokens_per_parameter" in line for line in lines) == 4 * 5
    assert "24 runs to make" in lines[-1]
    assert not (tmp_path / "study").exists()


# -- the recipe of a larger run -------------------------------------------------------------------


def test_the_recipe_has_what_was_found(study: Study, tmp_path: Path) -> None:
    file = tunnel_recipe(study.directory, size="minicpm-9m", tokens="20N", out=tmp_path / "r.yaml")
    recipe = load_recipe(file)
    assert recipe.optimizer.learning_rate == pytest.approx(RATE, rel=0.15)
    assert recipe.parametrization == "minicpm"
    assert recipe.predicted is not None
    expected = planted(recipe.predicted.parameters, recipe.predicted.tokens)
    assert recipe.predicted.interval is not None
    low, high = recipe.predicted.interval
    assert low <= recipe.predicted.loss <= high
    assert recipe.predicted.loss == pytest.approx(expected, rel=0.1)
    assert recipe.predicted.comparable
    assert recipe.stages[-1].schedule.kind == "decay"
    assert set(recipe.datasets) == {"prose", "code"}
    text = file.read_text("utf-8")
    for warning in tunnel_show(study.directory, say=lambda line: None).law.fitted.warnings:  # type: ignore[union-attr]
        assert warning in " ".join(text.replace("#", "").split())
    assert "extrapolated" in text  # 9M lies far outside sizes of 96
    assert "learning_rate: found: " in text
    assert "decay: found: 32x2: best is 20%" in " ".join(text.replace("#", "").split())


def test_a_recipe_of_one_of_the_studys_sizes_runs(study: Study, tmp_path: Path) -> None:
    file = tunnel_recipe(study.directory, size="48x2", tokens=20_000, out=tmp_path / "r.yaml")
    plan = llamita.train(file, dry_run=True, say=lambda line: None)
    assert isinstance(plan, TrainingPlan)
    assert plan.config.hidden_size == 48
    assert plan.parametrization == "minicpm"
    batch = plan.recipe.batch_tokens
    assert 20_000 <= plan.tokens < 20_000 + 2 * batch


def test_an_axis_that_no_recipe_takes_over_is_said(study: Study, tmp_path: Path) -> None:
    """Shares and ratios are the experiment's own keys; the optimum stands in a comment."""
    made = planted_sweep(study, tmp_path, {"decay_share": [0.05, 0.1, 0.2, 0.4]}, 0.13)
    file = tunnel_recipe(made.directory, size="48x2", tokens=20_000, out=tmp_path / "r.yaml")
    assert re.search(r"decay_share: found: .*\n?.*0\.1", file.read_text("utf-8"))
    assert "set it by hand" in " ".join(file.read_text("utf-8").replace("#", "").split())


def test_a_batch_that_was_swept_is_taken_over_as_whole_windows(
    study: Study, tmp_path: Path
) -> None:
    made = planted_sweep(study, tmp_path, {"batch_tokens": [128, 256, 512, 1024]}, 400)
    file = tunnel_recipe(made.directory, size="48x2", tokens=200_000, out=tmp_path / "r.yaml")
    recipe = load_recipe(file)
    assert recipe.batch_tokens == pytest.approx(400, rel=0.3)
    assert recipe.batch_tokens % recipe.sequence_length == 0


def planted_sweep(study: Study, folder: Path, axes: dict[str, list[float]], best: float) -> Study:
    """A study of one sweep whose losses are lowest at `best`."""
    (axis,) = axes
    data = Path(study.points.points[0].recipe.datasets["prose"].path).parent
    overrides = {"parametrization": "minicpm"}
    sweep = {"kind": "sweep", "axes": axes, "tokens_per_parameter": 10}
    path = write_spec(folder, data, {"s": sweep}, sizes=SIZES, overrides=overrides)
    spec = load_spec(path)
    base = load_base(spec, folder)
    made = Study(folder / "study", make_points(spec, base), Journal(folder / "study"))
    begin_study(made, path, base)
    random = np.random.default_rng(1)
    for point in made.points.points:
        off = math.log(point.values[axis] / best)
        made.journal.add(result(point, 2.0 + 0.1 * off**2 + random.normal(0, 0.001)))
    return made


def test_values_without_a_logarithm_are_listed_and_not_fitted(study: Study, tmp_path: Path) -> None:
    made = planted_sweep(study, tmp_path, {"optimizer.weight_decay": [0.05, 0.1, 0.2]}, 0.1)
    spec = made.directory / "spec.yaml"
    spec.write_text(spec.read_text("utf-8").replace("0.05", "0.0"), "utf-8")
    lines: list[str] = []
    found = tunnel_show(made.directory, say=lines.append)
    assert not found.transfers
    assert "values above 0" in found.refusals["s"]
    assert (made.directory / "report.html").is_file()


def test_a_recipe_is_not_written_over(study: Study, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="is not overwritten"):
        tunnel_recipe(study.directory, size="48x2", tokens=20_000, out=tmp_path / "r.yaml")
    assert (tmp_path / "r.yaml").read_text("utf-8") == "mine"


def test_a_size_that_is_none(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'minicpm-9m'"):
        tunnel_recipe(study.directory, size="minicpm-9n", tokens="20N", out=tmp_path / "r.yaml")


# -- what is missing ------------------------------------------------------------------------------


def test_what_is_missing_is_said_and_the_rest_is_found(study: Study, tmp_path: Path) -> None:
    """Half of the law's branches never ended."""
    import shutil

    directory = tmp_path / "study"
    shutil.copytree(study.directory, directory)
    journal = Journal(directory)
    (directory / "results.jsonl").unlink()
    fresh = Journal(directory)
    for run in journal.runs.values():
        if run.experiment == "law" and run.hidden_size > 48:
            run = dataclasses.replace(run, status="killed", loss=None, reason="signal 9")
        fresh.add(run)
    lines: list[str] = []
    found = tunnel_show(directory, say=lines.append)
    assert found.law is None
    assert "more model sizes" in found.refusals["law"]
    assert found.transfers
    assert any(line.startswith("law: ") for line in lines)


def test_a_device_that_is_not_there_is_no_cpu(tiny_data: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny_data, {"law": EXPERIMENTS["law"]}, sizes=SIZES)
    with pytest.raises(UserError, match="cannot be used here"):
        tunnel_run(spec, out=tmp_path / "study", device="cuda:99", say=lambda line: None)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tunnel", "run", "nowhere"], "no shipped spec of that name"),
        (["tunnel", "show", "nowhere"], "is no study"),
        (["tunnel", "recipe", "nowhere", "--size", "x", "--tokens", "1", "--out", "y"], "no study"),
    ],
)
def test_bad_words_on_the_command_line(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
