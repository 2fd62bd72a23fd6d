"""The command line as a person meets it: whole commands in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.corpus import sentences, write_records


def llamita(*arguments: str | Path, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamita", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=300)


def refused(*arguments: str | Path, where: Path | None = None) -> str:
    """The one message of a command that the user got wrong."""
    found = llamita(*arguments, where=where)
    assert found.returncode == 1, found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.startswith("llamita: ")
    return found.stderr


RECIPE = """
name: small
model:
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 1
  num_attention_heads: 2
  max_position_embeddings: 64
sequence_length: 32
batch_tokens: 128
optimizer: {learning_rate: 1e-2}
datasets:
  text: {path: data/text, max_epochs: 50}
stages:
  - {name: all, tokens: 640, mixture: {text: 1.0}}
validation: {tokens: 200}
runtime: {device: cpu, dtype: float32, compile: never}
"""

WHERE = ("--where", "lang == en", "--validation", "0.1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's way was walked: text, tokenizer, data, run."""
    folder = tmp_path_factory.mktemp("project")
    records = [{"text": sentences(i, 4), "lang": "en" if i % 4 else "xx"} for i in range(200)]
    write_records(folder / "text.jsonl", records)
    (folder / "recipe.yaml").write_text(RECIPE)
    steps: list[tuple[str, ...]] = [
        ("tokenizer", "train", "text.jsonl", "--out", "tok", "--vocab-size", "400"),
        (
            "data",
            "build",
            "text.jsonl",
            "--out",
            "data/text",
            "--tokenizer",
            "tok",
            "--where",
            "lang == en",
            "--validation",
            "0.1",
        ),
        ("train", "recipe.yaml"),
    ]
    for step in steps:
        found = llamita(*step, where=folder)
        assert found.returncode == 0, found.stderr
    return folder


def test_importing_llamita_imports_nothing_heavy() -> None:
    probe = (
        "import sys, llamita, llamita.cli;"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'tokenizers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_every_function_of_the_package_can_be_had() -> None:
    import llamita as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = package.trian


def test_where_keeps_only_what_it_says(project: Path) -> None:
    manifest = json.loads((project / "data/text/manifest.json").read_text())
    assert manifest["counts"]["filtered"] == 50


def test_the_run_is_a_model_that_writes(project: Path) -> None:
    arguments = ("generate", "runs/small", "the ", "--max-tokens", "8", "--seed", "3")
    first, second = llamita(*arguments, where=project), llamita(*arguments, where=project)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the ")
    assert len(first.stdout.strip()) > len("the")
    assert first.stdout == second.stdout


def test_a_prompt_comes_from_standard_input(project: Path) -> None:
    command = [sys.executable, "-m", "llamita", "generate", "runs/small", "-", "--max-tokens", "2"]
    found = subprocess.run(command, input="the ", capture_output=True, text=True, cwd=project)
    assert found.stdout.startswith("the ")


def test_training_again_says_that_it_is_done(project: Path) -> None:
    found = llamita("train", "recipe.yaml", where=project)
    assert found.returncode == 0
    assert "is done: 5 steps" in found.stdout


def test_info_tells_shape_and_provenance(project: Path) -> None:
    found = llamita("info", "runs/small", where=project).stdout
    assert "1 layers, hidden 32" in found
    assert "step 5, 640 tokens" in found
    assert "BOS '<s>' = 0" in found


def test_data_show_prints_tree_and_samples(project: Path) -> None:
    found = llamita("data", "show", "data/text=1", "--tokens", "1e4", where=project).stdout
    assert "epochs" in found
    assert "⟨s⟩" in found or "⟨/s⟩" in found


@pytest.mark.parametrize("recipe", ["tinyllama-1.1b", "minicpm-1.2b", "minicpm-2.4b"])
def test_a_dry_run_writes_nothing(recipe: str, tmp_path: Path) -> None:
    found = llamita("train", recipe, "--dry-run", where=tmp_path)
    assert found.returncode == 0, found.stderr
    counts = {
        "tinyllama-1.1b": "1,100,048,384 parameters",
        "minicpm-1.2b": "1,247,442,432 without embeddings",
        "minicpm-2.4b": "2,442,057,984 without embeddings",
    }
    assert counts[recipe] in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_tinyllama_s_dry_run_says_what_the_paper_says(tmp_path: Path) -> None:
    found = llamita("train", "tinyllama-1.1b", "--dry-run", where=tmp_path).stdout
    assert "7.314 GFLOP a token at T = 2,048" in found
    assert "1,430,512 steps of 1024 × 2,048" in found
    assert "micro-batch 8 × 2,048" in found
    planned = llamita("plan", "tinyllama-1.1b", "--hardware", "16xa100-40", where=tmp_path).stdout
    own = next(line for line in planned.splitlines() if line.split()[:2] == ["16", "8"])
    assert own.split()[-1] == "yes"  # its authors trained 8 rows a pass on 16 cards of 40 GB


def test_wrong_input_is_one_plain_message(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "x.txt").write_bytes(b"\0" * 100)
    cases = {
        "no such file": ("train", "nonsense"),
        "Did you mean 'tokens'": ("train", "recipe.yaml", "--set", "stages.0.tokns=3"),
        "KEY=VALUE": ("train", "recipe.yaml", "--set", "stages.0.tokens"),
        "device 'gpu'": ("train", "recipe.yaml", "--out", "r2", "--set", "runtime.device=gpu"),
        "top_p 3": ("generate", "runs/small", "x", "--top-p", "3"),
        "shorten the prompt": ("generate", "runs/small", "the " * 200),
        "nowhere": ("generate", "nowhere", "x"),
        "DIR=SHARE": ("data", "show", "data/text=much"),
        "nothing-there": ("data", "build", "nothing-there", "--out", "d", "--tokenizer", "tok"),
        "chat-template": (
            "tokenizer",
            "train",
            "text.jsonl",
            "--out",
            "t",
            "--chat-template",
            "missing.jinja",
        ),
    }
    for expected, arguments in cases.items():
        message = refused(*arguments, where=project)
        assert expected in message, message
    build = ("data", "build", tmp_path / "bin", "--out", tmp_path / "d")
    assert "x.txt" in refused(*build, "--tokenizer", project / "tok")
    assert not (tmp_path / "d").exists()
