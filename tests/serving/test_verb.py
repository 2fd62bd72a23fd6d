"""What `serve` checks before it opens a model, and what it says."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

import llamita
from llamita.errors import UserError
from llamita.serving.server import listen
from llamita.serving.verb import banner, name_of, read_keys
from tests.serving.serving_fakes import FakeEngine


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest):
        if name == "fastapi":
            raise ImportError(name)
        return real(name, *rest)

    import importlib

    found = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: without(name) if name == "fastapi" else found(name)
    )
    with pytest.raises(UserError, match=r"llamita\[serve\]"):
        llamita.serve("nowhere")


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://example.org/a", "ftp://a", ""]
)
def test_origins_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(UserError, match="--allow-origin"):
        llamita.serve("nowhere", allow_origin=[origin])


@pytest.mark.parametrize("settings", [{"slots": 0}, {"max_waiting": -1}, {"grace": float("nan")}])
def test_numbers_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--slots"):
        llamita.serve("nowhere", **settings)


def test_keys_of_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMITA_API_KEYS", "from-env, , other")
    file = tmp_path / "keys"
    file.write_text("# whose\n\nfrom-file\nother\n")
    assert read_keys(file) == ["from-env", "other", "from-file"]
    monkeypatch.delenv("LLAMITA_API_KEYS")
    assert read_keys(None) == []
    file.write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no key"):
        read_keys(file)
    file.write_text("two words\n")
    with pytest.raises(UserError, match="no header can carry it"):
        read_keys(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "absent")


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of("HuggingFaceTB/SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct"
    assert name_of(tmp_path / "model.q8_0.gguf") == "model.q8_0"
    (tmp_path / "SmolLM2-1.7B").mkdir()
    monkeypatch.chdir(tmp_path / "SmolLM2-1.7B")
    assert name_of(".") == "SmolLM2-1.7B"


def test_banner_warns_of_an_open_door() -> None:
    with listen("0.0.0.0", 0) as bound:
        port = bound.getsockname()[1]
        engine = FakeEngine()
        open_door = banner(bound, "0.0.0.0", engine, "tiny", [], 5)
        closed = banner(bound, "0.0.0.0", engine, "tiny", ["secret"], 5)
    assert any(line.startswith("WARNING") and str(port) in line for line in open_door)
    assert not any("WARNING" in line or "secret" in line for line in closed)
    assert "1 API key" in closed
