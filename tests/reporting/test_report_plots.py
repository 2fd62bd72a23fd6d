"""The PNGs: lines read back from the figure equal events.jsonl."""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.errors import UserError
from llamita.reporting.events import read_events
from llamita.reporting.plots import OVERVIEW, build_figure
from llamita.reporting.report import report
from llamita.reporting.report_records import read_run
from tests.reporting.runs import write_run


def quiet(line: str) -> None:
    """Nobody reads these."""


def panels(run: Path, keys: tuple[str, ...] = OVERVIEW) -> dict[str, Any]:
    figure = build_figure([read_run(run)], keys)
    return {panel.get_title(loc="left"): panel for panel in figure.axes}


def recorded(run: Path, kind: str, field: str) -> tuple[list[int], list[float]]:
    events = [event for event in read_events(run) if event["event"] == kind]
    return [event["step"] for event in events], [float(event[field]) for event in events]


def test_lines_equal_the_events(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=120, spikes={50}, non_finite={60})
    found = panels(run)
    steps, losses = recorded(run, "step", "loss")
    raw, mean, crosses = found["Training loss"].get_lines()
    assert raw.get_xdata().tolist() == steps
    drawn = raw.get_ydata()
    for step, loss, value in zip(steps, losses, drawn, strict=True):
        assert math.isnan(value) if step in (50, 60) else value == loss
    assert len(mean.get_xdata()) == len(steps)
    assert crosses.get_xdata().tolist() == [50, 60]
    for title, kind, field in (
        ("Learning rate", "step", "learning_rate"),
        ("Throughput", "progress", "tokens_per_second"),
    ):
        (line,) = found[title].get_lines()
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == recorded(run, kind, field)
    together, prose, code = found["Validation"].get_lines()
    assert together.get_ydata().tolist() == recorded(run, "validation", "bits_per_byte")[1]
    for name, line in (("prose", prose), ("code", code)):
        assert line.get_label() == name
        wanted = [e["datasets"][name] for e in read_events(run) if e["event"] == "validation"]
        assert line.get_ydata().tolist() == wanted


def test_several_runs_share_a_panel(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / name, num_steps=30, name=name)) for name in ("a$_1$", "b")
    ]
    (panel,) = build_figure(runs, ["learning_rate"]).axes
    assert [line.get_label() for line in panel.get_lines()] == ["a$_1$", "b"]
    assert len({line.get_color() for line in panel.get_lines()}) == 2


def test_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=40)
    said: list[str] = []
    report(run, png=tmp_path / "new" / "plots", say=said.append)
    names = {path.name for path in (tmp_path / "new" / "plots").iterdir()}
    singles = {"loss", "bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second"}
    assert names == {f"{name}.png" for name in {"overview", *singles}}
    assert len(said) == 1 + len(names)
    for name in names:
        header = (tmp_path / "new" / "plots" / name).read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", header[16:24])
        assert width == 1600
        assert 600 <= height <= 1200


def test_nothing_global_changes(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    build_figure([read_run(write_run(tmp_path / "run", num_steps=20))])
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", num_steps=20)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[plots\]'"):
        report(run, png=tmp_path / "plots", say=quiet)
    assert not (run / "report.html").exists()
    report(run, say=quiet)


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=20)
    (tmp_path / "plots").write_text("")
    with pytest.raises(UserError, match="is a file"):
        report(run, png=tmp_path / "plots", say=quiet)


def test_crosses_stay_inside(tmp_path: Path) -> None:
    """A spike of 50 does not flatten the other losses, which lie below 8."""
    run = write_run(tmp_path / "run", num_steps=120, spikes={50})
    panel = panels(run)["Training loss"]
    assert panel.get_ylim()[1] < 10
    assert np.nanmax(panel.get_lines()[2].get_ydata()) < 10
