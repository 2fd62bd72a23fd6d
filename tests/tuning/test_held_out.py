"""`tune` and `align` with an evaluation file of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamita.architecture.config import ModelConfig
from llamita.cli import app
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.huggingface import save_model
from llamita.training import devices
from tests.data.corpus import small_tokenizer
from tests.training.helpers import cheap_matmul_rate
from tests.training.tuned import write_chats, write_pairs


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)
    tokenizer = small_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    save_model(tmp_path / "base", Decoder(config))
    tokenizer.save(tmp_path / "base")
    return tmp_path / "base"


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
