"""The report: its plots equal events.jsonl, it needs nothing else, and it is safe."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.errors import UserError
from llamita.planning.check import check_run
from llamita.reporting.events import read_events
from llamita.reporting.report import report, write_report
from llamita.reporting.report_compare import flatten
from llamita.reporting.report_series import MOST_ROWS
from tests.reporting.runs import BATCH, Run, write_run
from tests.test_cli import llamita as command
from tests.test_cli import refused

NASTY = '</script><script>alert(1)</script><img onerror="alert(2)">'


class Page(HTMLParser):
    """Tags with attributes, and the text of scripts, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.scripts[0])
        return values


def page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


# -- the plots are the events -------------------------------------------------------------------


def test_the_embedded_tables_equal_the_events(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=300, non_finite={40, 41}, spikes={120})
    data = page(run).data["runs"][0]
    for kind, fields in {
        "step": ("step", "tokens", "loss", "grad_norm", "learning_rate"),
        "progress": ("step", "tokens_per_second", "mfu", "memory_bytes", "data_wait"),
        "validation": ("step", "bits_per_byte"),
    }.items():
        table = data["steps" if kind == "step" else kind]
        events = of(run, kind)
        assert table["total"] == len(events)
        for field in fields:
            assert table["columns"][field] == [event[field] for event in events], field
    kinds = [event.get("skipped") for event in of(run, "step")]
    assert data["steps"]["columns"]["skipped"] == kinds
    assert kinds.count("non_finite") == 2
    for name in ("prose", "code"):
        wanted = [event["datasets"][name] for event in of(run, "validation")]
        assert data["validation"]["columns"][f"datasets/{name}"] == wanted
    assert [at[0] for at in data["checkpoints"]] == [e["step"] for e in of(run, "checkpoint")]


def test_a_long_run_keeps_real_points_extremes_and_skips(tmp_path: Path) -> None:
    count = 6 * MOST_ROWS
    run = write_run(tmp_path / "run", num_steps=count, spikes={777}, non_finite={9_001})
    file = write_report(run)
    assert file.stat().st_size < 1_500_000
    shown = Page(file.read_text(encoding="utf-8"))
    table = shown.data["runs"][0]["steps"]
    columns = table["columns"]
    assert table["total"] == count
    assert len(columns["step"]) <= 1.1 * MOST_ROWS
    assert columns["step"] == sorted(set(columns["step"]))
    events = {event["step"]: event for event in of(run, "step")}
    for row, step in enumerate(columns["step"]):
        for field in ("loss", "grad_norm", "learning_rate", "tokens"):
            assert columns[field][row] == events[step][field]
    assert {1, count, 777, 9_001} <= set(columns["step"])
    # Each stretch's extremes, not only the run's: here of a tenth.
    for field in ("loss", "grad_norm"):
        for tenth in range(10):
            low, high = tenth * count // 10, (tenth + 1) * count // 10
            every = [
                events[s][field]
                for s in range(low + 1, high + 1)
                if isinstance(events[s][field], float)
            ]
            kept = [
                value
                for s, value in zip(columns["step"], columns[field], strict=True)
                if low < s <= high and isinstance(value, float)
            ]
            assert (min(kept), max(kept)) == (min(every), max(every))
    assert "decimated" in shown.text
    assert f"of {count:,} steps" in shown.text
    short = write_run(tmp_path / "short", num_steps=50)
    assert "decimated" not in page(short).text


def test_the_mean_is_of_the_steps_around(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=1000, spikes={500}, non_finite={505})
    columns = page(run).data["runs"][0]["steps"]["columns"]
    counted = {event["step"]: event["loss"] for event in of(run, "step") if "skipped" not in event}
    for step in (1, 4, 11, 500, 990, 1000):
        half = min(10, step - 1)  # 1% of 1,000 steps, less at the beginning
        around = [counted[s] for s in range(step - half, step + half + 1) if s in counted]
        assert columns["loss_smoothed"][step - 1] == pytest.approx(
            sum(around) / len(around), rel=1e-5
        )


