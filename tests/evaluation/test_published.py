"""Published tables: every number as the facts have it, and what may be compared with what."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.evaluation.published import differs, published_names, published_table
from llamita.evaluation.suites import load_suite, suite_names
from tests.evaluation.test_results import score


def test_tinyllama_cell_by_cell(shared_dir: Path) -> None:
    """Against the table that was copied from arXiv 2401.02385, means included."""
    lines = (shared_dir / "facts" / "tinyllama.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    table = published_table("tinyllama")
    assert [each.label for each in table.tasks] == cells[0][1:-1]
    assert len(cells) == 2 + len(table.rows) == 12
    for row, facts in zip(table.rows, cells[2:], strict=True):
        assert row.model == facts[0].replace(" (unverified)", "")
        assert ("unverified" in facts[0]) == (row.note == "unverified")
        assert [f"{100 * each:.2f}" for each in row.scores] == facts[1:-1]
        assert row.mean is not None
        printed = re.findall(r"\d+\.\d+", facts[-1])
        assert f"{100 * row.mean:.2f}" == printed[-1]
        average = sum(row.scores) / 7
        assert 100 * average == pytest.approx(float(printed[0]), abs=0.0051)


def test_tinyllama_knows_its_tokens() -> None:
    """A checkpoint's name says what it was trained on."""
    units = {"B": 1e9, "T": 1e12}
    for name in ("tinyllama", "instructeval"):
        for row in published_table(name).rows:
            said = re.fullmatch(r"TinyLlama ([0-9.]+)([BT])", row.model)
            tokens = float(said[1]) * units[said[2]] if said else None
            assert row.tokens == tokens
            assert row.of == ("TinyLlama" if said else None)


def test_instructeval_and_minicpm_cell_by_cell(shared_dir: Path) -> None:
    words = (shared_dir / "facts" / "tinyllama.md").read_text()
    line = next(each for each in words.splitlines() if each.startswith("InstructEval"))
    facts = re.findall(r"((?:[0-9.]+/){3}[0-9.]+)", line.partition("):")[2])
    rows = published_table("instructeval").rows
    assert ["/".join(f"{100 * each:.2f}" for each in row.scores) for row in rows] == [
        each.rstrip(".") for each in facts
    ]
    words = (shared_dir / "facts" / "minicpm.md").read_text()
    line = next(each for each in words.splitlines() if each.startswith("Decay ablation"))
    facts = re.findall(r"((?:[0-9.]+/){6}[0-9.]+)", line)
    table = published_table("minicpm")
    assert ["/".join(f"{100 * each:.1f}" for each in row.scores) for row in table.rows] == facts
    assert "/".join(each.label for each in table.tasks) in line


def test_every_suite_finds_its_table_and_every_column_its_task() -> None:
    """A column of a name that no suite measures would stay empty for ever."""
    assert published_names() == ["instructeval", "minicpm", "tinyllama"]
    for name in suite_names():
        suite = load_suite(name)
        assert suite.published is not None
        wanted = {each.name: each for each in suite.tasks}
        for column in published_table(suite.published).tasks:
            task = wanted[column.task]
            assert column.metric in (None, *task.metrics)
            assert column.num_fewshot in (None, task.num_fewshot)
    with pytest.raises(UserError, match="Did you mean 'tinyllama'"):
        published_table("tinylama")


def test_what_may_be_compared() -> None:
    table = published_table("tinyllama")
    hellaswag, winogrande = table.tasks[0], table.tasks[2]
    whole = score(available=4)
    assert differs(whole, hellaswag, table) == ""
    assert differs(replace(whole, num_fewshot=10), hellaswag, table) == "10 shots, there 0"
    assert differs(score(), hellaswag, table) == "only some of its items"
    ours = replace(whole, harness="llamita 0.1.0")
    assert differs(ours, hellaswag, table) == "not asked by lm-evaluation-harness"
    other = published_table("instructeval")
    assert "another harness" in differs(whole, other.tasks[0], other)
    # WinoGrande counts by acc: its acc_norm is not what the paper has.
    scores = (replace(whole, task="winogrande"), replace(whole, task="winogrande", metric="acc"))
    assert table.chosen(scores)[2] == scores[1]
    assert table.chosen(scores)[0] is None
    assert winogrande.metric == "acc"


def test_the_wheel_gets_them() -> None:
    """hatchling packs all of src/llamita but what git ignores."""
    root = Path(__file__).parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert wheel == {"targets": {"wheel": {"packages": ["src/llamita"]}}}
    places = [
        root / "src" / "llamita" / "evaluation" / "published" / f"{name}.yaml"
        for name in published_names()
    ]
    assert all(each.is_file() for each in places)
    if shutil.which("git") and (root / ".git").exists():
        command = ["git", "-C", str(root), "check-ignore", *map(str, places)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
