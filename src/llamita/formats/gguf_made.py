"""A model's GGUF, made when llama.cpp first needs it, and found again.

A hit needs no torch and no gguf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from llamita.formats.gguf_cache import fingerprint
from llamita.formats.gguf_types import quantization_named
from llamita.formats.model_cache import cache_root, make_room, used, waiting_lock
from llamita.model.adapter_directory import base_directory, is_adapter

# Part of every name in the cache: to be raised when the same model would be written otherwise.
_VERSION = 1
# Whatever a GGUF is made from: weights, shape, tokenizer, template, an adapter and its base.
_PARTS = (
    "*.safetensors", "*.index.json", "pytorch_model*.bin", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "adapter_config.json", "base.json", "origin.json",
)  # fmt: skip


def gguf_of(directory: Path, *, quantize: str = "q8_0", say: Callable[[str], None] = print) -> Path:
    """The GGUF file of a model, written into the cache if it is not there.

    The cache is `model_cache`'s. Of several processes one writes and the others wait. What is
    cached is known by the files of the model (their contents, of large ones samples, and when they
    were written), so that a model trained further is another one.

    Args:
        directory: a Hugging Face directory, or an adapter's, which is folded into its base.
        quantize: one of `gguf_types.GGUF_TYPES`.
        say: told that a file is written, and what of older ones goes for it.

    Raises:
        UserError: see `gguf_writing.write_gguf`; the cache cannot be written.
    """
    quantize = quantization_named(quantize)
    name = model_name(directory)
    place = cache_root() / f"{name}-{_key(directory)}-{quantize}-v{_VERSION}.gguf"
    if not place.is_file():
        otherwise = (
            f"a GGUF of {directory} has to be written there: set XDG_CACHE_HOME to a directory "
            f"that can, or run `llamita export {directory} --to gguf --quantize {quantize} "
            "--out FILE` and name FILE"
        )
        with waiting_lock(place, otherwise):
            if not place.is_file():
                from llamita.formats.exporting import write_model_as_gguf

                say(f"{name} is written once as GGUF, {quantize}, into {place}")
                write_model_as_gguf(directory, place, quantize=quantize, name=name, say=say)
                make_room(place, say)
    used(place)
    return place


def model_name(directory: Path) -> str:
    """What to call a model after its directory: after its run where that is a checkpoint."""
    directory = directory.resolve()
    inside = directory.name == "final" or directory.name.startswith("step-")
    return directory.parent.name if inside else directory.name


def _key(directory: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    files = {file for pattern in _PARTS for file in directory.glob(pattern) if file.is_file()}
    for file in sorted(files):
        status = file.stat()
        told = f"{file.name} {status.st_size} {status.st_mtime_ns} {fingerprint(file)}\n"
        digest.update(told.encode())
    if is_adapter(directory):
        digest.update(_key(base_directory(directory)).encode())
    return digest.hexdigest()
