"""Types of GGUF: gguf's own quantisation, ggml's, and llama-quantize's choice between them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from math import prod
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.formats import ggml_quantizer
from llamita.formats.ggml_quantizer import check_ggml, quantize_with_ggml
from llamita.formats.gguf_file import GgufFile
from llamita.formats.gguf_types import GGUF_TYPES, quantization_named, stored_type
from llamita.formats.importing import import_model
from llamita.model.huggingface import load_model, load_state
from tests.formats.gguf_files import permute
from tests.formats.gguf_models import PROMPT, quiet, random_decoder, written
from tests.formats.llama_cpp import greatest_difference, llama_cpp

LLAMA_3_8B = ModelConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shared = config.num_key_value_heads * config.head_dim
    yield "token_embd.weight", (config.vocab_size, hidden)
    yield "output.weight", (config.vocab_size, hidden)
    yield "output_norm.weight", (hidden,)
    yield "rope_freqs.weight", (config.head_dim // 2,)
    for layer in range(config.num_hidden_layers):
        for name, shape in {
            "attn_q": (hidden, hidden), "attn_k": (shared, hidden), "attn_v": (shared, hidden),
            "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden), "ffn_down": (hidden, inner), "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
        }.items():  # fmt: skip
            yield f"blk.{layer}.{name}.weight", shape


@pytest.mark.parametrize(
    ("quantize", "published"),
    [
        ("q2_k", 3.1593), ("q3_k_s", 3.6429), ("q3_k_l", 4.2979), ("q4_k_s", 4.6672),
        ("q4_k", 4.8944), ("q5_k_s", 5.5704), ("Q5_K_M", 5.7036), ("q6_k", 6.5633),
        ("q8_0", 8.5008), ("f16", 16.0005),
    ],
)  # fmt: skip
def test_bits_of_llama_3(quantize: str, published: float) -> None:
    """Bits a weight of Llama-3.1-8B, as llama.cpp's tools/quantize/README.md has them."""
    bits = weights = 0
    for name, shape in _tensors(LLAMA_3_8B):
        kind = stored_type(name, shape, quantization_named(quantize), LLAMA_3_8B).kind
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        bits += 8 * prod(shape) // values * size
        weights += prod(shape)
    assert bits / weights == pytest.approx(published, abs=5e-5)


def test_every_third_layer() -> None:
    """use_more_bits of 16 layers: the first two, the last two, and every third from the fifth."""
    config = LLAMA_3_8B.replace(num_hidden_layers=16)
    found = [
        layer
        for layer in range(16)
        if stored_type(f"blk.{layer}.ffn_down.weight", (4096, 14336), "q4_k_m", config).kind
        == "Q6_K"
    ]
    assert found == [0, 1, 4, 7, 10, 13, 14, 15]


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_gguf_quantises_so(quantize: str, tmp_path: Path) -> None:
    """Back from the file come the numbers that gguf's own quantisation gives, bit for bit."""
    model = random_decoder(num_hidden_layers=1, intermediate_size=96)
    path = written(tmp_path / "model.gguf", model, quantize=quantize)
    found = load_state(import_model(path, tmp_path / "back", say=quiet))
    kind = GGMLQuantizationType[quantize.upper()]
    heads = {"q_proj": 4, "k_proj": 2}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if values.ndim == 2:
            turned = next((n for key, n in heads.items() if key in name), None)
            order = (
                np.arange(len(values))
                if turned is None
                else permute(np.arange(len(values)), turned)
            )
            stored = gguf.quants.dequantize(gguf.quants.quantize(values[order], kind), kind)
            values = stored[np.argsort(order)]
        assert np.array_equal(found[name].numpy(), values), name


