"""Hugging Face directories: config.json, weights and generation_config.json, in and out.

Nothing that a checkpoint contains is ever executed: pickles are read as weights only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llamita.architecture.config import ModelConfig
from llamita.architecture.lora import Quantization
from llamita.errors import UserError
from llamita.model.adapter_directory import is_adapter
from llamita.model.adapters import freeze_to, frozen_dtype
from llamita.model.decoder import Decoder, Linear
from llamita.model.quantized import projections, quantize_base, quantize_projection
from llamita.model.records import read_config as read_config
from llamita.model.weight_files import SAFETENSORS, WEIGHT_FILES, StoredWeights, weight_files

MAX_SHARD_BYTES = 5_000_000_000
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_LISTED = 8  # names shown of each kind in an error, so that it stays readable


def load_state(directory: str | Path) -> dict[str, Tensor]:
    """Every tensor of a directory's weight files by name, as stored.

    Of an adapter's directory, the adapter's own, by the names that they have in a decoder.

    Raises:
        UserError: no weights, a shard missing, a damaged file.
    """
    if is_adapter(directory):
        from llamita.model.adapted import adapter_tensors

        return adapter_tensors(Path(directory))
    return dict(StoredWeights(weight_files(Path(directory))))


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Compares names and shapes; every difference is told at once."""
    problems = []
    groups = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
        "not of a floating type": [
            f"{name} {state[name].dtype}"
            for name in expected
            if name in state and not state[name].is_floating_point()
        ],
    }
    for kind, names in groups.items():
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            problems.append(f"{kind}: {', '.join(names[:_LISTED])}{more}")
    if problems:
        raise UserError(f"{where}: the weights do not fit config.json; " + "; ".join(problems))


def _padded(name: str, tensor: Tensor, rows: int) -> Tensor:
    if name not in _VOCABULARY or tensor.shape[0] == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - tensor.shape[0], tensor.shape[1])])


def _stored(directory: str | Path, config: ModelConfig) -> StoredWeights:
    """The weights of a directory, which are those that a decoder of this config has."""
    stored = StoredWeights(weight_files(Path(directory))).drop_derived(config)
    with torch.device("meta"):
        expected = Decoder(config).state_dict()
    _check(stored.described, expected, str(directory))
    return stored


def load_weights(model: Decoder, directory: str | Path) -> None:
    """Fills an existing decoder, padding the vocabulary where it is padded.

    From an adapter's directory: the adapters of a decoder that has them, and nothing else; a
    decoder without them gets base and adapter, merged.

    Raises:
        UserError: names or shapes differ; nothing has been changed then.
    """
    if is_adapter(directory):
        from llamita.model.adapted import fill_from_adapter

        fill_from_adapter(model, Path(directory))
        return
    stored = _stored(directory, model.config)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(_padded(name, tensor, own[name].shape[0]))


def load_model(
    directory: str | Path,
    device: str | torch.device = "cpu",
    *,
    padded_vocab_size: int | None = None,
    merge: bool = False,
) -> Decoder:
    """The decoder of a Hugging Face directory, its weights in float32 whatever they are stored in.

    Of an adapter's directory, its base with the adapter on it. A base that was quantised while the
    adapter learned is quantised again: that is what the adapter belongs to.

    Args:
        merge: fold an adapter into its base; what comes is a plain decoder in float32.

    Raises:
        UserError: the directory is not a model that the decoder can be, or an adapter's base is
            missing or another; the message says why.
    """
    if is_adapter(directory):
        from llamita.model.adapted import load_adapted

        return load_adapted(
            Path(directory), device, padded_vocab_size=padded_vocab_size, merge=merge
        )
    return _load(directory, device, torch.float32, padded_vocab_size)


def load_frozen(
    directory: str | Path,
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    quantization: Quantization | None = None,
    padded_vocab_size: int | None = None,
) -> Decoder:
    """The decoder of a directory as it is kept while adapters learn on it; nothing in it learns.

    To the bit what `load_model`, `quantize_base` and `freeze_to` make of it one after another.
    Here each tensor is read, cast or quantised, and let go before the next: on the device never
    stands more than what is returned and one matrix in float32, with what quantising it takes.
    (Of a base that is an adapter on a base itself, the folded model stands in float32 first.)

    Raises:
        UserError: as `load_model`; bitsandbytes is not installed.
    """
    if not is_adapter(directory):
        model = _load(directory, device, dtype, padded_vocab_size, quantization)
        return model.requires_grad_(False)
    model = load_model(directory, device, padded_vocab_size=padded_vocab_size, merge=True)
    if quantization is not None:
        quantize_base(model, quantization)
    model.requires_grad_(False)
    freeze_to(model, dtype)
    return model


