"""`tune` and `align` with an evaluation file of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamita.cli import app
from llamita.errors import UserError
from llamita.training import devices
from tests.training.helpers import cheap_matmul_rate
from tests.training.tuned import write_base, write_chats, write_pairs


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)
    return write_base(tmp_path / "base")


def run(verb: str, base: Path, data: Path, *options: str) -> str:
    out = str(base.parent / "run")
    given = [verb, str(base), "--data", str(data), "--out", out, "--dry-run", *options]
    found = CliRunner().invoke(app, given)
    if found.exception is not None:
        raise found.exception
    return found.stdout


@pytest.mark.parametrize(
    ("verb", "write", "what"), [("tune", write_chats, "chats"), ("align", write_pairs, "pairs")]
)
def test_all_of_the_file_and_it_alone_is_held_out(
    base: Path, verb: str, write: object, what: str
) -> None:
    assert callable(write)
    write(base.parent / "all.jsonl", 57)
    lines = (base.parent / "all.jsonl").read_text().splitlines(keepends=True)
    data, own = base.parent / "data.jsonl", base.parent / "own.jsonl"
    data.write_text("".join(lines[:50]))
    own.write_text("".join(lines[50:]))
    said = run(verb, base, data, "--held-out", str(own))
    assert f"· 50 {what}" in said
    assert f"· 7 {what}" in said
    with pytest.raises(UserError, match="--held-out says already"):
        run(verb, base, data, "--held-out", str(own), "--validation", "0.1")
    plain = run(verb, base, data)
    assert f"· 7 {what}" not in plain
