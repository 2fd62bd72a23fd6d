"""What vLLM's loader does with directories that are written here: every name, every shape.

vLLM itself is not installed. Its rules are written down below from its sources, in one process
(tensor-parallel size 1) and without quantisation:

- `LlamaForCausalLM` and `MistralForCausalLM` (one class): vllm/model_executor/models/llama.py at
  commit e06c9ba2a6ea923a84add30f5dafaea126429b81
- `GraniteForCausalLM`: models/granite.py at 0328802bed2bb6ca346ea10acb61221a0c607768
- `Qwen2ForCausalLM`: models/qwen2.py at cb24295ecafdd4263f538ecf05a9c69d05190e1b
- `Qwen3ForCausalLM`: models/qwen3.py at e745bafffc44744aa601169f8c6f325e47ca7cd5
- what a fused matrix is made of: layers/linear.py at 0036d38de46c5d48fdedeb658dedc0fc0f95677d
- rotary embedding: layers/rotary_embedding/__init__.py at 926c71f6f25f8fe0a71ba4b168205e64bef24a36
- config.json: transformers_utils/config.py at 0036026e7171bd02e3c1d4687b102dec9c446049, which is
  Transformers' AutoConfig, and so it is what reads it here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from llamita.architecture.presets import preset
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model, save_model
from tests.model.shapes import SHAPES, transformers_model

Shape = tuple[int, ...]
Written = tuple[str, Path]
"""The shape's name, and the directory that was saved."""
Slots = dict[str, dict[str, Shape]]
"""Parameter of vLLM → the parts that it is filled from → the shape of each."""

# A tensor's name holds one on the left: it is a part of the parameter with the name on the right.
FUSED = {
    ".q_proj": ".qkv_proj",
    ".k_proj": ".qkv_proj",
    ".v_proj": ".qkv_proj",
    ".gate_proj": ".gate_up_proj",
    ".up_proj": ".gate_up_proj",
}
WHOLE = ""


def linear(name: str, parts: Mapping[str, int], inputs: int, *, bias: bool) -> Slots:
    """A projection whose parts lie one below the other."""
    slots: Slots = {f"{name}.weight": {part: (rows, inputs) for part, rows in parts.items()}}
    if bias:
        slots[f"{name}.bias"] = {part: (rows,) for part, rows in parts.items()}
    return slots


def attention(config: Any, prefix: str) -> Slots:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    # Qwen 2's takes no head_dim from the config.
    explicit = None if config.model_type == "qwen2" else getattr(config, "head_dim", None)
    size = explicit or config.hidden_size // heads
    switch = getattr(config, "attention_bias", False)
    inward = True if config.model_type == "qwen2" else switch
    outward = False if config.model_type in ("qwen2", "qwen3") else switch
    parts = {"q": heads * size, "k": groups * size, "v": groups * size}
    slots = linear(f"{prefix}.qkv_proj", parts, config.hidden_size, bias=inward)
    out = {WHOLE: config.hidden_size}
    slots |= linear(f"{prefix}.o_proj", out, heads * size, bias=outward)
    if config.model_type == "qwen3":
        slots |= {f"{prefix}.{name}.weight": {WHOLE: (size,)} for name in ("q_norm", "k_norm")}
    return slots


def slots_of(config: Any) -> Slots:
    """Every parameter that vLLM's model of this config has."""
    hidden, inner = config.hidden_size, config.intermediate_size
    # Rows are padded to a multiple of 64 there; what is loaded must have exactly the vocabulary's.
    table = {WHOLE: (config.vocab_size, hidden)}
    slots: Slots = {"model.embed_tokens.weight": table, "model.norm.weight": {WHOLE: (hidden,)}}
    if not config.tie_word_embeddings:
        slots["lm_head.weight"] = table
    bias = config.model_type in ("llama", "granite", "mistral") and getattr(
        config, "mlp_bias", False
    )
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        slots |= attention(config, f"{layer}.self_attn")
        both = {"gate": inner, "up": inner}
        slots |= linear(f"{layer}.mlp.gate_up_proj", both, hidden, bias=bias)
        slots |= linear(f"{layer}.mlp.down_proj", {WHOLE: hidden}, inner, bias=bias)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            slots[f"{layer}.{norm}.weight"] = {WHOLE: (hidden,)}
    return slots


def load(tensors: Mapping[str, Shape], config: Any) -> list[str]:
    """What goes wrong, if anything: tensors without a place, of a wrong shape, twice in one place,
    left out in silence; and places that nothing fills."""
    slots, problems = slots_of(config), []
    filled: dict[tuple[str, str], str] = {}
    for name, shape in tensors.items():
        if name.startswith("lm_head.") and config.tie_word_embeddings:
            continue  # the head is the embedding
        ours = next((part for part in FUSED if part in name), None)
        parameter = name if ours is None else name.replace(ours, FUSED[ours])
        part = WHOLE if ours is None else ours.removeprefix(".").removesuffix("_proj")
        if parameter not in slots:
            silent = parameter.endswith(".bias")
            problems.append(f"{name} is left out" if silent else f"{name} has no parameter")
        elif slots[parameter].get(part) != shape:
            problems.append(f"{name} {shape} instead of {slots[parameter].get(part)}")
        elif (parameter, part) in filled:
            problems.append(f"{name} and {filled[parameter, part]} are one")
        filled[parameter, part] = name
    problems += [
        f"{parameter} {part} is not filled"
        for parameter, parts in slots.items()
        for part in parts
        if (parameter, part) not in filled
    ]
    return problems


