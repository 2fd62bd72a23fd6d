"""Two processes that share a run compute what one computes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamita.recipes.loading import dump_recipe
from llamita.recipes.schema import Recipe
from llamita.reporting.events import read_events
from llamita.training.checkpoint import step_directories, verify_checkpoint
from tests.training.helpers import (
    losses,
    optimizer_tensors,
    snapshot,
    state,
    tiny_recipe,
    tiny_values,
    trained,
    weights,
)

SCRIPT = """
import math, os, sys
from pathlib import Path
from llamita.training import devices, loop
from llamita.training.objective import LossSum, NextToken
from llamita.training.run import train
from tests.training.helpers import cheap_matmul_rate, kill_after_step

devices.matmul_rate = cheap_matmul_rate
recipe, out, what = sys.argv[1:]
if what == "poison":
    loss_sum, take_step, taking = NextToken.loss_sum, loop.Trainer._step, 0

    def step(self, *arguments):
        global taking
        taking = self.position.step + 1
        take_step(self, *arguments)
        taking = 0

    def poisoned(self, model, batch):
        loss, reported, _ = loss_sum(self, model, batch)
        bad = math.nan if taking == 3 and os.environ["RANK"] == "1" else 1.0
        return LossSum(loss * bad, reported * bad)

    loop.Trainer._step, NextToken.loss_sum = step, poisoned
elif what.startswith("stop") and os.environ["RANK"] == "1":
    kill_after_step(int(what[4:]), 15)
train(Path(recipe), out=out)
"""


def torchrun(recipe: Recipe, out: Path, what: str = "", processes: int = 2) -> str:
    """Train under torchrun and gloo; returns what was printed."""
    folder = out.parent
    file, script = folder / "recipe.yaml", folder / "script.py"
    file.write_text(dump_recipe(recipe))
    script.write_text(SCRIPT)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"),
            *("--master-addr=127.0.0.1", f"--master-port={port}"),
            *(str(script), str(file), str(out), what),
        ],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    if not what.startswith("stop"):
        assert result.returncode == 0, result.stdout[-6000:]
    return result.stdout


def close(ours: Path, wanted: Path) -> None:
    """Losses, norms and rates of every step, weights and moments, up to float32's rounding."""
    told, expected = losses(ours), losses(wanted)
    assert told.keys() == expected.keys()
    for step, values in told.items():
        assert values == pytest.approx(expected[step], rel=1e-4), step
    last = max(step_directories(ours))
    assert last == max(step_directories(wanted))
    one, other = ours / f"step-{last}", wanted / f"step-{last}"
    verify_checkpoint(one)
    for tensors in (weights, optimizer_tensors):
        mine, theirs = tensors(one), tensors(other)
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.shape == theirs[name].shape, name
    for name, tensor in weights(one).items():
        assert float((tensor - weights(other)[name]).abs().max()) < 2e-3, name
    assert state(one)["cursor"] == state(other)["cursor"]


def two_rows(data: Path, **changes: Any) -> Recipe:
    """One micro-batch of two rows on each of two processes: the pairs that one process sums."""
    return tiny_recipe(data, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_two_processes_are_one(
    tiny_data: Path, tmp_path: Path, reference: Path, tied: bool
) -> None:
    changes: dict[str, Any] = {
        "samples": {"every_steps": 6, "prompts": ["the "], "max_tokens": 4},
    }
    if tied:
        changes["model"] = {
            **tiny_values(tiny_data)["model"],
            "tie_word_embeddings": True,
            "num_key_value_heads": 2,
        }
    recipe = two_rows(tiny_data, **changes)
    alone = reference
    if tied:
        alone = tmp_path / "alone"
        trained(recipe, alone)
    run = tmp_path / "run"
    output = torchrun(recipe, run)
    assert output.count("step 12/12") == 1, "every process talks"
    close(run, alone)
    first = losses(run)[1]
    assert first == pytest.approx(losses(alone)[1], rel=1e-5)
    kinds = [event["event"] for event in read_events(run)]
    assert kinds.count("sample") == 2
    # A finished run is finished for two processes as well.
    before = snapshot(run)
    assert "is done: 12 steps" in torchrun(recipe, run)
    assert snapshot(run) == before


@pytest.mark.slow
def test_begun_by_two_and_gone_on_by_one_and_by_two(
    tiny_data: Path, tmp_path: Path, reference: Path
) -> None:
    recipe = two_rows(tiny_data)
    run = tmp_path / "run"
    torchrun(recipe, run, "stop5")  # one process is asked, both stop
    assert max(step_directories(run)) == 5
    said: list[str] = []
    trained(recipe, run, say=said.append)
    close(run, reference)
    assert any("processes was 2, is 1" in line for line in said)
    other = tmp_path / "other"
    torchrun(recipe, other, "stop10")
    assert max(step_directories(other)) == 10
    torchrun(recipe, other)
    close(other, reference)


@pytest.mark.slow
def test_one_process_with_bad_numbers_makes_all_skip(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun(two_rows(tiny_data, checkpoints={"every_steps": 1, "keep_last": 20}), run, "poison")
    skipped = {e["step"]: e["skipped"] for e in read_events(run) if "skipped" in e}
    assert skipped == {3: "non_finite"}
    two, three = weights(run / "step-2"), weights(run / "step-3")
    assert all(bool((two[name] == three[name]).all()) for name in two)
    moments = optimizer_tensors(run / "step-12")
    assert all(bool(t.isfinite().all()) for t in moments.values() if t.is_floating_point())
    assert {float(t) for name, t in moments.items() if name.startswith("step.")} == {11.0}