# Root mean square error on normal values, of that of the values. Uniform steps over ±3σ in blocks
# of 16 or 32 give 2.5 σ / 2^bits or so.
@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("Q2_K", 0.2, 0.32), ("Q3_K", 0.1, 0.18), ("Q4_K", 0.05, 0.09), ("Q5_K", 0.025, 0.045),
     ("Q6_K", 0.01, 0.022)],
)  # fmt: skip
def test_ggml_quantises_so(kind: str, least: float, most: float) -> None:
    """Dequantised by gguf, over more than one piece, what comes back is near."""
    pytest.importorskip("xllamacpp")
    values = np.random.default_rng(0).standard_normal((2100, 512)).astype(np.float32)
    blocks = quantize_with_ggml(values, kind)
    back = gguf.quants.dequantize(blocks, GGMLQuantizationType[kind])
    assert back.shape == values.shape
    assert least < float(np.sqrt(np.square(back - values).mean())) < most
    assert np.array_equal(quantize_with_ggml(values[2098:], kind), blocks[2098:])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_ggml_and_gguf_agree(kind: str) -> None:
    """Where both write a type, they write the same: the calls into ggml are right."""
    pytest.importorskip("xllamacpp")
    values = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    expected = gguf.quants.quantize(values, GGMLQuantizationType[kind])
    assert np.array_equal(quantize_with_ggml(values, kind), expected)


@pytest.mark.parametrize("quantize", ["q4_k_m", "q2_k"])
def test_llama_cpp_runs_k_quants(quantize: str, tmp_path: Path) -> None:
    """llama.cpp rounds what it multiplies such weights by to 8 bits in blocks of 256."""
    pytest.importorskip("xllamacpp")
    model = random_decoder(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, tie_word_embeddings=True
    )
    path = written(tmp_path / "model.gguf", model, quantize=quantize)
    counts = GgufFile(path).type_counts()
    assert (
        set(counts)
        == {"q4_k_m": {"F32", "Q4_K", "Q6_K"}, "q2_k": {"F32", "Q2_K", "Q3_K", "Q6_K"}}[quantize]
    )
    stored = load_model(import_model(path, tmp_path / "stored", say=quiet))
    with llama_cpp(path) as engine:
        near = greatest_difference(engine, stored, PROMPT, 2, greedy=False)
        far = greatest_difference(engine, model, PROMPT, 2, greedy=False)
    assert near <= 0.6  # of logits that spread over 40
    assert far > 3 * near  # what the quantisation itself did


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    """SmolLM2's rows of 576 and 1536, as `llama-quantize` says and stores them; and rows of 66."""
    model = random_decoder(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
        num_hidden_layers=2, tie_word_embeddings=True,
    )  # fmt: skip
    said: list[str] = []
    pytest.importorskip("xllamacpp")
    path = written(tmp_path / "model.gguf", model, quantize="q4_k_s", say=said.append)
    found = {name: tensor.type_name for name, tensor in GgufFile(path).tensors.items()}
    assert found["token_embd.weight"] == "Q8_0"
    assert found["blk.0.attn_v.weight"] == "Q5_1"  # Q5_K in the first four layers
    assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_up.weight"] == "Q5_0"
    assert found["blk.1.ffn_down.weight"] == "Q4_K"
    assert "13 tensors have rows that do not divide" in said[-1]
    assert "10 Q5_0 for Q4_K, 2 Q5_1 for Q5_K" in said[-1]
    odd = random_decoder(hidden_size=66, head_dim=16)
    for quantize in ("q8_0", "q6_k"):
        path = written(tmp_path / "odd.gguf", odd, quantize=quantize, say=said.append)
        assert GgufFile(path).tensors["blk.0.attn_q.weight"].type_name == "F16"
        assert "larger type" in said[-1]


def test_names() -> None:
    assert quantization_named("Q4_K") == "q4_k_m"
    assert {f"q{bits}_k" for bits in range(2, 7)} < {*GGUF_TYPES}
    with pytest.raises(
        UserError, match=r"--quantize q8: there is no such type. Did you mean 'q8_0'"
    ):
        quantization_named("q8")


def test_without_ggml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(hidden_size=256, num_hidden_layers=1)
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(ggml_quantizer, "_library", ggml_quantizer._library.__wrapped__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "xllamacpp", None)
        with pytest.raises(UserError, match=r"pip install 'llamita\[cpu\]'"):
            written(tmp_path / "model.gguf", model, quantize="q4_k_m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _path: SimpleNamespace())
        with pytest.raises(UserError, match="hides ggml's quantiser"):
            check_ggml("Q4_K")
    with pytest.raises(UserError, match="importance matrix"):
        check_ggml("IQ2_XXS")
    assert not list(tmp_path.iterdir())
    assert torch.is_tensor(model.state_dict()["model.norm.weight"])