def test_elapsed_time_leaves_pauses_out(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.start(last_step=40)
        run.steps(1, 10, seconds_each=2.0)
        rest = {"mfu": 0.1, "memory_bytes": 1, "data_wait": 0.0, "eta_seconds": 1.0}
        run.write("progress", step=10, tokens_per_second=512.0, **rest)
        run.write("interrupted", step=10)
        run.wait(3600)
        run.write("resume", step=10, last_step=40, changed=["runtime.threads"], warnings=["w"])
        run.wait(5)
        run.steps(11, 20, seconds_each=1.0)
    found = page(tmp_path / "run")
    seconds = found.data["runs"][0]["steps"]["columns"]["seconds"]
    assert seconds[:10] == pytest.approx([2.0 * n for n in range(1, 11)])
    # The five seconds before the second group are part of its steps.
    assert seconds[10:] == pytest.approx([20 + 1.5 * n for n in range(1, 11)])
    for word in ("interrupted", "resumed", "1h00m", "runtime.threads", "35s"):
        assert word in found.text, word


def test_figures_in_words(tmp_path: Path) -> None:
    """Headline, plan and mixture, against what was written into the events."""
    run = write_run(tmp_path / "run", num_steps=200)
    shown = page(run).text
    final = of(run, "end")[0]["bits_per_byte"]
    for word in (f"{final:.4f}", "1,078,144", "51,200", "69.90%", "70.00%", "Finished."):
        assert word in shown, word
    rates = [event["tokens_per_second"] for event in of(run, "progress")]
    harmonic = len(rates) / sum(1 / rate for rate in rates)
    assert f"{harmonic / 1000:.3g}k/s" in shown
    assert "llamita train tiny.yaml --set" in shown
    source = (run / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r'<th scope="row">([^<]+)</th>((?:<td>[^<]*</td>)+)', source)
    cells = {name: re.findall("<td>([^<]*)</td>", rest) for name, rest in rows}
    # The probe's tenth of a second a step, and a clock that went on by as much with each.
    assert cells["  in steps"] == ["20s", "20s", "0.0%"]
    assert cells["time"] == ["–", "20s", ""]
    assert cells["steps"] == ["200", "200", "0.0%"]
    assert cells["tokens/s"] == ["–", f"{harmonic / 1000:.3g}k", ""]
    assert "no plan was written into this run" in shown


def test_the_plan_is_the_one_that_check_compares(tmp_path: Path) -> None:
    """A forecast's figures, difference and notes are in the page as `plan --check` prints them."""
    run = tmp_path / "run"
    with Run(run) as writer:
        writer.start(last_step=10)
        stage = {"name": "stable", "first_step": 0, "steps": 10, "tokens": 10 * BATCH}
        stage |= {"flops": 5e9, "seconds": 10.0}
        told = {"stages": [stage], "seconds": 10.0, "parts": {}, "mfu": 0.2, "left_out": ["<rain>"]}
        told |= {"devices": 1, "memory": {"total": 10**9}, "predicted": None}
        writer.write("forecast", step=0, last_step=10, **told)
        writer.steps(1, 10, seconds_each=1.5)
    shown = page(run).text
    for line in check_run(run).lines()[1:]:
        for cell in filter(None, re.split(r"  +", line)):
            assert cell in shown or cell in ("planned", "achieved", "difference"), cell
    for word in ("+50.0%", "the plan does not know of <rain>", "1.00 GB", "at step 10 of 10"):
        assert word in shown, word


def test_optional_events(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.start(last_step=10)
        estimate = {"weights": 1e9, "gradients": 1e9, "activations": 5e8}
        run.write("memory", step=0, estimate=estimate, baseline_bytes=5e8, peak_bytes=3.25e9)
        run.steps(1, 10)
        run.write("validation", step=10, bits_per_byte=2.0, datasets={"a": 2.0}, average=1.5)
        rows = [[{"name": n, "seconds": 1, "share": 0.5}] for n in ("P1", "backward")]
        run.write("profile", step=5, steps=2, seconds=2, table=rows[0], phases=rows[1])
        run.write("sink_failed", step=7, name="Tracker", error="gone")
        run.write("unheard_of", step=9, more=[1])
    shown = page(tmp_path / "run")
    for word in (
        "2.50 GB",
        "2.75 GB",
        "+10.0%",
        "P1",
        "backward",
        "50.0%",
        "Tracker",
        "average of weights",
    ):
        assert word in shown.text, word
    figures = {figure["key"]: figure for figure in shown.data["figures"]}
    assert "mfu" not in figures  # nothing was recorded of it
    assert shown.data["runs"][0]["validation"]["columns"]["average"] == [1.5]


# -- one file, safe -----------------------------------------------------------------------------


def test_it_needs_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=60)
    source = write_report(run).read_text(encoding="utf-8")
    without_namespaces = re.sub(r"http://www\.w3\.org/[\w/]+", "", source)
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in without_namespaces
    found = Page(source)
    assert {tag for tag, _ in found.tags}.isdisjoint({"link", "iframe", "object", "embed", "img"})
    assert "default-src 'none'" in source


def test_text_from_a_run_stays_text(tmp_path: Path) -> None:
    with Run(tmp_path / "run", recipe=f"name: {json.dumps(NASTY)}\n# {NASTY}\n") as run:
        run.start(last_step=10, plan=[f"{NASTY}: 12 parameters", NASTY], command=NASTY)
        run.write("stage", step=0, name=NASTY)
        run.steps(1, 10)
        run.write("sample", step=10, prompt=NASTY, text=NASTY)
        run.write("validation", step=10, bits_per_byte=2.0, datasets={NASTY: 2.0, "b": 1.0})
        run.write("mixture", step=10, stage=NASTY, asked={NASTY: 1}, realised={}, epochs={})
        run.write("resume", step=10, changed=[NASTY], warnings=[NASTY])
    other = write_run(tmp_path / "other", num_steps=10)
    for runs in ([tmp_path / "run"], [tmp_path / "run", other]):
        out = report(runs, out=tmp_path / "report.html", say=lambda line: None)
        source = out.read_text(encoding="utf-8")
        found = Page(source)
        assert len(found.scripts) == 2  # data and program
        assert found.data["runs"][0]["name"] == NASTY
        assert NASTY in found.text
        assert not [tag for tag, attributes in found.tags if "onerror" in attributes]
        assert source.count("<script") == source.count("</script>") == 2


def test_the_policy_names_the_script(tmp_path: Path) -> None:
    import base64
    import hashlib

    found = page(write_run(tmp_path / "run", num_steps=10))
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    policies = [a["content"] or "" for tag, a in found.tags if "http-equiv" in a]
    assert len(policies) == 1
    assert f"script-src 'sha256-{digest}'" in policies[0]


def test_figures_stand_without_scripts(tmp_path: Path) -> None:
    """Every plot is in the page as SVG, with a title and its values in words."""
    run = write_run(tmp_path / "run", num_steps=100)
    source = write_report(run).read_text(encoding="utf-8")
    charts = re.findall(r'<svg class="chart".*?</svg>', source)
    assert len(charts) == len(page(run).data["figures"]) == 8
    for chart in charts:
        assert re.search(r"<title>[^<]+</title><desc>[^<]+at step[^<]+</desc>", chart)
        assert len(re.findall(r'<path class="line[^"]*" d="M[\d.]+ [\d.]+L', chart)) >= 1
        assert "nan" not in chart


def test_the_drawn_line_is_where_the_values_are(tmp_path: Path) -> None:
    """The SVG's path, taken back to values by its own ticks, gives the recorded rates."""
    run = write_run(tmp_path / "run", num_steps=100)
    source = write_report(run).read_text(encoding="utf-8")
    chart = next(c for c in re.findall(r'<svg class="chart".*?</svg>', source) if "rate:" in c)
    path = re.search(r'<path class="line c0 d0" d="([^"]+)"', chart)
    assert path is not None
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", path[1])]
    left = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.e-]+)<', chart)
    below = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\d+)<', chart)
    (y0, v0), (y1, v1) = [(float(y) - 4, float(v)) for y, v in (left[0], left[-1])]
    (x0, s0), (x1, s1) = [(float(x), float(s)) for x, s in (below[0], below[-1])]
    events = of(run, "step")
    assert len(points) == len(events)
    for (x, y), event in zip(points, events, strict=True):
        assert s0 + (x - x0) / (x1 - x0) * (s1 - s0) == pytest.approx(event["step"], abs=0.05)
        value = v0 + (y - y0) / (y1 - y0) * (v1 - v0)
        assert value == pytest.approx(event["learning_rate"], abs=1e-5)  # a tenth of a pixel


