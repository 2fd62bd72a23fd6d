"""The commands of docs/plan.md and of README.md print what is shown there. A line of `…` stands for
lines left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamita.cli import app

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"```\n\$ llamita ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)```", re.S)


def _blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(_BLOCK, (ROOT / page).read_text(encoding="utf-8"))


BLOCKS = [*_blocks("docs/plan.md"), *_blocks("docs/laws.md"), *_blocks("README.md")]
# What these print depends on the machine or on a run: they are shown once.
_MEASURED = ("--check", "--hardware cpu", "--hardware quickstart", "law fit")


def _pattern(shown: str) -> re.Pattern[str]:
    parts = [re.escape(part) for part in re.split(r"^…\n", shown, flags=re.M)]
    return re.compile(r"(?:.*\n)*?".join(parts))


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_the_page_shows_what_is_printed(
    command: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command.replace("\\\n", " ")
    if any(word in command for word in _MEASURED):
        pytest.skip("depends on the machine or on a run")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert _pattern(shown).fullmatch(result.output), result.output


def test_six_questions() -> None:
    assert len(_blocks("docs/plan.md")) >= 6
