"""Directories that are damaged, strange or hostile, and what is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model, load_state, load_weights, save_model
from llamita.model.initialization import initialize

CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=1,
    eos_token_id=[2, 5],
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = Decoder(CONFIG, padded_vocab_size=128)
    initialize(model, "llama", seed=0)
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


def _change(directory: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(directory / "model.safetensors")
    edit(state)
    save_file(state, directory / "model.safetensors")


def test_what_is_written(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation == {"do_sample": False, "bos_token_id": 1, "eos_token_id": [2, 5]}
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("lm_head.weight").get_shape() == [97, 32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smaller_types(saved: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_model(saved)
    save_model(tmp_path / "small", model, dtype=dtype)
    written = load_state(tmp_path / "small")
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    again = load_model(tmp_path / "small")
    assert all(p.dtype == torch.float32 for p in again.parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(dtype).float()), name


def test_saving_again_leaves_no_old_shards(saved: Path) -> None:
    model = load_model(saved)
    save_model(saved, model, max_shard_bytes=10_000)
    assert not (saved / "model.safetensors").exists()
    assert len(list(saved.glob("model-*"))) > 2
    save_model(saved, model)
    assert not list(saved.glob("model-*"))
    assert not list(saved.glob("*.index.json"))


def test_loading_does_not_depend_on_the_file_afterwards(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    model = load_model(saved)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)  # a memory map would refuse, or change the file
    with (saved / "pytorch_model.bin").open("r+b") as file:
        file.truncate(0)
    assert float(model.model.norm.weight.sum().detach()) == 64.0
    assert model(torch.zeros(1, 2, dtype=torch.int64)).isfinite().all()


def test_padding_on_load(saved: Path) -> None:
    plain, padded = load_model(saved), load_model(saved, padded_vocab_size=128)
    assert padded.head_weight.shape == (128, 32)
    assert not padded.head_weight[97:].any()
    assert torch.equal(padded.head_weight[:97], plain.head_weight)
    target = Decoder(CONFIG, padded_vocab_size=112)
    load_weights(target, saved)
    assert torch.equal(target.head_weight[:97], plain.head_weight)


def test_extras_that_do_no_harm(saved: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    _change(saved, edit)
    load_model(saved)
    tied = json.loads((saved / "config.json").read_text()) | {"tie_word_embeddings": True}
    (saved / "config.json").write_text(json.dumps(tied))
    assert load_model(saved).lm_head is None


def _drop(state: dict[str, Tensor]) -> None:
    del state["model.norm.weight"], state["model.layers.1.mlp.up_proj.weight"]


def _add(state: dict[str, Tensor]) -> None:
    state["model.layers.2.mlp.up_proj.weight"] = torch.ones(2)


def _reshape(state: dict[str, Tensor]) -> None:
    state["lm_head.weight"] = torch.ones(98, 32)


def _quantise(state: dict[str, Tensor]) -> None:
    weight = state["model.layers.0.mlp.up_proj.weight"]
    state["model.layers.0.mlp.up_proj.weight"] = weight.to(torch.int8)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_drop, "missing: .*model.norm.weight"),
        (_drop, "missing: .*layers.1.mlp.up_proj"),
        (_add, "unexpected: model.layers.2.mlp.up_proj.weight"),
        (_reshape, r"lm_head.weight \(98, 32\) instead of \(97, 32\)"),
        (_quantise, "int8"),
    ],
)
def test_weights_that_do_not_fit(
    saved: Path, edit: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    _change(saved, edit)
    with pytest.raises(UserError, match=words):
        load_model(saved)


def test_a_long_list_of_differences_is_cut(saved: Path) -> None:
    _change(saved, lambda state: [state.pop(name) for name in list(state)[1:]] and None)
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        load_model(saved)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights(saved: Path, name: str, kept: int) -> None:
    if name.endswith(".bin"):
        torch.save(load_file(saved / "model.safetensors"), saved / name)
        (saved / "model.safetensors").unlink()
    with (saved / name).open("r+b") as file:
        file.truncate(kept)
    with pytest.raises(UserError, match="damaged"):
        load_model(saved)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch exploded",))


def test_pickles_run_no_code(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Bomb()}, saved / "pytorch_model.bin")
    monkeypatch.chdir(saved)
    with pytest.raises(UserError, match="not executed"):
        load_model(saved)
    assert not (saved / "exploded").exists()


def test_directories_that_are_not_whole(saved: Path) -> None:
    save_model(saved, load_model(saved), max_shard_bytes=10_000)
    shard = sorted(saved.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        load_model(saved)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="outside its directory"):
        load_model(saved)
    index.write_text("{}")
    with pytest.raises(UserError, match="weight_map"):
        load_model(saved)
    index.unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(saved)
    (saved / "config.json").write_text("{ not json")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_model(saved)
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_model(saved)