def test_the_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=30)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert not list(run.glob("*.tmp"))


# -- several runs -------------------------------------------------------------------------------


def test_several_runs(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", num_steps=40, name="one", learning_rate=1e-2),
        write_run(tmp_path / "b", num_steps=60, name="two", learning_rate=2e-2),
    ]
    out = report(runs, out=tmp_path / "both.html", say=lambda line: None)
    found = Page(out.read_text(encoding="utf-8"))
    assert [run["label"] for run in found.data["runs"]] == ["one", "two"]
    assert "optimizer.learning_rate" in found.text
    for figure in found.data["figures"]:
        colours: dict[int, set[int]] = {}
        for curve in figure["curves"]:
            colours.setdefault(curve["run"], set()).add(curve["colour"])
        assert colours == {0: {0}, 1: {1}}, figure["key"]
    for run, steps in zip(found.data["runs"], (40, 60), strict=True):
        assert run["steps"]["total"] == steps


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / place / "run", num_steps=10, name="same") for place in "ab"]
    runs.append(write_run(tmp_path / "third", num_steps=10, name="same"))
    out = report(runs, out=tmp_path / "all.html", say=lambda line: None)
    labels = [r["label"] for r in Page(out.read_text(encoding="utf-8")).data["runs"]]
    assert len(set(labels)) == 3
    assert labels[2] == "same (third)"


