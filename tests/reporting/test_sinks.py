"""Each sink, read back with its own package's reader or from its file, equals events.jsonl.

Runs are written in processes of their own, one of which dies, as in life; the packages keep
state of the process besides.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.recipes.loading import check_recipe
from llamita.reporting import sinks

Event = dict[str, Any]
Series = dict[str, list[tuple[int, float]]]

SAMPLE = {"prompt": "The cat", "text": " sat\non ``` the **mat**."}
RECIPE = {
    "name": "tiny",
    "optimizer": {"learning_rate": 4e-3},
    "samples": {"prompts": ["A dog", "The cat"]},
}
DRIVER = """
import json, os, sys
from pathlib import Path
from llamita.reporting.sinks import make_sinks
from llamita.training.telemetry import EventLog

run, names, dies, events = Path(sys.argv[1]), sys.argv[2:-1], sys.argv[-1] == "dies", sys.stdin
run.mkdir(exist_ok=True)
log = EventLog(run / "events.jsonl", make_sinks(names, run))
for event in json.load(events):
    log.write(event.pop("event"), **event)
    if event.pop("flush", False) or "mfu" in event:
        log.flush()
if dies:
    os._exit(9)
log.close()
"""


def needs(package: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    reason = f"{package} is not installed: pip install 'llamita[{package}]'"
    return pytest.mark.skipif(absent, reason=reason)


def steps(first: int, last: int, shift: float = 0.0) -> Iterator[Event]:
    """Every step, a report each four, a validation and a sample each eight."""
    for n in range(first, last + 1):
        step = {"event": "step", "step": n, "stage": "stable", "tokens": 64 * n}
        step |= {"learning_rate": 1e-3 / n, "loss": 5.0 / n + shift, "grad_norm": 0.1 * n}
        yield step | ({"skipped": "spike"} if n == 6 else {})
        if n % 4 == 0:
            progress = {"tokens_per_second": 1e4 + n, "mfu": 0.25, "data_wait": 0.001 * n}
            yield {"event": "progress", "step": n, "memory_bytes": 10**9 + n, **progress}
        if n % 8 == 0:
            each = {"prose": 2.0 / n, "code": 1.0 / n + shift}
            yield {"event": "validation", "step": n, "bits_per_byte": 1.5 / n, "datasets": each}
            yield {"event": "sample", "step": n, **SAMPLE}


def write(run: Path, names: list[str], events: list[Event], *, dies: bool = False) -> None:
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(run.parent / "trackio"),
        "HOME": str(run.parent),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }
    arguments = [sys.executable, "-c", DRIVER, str(run), *names, "dies" if dies else "closes"]
    done = subprocess.run(
        arguments,
        input=json.dumps(events),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (9 if dies else 0), done.stderr
    assert "sink_failed" not in (run / "events.jsonl").read_text(), done.stdout


def write_interrupted(run: Path, name: str, *, dies: bool = True) -> None:
    """16 steps, the last four after the checkpoint and lost; then on from step 12 to 24."""
    start = {"event": "start", "step": 0, "recipe": RECIPE}
    saved = {"event": "checkpoint", "step": 12, "path": "step-12", "flush": True}
    lost = list(steps(13, 16, shift=7.0))
    write(run, [name], [start, *steps(1, 12), saved, *lost], dies=dies)
    resume = {"event": "resume", "step": 12, "recipe": RECIPE}
    nan = {"event": "step", "step": 25, "stage": "stable", "tokens": 1600, "loss": "nan"}
    odd = {**nan, "grad_norm": "inf", "learning_rate": 0.0, "skipped": "non_finite"}
    write(run, [name], [resume, *steps(13, 24), odd])


def told(run: Path) -> Series:
    """What events.jsonl says, read here line by line: the second account of a step stands."""
    found: dict[tuple[str, int], float] = {}
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "resume":
            found = {key: value for key, value in found.items() if key[1] <= event["step"]}
        if event["event"] == "step":
            for key in ("loss", "grad_norm", "learning_rate", "tokens"):
                found[f"train/{key}", event["step"]] = float(event[key])
            found["train/skipped", event["step"]] = 1.0 if "skipped" in event else 0.0
        if event["event"] == "progress":
            for key in ("tokens_per_second", "mfu", "memory_bytes", "data_wait"):
                found[f"speed/{key}", event["step"]] = event[key]
        if event["event"] == "validation":
            found["validation/bits_per_byte", event["step"]] = event["bits_per_byte"]
            for name, value in event["datasets"].items():
                found[f"validation/bits_per_byte/{name}", event["step"]] = value
    series: Series = defaultdict(list)
    for (tag, number), value in found.items():
        series[tag].append((number, value))
    return dict(series)


def assert_same(ours: Series, wanted: Series, *, single: bool = False) -> None:
    """single: stored as 32-bit floats."""
    assert ours.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert [step for step, _ in ours[tag]] == [step for step, _ in points], tag
        for (_, value), (_, right) in zip(ours[tag], points, strict=True):
            shown = struct.unpack("f", struct.pack("f", right))[0] if single else right
            assert value == shown or (math.isnan(value) and math.isnan(right)), tag


# -- TensorBoard --------------------------------------------------------------------------------


def tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(accumulator: Any) -> Series:
    tags = accumulator.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


@needs("tensorboard")
def test_tensorboard_equals_the_events_across_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_interrupted(run, "tensorboard")
    accumulator = tensorboard(run / "tensorboard")
    assert_same(scalars(accumulator), told(run), single=True)
    texts = accumulator.Tensors("samples/1/text_summary")
    assert [text.step for text in texts] == [8, 16, 24]
    shown = texts[0].tensor_proto.string_val[0].decode()
    assert shown == "```\nThe cat sat\non ``` the **mat**.\n```", "the second prompt, verbatim"
    assert "learning_rate: 0.004" in str(accumulator.Tensors("recipe/text_summary"))
    times = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    first = next(event["time"] for event in times if event["event"] == "step")
    assert accumulator.Scalars("train/loss")[0].wall_time == first


@needs("tensorboard")
def test_tensorboard_by_tokens(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_interrupted(run, "tensorboard")
    ours = scalars(tensorboard(run / "tensorboard" / "by_tokens"))
    wanted = told(run)
    tokens = {step: int(count) for step, count in wanted["train/tokens"]}
    assert_same(
        ours,
        {
            "by_tokens/loss": [(tokens[n], loss) for n, loss in wanted["train/loss"]],
            "by_tokens/bits_per_byte": [
                (tokens[n], value) for n, value in wanted["validation/bits_per_byte"]
            ],
        },
        single=True,
    )


@needs("tensorboard")
def test_a_sink_that_joins_later_gets_the_history(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = {"event": "start", "step": 0, "recipe": RECIPE}
    write(run, [], [start, *steps(1, 12)])
    resume = {"event": "resume", "step": 8, "recipe": RECIPE}
    write(run, ["tensorboard"], [resume, *steps(9, 16, shift=1.0)])
    assert_same(scalars(tensorboard(run / "tensorboard")), told(run), single=True)


@needs("tensorboard")
def test_replay_and_a_run_that_starts_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = {"event": "start", "step": 0, "recipe": RECIPE}
    write(run, ["tensorboard"], [start, *steps(1, 20, shift=3.0)])
    (run / "events.jsonl").unlink()
    write(run, [], [start, *steps(1, 12)])
    sinks.replay(run, sinks.make_sinks(["tensorboard"], run))
    assert_same(scalars(tensorboard(run / "tensorboard")), told(run), single=True)
    with pytest.raises(UserError, match="not the directory of a run"):
        sinks.replay(tmp_path, [])


# -- trackio ------------------------------------------------------------------------------------


@needs("trackio")
def test_trackio_equals_the_events_across_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_interrupted(run, "trackio")
    (database,) = (tmp_path / "trackio").glob("llamita*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        lines = [(name, step, json.loads(text)) for name, step, text in rows]
        (config,) = connection.execute("SELECT config FROM configs").fetchone()
    assert {name for name, _, _ in lines} == {
        json.loads((run / "trackio.json").read_text())["name"]
    }
    ours: Series = defaultdict(list)
    texts = []
    for _, step, values in lines:
        for tag, value in values.items():
            if tag.startswith("samples/"):
                texts.append((tag, step, value))
            elif tag != "train/tokens" or "train/loss" in values:  # beside others it is an axis
                ours[tag].append((step, float(value)))
    assert_same(ours, told(run))
    assert [(tag, step) for tag, step, _ in texts] == [("samples/1", n) for n in (8, 16, 24)]
    assert "sat\\non ``` the **mat**." in json.dumps(texts[0][2])
    assert json.loads(config)["optimizer.learning_rate"] == 0.004


@needs("trackio")
def test_trackio_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/somewhere")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID is set; unset it"):
        sinks.check_sinks(["trackio"])


# -- wandb --------------------------------------------------------------------------------------


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (7 bytes of header, blocks of 32 KiB,
    pieces of CRC, length and type) around wandb's own protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    place, held = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            place += left
            continue
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(held)
            held = b""
            yield record


@needs("wandb")
@pytest.mark.parametrize("dies", [False, True])
def test_wandb_offline_equals_the_events_across_a_resume(tmp_path: Path, dies: bool) -> None:
    run = tmp_path / "run"
    write_interrupted(run, "wandb", dies=dies)
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime)
    assert len(files) == 2, "one for each process"
    rows, identities = [], set()
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                identities.add((record.run.run_id, record.run.project))
            if record.HasField("history"):
                items = record.history.item
                names = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.append(names)
    assert identities == {(json.loads((run / "wandb-run.json").read_text())["id"], "llamita")}
    # The second account of a step has the higher attempt, and stands.
    latest: dict[tuple[str, int], tuple[int, float]] = {}
    texts = []
    for row in rows:
        for tag, value in row.items():
            if tag.startswith("samples/"):
                texts.append((row["step"], row["attempt"], value))
            elif "/" in tag and (tag != "train/tokens" or "train/loss" in row):
                latest[tag, row["step"]] = (row["attempt"], float(value))
    assert {attempt for attempt, _ in latest.values()} == ({1} if dies else {0, 1})
    wanted = told(run)
    ours: Series = {tag: [] for tag in wanted}
    for (tag, step), (_, value) in sorted(latest.items(), key=lambda item: item[0][1]):
        ours[tag].append((step, value))
    assert_same(ours, wanted)
    assert texts[0] == (8, int(dies), "The cat sat\non ``` the **mat**.")


# -- asked for wrongly --------------------------------------------------------------------------


def recipe_with(track: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": "llamita-5m",
        "sequence_length": 64,
        "batch_tokens": 64,
        "optimizer": {"learning_rate": 1e-3},
        "datasets": {"prose": "data/prose"},
        "stages": [{"name": "only", "tokens": 640, "mixture": {"prose": 1.0}}],
        "track": track,
    }


def test_a_recipe_names_known_sinks() -> None:
    assert check_recipe(recipe_with(["wandb", "tensorboard"]), "r").track == [
        "wandb",
        "tensorboard",
    ]
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        check_recipe(recipe_with(["tensorbord"]), "r")
    with pytest.raises(UserError, match="named once"):
        check_recipe(recipe_with(["wandb", "wandb"]), "r")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[trackio\]'"):
        sinks.check_sinks(["trackio"])
