"""`law fit` and `law show` as a person meets them."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llamita.cli import app
from llamita.errors import UserError
from llamita.planning.law_verbs import fit_law
from llamita.planning.laws import CONSTANTS, Law, find_law
from tests.planning.synthetic import drawn, gaussian, grid, truth


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    rows = drawn(truth(), grid(5, 4), gaussian(0)).rows
    lines = [f"{row.parameters!r},{row.tokens!r},{row.loss!r}" for row in rows]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,loss", *lines]) + "\n")
    return path


def test_a_fitted_law_is_a_law_by_its_file(csv: Path, tmp_path: Path) -> None:
    fitted = fit_law([csv], tmp_path / "mine.yaml", bootstrap=40, counts="non-embedding")
    found = find_law(tmp_path / "mine.yaml")
    assert isinstance(found, Law)
    assert replace(found, samples=()) == replace(fitted.law, samples=())
    assert found.name == "mine"
    assert found.counts == "non-embedding"
    assert f"20 observations from {csv}" in found.source
    ours, theirs = fitted.predict_interval(1e9, 2e10), found.interval(1e9, 2e10)
    assert ours is not None
    assert theirs == pytest.approx(ours, rel=1e-7)


def command(*arguments: str | Path) -> str:
    found = CliRunner().invoke(app, [str(each) for each in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


def test_law_fit_says_what_it_found(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    said = command("law", "fit", csv, "--out", out, "--bootstrap", "40", "--name", "my runs")
    law = find_law(out)
    assert isinstance(law, Law)
    assert said.startswith(f"my runs: L(N, D) = {law.E:.5g} + {law.A:.5g}/(N/1e6)^{law.alpha:.4g}")
    low, high = law.intervals["alpha"]
    assert f"alpha       {law.alpha:.5g} [{low:.5g}, {high:.5g}]" in said
    assert "40 fits to observations drawn with replacement from 20 (seed 0)" in said
    assert "without all 4 runs of 1B parameters, the law predicts" in said
    parameters, tokens = law.compute_optimal(9.6e20)
    assert f"at 9.6e+20 FLOPs {parameters / 1e9:.3g}B parameters [" in said
    assert f"{tokens / 1e9:.3g}B tokens, loss {law.at(parameters, tokens):.4f} [" in said


def test_law_fit_as_json(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    said = json.loads(command("law", "fit", csv, "--out", out, "--bootstrap", "40", "--json"))
    law = find_law(out)
    assert isinstance(law, Law)
    assert {key: said["law"][key] for key in CONSTANTS} == {
        key: getattr(law, key) for key in CONSTANTS
    }
    assert said["law"]["intervals"]["E"] == list(law.intervals["E"])
    assert said["bootstrap"] == {"fits": 40, "resampled": "observation", "of": 20, "seed": 0}
    row = said["observations"][3]
    predicted = law.at(row["parameters"], row["tokens"])
    assert row["residual"] == pytest.approx(math.log(row["loss"] / predicted), abs=1e-12)
    assert said["held_out"]["error"] == pytest.approx(
        said["held_out"]["predicted"] / said["held_out"]["observed"] - 1
    )


def test_law_show_of_a_fit(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    command("law", "fit", csv, "--out", out, "--bootstrap", "40")
    assert "95% intervals in brackets" in command("law", "show", out)
    assert "beyond-chinchilla-100" in command("law", "show")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "law.txt"}, "ends in .yaml"),
        ({"out": "epoch.yaml"}, "a law of that name comes with llamita"),
        ({"bootstrap": 0, "seed": 1}, "--seed has no effect with --bootstrap 0"),
        ({"plot": "residuals.pdf"}, r"ends in \.png or \.svg"),
        ({"plot": "nowhere/residuals.png"}, "there is no directory"),
    ],
)
def test_destinations_are_checked_before_anything_is_fitted(
    options: dict[str, Any], message: str, csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(csv.parent)
    monkeypatch.setattr("llamita.planning.fitting.fit_observations", None)
    with pytest.raises(UserError, match=message):
        fit_law([csv], **options)
    assert [path.name for path in csv.parent.iterdir()] == ["runs.csv"]


def test_residuals_as_a_picture(csv: Path, tmp_path: Path) -> None:
    fit_law([csv], bootstrap=0, plot=tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG\r\n")
    fitted = fit_law([csv], bootstrap=0, plot=tmp_path / "r.svg")
    first = (tmp_path / "r.svg").read_bytes()
    assert f"RMS {fitted.rms:.2%} of the loss".encode() in first
    assert first.count(b"<use") >= 2 * len(fitted.residuals)
    fit_law([csv], bootstrap=0, plot=tmp_path / "r.svg")
    assert (tmp_path / "r.svg").read_bytes() == first


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llamita\[fit\]"):
        fit_law(["runs.csv"])
