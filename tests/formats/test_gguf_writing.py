"""GGUF out: llama.cpp, Transformers and gguf read what is written, and compute what we do."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from llamita.errors import UserError
from llamita.formats.gguf_file import GgufFile
from llamita.formats.gguf_writing import gguf_architecture, write_gguf
from llamita.formats.importing import import_model
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model, load_state
from llamita.model.records import read_config
from tests.formats.gguf_files import llama3_factors, logits
from tests.formats.gguf_files import write_gguf as converted
from tests.formats.gguf_models import PROMPT, quiet, random_decoder, words, written
from tests.formats.llama_cpp import greatest_difference, llama_cpp
from tests.model.shapes import LLAMA3_ROPE, MINICPM, random_tokens, transformers_model

LLAMA3 = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
# shape -> (architecture in GGUF, what differs from tests.model.shapes.BASE)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {"rope_theta": 77.0}),
    "tied": ("llama", {"tie_word_embeddings": True, "head_dim": 24, "rope_scaling": LINEAR}),
    "biases": (
        "llama",
        {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True,
         "rope_scaling": LLAMA3},
    ),
    "mistral": ("llama", {"hidden_size": 66, "head_dim": 16}),
    "ntk": ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}),
    "minicpm": ("granite", MINICPM),
    "granite-biases": (
        "granite",
        {"attention_multiplier": 0.1, "attention_bias": True, "attention_output_bias": True,
         "rope_scaling": LLAMA3},
    ),
    "qwen2": ("qwen2", {"attention_bias": True}),
    "qwen2-llama3": ("llama", {"attention_bias": True, "rope_scaling": LLAMA3}),
    "qwen3": ("qwen3", {"qk_norm": True, "tie_word_embeddings": True, "rope_scaling": LINEAR}),
}  # fmt: skip


def _shape(name: str) -> Decoder:
    return random_decoder(seed=2, **SHAPES[name][1])


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_the_same(shape: str, tmp_path: Path) -> None:
    """Log-probabilities of every token after a prompt: what rounding in float32 leaves."""
    model = _shape(shape)
    path = written(tmp_path / "model.gguf", model)
    assert GgufFile(path).fields["general.architecture"] == SHAPES[shape][0]
    with llama_cpp(path) as engine:
        assert greatest_difference(engine, model, PROMPT, 12) <= 2e-5


@pytest.mark.parametrize(("shape", "quantize"), [("tied", "f16"), ("minicpm", "f16")])
def test_llama_cpp_in_half_precision(shape: str, quantize: str, tmp_path: Path) -> None:
    """Against our model with the stored weights: what is left is that llama.cpp rounds what it
    multiplies by them to float16 too, 11 bits."""
    path = written(tmp_path / "model.gguf", _shape(shape), quantize=quantize)
    stored = load_model(import_model(path, tmp_path / "stored", say=quiet))
    with llama_cpp(path) as engine:
        assert greatest_difference(engine, stored, PROMPT, 12) <= 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(shape: str, tmp_path: Path) -> None:
    model = _shape(shape)
    path = written(tmp_path / "model.gguf", model)
    directory = import_model(path, tmp_path / "back", say=quiet)
    found = load_state(directory)
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config, before = read_config(directory), model.config
    if shape == "ntk":  # a larger base, as in the Hugging Face directory
        assert config.rope_theta == pytest.approx(10000 * 4 ** (16 / 14))
        config = config.replace(rope_theta=before.rope_theta, rope_scaling=before.rope_scaling)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    scale = {"attention_multiplier": before.attention_scale}  # GGUF holds numbers in float32
    expected_config = before.replace(**ids, **scale).model_dump(exclude={"rope_scaling"})
    found_config = config.replace(attention_multiplier=config.attention_scale)
    assert found_config.model_dump(exclude={"rope_scaling"}) == pytest.approx(expected_config)
    assert found_config.rope_scaling == before.rope_scaling


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 77.0},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"qk_norm": True, "head_dim": 128},
    ],
)
def test_transformers_reads_it(changes: dict[str, Any], tmp_path: Path) -> None:
    """Llama, tied and not, qwen2 and qwen3. Transformers 5.23 leaves rope scaling, llama's biases
    and qwen3's key_length unread (it takes 128)."""
    pytest.importorskip("accelerate", reason="Transformers needs accelerate to read a GGUF file")
    model = random_decoder(**changes)
    path = written(tmp_path / "model.gguf", model)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    tokens = random_tokens()
    assert (logits(theirs, tokens) - logits(model, tokens)).abs().max() <= 2e-5