def _load(
    directory: str | Path,
    device: str | torch.device,
    dtype: torch.dtype,
    padded_vocab_size: int | None,
    quantization: Quantization | None = None,
) -> Decoder:
    """A decoder filled tensor by tensor, stored as `freeze_to` would have it."""
    config = read_config(directory)
    stored = _stored(directory, config)
    with torch.device("meta"):
        model = Decoder(config, padded_vocab_size=padded_vocab_size)
    quantised = set() if quantization is None else {name for name, _ in projections(model)}
    for name in stored:
        parent, _, leaf = name.rpartition(".")
        if quantization is not None and leaf == "weight" and parent in quantised:
            _place(model, name, stored[name], torch.float32, device, copies=False)
            layer = model.get_submodule(parent)
            assert isinstance(layer, Linear)
            quantize_projection(model, parent, layer, quantization)
            del layer  # with its weight, before the next is read
        else:
            _place(model, name, stored[name], frozen_dtype(model, name, dtype), device)
    return model


def _place(
    model: Decoder,
    name: str,
    stored: Tensor,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    copies: bool = True,
) -> None:
    """Makes a stored tensor a parameter; `copies`: even where it could stay mapped as it is."""
    padded = _padded(name, stored, model.padded_vocab_size)
    # Whatever it is stored in, its numbers are those that float32 has.
    value = (padded if padded.dtype == dtype else padded.float().to(dtype)).to(device)
    if copies and value.data_ptr() == stored.data_ptr():
        # A memory-mapped tensor would change with its file, and cannot be written to.
        value = value.clone()
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(value))


def _stripped(
    state: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What is written: on the CPU, contiguous, without padding, in the asked type."""
    written = {}
    for name, tensor in state.items():
        rows = tensor[: config.vocab_size] if name in _VOCABULARY else tensor
        written[name] = rows.detach().to("cpu", dtype).contiguous()
    return written


def _shards(state: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in state.items():
        if shards[-1] and held + tensor.nbytes > max_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    return shards


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(directory: Path, state: Mapping[str, Tensor], max_bytes: int) -> None:
    shards = _shards(state, max_bytes)
    if len(shards) == 1:
        save_file(shards[0], directory / SAFETENSORS, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _write_json(directory / f"{SAFETENSORS}.index.json", index)


def save_model(
    directory: str | Path,
    model: Decoder | Mapping[str, Tensor],
    config: ModelConfig | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json, generation_config.json and the weights; the tokenizer saves itself.

    Padding of the vocabulary is left out. The files are not synced and the directory is not
    renamed into place: whoever wants an atomic checkpoint writes into a temporary one.

    Args:
        directory: created if need be; older weight files in it are removed.
        model: a decoder, or its (gathered) state by name, which then needs `config`.
        dtype: what the weights are stored in: float32, bfloat16 or float16.

    Raises:
        UserError: no Hugging Face format expresses the config.
    """
    if isinstance(model, Decoder):
        config, state = config or model.config, model.state_dict()
    else:
        assert config is not None, "a bare state needs its config"
        state = dict(model)
    written = config.to_huggingface(_DTYPE_NAMES[dtype])
    stripped = _stripped(state, config, dtype)
    with torch.device("meta"):
        expected = Decoder(config).state_dict()
    assert {n: t.shape for n, t in stripped.items()} == {n: t.shape for n, t in expected.items()}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for old in [*WEIGHT_FILES, *(p.name for p in directory.glob("model-*-of-*.safetensors"))]:
        (directory / old).unlink(missing_ok=True)
    _write_weights(directory, stripped, max_shard_bytes)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    chosen = {key: written[key] for key in ids if written.get(key) is not None}
    _write_json(directory / "generation_config.json", {"do_sample": False, **chosen})
    _write_json(directory / "config.json", written)
