"""Runs that tune, as the report, its plots, the panel, sinks and `info` show them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llamita.planning.observations import read_observations
from llamita.reporting.events import read_events
from llamita.reporting.information import info
from llamita.reporting.panel_state import RunState
from llamita.reporting.panel_view import draw
from llamita.reporting.report import report, write_report
from llamita.reporting.report_records import read_run
from llamita.reporting.sinks import scalars
from llamita.reporting.svg_plots import BOTTOM, TOP
from tests.reporting.runs import Run, write_run
from tests.reporting.test_report import NASTY, Page, of, page
from tests.reporting.tuning_runs import (
    QUESTION,
    TUNING,
    announce,
    pairs_of,
    score,
    write_chats,
    write_preferences,
)


def section(directory: Path, key: str) -> str:
    """A section's text, with a space wherever a tag stood; "" where the page has none."""
    source = write_report(directory).read_text(encoding="utf-8")
    found = re.search(f'<section id="{key}">(.*?)</section>', source, re.DOTALL)
    return "" if found is None else " ".join(re.sub("<[^>]+>", " ", found[1]).split())


def keys(shown: Page) -> list[str]:
    return [figure["key"] for figure in shown.data["figures"]]


# -- preferences --------------------------------------------------------------------------------


def test_pairs_are_plotted_as_the_events_have_them(tmp_path: Path) -> None:
    run = write_preferences(tmp_path / "run")
    shown = page(run)
    table = shown.data["runs"][0]["preference"]["columns"]
    events = of(run, "preference")
    assert table["step"] == [0, 10, 20, 30, 40]
    for key in ("loss", "accuracy"):
        assert table[key] == [event[key] for event in events]
    for what in ("margin", "accuracy"):
        for end in ("mean", "low", "high"):
            wanted = [event["datasets"]["pairs"][what][end] for event in events]
            assert table[f"{what}/{end}/pairs"] == wanted
    steps = shown.data["runs"][0]["steps"]["columns"]
    for name in ("rewards_chosen", "rewards_rejected", "margin", "accuracy"):
        assert steps[name] == [event[name] for event in of(run, "step")]
    figures = {figure["key"]: figure for figure in shown.data["figures"]}
    margin = figures["preference_margin"]
    assert margin["curves"][0]["band"] == ["margin/low/pairs", "margin/high/pairs"]
    assert [c["label"] for c in figures["rewards"]["curves"]] == ["chosen", "rejected"]
    assert "bits_per_byte" not in figures
    assert figures["loss"]["explanation"].startswith("Nats a pair")


def test_the_band_lies_between_its_ends(tmp_path: Path) -> None:
    source = write_report(write_preferences(tmp_path / "run")).read_text(encoding="utf-8")
    (figure,) = re.findall(r'data-figure="preference_margin".*?</figure>', source, re.DOTALL)
    (path,) = re.findall(r'<path class="interval c0 d0" d="M(.*?)Z"/>', figure)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert len(points) == 10
    upper, lower = points[:5], points[:4:-1]
    dots = re.findall(r'<circle class="dot c0 d0" cx="(.*?)" cy="(.*?)"', figure)
    for (x, y), high, low in zip(dots, upper, lower, strict=True):
        assert high[0] == low[0] == float(x)
        # The interval is symmetric, and so is it about the mean's dot.
        assert (high[1] + low[1]) / 2 == pytest.approx(float(y), abs=0.11)
    height = int(re.search(r'viewBox="0 0 \d+ (\d+)" role', figure)[1])  # type: ignore[index]
    assert all(TOP <= y <= height - BOTTOM for _, y in points), "the axis makes room for the band"


def test_preferences_in_words(tmp_path: Path) -> None:
    run = write_preferences(tmp_path / "run")
    told = section(run, "preferences")
    assert "pairs: 40 pairs held out, at step 40" in told
    assert "Reward margin 0.4000 0.3000 0.5000" in told
    assert "Right, by reward 70.0% 65.0% 75.0%" in told
    assert "no effect" not in told
    assert "Pairs told right" in page(run).text
    vague = section(write_preferences(tmp_path / "vague", reach=0.9), "preferences")
    assert "pairs: no effect: the interval includes 0" in vague


