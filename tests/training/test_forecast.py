"""The plan that is written before the first step: where it stands, and what it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamita.architecture.counts import flops_per_token
from llamita.model.huggingface import read_config
from llamita.planning.check import check_run
from llamita.reporting.events import read_events
from llamita.training import forecast as forecasting
from llamita.training import judging
from llamita.training import probe as probing
from llamita.training import run as running
from llamita.training.loop import Trainer
from llamita.training.probe import Probe
from llamita.training.step import TrainingStep
from tests.training.helpers import (
    BATCH,
    DECAY,
    STABLE,
    assert_same_checkpoint,
    kill_at_call,
    losses,
    stage,
    tiny_recipe,
    train_in_process,
    trained,
)


def of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


def test_before_the_first_step(reference: Path) -> None:
    kinds = [event["event"] for event in read_events(reference)]
    assert kinds[:4] == ["start", "probe", "forecast", "validation"]
    assert kinds.index("forecast") < kinds.index("step")
    (found,) = of(reference, "forecast")
    config = read_config(reference / "final")
    assert (found["step"], found["last_step"], found["steps"]) == (0, 12, 12)
    assert found["tokens"] == 12 * BATCH
    assert found["flops"] == 12 * BATCH * flops_per_token(config, 32)
    assert found["seconds"] == pytest.approx(
        sum(part["seconds"] for part in found["parts"].values())
    )
    assert found["memory"]["total"] == sum(of(reference, "memory")[0]["estimate"].values())
    assert found["devices"] == 1
    assert found["predicted"] is None


def kill_at_first_step() -> None:
    kill_at_call(TrainingStep, "gradients", 1)


def test_it_outlives_a_process_that_dies_in_its_first_step(tiny_data: Path, tmp_path: Path) -> None:
    assert train_in_process(tiny_recipe(tiny_data), tmp_path / "run", kill_at_first_step) == -9
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in lines]
    assert "forecast" in kinds
    assert "step" not in kinds


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation": {"tokens": 300, "every_steps": 2}, "checkpoints": {"every_steps": 5}},
        {"checkpoints": {"every_steps": 5, "final": "best"}},
        {"checkpoints": {"final": "step-7"}},
        {"samples": {"every_steps": 5, "prompts": ["the ", "a"], "max_tokens": 2}},
    ],
)
def test_what_is_counted_is_what_happens(
    tiny_data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    trained(tiny_recipe(tiny_data, **changes), run)
    (found,) = of(run, "forecast")
    counts = {name: part["count"] for name, part in found["parts"].items()}
    assert counts.get("samples", 0) == len({event["step"] for event in of(run, "sample")})
    assert counts["validation"] == len(of(run, "validation"))
    assert counts["saving"] == len(of(run, "checkpoint"))
    # And of a process that goes on: a run of 12 steps that is made longer by 6.
    longer = [stage("stable", 8, STABLE), stage("decay", 4, DECAY), stage("more", 6, STABLE)]
    trained(tiny_recipe(tiny_data, **changes, stages=longer), run)
    more = {name: part["count"] for name, part in of(run, "forecast")[1]["parts"].items()}
    for name, kind in (("validation", "validation"), ("saving", "checkpoint")):
        assert more[name] == len([event for event in of(run, kind) if event["step"] > 12]), name


EMA = {"kind": "ema", "half_life_tokens": 500}


def test_seconds_by_hand(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 2 s and 0.5 s of update; the second stage's batches are twice as large."""

    def measured(trainer: Trainer, *, validates: bool, samples: bool) -> Probe:
        assert validates
        assert samples
        return Probe(trainer.plan.stages[0], 0.0, 2.0, 0.5, 0.25, 0.125, 1e-6)

    passes: list[int] = []
    scored = judging.score_text

    def counted(model: Any, text: Any, **named: Any) -> Any:
        with_hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
        score = scored(model, text, **named)
        with_hook.remove()
        return score

    monkeypatch.setattr(forecasting, "probe", measured)
    monkeypatch.setattr(judging, "score_text", counted)
    stages = [stage("stable", 4, STABLE), stage("decay", 4, DECAY, batch_tokens=2 * BATCH)]
    samples = {"every_steps": 2, "prompts": ["the ", "a", "b"], "max_tokens": 4}
    said: list[str] = []
    recipe = tiny_recipe(tiny_data, stages=stages, samples=samples, averaging=EMA)
    trained(recipe, tmp_path / "run", say=said.append)
    (found,) = of(tmp_path / "run", "forecast")
    assert [each["steps"] for each in found["stages"]] == [4, 2]
    assert [each["seconds"] for each in found["stages"]] == [4 * 2.5, 2 * 4.5]
    seconds = {name: part["seconds"] for name, part in found["parts"].items()}
    parameters = of(tmp_path / "run", "start")[0]["parameters"]
    # Weights, two moments and the average at steps 3, 4 and 6; final/ has the weights.
    saved = 1e-6 * 4 * parameters * (3 * 4 + 1)
    wanted = {"steps": 19, "validation": 0.25 * len(passes), "saving": saved, "samples": 4.5}
    assert seconds == pytest.approx(wanted)
    assert found["tokens_per_second"] == pytest.approx(8 * BATCH / 19)
    assert found["mfu"] == pytest.approx(found["flops"] / 19 / 1e11)
    (time,) = [line for line in said if line.startswith("  time ")]
    assert "about 2.5 s a step, 19s for the 6 steps to come; " in time
    assert "with validation, saving and samples" in time
    (probe,) = of(tmp_path / "run", "probe")
    assert (probe["step_seconds"], probe["rest_seconds"]) == (2.5, 19)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_measuring_leaves_the_run_alone(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With and without it the same bits: moments, average, guard and random state."""
    recipe = tiny_recipe(
        tiny_data,
        optimizer={"kind": kind, "learning_rate": 1e-2},
        averaging=EMA,
        samples={"every_steps": 3, "prompts": ["the "], "max_tokens": 3},
    )
    trained(recipe, tmp_path / "with")
    monkeypatch.setattr(running, "write_forecast", lambda trainer, environment: None)
    trained(recipe, tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert_same_checkpoint(tmp_path / "with" / "step-12", tmp_path / "without" / "step-12")


def test_a_disk_that_takes_nothing_is_told(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(probing.tempfile, "TemporaryFile", full)
    trained(tiny_recipe(tiny_data), tmp_path / "run")
    (found,) = of(tmp_path / "run", "forecast")
    assert "saving" not in found["parts"]
    assert "saving, which could not be measured" in found["left_out"]


def test_a_laws_prediction_is_written_down(tiny_data: Path, tmp_path: Path) -> None:
    predicted = {"law": "mine", "loss": 2.5, "loss_unit": "bits per byte", "comparable": True}
    predicted |= {"interval": [2.0, 3.0], "tokens": 12 * BATCH, "parameters": 1000}
    trained(tiny_recipe(tiny_data, predicted=predicted), tmp_path / "run")
    assert of(tmp_path / "run", "forecast")[0]["predicted"] == predicted


def test_a_real_run_is_checked(reference: Path) -> None:
    check = check_run(reference)
    rows = {row.what.strip(): row for row in check.rows}
    assert check.finished
    assert check.planned
    assert rows["steps"].planned == rows["steps"].achieved == 12
    assert rows["tokens"].difference == 0
    assert rows["arithmetic"].difference == 0
    events = read_events(reference)
    forecast = next(event for event in events if event["event"] == "forecast")
    assert rows["time"].achieved == pytest.approx(events[-1]["time"] - forecast["time"])
    assert rows["time"].planned == pytest.approx(forecast["seconds"])
    validation = [event for event in events if event["event"] == "validation"][-1]
    assert rows["validation"].achieved == validation["bits_per_byte"]
