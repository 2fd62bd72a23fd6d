"""Hugging Face directories: config.json, weights and generation_config.json, in and out.

Nothing that a checkpoint contains is ever executed: pickles are read as weights only.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.records import read_config as read_config
from llamita.model.records import read_json

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
MAX_SHARD_BYTES = 5_000_000_000
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_LISTED = 8  # names shown of each kind in an error, so that it stays readable


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights; safetensors are preferred to pickles."""
    for name in (SAFETENSORS, PICKLE):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if not index.is_file():
            continue
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise UserError(f"{index} has no weight_map")
        files = sorted(set(places.values()))
        outside = [name for name in files if Path(name).name != name]
        if outside:
            raise UserError(f"{index} points outside its directory: {outside[0]!r}")
        absent = [name for name in files if not (directory / name).is_file()]
        if absent:
            raise UserError(f"{directory}: {', '.join(absent[:_LISTED])} missing, named in {index}")
        return [directory / name for name in files]
    raise UserError(
        f"{directory} holds no weights: expected {SAFETENSORS} or {PICKLE}, whole or in shards"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error}); fetch it again or use an older checkpoint"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is damaged, or holds more than tensors, which is not executed ({reason})"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in content.items()}


def load_state(directory: str | Path) -> dict[str, Tensor]:
    """Every tensor of a directory's weight files by name, as stored.

    Raises:
        UserError: no weights, a shard missing, a damaged file.
    """
    state: dict[str, Tensor] = {}
    for path in _weight_files(Path(directory)):
        state |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return state


def _without_extras(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Without what is derived from the rest: rotary buffers, and the head where it is tied."""
    kept = {name: t for name, t in state.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    return kept


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


def load_weights(model: Decoder, directory: str | Path) -> None:
    """Fills an existing decoder, padding the vocabulary where it is padded.

    Raises:
        UserError: names or shapes differ; nothing has been changed then.
    """
    state = _without_extras(load_state(directory), model.config)
    with torch.device("meta"):
        expected = Decoder(model.config).state_dict()
    _check(state, expected, str(directory))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(_padded(name, tensor, own[name].shape[0]))


def load_model(
    directory: str | Path,
    device: str | torch.device = "cpu",
    *,
    padded_vocab_size: int | None = None,
) -> Decoder:
    """The decoder of a Hugging Face directory, its weights in float32 whatever they are stored in.

    Raises:
        UserError: the directory is not a model that the decoder can be; the message says why.
    """
    config = read_config(directory)
    with torch.device("meta"):
        expected = Decoder(config).state_dict()
        model = Decoder(config, padded_vocab_size=padded_vocab_size)
    state = _without_extras(load_state(directory), config)
    _check(state, expected, str(directory))
    rows = model.padded_vocab_size
    for name in list(state):
        wide = _padded(name, state[name], rows).to(device, torch.float32)
        # A memory-mapped tensor would change with its file, and cannot be written to.
        state[name] = wide.clone() if wide.data_ptr() == state[name].data_ptr() else wide
    model.load_state_dict(state, assign=True)
    return model


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
