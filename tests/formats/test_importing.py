"""From GGUF to a Hugging Face directory: logits of Transformers' original, values of gguf's."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, GraniteConfig
from transformers.modeling_utils import PreTrainedModel

from llamita.errors import UserError
from llamita.formats.gguf_file import GgufFile
from llamita.formats.importing import import_model
from llamita.model.huggingface import load_model, load_state
from llamita.model.records import read_config
from tests.formats.gguf_files import (
    add_words,
    finish,
    logits,
    permute,
    tensors_of,
    write_gguf,
)
from tests.model.shapes import LLAMA3_ROPE, SHAPES, random_tokens, transformers_model

# architecture in GGUF by shape; Transformers' dynamic scaling has no form in GGUF
_SHAPES = [
    (name, "minicpm" if name == "minicpm-shaped" else kind)
    for name, (kind, _) in SHAPES.items()
    if name != "llama-dynamic"
]


def _quiet(_text: str) -> None:
    pass


def _imported(path: Path, out: Path, dtype: str = "float32") -> Path:
    return import_model(path, out, dtype=dtype, say=_quiet)


@pytest.mark.parametrize(("shape", "architecture"), [*_SHAPES, ("minicpm-shaped", "granite")])
def test_logits_of_the_original(shape: str, architecture: str, tmp_path: Path) -> None:
    original = transformers_model(shape)
    write_gguf(tmp_path / "model.gguf", original, architecture)
    directory = _imported(tmp_path / "model.gguf", tmp_path / "out")
    tokens = random_tokens()
    expected = logits(original, tokens)
    assert (logits(load_model(directory), tokens) - expected).abs().max() <= 2e-5
    again = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    assert (logits(again, tokens) - expected).abs().max() <= 2e-5


def test_minicpm_without_its_keys(tmp_path: Path) -> None:
    """Older files leave the multipliers out; llama.cpp then has those of MiniCPM-2.4B."""
    original = transformers_model("minicpm-shaped")
    config = original.config
    torch.manual_seed(0)
    scaled = AutoModelForCausalLM.from_config(
        GraniteConfig(
            **{**config.to_dict(), "residual_multiplier": 1.4 / 3**0.5, "logits_scaling": 64 / 256}
        ),
        attn_implementation="eager",
    )
    scaled.load_state_dict(original.state_dict())

    def plain(writer: gguf.GGUFWriter) -> None:
        prefix = "minicpm."
        for keys in writer.kv_data:
            for key in ("embedding_scale", "residual_scale", "logit_scale"):
                del keys[prefix + key]

    write_gguf(tmp_path / "model.gguf", original, "minicpm", change=plain)
    directory = _imported(tmp_path / "model.gguf", tmp_path / "out")
    tokens = random_tokens()
    assert (logits(load_model(directory), tokens) - logits(scaled, tokens)).abs().max() <= 2e-4


def test_llama3_factors_give_the_settings_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", transformers_model("llama-llama3"), "llama")
    found = read_config(_imported(tmp_path / "model.gguf", tmp_path / "out")).rope_scaling
    assert found is not None
    expected = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    assert found.model_dump() == pytest.approx(expected)


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "F32"]
)
def test_every_type_gguf_can_write(kind: str, small: PreTrainedModel, tmp_path: Path) -> None:
    quantization = GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "model.gguf", small, "llama", quantization=quantization)
    found = load_state(_imported(path, tmp_path / "out"))
    heads = {"q_proj": 4, "k_proj": 2}
    for name, tensor in small.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        turned = next((n for key, n in heads.items() if key in name), None)
        if values.ndim == 2:
            stored = values if turned is None else permute(values, turned)
            values = gguf.quants.dequantize(
                gguf.quants.quantize(stored, quantization), quantization
            )
            if turned is not None:  # back: the inverse by looking rows up
                order = permute(np.arange(len(values)), turned)
                values = values[np.argsort(order)]
        assert np.array_equal(found[name].numpy(), values), name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_types_gguf_can_only_read(kind: str, tmp_path: Path) -> None:
    """Random blocks, over more than one piece, against gguf's own dequantisation of the whole."""
    quantization = GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[quantization]
    rows, columns = 300, 512
    # Below 64 every byte, so that no float16 among them is infinite.
    raw = np.random.default_rng(0).integers(0, 64, (rows, columns // values * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", raw, raw_dtype=quantization)
    finish(writer)
    found = GgufFile(tmp_path / "model.gguf").read("token_embd.weight")
    assert found.shape == (rows, columns)
    assert np.array_equal(found, gguf.quants.dequantize(raw, quantization))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_rounds_and_nothing_else(dtype: str, small: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", small, "llama")
    found = load_state(_imported(path, tmp_path / "out", dtype))
    for name, tensor in small.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(found[name], tensor.to(getattr(torch, dtype))), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == dtype


def test_float16_that_does_not_hold_the_values(small: PreTrainedModel, tmp_path: Path) -> None:
    large = AutoModelForCausalLM.from_config(small.config)
    with torch.no_grad():
        large.model.norm.weight.fill_(70000.0)
    path = write_gguf(tmp_path / "model.gguf", large, "llama")
    with pytest.raises(UserError, match=r"output_norm.weight has values beyond what float16"):
        _imported(path, tmp_path / "out", "float16")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.gguf"]


def test_vocabulary_filled_up(small: PreTrainedModel, tmp_path: Path) -> None:
    """[PAD94] of type unused is no token of the tokenizer; the embedding keeps its row."""

    def fill(writer: gguf.GGUFWriter) -> None:
        for keys in writer.kv_data:
            keys["tokenizer.ggml.tokens"].value[94:] = ["[PAD94]", "[PAD95]"]
            keys["tokenizer.ggml.token_type"].value[94:] = [5, 5]

    path = write_gguf(tmp_path / "model.gguf", small, "llama", change=fill)
    directory = _imported(path, tmp_path / "out")
    assert read_config(directory).vocab_size == 96
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 94
    assert "[PAD94]" not in vocabulary


def test_again_and_force(small: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", small, "llama")
    directory = _imported(path, tmp_path / "out")
    written = (directory / "model.safetensors").stat().st_ino
    told: list[str] = []
    import_model(path, directory, say=told.append)
    assert "already" in told[0]
    assert (directory / "model.safetensors").stat().st_ino == written
    with pytest.raises(UserError, match="add --force"):
        _imported(path, directory, "bfloat16")
    import_model(path, directory, dtype="bfloat16", force=True, say=_quiet)
    assert load_state(directory)["model.norm.weight"].dtype == torch.bfloat16
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.gguf", "out"]


def test_a_place_that_is_not_ours(small: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", small, "llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    for force in (False, True):
        with pytest.raises(UserError, match="was not written by"):
            import_model(path, tmp_path / "mine", force=force, say=_quiet)
        with pytest.raises(UserError, match="was not written by"):
            import_model(path, path, force=force, say=_quiet)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "text"
    (tmp_path / "empty").mkdir()
    assert _imported(path, tmp_path / "empty") == tmp_path / "empty"


def test_full_disk(small: PreTrainedModel, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the weights of 200 kB do not fit."""
    path = write_gguf(tmp_path / "model.gguf", small, "llama")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(UserError, match="Free some space"):
            _imported(path, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.gguf"]


def _set(key: str, value: object) -> Callable[[gguf.GGUFWriter], None]:
    def change(writer: gguf.GGUFWriter) -> None:
        for keys in writer.kv_data:
            keys.pop(key, None)
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", None, "has no llama.block_count"),
        ("llama.block_count", 2, "model.layers.1.*missing"),
        ("llama.context_length", None, "has no llama.context_length"),
        ("llama.embedding_length", "wide", "llama.embedding_length is 'wide', not of type int"),
        ("llama.embedding_length", 32, "instead of"),
        ("llama.attention.layer_norm_rms_epsilon", None, "has no llama.attention.layer_norm"),
        ("llama.attention.head_count_kv", 3, "not a multiple"),
        ("llama.attention.head_count", [4, 2], "differs from layer to layer"),
        ("llama.attention.value_length", 8, "must be the size of a head"),
        ("llama.rope.dimension_count", 8, "must be the size of a head"),
        ("llama.rope.scaling.type", "yarn", "linear scaling and Llama 3"),
        ("llama.attention.sliding_window", 32, "every layer attends"),
        ("llama.attention.causal", False, "attends to what came before"),
        ("llama.expert_count", 8, "does not know what it changes"),
        ("llama.logit_scale", 2.0, "does not know what it changes"),
        ("split.count", 3, "one part of a split GGUF.*--merge"),
        ("general.type", "adapter", "LoRA adapter"),
        ("general.type", "mmproj", "is a mmproj"),
        ("tokenizer.ggml.model", "t5", "tokenizer of kind 't5'"),
        ("tokenizer.ggml.model", None, "has no tokenizer.ggml.model"),
        ("tokenizer.ggml.scores", None, "has no tokenizer.ggml.scores"),
        ("tokenizer.ggml.tokens", ["a", "b"], "is no array of 2 numbers"),
    ],
)
def test_keys_that_ask_for_something_else(
    key: str, value: object, message: str, small: PreTrainedModel, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", small, "llama", change=_set(key, value))
    with pytest.raises(UserError, match=message):
        _imported(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.gguf"]


def test_what_changes_nothing_is_read(small: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "model.gguf",
        small,
        "llama",
        change=lambda writer: (
            [_set("llama.expert_count", 0)(writer)]
            and _set("llama.rope.scaling.type", "none")(writer)
        ),
    )
    assert read_config(_imported(path, tmp_path / "out")).rope_scaling is None


def test_rope_factors_of_another_kind(small: PreTrainedModel, tmp_path: Path) -> None:
    for factors in (np.linspace(1, 9, 8), np.full(8, 0.5), np.ones(7)):
        path = write_gguf(
            tmp_path / "model.gguf",
            small,
            "llama",
            change=lambda writer, factors=factors: writer.add_tensor(
                "rope_freqs.weight", factors.astype(np.float32)
            ),
        )
        with pytest.raises(UserError, match="not Llama 3's"):
            _imported(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        ("token_embd.weight", "has no tensor token_embd.weight"),
        ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight missing"),
    ],
)
def test_a_tensor_missing(
    leave_out: str, message: str, small: PreTrainedModel, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", small, "llama", leave_out=leave_out)
    with pytest.raises(UserError, match=message):
        _imported(path, tmp_path / "out")


def test_a_tensor_too_many(small: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "model.gguf",
        small,
        "llama",
        change=lambda writer: writer.add_tensor(
            "blk.0.ffn_gate_exps.weight", np.ones((2, 32), np.float32)
        ),
    )
    with pytest.raises(UserError, match=r"no use for: blk.0.ffn_gate_exps.weight"):
        _imported(path, tmp_path / "out")


def test_other_architectures_by_name(small: PreTrainedModel, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma2")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    finish(writer)
    with pytest.raises(UserError, match="architecture 'gemma2'; llamita imports models of llama"):
        _imported(tmp_path / "model.gguf", tmp_path / "out")


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    add_words(writer, 10)
    finish(writer)
    with pytest.raises(UserError, match="a vocabulary without weights"):
        _imported(tmp_path / "vocabulary.gguf", tmp_path / "out")


def test_cut_at_any_place(small: PreTrainedModel, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "model.gguf", small, "llama").read_bytes()
    places = np.linspace(4, len(whole) - 40, 60).astype(int)
    for place in [*places.tolist(), len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:place])
        with pytest.raises(UserError, match="is cut short"):
            _imported(tmp_path / "cut.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_anywhere_in_the_header(small: PreTrainedModel, tmp_path: Path) -> None:
    """A changed byte is a message or another file, never another exception."""
    whole = write_gguf(tmp_path / "model.gguf", small, "llama").read_bytes()
    generator = np.random.default_rng(0)
    told = []
    for _ in range(150):
        bad = bytearray(whole)
        bad[int(generator.integers(4, 3000))] ^= int(generator.integers(1, 256))
        (tmp_path / "bad.gguf").write_bytes(bad)
        try:
            GgufFile(tmp_path / "bad.gguf")
        except UserError as error:
            told.append(str(error))
    assert told, "no changed byte was noticed"
    assert all("bad.gguf" in message for message in told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with the letters GGUF"),
        (b"PK\x03\x04" + bytes(40), "does not begin with the letters GGUF"),
        (b"GGUF\x00\x00\x00\x03" + bytes(40), "big-endian"),
        (b"GGUF\x01\x00\x00\x00" + bytes(40), "GGUF version 1"),
        (b"GGUF\x09\x00\x00\x00" + bytes(40), "GGUF version 9"),
    ],
)
def test_not_such_a_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message):
        _imported(tmp_path / "model.gguf", tmp_path / "out")


def test_split_by_name(small: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model-00001-of-00003.gguf", small, "llama")
    with pytest.raises(UserError, match="one part of a split GGUF"):
        _imported(path, tmp_path / "out")


def test_types_that_cannot_be_read(small: PreTrainedModel, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "model.gguf", small, "llama").read_bytes()
    name = b"blk.0.attn_q.weight"
    place = whole.index(name) + len(name) + 4 + 2 * 8
    for number, message in ((200, "type number 200"), (26, "type I32, which")):
        (tmp_path / "other.gguf").write_bytes(
            whole[:place] + number.to_bytes(4, "little") + whole[place + 4 :]
        )
        with pytest.raises(UserError, match=message):
            _imported(tmp_path / "other.gguf", tmp_path / "out")


def test_values_that_are_no_numbers(small: PreTrainedModel, tmp_path: Path) -> None:
    broken = AutoModelForCausalLM.from_config(small.config)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[3, 4] = float("nan")
    path = write_gguf(tmp_path / "model.gguf", broken, "llama")
    with pytest.raises(UserError, match=r"ffn_up.weight holds values that are no numbers"):
        _imported(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.gguf"]


def test_names_are_ggufs_own(small: PreTrainedModel) -> None:
    """The oracle's own table names what this file's tests write."""
    assert "blk.0.attn_q.weight" in tensors_of(small, "llama")