def test_no_mean_is_of_tokens_and_of_pairs(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        announce(run, 40, {"chats": "chats", "pairs": "preferences"})
        run.write("stage", step=0, name="stable")
        run.steps(1, 20, loss=3.0)
        run.write("stage", step=20, name="pairs")
        run.steps(21, 40, **pairs_of(1, loss=0.5), stage="pairs")
    record = read_run(tmp_path / "run")
    assert record.steps.columns["loss_smoothed"] == [3.0] * 20 + [0.5] * 20
    assert record.steps.columns["margin"][:20] == [None] * 20
    figure = page(tmp_path / "run").data["figures"][0]
    assert figure["explanation"].startswith("Nats a token, or nats a pair of preferences,")


# -- answers ------------------------------------------------------------------------------------


def test_answers_before_and_after_stand_side_by_side(tmp_path: Path) -> None:
    run = write_chats(tmp_path / "run")
    told = section(run, "answers")
    assert f"{QUESTION} before, step 0 before it learned after, step 40 after it learned" in told
    assert section(write_chats(tmp_path / "none", samples=False), "answers") == ""


def test_answers_stay_text(tmp_path: Path) -> None:
    run = write_preferences(tmp_path / "run", answers=(NASTY, NASTY + "2"))
    shown = page(run)
    assert NASTY + "2" in shown.text
    assert "img" not in {tag for tag, _ in shown.tags}


def test_an_answer_is_shown_without_its_question(tmp_path: Path) -> None:
    run = write_chats(tmp_path / "run")
    assert section(run, "samples") == (
        f"Samples along training {QUESTION} step 0 before it learned step 40 after it learned"
    )


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"chats": "chats"}, "Bits per byte of answers"),
        ({"chats": "text"}, "Bits per byte"),
        ({"chats": "chats", "prose": "text"}, "Bits per byte of text and answers"),
    ],
)
def test_bits_per_byte_say_what_they_are_of(
    tmp_path: Path, kinds: dict[str, str], words: str
) -> None:
    with Run(tmp_path / "run") as run:
        announce(run, 10, kinds)
        run.steps(1, 10)
        each = dict.fromkeys(kinds, 1.5)
        run.write("validation", step=10, bits_per_byte=1.5, datasets=each)
    shown = page(tmp_path / "run").text
    assert f"{words}1.5000" in shown
    assert f"{words} as a table" in shown


# -- the run ------------------------------------------------------------------------------------


def test_what_learned_is_told(tmp_path: Path) -> None:
    assert f"Tuned: {TUNING}; base models/base." in page(write_chats(tmp_path / "run")).text


def test_an_early_end_is_told(tmp_path: Path) -> None:
    run = write_chats(tmp_path / "run", early=True)
    shown = page(run).text
    assert "Finished early." in shown
    told = "2 validations without a gain over 1.4000 (bits per byte); the run ended here"
    assert told in section(run, "incidents")
    assert "10 of the plan's steps were not taken" in shown


def test_plain_runs_are_as_they_were(tmp_path: Path) -> None:
    shown = page(write_run(tmp_path / "run", num_steps=40))
    assert keys(shown) == [
        "loss", "bits_per_byte", "learning_rate", "grad_norm",
        "tokens_per_second", "mfu", "memory_bytes", "data_wait",
    ]  # fmt: skip
    assert "preference" not in shown.data["runs"][0]
    sections = [attrs["id"] for tag, attrs in shown.tags if tag == "section"]
    assert sections == ["plots", "plan", "mixture", "incidents", "samples", "reproduce"]
    words = shown.text[shown.text.index("run report") :]
    assert not re.search("answers|pairs|Tuned|Before and after", words)


def test_runs_of_all_kinds_side_by_side(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "plain", num_steps=40),
        write_chats(tmp_path / "chats"),
        write_preferences(tmp_path / "pairs"),
    ]
    out = report(runs, out=tmp_path / "all.html", say=lambda line: None)
    shown = Page(out.read_text(encoding="utf-8"))
    assert {"bits_per_byte", "preference_margin", "rewards"} <= set(keys(shown))
    curves = next(f for f in shown.data["figures"] if f["key"] == "rewards")["curves"]
    assert [curve["label"].rpartition(": ")[2] for curve in curves] == ["chosen", "rejected"]
    assert "70.0%" in shown.text


