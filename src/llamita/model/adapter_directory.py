"""Adapter directories: PEFT's two files, and a record of the base that the adapter belongs to.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's, so that
`PeftModel.from_pretrained(base, directory)` reads them; `base.json` is ours. Importing this file
imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.architecture.config import ModelConfig
from llamita.architecture.lora import QUANTIZATIONS, Lora, Quantization
from llamita.errors import UserError
from llamita.model.records import read_json

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
PEFT_PREFIX = "base_model.model."
_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_[AB]\.weight")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LISTED = 4

# What changes nothing of what a LoRA adapter computes once it is trained.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_NAMES = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules trained beside the adapter",
    "bias": "trained biases",
    "lora_bias": "biases on B",
    "layers_to_transform": "adapters on some layers only",
    "rank_pattern": "ranks by module",
    "alpha_pattern": "alphas by module",
    "trainable_token_indices": "trained embeddings",
    "target_parameters": "adapters on bare parameters",
    "layer_replication": "replicated layers",
}
# Ways to start that leave the base as it is; others (PiSSA, OLoRA, LoftQ, …) change its weights.
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_BY_START = {"eva": {"eva_config"}}


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to.

    Attributes:
        path: relative to the adapter's directory, absolute, or a hub id.
        fingerprint: of its weights, by `base_fingerprint`; None where none was recorded, as in
            PEFT's directories, and nothing can be compared then.
        quantization: what it was kept in while the adapter learned.
    """

    path: str
    fingerprint: str | None
    quantization: Quantization | None = None


def is_adapter(directory: str | Path) -> bool:
    """Whether a directory holds an adapter (also beside a whole model, as Transformers sees it)."""
    directory = Path(directory)
    return all((directory / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))


def _is_off(value: Any) -> bool:
    # `in` would take 0 for False, and the first layer for none.
    return value is None or value is False or value in ("none", "", {}, [])


