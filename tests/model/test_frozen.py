"""A base that is read, cast and quantised a tensor at a time: the same bits, and no more memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from llamita.architecture.config import ModelConfig
from llamita.architecture.lora import Lora
from llamita.errors import UserError
from llamita.model.adapted import base_fingerprint
from llamita.model.adapter_directory import Base, save_adapter, weights_fingerprint
from llamita.model.adapters import adapter_state, add_adapters, freeze_to
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_frozen, load_model, load_state, save_model
from llamita.model.initialization import initialize
from llamita.model.quantized import quantize_base
from llamita.model.weight_files import StoredWeights, weight_files
from tests.model.adapted_models import randomise, stored_base
from tests.model.shapes import transformers_model

# Its matrices are a small part of it, and a part that no other tensor equals.
DEEP = ModelConfig(
    vocab_size=500,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)


def _one_after_another(
    directory: Path, dtype: torch.dtype, quantization: Any, rows: int | None = None
) -> Decoder:
    model = load_model(directory, padded_vocab_size=rows, merge=True)
    if quantization is not None:
        quantize_base(model, quantization)
    model.requires_grad_(False)
    freeze_to(model, dtype)
    return model


def _tensors(model: Decoder) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ("llama-biases", torch.float16),
        ("llama-untied", torch.bfloat16),
        ("minicpm-shaped", torch.float32),  # whose embedding is multiplied
    ],
)
def test_the_bits_are_those_of_one_step_after_another(
    shape: str, stored: torch.dtype, dtype: torch.dtype, quantization: Any, tmp_path: Path
) -> None:
    transformers_model(shape).to(stored).save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    found = load_frozen(tmp_path, "cpu", dtype, quantization=quantization, padded_vocab_size=128)
    expected = _tensors(_one_after_another(tmp_path, dtype, quantization, 128))
    assert set(_tensors(found)) == set(expected)
    for name, tensor in _tensors(found).items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
        assert not tensor.requires_grad, name
        assert tensor.device.type == "cpu", name


def test_a_base_that_is_an_adapter_is_folded(tmp_path: Path) -> None:
    base = stored_base("llama-untied", tmp_path / "base")
    model = load_model(base)
    add_adapters(model, lora := Lora(rank=2, alpha=4), seed=0)
    randomise(model)
    record = Base("../base", base_fingerprint(base))
    save_adapter(tmp_path / "adapter", adapter_state(model), lora, record, model.config)
    found = load_frozen(tmp_path / "adapter", "cpu", torch.bfloat16, quantization="nf4")
    expected = _tensors(_one_after_another(tmp_path / "adapter", torch.bfloat16, "nf4"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in _tensors(found).items())
    assert not any(parameter.requires_grad for parameter in found.parameters())


def _deep(directory: Path) -> Path:
    """A file for each tensor: PyTorch counts a file as allocated while it is mapped."""
    model = Decoder(DEEP)
    initialize(model, "llama")
    save_model(directory, model, dtype=torch.bfloat16, max_shard_bytes=1)
    return directory


def _allocated_at_most(work: Any) -> tuple[int, Decoder]:
    """Bytes of PyTorch's allocator at their highest."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made = work()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    standing = most = 0
    for _, size in changes:
        standing += size
        most = max(most, standing)
    return most, made


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_what_stands_is_the_model_and_one_matrix(quantization: Any, tmp_path: Path) -> None:
    _deep(tmp_path)
    load_frozen(tmp_path, "cpu", torch.bfloat16, quantization=quantization)  # what is made once
    most, model = _allocated_at_most(
        lambda: load_frozen(tmp_path, "cpu", torch.bfloat16, quantization=quantization)
    )
    finished = sum(tensor.nbytes for tensor in _tensors(model).values())
    matrix = 4 * DEEP.hidden_size * max(DEEP.intermediate_size, DEEP.vocab_size)
    # Quantising takes a few copies of the matrix (bitsandbytes).
    taken = (1 if quantization is None else 4) * matrix
    assert finished <= most <= finished + taken + 20_000
    whole, _ = _allocated_at_most(
        lambda: _one_after_another(tmp_path, torch.bfloat16, quantization)
    )
    assert whole > 1.5 * most


class _Watched(Mapping[str, Tensor]):
    """Tells the most pages of files that were resident as tensors were asked for."""

    def __init__(self, stored: StoredWeights) -> None:
        self.stored, self.most = stored, 0

    def __getitem__(self, name: str) -> Tensor:
        pages = int(Path("/proc/self/statm").read_text().split()[2])  # those with a file behind
        self.most = max(self.most, pages * resource.getpagesize())
        return self.stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are told by /proc")
def test_pages_of_a_file_go_when_they_have_been_read(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.full((500_000,), float(n)) for n in range(60)}
    save_file(tensors, tmp_path / "model.safetensors")
    watched = _Watched(StoredWeights(weight_files(tmp_path)))
    weights_fingerprint(dict(list(watched.items())[:1]))
    before, watched.most = watched.most, 0
    assert weights_fingerprint(watched) == weights_fingerprint(tensors)
    # Of 120 MB, what eight threads at a time have of 2 MB each.
    assert watched.most - before < 40_000_000
    # The same of a dictionary of them all:
    held = dict(watched)
    weights_fingerprint(held)
    watched["t0"]
    assert watched.most - before > 100_000_000


def test_weights_that_do_not_fit_are_refused_before_any_is_read(tmp_path: Path) -> None:
    base = stored_base("llama-untied", tmp_path)
    state = load_state(base)
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = state[name][:-1].contiguous()
    save_file(state, tmp_path / "changed", metadata={"format": "pt"})
    (tmp_path / "changed").replace(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"of another shape: {name}"):
        load_frozen(base, "cpu", torch.bfloat16, quantization="nf4")