def test_recipes_flatten_to_keys_of_set() -> None:
    recipe = {"stages": [{"tokens": 5, "mixture": {"a": 1}}], "betas": [0.9, 0.95]}
    flat = {"stages.0.tokens": 5, "stages.0.mixture.a": 1, "betas": [0.9, 0.95]}
    assert flatten(recipe) == flat


def test_a_run_beside_one_that_has_only_begun(tmp_path: Path) -> None:
    with Run(tmp_path / "begun") as run:
        run.start(last_step=10)
    runs = [tmp_path / "begun", write_run(tmp_path / "whole", num_steps=30)]
    out = report(runs, out=tmp_path / "both.html", say=lambda line: None)
    found = Page(out.read_text(encoding="utf-8"))
    assert all(curve["run"] == 1 for figure in found.data["figures"] for curve in figure["curves"])
    assert "no step recorded yet" in found.text
    assert "No recipe is recorded of tiny (begun)" in " ".join(found.text.split())
    assert "batch_tokens" not in found.text.split("Along training")[0]


# -- what training really writes ----------------------------------------------------------------


def test_a_trained_run(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages, validations, samples and a resume, as training writes them today."""
    import torch

    from llamita.training import devices
    from tests.training.helpers import DECAY, STABLE, cheap_matmul_rate, stage, tiny_recipe, trained

    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)
    threads = torch.get_num_threads()
    recipe = tiny_recipe(tiny_data, samples={"every_steps": 4, "prompts": ["<b>the"]})
    trained(recipe, tmp_path / "run")
    longer = [stage("stable", 8, STABLE), stage("decay", 4, DECAY), stage("more", 4, STABLE)]
    trained(tiny_recipe(tiny_data, stages=longer), tmp_path / "run")
    torch.set_num_threads(threads)
    found = page(tmp_path / "run")
    run = found.data["runs"][0]
    steps = of(tmp_path / "run", "step")
    assert run["steps"]["columns"]["loss"] == [event["loss"] for event in steps]
    assert run["steps"]["columns"]["step"] == [*range(1, 17)]
    ends = [(span["name"], span["start"][0], span["end"][0]) for span in run["stages"]]
    assert ends == [("stable", 0, 8), ("decay", 8, 12), ("more", 12, 16)]
    bits = [event["bits_per_byte"] for event in of(tmp_path / "run", "validation")]
    assert run["validation"]["columns"]["bits_per_byte"][-1] == bits[-1]
    assert [at[0] for at in run["resumes"]] == [12]
    assert len(found.data["figures"]) == 8
    assert "lack fields" not in found.text
    for word in ("<b>the", "stages", "prose", "Finished.", f"{bits[-1]:.4f}"):
        assert word in found.text, word


# -- bad input ----------------------------------------------------------------------------------


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.start(last_step=10)
    found = page(tmp_path / "run")
    assert "no step recorded yet" in found.text
    assert found.data["figures"] == []


def test_only_a_non_finite_loss(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.start(last_step=10)
        run.write(
            "step",
            step=1,
            tokens=8,
            loss="nan",
            grad_norm="inf",
            learning_rate=0.1,
            skipped="non_finite",
        )
    found = page(tmp_path / "run")
    assert [figure["key"] for figure in found.data["figures"]] == ["learning_rate"]
    assert "not finite" in found.text


def test_damaged_lines_and_odd_events(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=20)
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step"}\n{"event": "step", "step": 21, "loss": 1.0}\n')
        file.write(
            b'{"event": "step", "step": 21, "loss": NaN, "tokens": 5376, "grad_norm": 1, '
            b'"learning_rate": 1e-2}\n'
        )
        file.write(
            b'{"event": 5}\n{"event": "sample"}\n{"event": "mixture"}\n{"event": "memory"}\n'
        )
        file.write(b'{"event": "step", "step": 22, "lo')
    found = page(run)
    assert "5 more lack fields" in found.text
    data = found.data["runs"][0]["steps"]["columns"]
    assert data["step"] == [*range(1, 22)]
    assert data["loss"][-1] == "nan"
    assert all(isinstance(seconds, float) and math.isfinite(seconds) for seconds in data["seconds"])


def test_what_a_user_can_put_right(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=10)
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    (nothing / "events.jsonl").write_text("")
    broken = write_run(tmp_path / "broken", num_steps=10)
    (broken / "recipe.yaml").write_text("a: [")
    cases: list[tuple[str, list[Path], dict[str, Any]]] = [
        ("does not exist", [tmp_path / "no"], {}),
        ("is a file", [run / "events.jsonl"], {}),
        ("is not the directory of a run", [empty], {}),
        ("holds no events", [nothing], {}),
        ("cannot be read as YAML", [broken], {}),
        ("named twice", [run, tmp_path / "." / "run"], {}),
        ("there is no folder", [run], {"out": tmp_path / "no" / "report.html"}),
        ("is a directory", [run], {"out": tmp_path}),
        ("name a run's directory", [], {}),
    ]
    for message, runs, arguments in cases:
        with pytest.raises(UserError, match=message):
            report(runs, **arguments)


def test_the_verb(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one", num_steps=20)
    write_run(tmp_path / "runs" / "two", num_steps=20)
    found = command("report", "runs/one", where=tmp_path)
    assert (found.returncode, found.stdout) == (0, "report: runs/one/report.html\n")
    assert (run / "report.html").is_file()
    found = command("report", "runs/one", "runs/two", where=tmp_path)
    assert found.stdout == "report: report.html\n"
    assert "Traceback" not in refused("report", "runs/three", where=tmp_path)
    assert llamita.report is report


def test_it_is_light() -> None:
    """The report is made at the end of every run: no torch, no matplotlib, no pydantic."""
    code = (
        "import sys, llamita.reporting.report\n"
        "heavy = {'torch', 'matplotlib', 'pydantic', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
