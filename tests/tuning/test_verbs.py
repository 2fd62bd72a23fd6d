"""`tune` and `align`: what they make of flags, data and a MODEL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import llamita
from llamita.cli import app
from llamita.errors import UserError
from llamita.model.adapter_directory import is_adapter, read_adapter
from llamita.planning.plan import TrainingPlan
from llamita.recipes.loading import load_recipe
from llamita.recipes.schema import Recipe
from llamita.reporting.events import read_events
from llamita.training import devices
from llamita.tuning.settings import batch_rows, row_length
from tests.training.helpers import cheap_matmul_rate, quiet
from tests.training.tuned import write_base, write_chats, write_pairs

TINY = ["runtime.compile=never", "runtime.threads=1", "runtime.dtype=float32"]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def written(run: Path) -> Recipe:
    return load_recipe(run / "recipe.yaml")


def tune(base: Path, data: Path, out: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"say": quiet, "overrides": TINY, "epochs": 1.0} | changes
    return llamita.tune(base, data, out=out, **settings)


def test_tune_then_align_then_fold(base: Path, tmp_path: Path) -> None:
    """The whole way: conversations, preferences on the same adapter, one model of it."""
    chats, pairs = write_chats(tmp_path / "c.jsonl"), write_pairs(tmp_path / "p.jsonl")
    tuned = tune(base, chats, tmp_path / "tuned", prompts=["what is 3?"], rank=4)
    recipe = written(tuned.run)
    assert recipe.adapter is not None
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (4, 8)
    assert recipe.optimizer.learning_rate == 2e-4
    assert recipe.sequence_length == 128
    aligned = llamita.align(tuned.run, pairs, out=tmp_path / "aligned", say=quiet, overrides=TINY)
    lora, record = read_adapter(aligned.final)
    assert lora.rank == 4
    assert (aligned.final / record.path).resolve() == base.resolve()
    assert written(aligned.run).optimizer.learning_rate == 1e-5
    first = next(e for e in read_events(aligned.run) if e["event"] == "step")
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    llamita.export_model(aligned.run, tmp_path / "folded", say=quiet)
    assert not is_adapter(tmp_path / "folded")
    text = "".join(
        llamita.generate(tmp_path / "folded", "what is 3?", chat=True, max_tokens=5, temperature=0)
    )
    again = "".join(
        llamita.generate(aligned.run, "what is 3?", chat=True, max_tokens=5, temperature=0)
    )
    assert text == again


def test_the_same_call_is_done(base: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "c.jsonl")
    tune(base, chats, tmp_path / "run")
    said: list[str] = []
    tune(base, chats, tmp_path / "run", say=said.append)
    assert any("is done" in line for line in said)
    assert any("reused" in line or "unchanged" in line for line in said)


def test_dry_run_keeps_nothing(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    chats = write_chats(tmp_path / "c.jsonl")
    plan = tune(base, chats, tmp_path / "run", dry_run=True, say=said.append)
    assert isinstance(plan, TrainingPlan)
    assert not (tmp_path / "run").exists()
    text = "\n".join(said)
    assert "LoRA r=16 on all linear layers" in text
    assert "memory" in text


def test_all_parameters_start_where_the_run_ended(base: Path, tmp_path: Path) -> None:
    """MiniCPM's order of things: fine-tuning goes on at the end-of-anneal rate."""
    training = base / "training"
    training.mkdir()
    values = {"parametrization": "llama", "learning_rate": 3e-4}
    (training / "provenance.json").write_text(json.dumps(values))
    run = tune(base, write_chats(tmp_path / "c.jsonl"), tmp_path / "run", learn="all").run
    recipe = written(run)
    assert recipe.adapter is None
    assert recipe.optimizer.learning_rate == 3e-4
    assert (run / "final" / "model.safetensors").is_file()
    assert (run / "final" / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn": "all", "quantize": "nf4"}, "weights in so few bits cannot learn"),
        ({"learn": "all", "rank": 4}, "--rank: of an adapter"),
        ({"learn": "some"}, "write lora or all"),
        ({"epochs": 0.0}, "--epochs 0"),
        ({"targets": ["q_prj"]}, "no projection 'q_prj'"),
        ({"quantize": "int3"}, "int3"),
        ({"template": "nonsense"}, "nonsense"),
    ],
)
def test_bad_flags(base: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune(base, write_chats(tmp_path / "c.jsonl"), tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_full_training_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "c.jsonl")
    tuned = tune(base, chats, tmp_path / "tuned").run
    with pytest.raises(UserError, match="fold it into its base first"):
        tune(tuned, chats, tmp_path / "run", learn="all")


def test_row_length_and_batch() -> None:
    assert row_length(100, 2048) == 128
    assert row_length(600, 2048) == 1024
    assert row_length(600, 512) == 512
    assert row_length(600, 8192, group=2) == 2048
    assert batch_rows(10_000, 512, 3.0) == 128  # capped at 65,536 tokens
    assert batch_rows(100, 512, 1.0) == 4  # at least 2,048 tokens
    assert batch_rows(3, 512, 1.0) == 2  # no more than there are


def test_command_line(base: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "c.jsonl")
    arguments = ["tune", str(base), "--data", str(chats), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--dry-run", "--targets", "q_proj,v_proj"])
    assert result.exit_code == 0, result.output
    assert "LoRA r=16 on q_proj, v_proj" in result.output
