"""Adapter directories: PEFT reads ours, we read PEFT's, and what does not belong is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llamita.architecture.lora import Lora, lora_targets
from llamita.errors import UserError
from llamita.model.adapted import base_fingerprint, check_base
from llamita.model.adapter_directory import (
    Base,
    base_directory,
    base_path,
    is_adapter,
    read_adapter,
    save_adapter,
    weights_fingerprint,
)
from llamita.model.adapters import adapter_state, add_adapters, has_adapters
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model, load_state, load_weights, save_model
from llamita.model.locate import locate
from llamita.model.records import read_config
from tests.model.adapted_models import peft_model, randomise, stored_base
from tests.model.shapes import random_tokens, transformers_model

TOLERANCE = 5e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "rslora": {"use_rslora": True, "r": 5, "lora_alpha": 3},
    "subset": {"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.3},
    "pattern": {"target_modules": r".*\.(k_proj|gate_proj)"},
}


def _ours(directory: Path, lora: Lora, shape: str = "llama-untied") -> Decoder:
    """Writes `base/` and `adapter/` into a directory; the model that was saved."""
    base = stored_base(shape, directory / "base")
    model = load_model(base, padded_vocab_size=128)
    add_adapters(model, lora, seed=0)
    randomise(model)
    record = Base(base_path(base, base, directory / "adapter"), base_fingerprint(base))
    save_adapter(directory / "adapter", adapter_state(model), lora, record, model.config)
    return model


def _edit(path: Path, /, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_peft_reads_what_we_write(variant: str, tmp_path: Path) -> None:
    known = {"target_modules": "all-linear", **VARIANTS[variant]}
    names = {"pattern": "k_proj,gate_proj"}.get(variant, known["target_modules"])
    lora = Lora(
        rank=known.get("r", 4),
        alpha=known.get("lora_alpha", 6),
        targets=lora_targets(names),
        rslora=known.get("use_rslora", False),
    )
    ours = _ours(tmp_path, lora)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = base(random_tokens()).logits
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    logits = theirs(random_tokens()).logits
    assert (logits - plain).abs().max() > 0.1
    assert (ours(random_tokens()) - logits).abs().max() <= TOLERANCE
    assert (load_model(tmp_path / "adapter")(random_tokens()) - logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_we_read_what_peft_writes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = peft_model("granite-biases", **VARIANTS[variant])
    theirs.save_pretrained(tmp_path / "adapter")
    stored_base("granite-biases", tmp_path / "base")
    _edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)  # PEFT's name counts from the working directory too
    expected = theirs(random_tokens()).logits
    ours = load_model(tmp_path / "adapter")
    assert has_adapters(ours)
    assert (ours(random_tokens()) - expected).abs().max() <= TOLERANCE
    merged = load_model(tmp_path / "adapter", merge=True)
    assert not has_adapters(merged)
    assert (merged(random_tokens()) - expected).abs().max() <= 1e-4
    assert not check_base(tmp_path / "adapter", tmp_path / "base")  # nothing to compare with


def test_numbers_come_back_and_config_has_the_adapters_own_tokens(tmp_path: Path) -> None:
    lora = Lora(rank=3, alpha=4.5, dropout=0.25, targets=("v_proj", "o_proj"), rslora=True)
    model = _ours(tmp_path, lora)
    found, base = read_adapter(tmp_path / "adapter")
    assert found == lora
    assert base.path == "../base"
    assert read_config(tmp_path / "adapter") == model.config
    _edit(tmp_path / "adapter" / "generation_config.json", eos_token_id=[2, 7])
    assert read_config(tmp_path / "adapter") == model.config.replace(eos_token_id=[2, 7])
    assert load_model(tmp_path / "adapter").config.eos_token_ids == (2, 7)
    assert locate(tmp_path / "adapter") == tmp_path / "adapter"


@torch.no_grad()
def test_weights_into_decoders_with_and_without_adapters(tmp_path: Path) -> None:
    lora = Lora(rank=2, alpha=4)
    saved = _ours(tmp_path, lora)
    expected = saved(random_tokens())
    state = load_state(tmp_path / "adapter")
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in adapter_state(saved).items()
    }
    with_adapters = load_model(tmp_path / "base", padded_vocab_size=128)
    add_adapters(with_adapters, lora, seed=9)
    load_weights(with_adapters, tmp_path / "adapter")
    assert torch.equal(with_adapters(random_tokens()), expected)
    without = Decoder(saved.config, padded_vocab_size=112)
    load_weights(without, tmp_path / "adapter")
    assert (without(random_tokens()) - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_an_adapter_on_an_adapter(tmp_path: Path) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    below = tmp_path / "adapter"
    model = load_model(below, merge=True)
    lora = Lora(rank=1, alpha=1, targets=("up_proj",))
    add_adapters(model, lora, seed=1)
    randomise(model, seed=11)
    record = Base("../adapter", base_fingerprint(below))
    save_adapter(tmp_path / "above", adapter_state(model), lora, record, model.config)
    again = load_model(tmp_path / "above")(random_tokens())
    assert (again - model(random_tokens())).abs().max() <= TOLERANCE
    _edit(below / "adapter_config.json", lora_alpha=5)
    with pytest.raises(UserError, match="trained on other weights"):
        load_model(tmp_path / "above")


def test_a_base_with_other_weights_is_refused(tmp_path: Path) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    transformers_model("llama-untied", seed=5).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="trained on other weights than those of") as refused:
        load_model(tmp_path / "adapter")
    assert str(tmp_path / "base") in str(refused.value)
    assert "null as 'fingerprint'" in str(refused.value)
    _edit(tmp_path / "adapter" / "base.json", fingerprint=None)
    load_model(tmp_path / "adapter")


def test_a_base_of_another_shape_is_refused(tmp_path: Path) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    stored_base("llama-mha", tmp_path / "base")
    _edit(tmp_path / "adapter" / "base.json", fingerprint=None)
    with pytest.raises(UserError, match=r"of another shape: .*k_proj.lora_B.weight"):
        load_model(tmp_path / "adapter")


def test_a_base_that_moved_is_told_with_both_places(tmp_path: Path) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as refused:
        load_model(tmp_path / "adapter")
    for told in (tmp_path / "adapter" / "base.json", "'../base'", tmp_path / "base", "'path'"):
        assert str(told) in str(refused.value)
    _edit(tmp_path / "adapter" / "base.json", path="../elsewhere")
    assert base_directory(tmp_path / "adapter") == tmp_path / "elsewhere"
    load_model(tmp_path / "adapter")


def test_both_moved_together_are_found(tmp_path: Path) -> None:
    _ours(tmp_path / "here", Lora(rank=2, alpha=4))
    before = load_model(tmp_path / "here" / "adapter").state_dict()
    (tmp_path / "here").rename(tmp_path / "there")
    assert base_directory(tmp_path / "there" / "adapter") == tmp_path / "there" / "base"
    after = load_model(tmp_path / "there" / "adapter").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_base_path_keeps_a_hub_id(tmp_path: Path) -> None:
    cached = tmp_path / "cache"
    assert base_path("someone/some-model", cached, tmp_path / "runs" / "a") == "someone/some-model"
    cached.mkdir()
    assert base_path(cached, cached, tmp_path / "runs" / "a") == "../../cache"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_dora": True}, "use_dora (DoRA)"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save (whole modules"),
        ({"bias": "lora_only"}, "bias (trained biases)"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_to_transform": 0}, "layers_to_transform"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern (ranks by module)"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "'pissa' changed the base's own weights"),
        ({"task_type": "SEQ_CLS"}, "'SEQ_CLS'"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"r": 0}, "LoRA rank 0"),
    ],
)
def test_what_peft_can_and_we_cannot_is_refused_by_name(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    _edit(tmp_path / "adapter" / "adapter_config.json", **changes)
    with pytest.raises(UserError) as refused:
        load_model(tmp_path / "adapter")
    assert said in str(refused.value)


def test_pefts_other_tensors_and_partial_layers_are_refused(tmp_path: Path) -> None:
    stored_base("llama-tied", tmp_path / "base")
    dora = peft_model("llama-tied", target_modules=["q_proj"], use_dora=True)
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(UserError, match=r"use_dora \(DoRA\)"):
        read_adapter(tmp_path / "dora")
    _edit(
        tmp_path / "dora" / "adapter_config.json", use_dora=False, base_model_name_or_path="../base"
    )
    with pytest.raises(UserError, match=r"holds more than LoRA matrices.*magnitude"):
        read_adapter(tmp_path / "dora")
    some = peft_model("llama-tied", target_modules=["layers.1.self_attn.q_proj"])
    some.save_pretrained(tmp_path / "some")
    _edit(tmp_path / "some" / "adapter_config.json", base_model_name_or_path="../base")
    with pytest.raises(UserError, match=r"missing: .*layers\.0\..*some layers only"):
        load_model(tmp_path / "some")


def test_damaged_and_nameless_directories(tmp_path: Path) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    adapter = tmp_path / "adapter"
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(whole[:100])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(whole)
    (adapter / "base.json").unlink()
    _edit(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not say which model it belongs to"):
        read_config(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert not is_adapter(adapter)


@pytest.mark.parametrize("shape", ["llama-untied", "llama-tied"])
def test_a_fingerprint_is_of_weights_and_not_of_files(shape: str, tmp_path: Path) -> None:
    theirs = transformers_model(shape)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    model = load_model(tmp_path / "whole")
    save_model(tmp_path / "ours", model)
    prints = {base_fingerprint(tmp_path / name) for name in ("whole", "shards", "ours")}
    assert len(prints) == 1
    save_model(tmp_path / "half", model, dtype=torch.bfloat16)
    assert base_fingerprint(tmp_path / "half") not in prints


def test_a_fingerprint_sees_name_type_shape_and_content() -> None:
    tensor = torch.arange(6.0)
    states = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.view(2, 3)},
        {"a": tensor.view(torch.int32)},
        {"a": tensor + 1},
        {"a": tensor, "b": tensor},
        {"a": tensor.bfloat16()},
        {"a": tensor[:0]},
    ]
    assert len({weights_fingerprint(state) for state in states}) == len(states)
    whole = torch.arange(12.0).view(3, 4)
    assert weights_fingerprint({"a": whole.T}) == weights_fingerprint({"a": whole.T.contiguous()})
    assert weights_fingerprint({"a": tensor, "b": whole}) == weights_fingerprint(
        {"b": whole, "a": tensor}
    )


def test_config_is_read_without_torch(tmp_path: Path) -> None:
    _ours(tmp_path, Lora(rank=2, alpha=4))
    code = (
        "import sys; from llamita.model.records import read_config; "
        f"read_config({str(tmp_path / 'adapter')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
