"""A GGUF file becomes a Hugging Face directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llamita import __version__
from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.formats.exported_card import write_import_card
from llamita.formats.gguf_architectures import (
    ARCHITECTURES,
    architecture_of,
    config_of,
    tensor_names,
)
from llamita.formats.gguf_file import GgufFile
from llamita.formats.gguf_rows import in_halves, permuted_heads
from llamita.formats.gguf_tokenizer import ReadTokenizer, read_tokenizer
from llamita.formats.writing import (
    GENERAL_FACTS,
    in_dtype,
    new_directory,
    read_origin,
    torch_dtype,
)

_LISTED = 8  # names shown in an error


def import_model(
    path: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a GGUF model as a Hugging Face directory that llamita and Transformers read.

    Weights are dequantised and written tensor by tensor's own numbers: nothing but rounding to
    `dtype` changes them. Importing the same file into the same place again does nothing.

    Args:
        path: the .gguf file: of llama (Mistral too), granite, minicpm, qwen2 or qwen3, with
            weights in F32, F16, BF16 or any quantisation that the package `gguf` can undo.
        out: the directory; it appears whole or not at all.
        dtype: what weights are stored in: float32, bfloat16 or float16.
        force: replace what an earlier import or export wrote at `out`.
        say: told what is read and written, and of anything odd.

    Returns:
        `out`.

    Raises:
        UserError: a file that is damaged or of a kind that is not read, `out` in use, a full disk.
    """
    from llamita.formats.gguf_cache import fingerprint

    path, out = Path(path).expanduser(), Path(out).expanduser()
    stored = torch_dtype(dtype)
    file = GgufFile(path)
    architecture = architecture_of(file)
    origin = {
        "written_by": f"llamita import {__version__}",
        "format": "gguf",
        "file": path.name,
        "fingerprint": fingerprint(path),
        "architecture": architecture,
        "tensor_types": file.type_counts(),
        "dtype": dtype,
    } | {key: file.fields[key] for key in GENERAL_FACTS if isinstance(file.fields.get(key), str)}
    if not force and read_origin(out) == origin and any(out.glob("*.safetensors")):
        say(f"{out}: this is {path.name} already, in {dtype}")
        return out
    config = config_of(file, architecture)
    read = read_tokenizer(file, say=say)
    config = _with_special_ids(file, config, read)
    say(_describe(file, architecture, read))
    with new_directory(out, origin, force=force) as building:
        _write(building, file, architecture, config, read, stored)
        write_import_card(building, origin)
    say(f"{out}: written in {dtype}")
    return out


def _with_special_ids(file: GgufFile, config: ModelConfig, read: ReadTokenizer) -> ModelConfig:
    tokenizer = read.tokenizer
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{file.path} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, but "
            f"token_embd.weight only {config.vocab_size} rows"
        )
    ends = list(read.end_ids)
    return config.replace(
        bos_token_id=tokenizer.bos_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=tokenizer.pad_id,
    )


def _describe(file: GgufFile, architecture: str, read: ReadTokenizer) -> str:
    num_parameters = sum(math.prod(file.tensors[name].shape) for name in tensor_names(file))
    types = ", ".join(f"{count} {name}" for name, count in file.type_counts().items())
    template = "with a chat template" if read.tokenizer.chat_template else "no chat template"
    return (
        f"{file.path.name}: {architecture}, {num_parameters:,} parameters, tensors: "
        f"{types}; {read.tokenizer.vocab_size:,} tokens ({read.kind}), {template}"
    )


def _write(
    directory: Path,
    file: GgufFile,
    architecture: str,
    config: ModelConfig,
    read: ReadTokenizer,
    dtype: Any,
) -> None:
    """At no time more stands in memory than the weights as written, and one tensor in float32."""
    import torch

    from llamita.model.huggingface import save_model

    names = tensor_names(file)
    _check_shapes(file, names, config)
    state = {}
    for ours, theirs in sorted((ours, theirs) for theirs, ours in names.items()):
        tensor = torch.from_numpy(file.read(theirs))
        heads = permuted_heads(ours, config) if ARCHITECTURES[architecture].permuted else None
        if heads is not None:
            tensor = in_halves(tensor, heads)
        state[ours] = in_dtype(f"{file.path}: {theirs}", tensor, dtype)
    save_model(directory, state, config, dtype)
    read.tokenizer.save(directory)


def _check_shapes(file: GgufFile, names: Mapping[str, str], config: ModelConfig) -> None:
    import torch

    from llamita.model.decoder import Decoder

    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in Decoder(config).state_dict().items()}
    found = {ours: file.tensors[theirs].shape for theirs, ours in names.items()}
    theirs = {ours: name for name, ours in names.items()}
    problems = [f"{name} missing" for name in expected if name not in found]
    problems += [f"{theirs[name]} beyond what there is" for name in found if name not in expected]
    problems += [
        f"{theirs[name]} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(
            f"{file.path}: the tensors do not fit what the file says of the model: "
            f"{', '.join(problems[:_LISTED])}{more}"
        )