def test_gguf_reads_it(tmp_path: Path) -> None:
    """Types, shapes and keys by gguf's own reader; the names are gguf's own table's."""
    model = random_decoder(**SHAPES["biases"][1])
    facts = {"general.name": "A name", "general.license": "mit"}
    path = written(tmp_path / "model.gguf", model, facts=facts, quantize="q8_0")
    reader = gguf.GGUFReader(path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    expected = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): tensor
        for name, tensor in model.state_dict().items()
    }
    found = {tensor.name: tensor for tensor in reader.tensors}
    rope = found.pop("rope_freqs.weight")
    factors = llama3_factors(10000.0, 16, LLAMA3_ROPE)
    assert np.allclose(rope.data, factors, rtol=1e-6)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert list(found[name].shape) == list(reversed(tensor.shape)), name
        kind = "F32" if tensor.ndim == 1 else "F16" if tensor.shape[-1] % 32 else "Q8_0"
        assert found[name].tensor_type.name == kind, name
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.name"] == "A name"
    assert fields["general.license"] == "mit"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert fields["llama.vocab_size"] == 97
    assert fields["llama.attention.key_length"] == fields["llama.rope.dimension_count"] == 16
    assert fields["llama.context_length"] == 64


def test_rows_of_padding_are_left_out(tmp_path: Path) -> None:
    model = random_decoder()
    state = dict(model.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(31, 64)])
    plain = written(tmp_path / "a.gguf", model).read_bytes()
    facts = {"general.name": "a"}
    write_gguf(
        tmp_path / "b.gguf", state, model.config, words(), quantize="f32", facts=facts, say=quiet
    )
    assert (tmp_path / "b.gguf").read_bytes() == plain


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """A lazy mapping is asked for a tensor when the one before it is written."""
    model = random_decoder()
    alive: list[str] = []

    class Lazy(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            alive.append(name)
            return super().__getitem__(name)

    state = Lazy(model.state_dict())
    write_gguf(tmp_path / "a.gguf", state, model.config, words(), quantize="f32", say=quiet)
    assert alive[-len(state) :] == list(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic changes with"),
        ({"qk_norm": True, "rope_scaling": LLAMA3}, "qwen3 .* has no Llama 3's rope"),
        (
            {"qk_norm": True, "attention_bias": True, "attention_output_bias": True},
            "qwen3 .* has no biases",
        ),
        ({"qk_norm": True, "embedding_multiplier": 12.0}, "multipliers together with qk_norm"),
    ],
)
def test_shapes_that_llama_cpp_has_not(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = random_decoder(**changes)
    with pytest.raises(UserError, match=message):
        written(tmp_path / "model.gguf", model)
    assert not list(tmp_path.iterdir())
    assert gguf_architecture(random_decoder().config) == "llama"


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    model = random_decoder()
    norm, up = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    for changed, message in (
        ({norm: None}, "model.norm.weight missing"),
        ({"more": torch.ones(1)}, "more unexpected"),
        ({up: torch.ones(3, 3)}, "instead of"),
        ({up: torch.full((112, 64), torch.nan)}, "are no numbers"),
    ):
        state = {**model.state_dict(), **changed}
        state = {name: tensor for name, tensor in state.items() if tensor is not None}
        with pytest.raises(UserError, match=message):
            write_gguf(tmp_path / "a.gguf", state, model.config, words(), say=quiet)
    large = {**model.state_dict(), up: torch.full((112, 64), 70000.0)}
    for quantize in ("f16", "q8_0"):
        with pytest.raises(UserError, match="beyond what float16"):
            write_gguf(
                tmp_path / "a.gguf", large, model.config, words(), quantize=quantize, say=quiet
            )
    assert not list(tmp_path.iterdir())
    write_gguf(tmp_path / "a.gguf", large, model.config, words(), quantize="bf16", say=quiet)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    model = random_decoder()
    path = written(tmp_path / "model.gguf", model)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="no room on the disk"):
            written(path, random_decoder(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_minicpm_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    """Converters reorder q and k of minicpm too, and divide by logit_scale. Of files without
    their keys llama.cpp divides logits by 256 / hidden where the model does by its inverse, which
    is what an import has: here by 4 and by 1/4."""
    original = transformers_model("minicpm-shaped")
    path = converted(tmp_path / "model.gguf", original, "minicpm")
    with llama_cpp(path) as engine:
        assert greatest_difference(engine, original, PROMPT, 8) <= 2e-5

    def without(writer: gguf.GGUFWriter) -> None:
        for keys in writer.kv_data:
            for key in ("embedding_scale", "residual_scale", "logit_scale"):
                keys.pop(f"minicpm.{key}", None)

    path = converted(tmp_path / "old.gguf", original, "minicpm", change=without)
    model = load_model(import_model(path, tmp_path / "old", say=quiet))
    with llama_cpp(path) as engine:
        assert greatest_difference(engine, lambda tokens: model(tokens) / 16, PROMPT, 8) <= 2e-5
