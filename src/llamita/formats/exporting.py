"""Any MODEL becomes a directory, or a GGUF file, that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita import __version__
from llamita.errors import UserError, did_you_mean
from llamita.formats.exported_card import write_export_card
from llamita.formats.gguf_made import model_name
from llamita.formats.gguf_types import quantization_named
from llamita.formats.writing import (
    GENERAL_FACTS,
    in_dtype,
    new_directory,
    read_origin,
    refuse_foreign,
    refuse_foreign_file,
    torch_dtype,
)
from llamita.model.adapter_directory import base_directory, is_adapter, read_adapter
from llamita.model.locate import locate

if TYPE_CHECKING:
    from torch import Tensor

    from llamita.data.tokenizer import Tokenizer
    from llamita.model.decoder import Decoder

TARGETS = ("hf", "gguf")
_QUANTIZE = "q8_0"


def export_model(
    model: str | Path,
    out: str | Path,
    *,
    to: str = "hf",
    dtype: str | None = None,
    quantize: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a MODEL as a whole: config, weights, tokenizer, chat template.

    As "hf" that is a Hugging Face directory, as "gguf" one file, which llama.cpp and what is built
    on it read. An adapter is folded into its base, in float32. Of a base that was quantised while
    the adapter learned, the quantised values are what is folded into, since they are what the
    adapter belongs to; how far they lie from the base's own is said.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file or a hub id.
        out: the directory or file; it appears whole or not at all.
        to: the format: "hf" or "gguf".
        dtype: of hf: what weights are stored in, float32 (the default), bfloat16 or float16.
        quantize: of gguf: what weights are stored in, one of `gguf_types.GGUF_TYPES`; q8_0 is the
            default.
        force: replace what an earlier import or export wrote at `out`.
        say: told what is written, and what a merge costs.

    Returns:
        `out`.

    Raises:
        UserError: no such model or format, a model that the format cannot express, `out` in use, a
            full disk, weights beyond the type.
    """
    if to not in TARGETS:
        raise UserError(
            f"--to {to}: unknown format {to!r}; there is {', '.join(TARGETS)}."
            f"{did_you_mean(to, TARGETS)}"
        )
    out = Path(out).expanduser()
    if to == "gguf":
        if dtype is not None:
            raise UserError("--dtype belongs to `--to hf`; of a GGUF write --quantize TYPE")
        return _export_gguf(model, out, quantize or _QUANTIZE, force, say)
    if quantize is not None:
        raise UserError(
            "--quantize belongs to `--to gguf`; of a Hugging Face directory write --dtype TYPE"
        )
    return _export_huggingface(model, out, dtype or "float32", force, say)


def _export_huggingface(
    model: str | Path, out: Path, dtype: str, force: bool, say: Callable[[str], None]
) -> Path:
    stored = torch_dtype(dtype)
    refuse_foreign(out, force=force)  # before anything is loaded
    from llamita.model.huggingface import load_model, save_model

    directory = locate(model)
    if directory.resolve() == out.resolve():
        raise UserError(f"{out} is the model itself; name another --out")
    decoder = _merged(directory, say) if is_adapter(directory) else load_model(directory)
    tokenizer = _tokenizer(directory)
    state = {name: in_dtype(name, tensor, stored) for name, tensor in decoder.state_dict().items()}
    origin: dict[str, Any] = {
        "written_by": f"llamita export {__version__}",
        "model": str(model),
        "adapter": is_adapter(directory),
        "dtype": dtype,
    }
    with new_directory(out, origin, force=force) as building:
        save_model(building, state, decoder.config, stored)
        tokenizer.save(building)
        write_export_card(building, directory, origin)
    say(f"{out}: written in {dtype}")
    return out


def _export_gguf(
    model: str | Path, out: Path, quantize: str, force: bool, say: Callable[[str], None]
) -> Path:
    quantize = quantization_named(quantize)
    given = Path(model).expanduser()
    if given.resolve() == out.resolve():
        raise UserError(f"{out} is the model itself; name another --out")
    refuse_foreign_file(out, force=force)
    directory = locate(model)
    if given.is_dir():
        name = model_name(directory)
    else:  # a file, or a hub id, whose directory bears a hash for a name
        name = given.name.removesuffix(".gguf")
    write_model_as_gguf(directory, out, quantize=quantize, name=name, say=say)
    say(f"{out}: written in {quantize}, {out.stat().st_size / 1e6:,.1f} MB")
    return out


def write_model_as_gguf(
    directory: Path, out: Path, *, quantize: str, name: str, say: Callable[[str], None]
) -> None:
    """`write_gguf` of a Hugging Face directory or an adapter, replacing what is at `out`.

    Weights of a directory are read one at a time; an adapter and its base stand in memory.

    Raises:
        UserError: see `export_model`.
    """
    from llamita.formats.gguf_writing import write_gguf
    from llamita.model.records import read_config
    from llamita.model.weight_files import StoredWeights, weight_files

    state: Mapping[str, Tensor]
    if is_adapter(directory):
        decoder = _merged(directory, say)
        state, config = decoder.state_dict(), decoder.config
    else:
        config = read_config(directory)
        state = StoredWeights(weight_files(directory)).drop_derived(config)
    origin = read_origin(directory) or {}
    facts = {key: origin[key] for key in GENERAL_FACTS if isinstance(origin.get(key), str)}
    facts.setdefault("general.name", name)
    write_gguf(out, state, config, _tokenizer(directory), quantize=quantize, facts=facts, say=say)


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
