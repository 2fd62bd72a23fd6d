"""A .gguf file as a MODEL: imported once, found again, never half."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import PreTrainedModel

from llamita.errors import UserError
from llamita.formats import importing
from llamita.formats.gguf_cache import cached, fingerprint
from llamita.model.huggingface import load_model
from llamita.model.locate import locate
from tests.formats.gguf_files import logits


def test_a_file_is_a_model(
    small: PreTrainedModel, small_gguf: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = locate(str(small_gguf))
    assert directory.parent == cache
    heard = capsys.readouterr()
    assert heard.out == ""
    assert "small.gguf is imported once" in heard.err
    tokens = torch.arange(20)[None]
    found = logits(load_model(directory), tokens)
    assert (found - logits(small, tokens)).abs().max() <= 1e-5


def test_the_second_time_it_is_there(
    small_gguf: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = locate(small_gguf)
    capsys.readouterr()

    def refuse(*_given: object, **_named: object) -> None:
        raise AssertionError("imported again")

    monkeypatch.setattr(importing, "import_model", refuse)
    assert locate(small_gguf) == directory
    moved = tmp_path / "elsewhere" / "small.gguf"  # what counts is the name and the contents
    moved.parent.mkdir()
    moved.write_bytes(small_gguf.read_bytes())
    assert locate(moved) == directory
    assert capsys.readouterr() == ("", "")


def test_other_contents_are_another_model(small_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    content = bytearray(small_gguf.read_bytes())
    path.write_bytes(content)
    before = fingerprint(path)
    assert before == fingerprint(small_gguf)
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_large_files_are_told_apart_in_the_middle(tmp_path: Path) -> None:
    """A changed tensor is a changed stretch, here of 1 MB among 12."""
    path = tmp_path / "large.gguf"
    content = bytearray(12_000_000)
    path.write_bytes(content)
    seen = {fingerprint(path)}
    for place in range(0, 12_000_000, 1_000_000):
        content[place : place + 1_000_000] = bytes([1]) * 1_000_000
        path.write_bytes(content)
        seen.add(fingerprint(path))
        content[place : place + 1_000_000] = bytes(1_000_000)
    assert len(seen) == 13


def test_what_fails_leaves_nothing_to_be_found(
    small_gguf: Path, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(small_gguf.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(UserError, match="cut short"):
            locate(path)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_one_imports_and_the_others_wait(
    small_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = []
    original = importing.import_model

    def counted(path: Path, *given: object, **named: object) -> Path:
        imports.append(path)
        return original(path, *given, **named)

    monkeypatch.setattr(importing, "import_model", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(cached(small_gguf))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(imports) == 1
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_cache_that_cannot_be_written(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        locate(small_gguf)


def test_a_hit_needs_no_torch(small_gguf: Path, cache: Path) -> None:
    directory = locate(small_gguf)
    code = (
        "import sys\nfrom llamita.model.locate import locate\nprint(locate(sys.argv[1]))\n"
        "assert not {'torch', 'gguf', 'numpy', 'tokenizers'} & {*sys.modules}, 'heavy'"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(small_gguf)], capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == str(directory), found.stderr


def test_without_the_package(
    small_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[gguf\]'"):
        locate(small_gguf)
