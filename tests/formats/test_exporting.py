"""Any MODEL as a Hugging Face directory; adapters folded in as PEFT folds them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

import llamita
from llamita.cli import main
from llamita.errors import UserError
from llamita.formats.exporting import export_model
from llamita.formats.gguf_file import GgufFile
from llamita.formats.importing import import_model
from llamita.model.adapter_directory import BASE
from llamita.model.huggingface import load_state
from tests.formats.gguf_files import logits, write_gguf

TOKENS = torch.arange(24)[None]


def _quiet(_text: str) -> None:
    pass


@pytest.fixture(scope="module")
def base(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_model(small_gguf, tmp_path_factory.mktemp("base") / "base", say=_quiet)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A PEFT directory whose B is not zero."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_directory(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = export_model(base, tmp_path / "out", dtype="bfloat16", say=said.append)
    for name, tensor in load_state(base).items():
        assert torch.equal(load_state(out)[name], tensor.bfloat16()), name
    assert AutoTokenizer.from_pretrained(out).convert_ids_to_tokens([1, 5]) == ["<s>", "▁w5"]
    assert "bfloat16" in said[-1]
    assert (out / "generation_config.json").read_bytes() == (
        base / "generation_config.json"
    ).read_bytes()


def test_a_gguf(small: PreTrainedModel, small_gguf: Path, cache: Path, tmp_path: Path) -> None:
    out = llamita.export_model(small_gguf, tmp_path / "out", say=_quiet)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(logits(again, TOKENS), logits(small, TOKENS), atol=1e-5)


def test_an_adapter_is_folded_in(base: Path, adapter: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = export_model(adapter, tmp_path / "out", say=said.append)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    expected = logits(peft.merge_and_unload(), TOKENS)
    found = logits(AutoModelForCausalLM.from_pretrained(out), TOKENS)
    assert (found - expected).abs().max() <= 1e-5
    assert (found - logits(AutoModelForCausalLM.from_pretrained(base), TOKENS)).abs().max() > 1e-2
    assert "no fingerprint of its base" in said[0]
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_what_a_quantised_base_costs_is_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    record = {"path": str(base), "fingerprint": None, "quantization": "nf4"}
    (adapter / BASE).write_text(json.dumps(record))
    said: list[str] = []
    out = export_model(adapter, tmp_path / "out", say=said.append)
    moved = total = 0.0
    plain, merged = load_state(base), load_state(out)
    for name, tensor in plain.items():
        if tensor.ndim == 1 or "embed" in name:
            continue
        packed, state = functional.quantize_4bit(tensor, quant_type="nf4", compress_statistics=True)
        kept = functional.dequantize_4bit(packed, state).float()
        moved += float((kept - tensor).square().sum())
        total += float(tensor.square().sum())
        if "q_proj" not in name and "down_proj" not in name:
            assert torch.allclose(merged[name], kept, atol=1e-6), name
    assert f"by {(moved / total) ** 0.5:.2%}" in "".join(said)


def test_refusals(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown format 'hg'.* Did you mean 'hf'"):
        export_model(base, tmp_path / "out", to="hg", say=_quiet)
    with pytest.raises(UserError, match="Did you mean 'bfloat16'"):
        export_model(base, tmp_path / "out", dtype="bfloat", say=_quiet)
    with pytest.raises(UserError, match="is the model itself"):
        export_model(base, base, force=True, say=_quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by"):
        export_model(base, tmp_path / "mine", force=True, say=_quiet)
    out = export_model(base, tmp_path / "out", say=_quiet)
    with pytest.raises(UserError, match="add --force"):
        export_model(base, out, say=_quiet)
    export_model(base, out, force=True, say=_quiet)


def test_a_gguf_of_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The same numbers as the merged directory has, by way of both formats."""
    merged = load_state(export_model(adapter, tmp_path / "merged", say=_quiet))
    path = export_model(adapter, tmp_path / "a.gguf", to="gguf", quantize="f32", say=_quiet)
    back = load_state(import_model(path, tmp_path / "back", say=_quiet))
    assert back.keys() == merged.keys()
    assert all(torch.equal(back[name], merged[name]) for name in merged)


def test_names_and_licences_go_through(small: PreTrainedModel, tmp_path: Path) -> None:
    def named(writer: gguf.GGUFWriter) -> None:
        writer.add_name("A small one")
        writer.add_license("apache-2.0")

    path = write_gguf(tmp_path / "small.gguf", small, "llama", change=named)
    base = import_model(path, tmp_path / "base", say=_quiet)
    fields = GgufFile(export_model(base, tmp_path / "out.gguf", to="gguf", say=_quiet)).fields
    assert (fields["general.name"], fields["general.license"]) == ("A small one", "apache-2.0")
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    shutil.copytree(base, run / "final", ignore=shutil.ignore_patterns("origin.json"))
    fields = GgufFile(export_model(run, tmp_path / "run.gguf", to="gguf", say=_quiet)).fields
    assert fields["general.name"] == "mine"


def test_gguf_refusals(base: Path, small_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    def export(model: Path, **settings: Any) -> Path:
        return export_model(model, out, to="gguf", say=_quiet, **settings)

    with pytest.raises(UserError, match="Did you mean 'q4_k_m'"):
        export(base, quantize="q4_km")
    out.write_bytes(small_gguf.read_bytes())
    for force in (False, True):
        with pytest.raises(UserError, match="was not written by `llamita export`"):
            export(base, force=force)
        with pytest.raises(UserError, match="is the model itself"):
            export(out, force=force)
    assert out.read_bytes() == small_gguf.read_bytes()
    out.unlink()
    export(base, quantize="f16")
    with pytest.raises(UserError, match="add --force"):
        export(base)
    before = out.stat().st_size
    export(base, force=True)
    assert out.stat().st_size < before
    with pytest.raises(UserError, match="is a directory; of a GGUF --out names the file"):
        export_model(base, tmp_path, to="gguf", say=_quiet)
    assert [*tmp_path.iterdir()] == [out]


def test_commands(
    small_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llamita", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        heard = capsys.readouterr()
        return int(ended.value.code or 0), heard.out, heard.err

    monkeypatch.chdir(tmp_path)
    code, out, _ = run("import", small_gguf, "--out", "model", "--dtype", "float16")
    assert (code, out.splitlines()[-1]) == (0, "model: written in float16")
    code, out, _ = run("import", small_gguf, "--out", "model", "--force")
    assert (code, out.splitlines()[-1]) == (0, "model: written in float32")
    code, out, _ = run("export", "model", "--out", "copy", "--to", "hf", "--dtype", "bfloat16")
    assert (code, out) == (0, "copy: written in bfloat16\n")
    assert load_state(tmp_path / "copy")["model.norm.weight"].dtype == torch.bfloat16
    code, out, _ = run("export", "model", "--to", "gguf", "--out", "other.gguf")
    size = (tmp_path / "other.gguf").stat().st_size / 1e6
    assert (code, out.splitlines()[-1]) == (0, f"other.gguf: written in q8_0, {size:,.1f} MB")
    assert "tensors: 8 Q8_0, 3 F32\n" in out
    refused = "llamita: --dtype belongs to `--to hf`; of a GGUF write --quantize TYPE\n"
    arguments = ("export", "model", "--to", "gguf", "--out", "more.gguf", "--dtype", "float16")
    assert run(*arguments) == (1, "", refused)
    code, _, told = run("export", "model", "--out", "more", "--quantize", "q8_0")
    assert code == 1
    assert "--quantize belongs to `--to gguf`" in told
    assert not (tmp_path / "more.gguf").exists()
    assert not (tmp_path / "more").exists()
