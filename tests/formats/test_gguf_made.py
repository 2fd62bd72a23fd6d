"""A model's GGUF in the cache: made once, found again, made anew when the model changes; and the
cache's bound, which imports have too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from llamita.errors import UserError
from llamita.formats import exporting
from llamita.formats.exporting import export_model
from llamita.formats.gguf_file import GgufFile
from llamita.formats.gguf_made import gguf_of
from llamita.formats.importing import import_model
from llamita.formats.model_cache import make_room
from llamita.model.adapter_directory import is_adapter
from llamita.model.huggingface import load_state
from llamita.model.locate import locate
from tests.formats.gguf_models import quiet


@pytest.fixture
def model(small_gguf: Path, tmp_path: Path) -> Path:
    return import_model(small_gguf, tmp_path / "runs" / "mine" / "final", say=quiet)


def test_made_once(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    path = gguf_of(model, say=said.append)
    assert path.parent == cache
    assert path.name.startswith("mine-")
    assert "written once as GGUF, q8_0" in said[0]
    assert GgufFile(path).type_counts() == {"Q8_0": 8, "F32": 3}
    os.utime(path, (1, 1))

    def refuse(*_given: object, **_named: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_model_as_gguf", refuse)
        assert gguf_of(model, quantize="Q8_0", say=quiet) == path
    assert time.time() - path.stat().st_mtime < 60  # a hit counts as a use
    assert gguf_of(model, quantize="f32", say=quiet) != path


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_another_model(part: str, model: Path, cache: Path) -> None:
    before = gguf_of(model, say=quiet)
    text = (model / part).read_bytes() if (model / part).is_file() else b""
    if part == "model.safetensors":
        text = text[:-1] + bytes([text[-1] ^ 1])
    elif part == "config.json":
        text = text.replace(b'"rope_theta": 10000.0', b'"rope_theta": 20000.0')
    else:
        text = b"{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    (model / part).write_bytes(text)
    assert gguf_of(model, say=quiet) != before


def test_an_adapter(model: Path, cache: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    assert is_adapter(tmp_path / "adapter")
    path = gguf_of(tmp_path / "adapter", quantize="f32", say=quiet)
    merged = load_state(export_model(tmp_path / "adapter", tmp_path / "merged", say=quiet))
    back = load_state(locate(path))
    assert all(torch.equal(back[name], merged[name]) for name in merged)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}</s>")  # of its base
    assert gguf_of(tmp_path / "adapter", quantize="f32", say=quiet) != path


def test_one_makes_and_the_others_wait(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = exporting.write_model_as_gguf

    def counted(directory: Path, *given: object, **named: object) -> None:
        made.append(directory)
        original(directory, *given, **named)

    monkeypatch.setattr(exporting, "write_model_as_gguf", counted)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(gguf_of(model, say=quiet))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_hit_needs_no_torch(model: Path, cache: Path) -> None:
    path = gguf_of(model, say=quiet)
    code = (
        "import sys\nfrom pathlib import Path\nfrom llamita.formats.gguf_made import gguf_of\n"
        "print(gguf_of(Path(sys.argv[1])))\n"
        "assert not {'torch', 'gguf', 'numpy', 'tokenizers'} & {*sys.modules}, 'heavy'"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == str(path), found.stderr


def _aged(place: Path, days: float) -> Path:
    changed = time.time() - days * 86400
    os.utime(place, (changed, changed))
    return place


def _entries(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if not entry.name.startswith("."))


def test_the_oldest_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    for number, name in enumerate(("a.gguf", "b.gguf", "c.gguf")):
        (cache / name).write_bytes(bytes(400_000))
        _aged(cache / name, days=3 - number)
    (cache / "imported").mkdir()
    (cache / "imported" / "model.safetensors").write_bytes(bytes(400_000))
    _aged(cache / "imported", days=2.5)
    (cache / ".left.building").mkdir()
    _aged(cache / ".left.building", days=2)
    (cache / "new.gguf").write_bytes(bytes(400_000))
    monkeypatch.setenv("LLAMITA_CACHE_GB", "0.0013")
    said: list[str] = []
    make_room(cache / "new.gguf", said.append)
    assert _entries(cache) == ["b.gguf", "c.gguf", "new.gguf"]
    assert [text.split()[1] for text in said] == ["a.gguf", "imported"]
    assert not (cache / ".left.building").exists()


def test_what_is_in_use_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    for name in ("old.gguf", "used.gguf", "new.gguf"):
        (cache / name).write_bytes(bytes(400_000))
    _aged(cache / "old.gguf", days=1)
    _aged(cache / "new.gguf", days=2)  # however old it looks
    monkeypatch.setenv("LLAMITA_CACHE_GB", "0")
    said: list[str] = []
    make_room(cache / "new.gguf", said.append)
    assert _entries(cache) == ["new.gguf", "used.gguf"]
    assert "more than its 0.0: all of it is in use" in said[-1]
    for bad in ("much", "-1", "nan"):
        monkeypatch.setenv("LLAMITA_CACHE_GB", bad)
        with pytest.raises(UserError, match="write a number of GB"):
            make_room(cache / "new.gguf", said.append)


def test_imports_are_bounded_too(
    model: Path, small_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _aged(gguf_of(model, say=quiet), days=1)
    monkeypatch.setenv("LLAMITA_CACHE_GB", "0.0001")
    directory = locate(small_gguf)
    assert not path.exists()
    assert _entries(cache) == [directory.name]
    _aged(directory, days=1)
    assert gguf_of(model, say=quiet) == path
    assert _entries(cache) == [path.name]


def test_a_cache_that_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"set XDG_CACHE_HOME .* or run `llamita export"):
        gguf_of(model, say=quiet)