def stored_shapes(directory: Path) -> dict[str, Shape]:
    """Of every .safetensors file, as vLLM walks over them."""
    found: dict[str, Shape] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                assert name not in found
                found[name] = tuple(file.get_slice(name).get_shape())
    return found


def saved(shape: str, folder: Path, **options: Any) -> Path:
    transformers_model(shape).save_pretrained(folder / "theirs")
    ours = load_model(folder / "theirs", padded_vocab_size=128)
    save_model(folder / "ours", ours, dtype=torch.bfloat16, **options)
    return folder / "ours"


@pytest.fixture(scope="module", params=SHAPES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return request.param, saved(request.param, tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama-untied", tmp_path_factory.mktemp("untied"))


WITHOUT_A_PLACE = {
    # Qwen3Attention there has no bias on o_proj, whatever attention_bias says; Transformers' has.
    "qwen3-biases": [f"model.layers.{n}.self_attn.o_proj.bias is left out" for n in range(3)]
}


def test_every_tensor_has_one_place(written: Written) -> None:
    shape, directory = written
    config = AutoConfig.from_pretrained(directory)
    assert config.architectures == [
        {"llama": "Llama", "granite": "Granite", "mistral": "Mistral"}.get(
            SHAPES[shape][0], SHAPES[shape][0].capitalize()
        )
        + "ForCausalLM"
    ]
    assert load(stored_shapes(directory), config) == WITHOUT_A_PLACE.get(shape, [])


def test_in_several_files_too(tmp_path: Path) -> None:
    directory = saved("llama-untied", tmp_path, max_shard_bytes=100_000)
    assert len(list(directory.glob("*.safetensors"))) > 1
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored_shapes(directory))
    assert load(stored_shapes(directory), AutoConfig.from_pretrained(directory)) == []


ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


def test_the_config_has_what_is_read_of_it(written: Written) -> None:
    """By the names that the classes there read, in the types that they compute with."""
    _, directory = written
    config = AutoConfig.from_pretrained(directory)
    ours = load_model(directory).config
    assert config.dtype == torch.bfloat16
    assert config.hidden_act == "silu"
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ):
        assert type(getattr(config, key)) is int, key
        assert getattr(config, key) == getattr(ours, key), key
    assert type(config.tie_word_embeddings) is bool
    assert config.tie_word_embeddings == ours.tie_word_embeddings
    assert config.rms_norm_eps == ours.rms_norm_eps
    rope = config.rope_parameters
    kind = rope["rope_type"]
    assert ROPE_KEYS[kind] <= rope.keys()
    assert rope["rope_theta"] == ours.rope_theta
    assert kind == (ours.rope_scaling.rope_type if ours.rope_scaling else "default")
    for key in ROPE_KEYS[kind]:
        assert rope[key] == getattr(ours.rope_scaling, key), key
    # It would be applied to the logits on top of logits_scaling.
    assert not hasattr(config, "logit_scale")
    if config.model_type == "granite":
        for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            assert isinstance(getattr(config, key), float), key
            assert getattr(config, key) == getattr(ours, key), key
        assert config.attention_multiplier == ours.attention_scale
    else:  # the scale is 1/√head_dim there, and nothing else is multiplied
        assert ours.attention_scale == pytest.approx(ours.head_dim**-0.5)
        assert ours.embedding_multiplier == ours.residual_multiplier == ours.logits_scaling == 1
    if config.model_type == "qwen2":
        assert ours.head_dim == config.hidden_size // config.num_attention_heads
    for key in ("sliding_window", "qkv_bias", "is_causal"):
        assert getattr(config, key, None) is None, key
    kinds = getattr(config, "layer_types", None) or []
    assert set(kinds) <= {"full_attention"}


def test_a_minicpm_preset_fits(tmp_path: Path) -> None:
    """A shape as it is trained here, not as Transformers made it."""
    config = preset("minicpm-9m").config.replace(vocab_size=100, num_hidden_layers=2)
    save_model(tmp_path, Decoder(config, padded_vocab_size=128))
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.architectures == ["GraniteForCausalLM"]
    assert load(stored_shapes(tmp_path), read) == []


# -- the rules can fail -------------------------------------------------------------------------


def _renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


Q, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "renamed": (lambda t: _renamed(t, Q, Q.replace("q_proj", "query")), "has no parameter"),
    "missing": (lambda t: t.pop(UP), "gate_up_proj.weight up is not filled"),
    "taller": (lambda t: t.update({Q: torch.zeros(80, 64)}), "q_proj.weight (80, 64) instead of"),
    "turned": (lambda t: t.update({UP: t[UP].T.contiguous()}), "up_proj.weight (64, 112) instead"),
    "padded": (
        lambda t: t.update({"model.embed_tokens.weight": torch.zeros(128, 64)}),
        "embed_tokens.weight (128, 64) instead of (97, 64)",
    ),
    "a bias": (lambda t: t.update({Q.replace("weight", "bias"): torch.zeros(64)}), "is left out"),
    "fused": (
        lambda t: _renamed(t, Q, Q.replace("q_proj", "qkv_proj")),
        "qkv_proj.weight (64, 64) instead of None",
    ),
    "no head": (lambda t: t.pop("lm_head.weight"), "lm_head.weight  is not filled"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_directory_that_does_not_fit_is_seen(damage: str, untied: Path, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    copy = Path(shutil.copytree(untied, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    problems = load(stored_shapes(copy), AutoConfig.from_pretrained(copy))
    assert any(message in problem for problem in problems), problems
