"""The quickstart from end to end on a library of forty small modules, and what it settles."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.corpus import sentences

from llamita.architecture.counts import flops_per_token
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import open_dataset
from llamita.model.huggingface import load_model
from llamita.recipes.loading import load_recipe
from llamita.recipes.schema import Recipe
from llamita.starter import corpus, judgement, questioning, questions
from llamita.starter import quickstart as command
from llamita.starter.corpus import standard_library_files, write_corpus
from llamita.training import devices
from llamita.training.preparation import prepare

FUNCTION = '''
def name_{0}(first, second=None, *rest):
    """{1}

    {2}
    """
    total = [first, second, *rest]
    return total[{0}]
'''
TINY = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "sequence_length=128",
    "batch_tokens=256",
    "stages.0.tokens=3072",
    "stages.0.schedule.warmup_tokens=512",
    "stages.1.tokens=2048",
    "stages.2.tokens=1024",
    "checkpoints.every_steps=5",
    "validation={tokens: 256}",
    "samples={prompts: []}",
    "runtime.compile=never",
    "runtime.threads=1",
    "runtime.dtype=float32",
]
RATE = 1e9


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for module in range(40):
        functions = (
            FUNCTION.format(
                4 * module + n,
                f"Return what the function numbered {4 * module + n} is there for.",
                sentences(4 * module + n, 3),
            )
            for n in range(4)
        )
        (folder / f"module_{module}.py").write_text("".join(functions))
    return folder


@pytest.fixture
def small(library: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The quickstart on that library, with little of everything, on a machine of known speed."""
    files = list(standard_library_files(library))

    def collect(out: Path) -> Any:
        return write_corpus(files, [], out)

    monkeypatch.setattr(corpus, "collect_python_corpus", collect)
    write = partial(questions.write_questions, files=files)
    monkeypatch.setattr(command, "write_questions", write)
    monkeypatch.setattr(command, "VOCAB_SIZE", 400)
    monkeypatch.setattr(command, "_VALIDATION", 0.1)
    monkeypatch.setattr(command, "_FEWEST_PAIRS", 100)
    monkeypatch.setattr(command, "_STEPS_ROUNDED_TO", 6)
    monkeypatch.setattr(command, "settle_recipe", partial(command.settle_recipe, overrides=TINY))
    monkeypatch.setattr(devices, "matmul_rate", lambda *_: RATE)
    monkeypatch.setattr(judgement, "_SAMPLE_TOKENS", 4)
    monkeypatch.setattr(judgement, "_SAMPLES_A_PROMPT", 1)
    asking = partial(questioning.judge_answers, num_asked=3)
    monkeypatch.setattr(questioning, "judge_answers", asking)
    return monkeypatch


def minutes_for(recipe: Recipe, tokens: int) -> float:
    each = flops_per_token(prepare(recipe).config, recipe.sequence_length)
    return tokens * each / (60 * RATE * command._EXPECTED_MFU["bfloat16"])


def bits_of_answers(model: Any, stream: PackedStream) -> float:
    """Bits per byte of held-out answers, each conversation alone, from logits."""
    nats = num_bytes = 0.0
    for number in range(stream.num_documents):
        tokens = torch.from_numpy(np.asarray(stream.document(number), dtype=np.int64))
        with torch.no_grad():
            logits = model(tokens[None])[0].double()
        losses = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        nats += float(losses[torch.from_numpy(stream.learns(number)[1:])].sum())
        num_bytes += stream.document_bytes(number)
    return nats / math.log(2) / num_bytes


def test_from_a_library_to_answers(small: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, said = tmp_path / "quickstart", []
    summary = command.quickstart(folder, minutes=1e-3, say=said.append)
    assert json.loads((folder / "summary.json").read_text()) == summary
    rows = summary["bits_per_byte"]
    assert list(rows)[:2] == ["this model", "before its stage tune"]
    assert all(set(row) == {"prose", "code", "together"} for row in rows.values())
    assert rows["this model"] != rows["before its stage tune"]
    answers = summary["answers"]
    assert list(answers["stages"]) == ["stable", "decay", "tune"]
    held_out = open_dataset(folder / "data" / "questions").validation
    assert isinstance(held_out, PackedStream)
    for stage, steps in (("stable", 3), ("decay", 5), ("tune", 6)):
        state = json.loads((folder / f"run/step-{steps}/training/state.json").read_text())
        assert state["step"] == steps
        model = load_model(folder / f"run/step-{steps}").eval()
        expected = bits_of_answers(model, held_out)
        assert answers["stages"][stage]["bits_per_byte"] == pytest.approx(expected, rel=1e-4)
        assert answers["stages"][stage]["in_form"]["total"] == 3
    asked = answers["questions"]
    held_files = {q.file for q in questions.read_questions(folder / "questions/held-out.jsonl")}
    assert {question["file"] for question in asked} <= held_files
    assert all(set(question["replies"]) == {"stable", "decay", "tune"} for question in asked)
    text = "\n".join(said)
    assert "in form: all four" in text
    assert f"llamita generate {folder / 'run'} --chat" in text
    assert "docs/tune.md" in text
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.ds*") if path.name != ".lock"}
    before = (folder / "questions" / "train.jsonl").stat().st_mtime_ns
    command._make_data(folder, said.append)
    assert (folder / "questions" / "train.jsonl").stat().st_mtime_ns == before
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_a_library_without_questions_gives_text_alone(
    small: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small.setattr(command, "_FEWEST_PAIRS", 10_000)
    said: list[str] = []
    command._make_data(tmp_path, said.append)
    assert "training goes on with text alone" in said[-1]
    recipe = command.settle_recipe(tmp_path, 1e-3, said.append)
    assert set(recipe.datasets) == {"prose", "code"}
    assert [stage.name for stage in recipe.stages] == ["stable", "decay"]
    assert recipe.stages[1].mixture == recipe.stages[0].mixture == {"prose": 0.7, "code": 0.3}
    assert [*judgement.stage_ends(tmp_path, recipe)] == ["stable", "decay"]
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_stages_grow_together_until_data_would_be_read_too_often(
    small: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command._make_data(tmp_path, lambda _: None)

    def settled(minutes: float) -> Recipe:
        (tmp_path / "recipe.yaml").unlink(missing_ok=True)
        found: Recipe = command.settle_recipe(tmp_path, minutes, lambda _: None)
        return found

    least = settled(1e-6)
    unit = 6 * least.batch_tokens
    assert sum(stage.tokens for stage in least.stages) == unit
    more = settled(minutes_for(least, 4 * unit))
    assert [s.tokens for s in more.stages] == [4 * s.tokens for s in least.stages]
    assert [s.tokens for s in more.stages] == [2 * 1024 * n for n in (1.5, 1, 0.5)]
    most = prepare(settled(1e6)).plan
    read = max(after for stage in most.stages for _, after in stage.epochs.values())
    assert 0.8 * command._MOST_EPOCHS < read <= command._MOST_EPOCHS * 1.01
    assert command.settle_recipe(tmp_path, 1.0, lambda _: None) == most.recipe
