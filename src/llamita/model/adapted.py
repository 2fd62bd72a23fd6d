"""An adapter directory and its base, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llamita.errors import UserError
from llamita.model.adapter_directory import (
    ADAPTER_WEIGHTS,
    BASE,
    PEFT_PREFIX,
    base_directory,
    is_adapter,
    read_adapter,
    weights_fingerprint,
    with_own_tokens,
)
from llamita.model.adapters import (
    adapter_state,
    add_adapters,
    has_adapters,
    merge_adapters,
)
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_frozen, load_state
from llamita.model.weight_files import StoredWeights, read_safetensors, weight_files

_LISTED = 6


def adapter_tensors(directory: Path) -> dict[str, Tensor]:
    """A and B of every adapted matrix, as stored, by the names they have in a decoder.

    Raises:
        UserError: a damaged file, or an adapter that `read_adapter` refuses.
    """
    read_adapter(directory)
    stored = read_safetensors(directory / ADAPTER_WEIGHTS)
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in stored.items()}


def base_fingerprint(directory: Path) -> str:
    """Of a base's weights as its files hold them, whatever the files; see `weights_fingerprint`.

    Of a base that is itself an adapter, the adapter's own weights and scale: what it belongs to is
    compared when it is loaded.
    """
    from llamita.model.records import read_config

    if not is_adapter(directory):
        stored = StoredWeights(weight_files(directory))
        return weights_fingerprint(stored.drop_derived(read_config(directory)))
    lora, base = read_adapter(directory)
    own = weights_fingerprint(load_state(directory))
    told = f"{own} {base.fingerprint} {lora.scaling} {lora.quantization}"
    return hashlib.blake2b(told.encode(), digest_size=32).hexdigest()


def check_base(directory: Path, base: Path) -> bool:
    """Whether the model at `base` could be compared with the record of the adapter's base.

    Returns:
        False for an adapter that records no fingerprint: whoever calls says so.

    Raises:
        UserError: the weights there are others.
    """
    _, recorded = read_adapter(directory)
    if recorded.fingerprint is None:
        return False
    found = base_fingerprint(base)
    if found != recorded.fingerprint:
        raise UserError(
            f"the adapter {directory} was trained on other weights than those of {base}: their "
            f"fingerprint was {recorded.fingerprint[:12]}… and is {found[:12]}…. A copy stored in "
            f"another type counts as another model. Write where the right one is as 'path' in "
            f"{directory / BASE}; or, if this one is meant, write null as 'fingerprint' there"
        )
    return True


@torch.no_grad()
def fill_adapters(model: Decoder, state: Mapping[str, Tensor], where: str) -> None:
    """Sets the adapters of a decoder that has them.

    Raises:
        UserError: names or shapes differ; nothing has been changed then.
    """
    own = adapter_state(model)
    problems = {
        "missing": [name for name in own if name not in state],
        "not in this model": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    told = [
        f"{kind}: {', '.join(names[:_LISTED])}"
        + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        for kind, names in problems.items()
        if names
    ]
    if told:
        raise UserError(
            f"{where}: the adapter does not fit the model; {'; '.join(told)}. It may belong to "
            "another base, or adapt some layers only"
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


def load_adapted(
    directory: Path,
    device: str | torch.device,
    *,
    padded_vocab_size: int | None,
    merge: bool,
) -> Decoder:
    """The base with its adapter, in the form that it was trained in; see `load_model`."""
    lora, _ = read_adapter(directory)
    base = base_directory(directory)
    check_base(directory, base)
    state = adapter_tensors(directory)
    model = load_frozen(
        base,
        device,
        torch.float32,
        quantization=lora.quantization,
        padded_vocab_size=padded_vocab_size,
    )
    model.config = with_own_tokens(model.config, directory)
    add_adapters(model, lora, seed=0)
    fill_adapters(model, state, str(directory))
    if merge:
        merge_adapters(model)
    return model.eval()


def fill_from_adapter(model: Decoder, directory: Path) -> None:
    """A decoder's adapters from an adapter's directory; without adapters, base and adapter merged.

    Raises:
        UserError: names or shapes differ.
    """
    if has_adapters(model):
        fill_adapters(model, adapter_tensors(directory), str(directory))
        return
    merged = load_adapted(directory, "cpu", padded_vocab_size=model.padded_vocab_size, merge=True)
    own = dict(model.named_parameters())
    theirs = dict(merged.named_parameters())
    differing = [n for n in own if n not in theirs or theirs[n].shape != own[n].shape]
    if differing:
        raise UserError(f"{directory}: does not fit the model: {', '.join(differing[:_LISTED])}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(theirs[name])
