"""Any MODEL becomes a directory that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llamita import __version__
from llamita.errors import UserError, did_you_mean
from llamita.formats.writing import in_dtype, new_directory, refuse_foreign, torch_dtype
from llamita.model.adapter_directory import base_directory, is_adapter, read_adapter
from llamita.model.locate import locate

if TYPE_CHECKING:
    from llamita.data.tokenizer import Tokenizer
    from llamita.model.decoder import Decoder

TARGETS = ("hf",)


def export_model(
    model: str | Path,
    out: str | Path,
    *,
    to: str = "hf",
    dtype: str = "float32",
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a MODEL as a whole Hugging Face directory: config, weights, tokenizer, chat template.

    An adapter is folded into its base, in float32. Of a base that was quantised while the adapter
    learned, the quantised values are what is folded into, since they are what the adapter belongs
    to; how far they lie from the base's own is said.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file or a hub id.
        out: the directory; it appears whole or not at all.
        to: the format: "hf".
        dtype: what weights are stored in: float32, bfloat16 or float16.
        force: replace what an earlier import or export wrote at `out`.
        say: told what is written, and what a merge costs.

    Returns:
        `out`.

    Raises:
        UserError: no such model or format, `out` in use, a full disk, weights beyond `dtype`.
    """
    if to not in TARGETS:
        not_yet = "not yet: only" if to == "gguf" else f"unknown format {to!r}; there is"
        hint = "" if to == "gguf" else did_you_mean(to, TARGETS)
        raise UserError(f"--to {to}: {not_yet} {', '.join(TARGETS)}.{hint}")
    stored = torch_dtype(dtype)
    out = Path(out).expanduser()
    refuse_foreign(out, force=force)  # before anything is loaded
    from llamita.model.huggingface import load_model, save_model

    directory = locate(model)
    if directory.resolve() == out.resolve():
        raise UserError(f"{out} is the model itself; name another --out")
    decoder = _merged(directory, say) if is_adapter(directory) else load_model(directory)
    tokenizer = _tokenizer(directory)
    state = {name: in_dtype(name, tensor, stored) for name, tensor in decoder.state_dict().items()}
    origin = {
        "written_by": f"llamita export {__version__}",
        "model": str(model),
        "adapter": is_adapter(directory),
        "dtype": dtype,
    }
    with new_directory(out, origin, force=force) as building:
        save_model(building, state, decoder.config, stored)
        tokenizer.save(building)
    say(f"{out}: written in {dtype}")
    return out


def _merged(directory: Path, say: Callable[[str], None]) -> Decoder:
    from llamita.model.adapters import merge_adapters
    from llamita.model.huggingface import load_model
    from llamita.model.quantized import quantization_loss, quantized_weights

    lora, recorded = read_adapter(directory)
    base = base_directory(directory)
    if recorded.fingerprint is None:
        say(f"{directory} has no fingerprint of its base; whether it is {base} is not checked")
    decoder = load_model(directory)
    if lora.quantization is not None:
        original = load_model(base, merge=True).state_dict()
        kept = {name: weight.dequantize() for name, weight in quantized_weights(decoder)}
        loss = quantization_loss(original, kept)
        say(
            f"merged into the {lora.quantization} values that the adapter learned on, which differ "
            f"from those of {base} by {loss.relative_rms:.2%} (root mean square; most in "
            f"{loss.worst}, {loss.worst_relative_rms:.2%})"
        )
    merge_adapters(decoder)
    say(f"the adapter (rank {lora.rank}) is folded into {os.path.relpath(base)}")
    return decoder


def _tokenizer(directory: Path) -> Tokenizer:
    """An adapter has its own, with the chat template it learned by; PEFT's may leave it out."""
    from llamita.data.tokenizer import load_tokenizer

    own = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if not own and is_adapter(directory):
        return _tokenizer(base_directory(directory))
    return load_tokenizer(directory)