def _refuse_other_features(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: an adapter of type {kind!r}; only LORA is read")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"{path}: task_type {config['task_type']!r}; only CAUSAL_LM is read")
    start = config.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        raise UserError(
            f"{path}: init_lora_weights {start!r} changed the base's own weights; save it with "
            "PEFT's path_initial_model_for_weight_conversion, which makes it an ordinary LoRA"
        )
    neutral = _NEUTRAL | {"init_lora_weights"} | _BY_START.get(str(start), set())
    used = [key for key, value in config.items() if key not in neutral and not _is_off(value)]
    if used:
        told = [f"{key} ({_NAMES[key]})" if key in _NAMES else key for key in sorted(used)]
        raise UserError(
            f"{path}: uses what llamita's adapters do not have: {', '.join(told)}. Merge it into "
            "its base with PEFT (merge_and_unload) and use the merged model"
        )


def _tensor_names(path: Path) -> list[str]:
    """Names in a safetensors file, from its header alone (8 bytes of length, then JSON)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from None
    return [name for name in header if name != "__metadata__"]


def _targets(path: Path) -> tuple[str, ...]:
    """What has tensors: PEFT's `target_modules` may be a pattern, the tensors are the fact."""
    names = [name.removeprefix(PEFT_PREFIX) for name in _tensor_names(path)]
    found = {name: _LAYER.fullmatch(name) for name in names}
    strange = [name for name, match in found.items() if match is None]
    if strange:
        more = f" and {len(strange) - _LISTED} more" if len(strange) > _LISTED else ""
        raise UserError(
            f"{path}: holds more than LoRA matrices of attention and MLP: "
            f"{', '.join(strange[:_LISTED])}{more}. Merge it into its base with PEFT "
            "(merge_and_unload) and use the merged model"
        )
    return tuple(sorted({match[2] for match in found.values() if match is not None}))


def read_adapter(directory: str | Path) -> tuple[Lora, Base]:
    """An adapter's numbers and its base, from its JSON and the names of its tensors.

    Raises:
        UserError: a missing or damaged file, or a feature of PEFT that is not there, by its name.
    """
    directory = Path(directory)
    path = directory / ADAPTER_CONFIG
    config = read_json(path)
    _refuse_other_features(config, path)
    base = _read_base(directory, config)
    targets = _targets(directory / ADAPTER_WEIGHTS)
    if not targets:
        raise UserError(f"{directory / ADAPTER_WEIGHTS} holds no tensors: there is no adapter")
    try:
        lora = Lora(
            rank=config.get("r", 8),
            alpha=config.get("lora_alpha", 8),
            dropout=config.get("lora_dropout", 0.0),
            targets=targets,
            rslora=bool(config.get("use_rslora", False)),
            quantization=base.quantization,
        )
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    return lora, base


def _read_base(directory: Path, config: Mapping[str, Any]) -> Base:
    path = directory / BASE
    if not path.is_file():
        named = config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            raise UserError(
                f"{directory} does not say which model it belongs to; write its directory or hub "
                f"id as base_model_name_or_path in {directory / ADAPTER_CONFIG}"
            )
        return Base(named, None)
    record = read_json(path)
    where, quantization = record.get("path"), record.get("quantization")
    if not isinstance(where, str) or not where:
        raise UserError(f"{path}: `path` is missing: the base's directory or hub id")
    if quantization not in (None, *QUANTIZATIONS):
        raise UserError(f"{path}: unknown quantization {quantization!r}")
    return Base(where, record.get("fingerprint"), quantization)


def base_path(model: str | Path, base: Path, directory: Path) -> str:
    """How `base.json` names a base: relative to the adapter's directory, or by its hub id.

    Args:
        model: what the user called it.
        base: where it was found (`locate`).
        directory: where the adapter will stand in the end.
    """
    if not Path(model).expanduser().exists():
        return str(model)
    return os.path.relpath(base.resolve(), directory.resolve())


def base_directory(directory: str | Path) -> Path:
    """Where an adapter's base is.

    The recorded path counts from the adapter's directory; a PEFT directory's name may also count
    from the working directory; what exists nowhere and looks like a hub id is asked of the hub.

    Raises:
        UserError: nothing is there; the message says where it was sought and what to write.
    """
    from llamita.model.locate import locate

    directory = Path(directory)
    _, base = read_adapter(directory)
    recorded = (directory / BASE).is_file()
    named = Path(base.path).expanduser()
    places = [directory / named, *([] if recorded else [named])]
    for place in places:
        if place.exists():
            return locate(Path(os.path.normpath(place)) if place.is_absolute() else place)
    file, key = (BASE, "path") if recorded else (ADAPTER_CONFIG, "base_model_name_or_path")
    sought = " or ".join(str(place.resolve()) for place in places)
    try:
        return locate(base.path)
    except UserError as error:
        raise UserError(
            f"the adapter {directory} belongs to the model {base.path!r}, which is not at {sought} "
            f"({error}). Put the model there, or write where it is as {key!r} in "
            f"{directory / file}: a path relative to {directory}, an absolute one, or a hub id"
        ) from None


def with_own_tokens(config: ModelConfig, directory: str | Path) -> ModelConfig:
    """A base's config with the special tokens of the adapter's generation_config.json, if any."""
    path = Path(directory) / "generation_config.json"
    if not path.is_file():
        return config
    own = read_json(path)
    return config.replace(**{key: own[key] for key in _TOKENS if own.get(key) is not None})


def save_adapter(
    directory: str | Path,
    state: Mapping[str, Tensor],
    lora: Lora,
    base: Base,
    config: ModelConfig,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors (float32), base.json and
    generation_config.json; the tokenizer saves itself.

    The files are not synced, as with `save_model`.

    Args:
        state: A and B by name, as `adapter_state` gives them, whole.
        config: the model's, for its special tokens.
    """
    import torch
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    assert state, "an adapter without tensors"
    assert all(map(_LAYER.fullmatch, state)), sorted(state)[:_LISTED]
    written = {
        PEFT_PREFIX + name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in state.items()
    }
    save_file(written, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    chosen = {key: getattr(config, key) for key in _TOKENS if getattr(config, key) is not None}
    _write_json(directory / "generation_config.json", {"do_sample": False, **chosen})
    _write_json(directory / BASE, asdict(base))
    _write_json(directory / ADAPTER_CONFIG, _peft_config(lora, base))


def _peft_config(lora: Lora, base: Base) -> dict[str, Any]:
    """What every PEFT since 0.14 needs to read, and nothing that one of them does not know."""
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.path,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "use_rslora": lora.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _digest(state: Mapping[str, Tensor], name: str) -> str:
    import torch

    tensor = state[name]
    whole = tensor.detach().to("cpu").contiguous()
    content = whole.reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(content.data, digest_size=32).hexdigest()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{name} {kind} {list(tensor.shape)} {digest}\n"


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A BLAKE2b-256 over names, types, shapes and contents of tensors, in hexadecimal.

    The order of the tensors and the files they are in do not count. The type does: a bfloat16 copy
    of a float32 model is another model. Tensors are hashed side by side, a core each; each is asked
    for when its turn comes, and kept no longer.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        lines = "".join(pool.map(partial(_digest, state), sorted(state)))
    return hashlib.blake2b(lines.encode(), digest_size=32).hexdigest()