def test_pngs_have_the_band(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from llamita.reporting.plots import build_figure

    run = read_run(write_preferences(tmp_path / "run"))
    (panel,) = build_figure([run], ("preference_accuracy",)).axes
    (band,) = panel.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(75)
    assert panel.get_ylabel() == "%"


def test_pngs_of_preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from llamita.reporting import plots

    class Blank:
        def savefig(self, path: Path, metadata: object) -> None:
            path.touch()

    drawn: list[tuple[str, ...]] = []
    monkeypatch.setattr(plots, "build_figure", lambda runs, keys: drawn.append(keys) or Blank())
    run = write_preferences(tmp_path / "run")
    report(run, png=tmp_path / "png", say=lambda line: None)
    assert {path.stem for path in (tmp_path / "png").iterdir()} == {
        "overview", "loss", "learning_rate", "grad_norm",
        "preference_accuracy", "preference_margin", "rewards",
    }  # fmt: skip
    assert drawn[0] == ("loss", "preference_accuracy", "preference_margin", "rewards")


# -- the panel ----------------------------------------------------------------------------------


def panel(events: list[dict[str, Any]], width: int = 110) -> str:
    state = RunState()
    for event in events:
        state.observe(event)
    lines = draw(state, width, 34, events[-1]["time"], stopping=False)
    return "\n".join("".join(text for text, _ in line) for line in lines)


def test_the_panel_shows_pairs(tmp_path: Path) -> None:
    events = [e for e in read_events(write_preferences(tmp_path / "run")) if e["event"] != "end"]
    shown = panel(events)
    assert "held-out pairs told right 70.0%  margin 0.400 (0.300 to 0.500)" in shown
    assert "margin 0.20" in shown, "of the last batch, beside its loss"
    assert "bits per byte" not in shown
    assert f"{QUESTION} → b" in shown
    for width in (20, 40, 59, 60, 80):
        panel(events, width)
    first = [e for e in events if e["event"] != "preference"]
    assert "pairs told right 75.0% of the last batch" in panel(first)
    vague = read_events(write_preferences(tmp_path / "vague", reach=0.9))
    assert "no effect" in panel(vague)


def test_the_panel_shows_answers(tmp_path: Path) -> None:
    shown = panel(read_events(write_chats(tmp_path / "run", early=True)))
    assert "bits per byte of answers 1.6000" in shown
    assert "ended early: no gain" in shown


def test_a_stage_of_conversations_shows_their_answers_alone() -> None:
    shape = {"num_steps": 5, "batch_tokens": 1, "learning_rate": 1.0, "learning_rate_at_end": 0.0}
    mixtures = {"decay": {"prose": 0.5, "chats": 0.5}, "sft": {"chats": 1.0}}
    stages = [
        {"name": name, "first_step": 5 * place, "mixture": mixture, **shape}
        for place, (name, mixture) in enumerate(mixtures.items())
    ]
    kinds = {"prose": "text", "chats": "chats"}
    start = {"event": "start", "time": 0.0, "step": 0, "last_step": 10, "recipe": {}}
    each = {"prose": 3.0, "chats": 1.0}
    validation = {"event": "validation", "step": 5, "bits_per_byte": 2.0, "datasets": each}
    events = [{**start, "stages": stages, "data_kinds": kinds}, validation | {"time": 1.0}]
    assert "bits per byte of text and answers 2.0000" in panel(events)
    sft = {"event": "stage", "time": 2.0, "step": 5, "name": "sft"}
    assert "bits per byte of answers 1.0000" in panel([*events, sft])


def test_a_loss_of_pairs_begins_its_own_line() -> None:
    state = RunState()
    base = {"event": "step", "time": 0.0, "stage": "s", "tokens": 1, "learning_rate": 1e-4}
    for number in range(1, 21):
        fields = {"loss": 3.0} if number <= 10 else pairs_of(number)
        state.observe({**base, "grad_norm": 1.0, "step": number, **fields})
    assert [y for _, y in state.loss_history.points] == [0.6] * 10


# -- sinks --------------------------------------------------------------------------------------


def test_sinks_have_trl_s_tags() -> None:
    step = {"event": "step", "step": 3, "stage": "s", "tokens": 1, "grad_norm": 1.0}
    shown = scalars({**step, "learning_rate": 1e-4, **pairs_of(10)})
    # As TRL's DPOTrainer logs them, with the prefix that Transformers gives training's.
    assert {name: shown[name] for name in shown if "rewards/" in name or "logps/" in name} == {
        "train/rewards/chosen": -0.05,
        "train/rewards/rejected": -0.1,
        "train/rewards/margins": 0.05,
        "train/rewards/accuracies": 0.75,
        "train/logps/chosen": -9.0,
        "train/logps/rejected": -8.0,
    }
    single = score(10)
    single["margin"] = {"mean": 0.1, "low": None, "high": None}
    event = {"event": "preference", "step": 10, "loss": 0.64, "accuracy": 0.55}
    shown = scalars({**event, "datasets": {"pairs": single}})
    assert shown["validation/preference_loss"] == 0.64
    assert shown["validation/rewards/accuracies"] == 0.55
    assert shown["validation/rewards/margins/pairs"] == 0.1
    assert "validation/rewards/margins_low/pairs" not in shown


# -- laws ---------------------------------------------------------------------------------------


def test_tuned_runs_are_no_observations_of_a_law(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    stages = [{"name": "stable", "learning_rate": 1.0, "learning_rate_at_end": 0.0, "mixture": {}}]
    for directory, early in ((plain, False), (tmp_path / "early", True)):
        with Run(directory) as run:
            run.start(40, parameters=1000, stages=stages)
            run.steps(1, 40)
            run.write("validation", step=40, bits_per_byte=1.5, datasets={"prose": 1.5})
            if early:
                fields = {"measure": "bits_per_byte", "value": 1.4, "validations": 2}
                run.write("early_stop", step=40, **fields)
            run.write("end", step=40, final="final", bits_per_byte=1.5)
    others = [write_preferences(tmp_path / "pairs"), write_chats(tmp_path / "chats")]
    found = read_observations([plain, tmp_path / "early", *others])
    assert [row.where for row in found.rows] == [str(plain)]
    said = " ".join(found.warnings)
    for reason in ("learned preferences", "learned from conversations", "validation.patience"):
        assert reason in said


# -- what was trained -----------------------------------------------------------------------------


def test_trained_runs(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamita.planning.check import check_run
    from llamita.training import devices
    from tests.training.helpers import STABLE, cheap_matmul_rate, stage, tiny_recipe, trained
    from tests.training.tuned import build_tiny_chats, tuning_recipe

    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)
    constant = stage("stable", 1, {**STABLE, "warmup_tokens": 0})
    base = trained(tiny_recipe(tiny_data, stages=[constant]), tmp_path / "base").run / "final"
    data = build_tiny_chats(tmp_path, base)
    samples = {"prompts": [QUESTION], "chat": True, "max_tokens": 4, "temperature": 0}
    for kind, name in (("chats", "bits per byte"), ("pairs", "held-out pairs told right")):
        recipe = tuning_recipe(data, base, kind, steps=2, samples=samples)
        run = trained(recipe, tmp_path / f"run-{kind}").run
        assert "before, step 0" in section(run, "answers")
        assert "LoRA r=4 on down_proj, q_proj, v_proj: " in page(run).text
        check = check_run(run)
        assert check.finished
        assert check.lines()
        # Nothing that belongs to validation is counted among the steps.
        spent = {row.what.strip(): row.achieved for row in check.rows}
        assert spent["in validation"] is not None
        assert name in panel(read_events(run))
        lines = "\n".join(info(run))
        assert "LoRA r=4 on down_proj, q_proj, v_proj, alpha 8 (scale 2 = alpha/r)" in lines
        assert f"base        {base.resolve()}" in lines
        assert "turn ends   with '</s>'" in lines
    assert "of held-out pairs told right" in lines
    assert "adapter" not in "\n".join(info(base))
