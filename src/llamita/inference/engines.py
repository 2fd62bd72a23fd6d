"""From a MODEL to an engine that runs it: llama.cpp on a CPU, torch on a GPU, or what is asked for.

torch is imported only where it is taken, or to see whether a GPU can be used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.cores import num_threads
from llamita.data.chat_template import ChatTemplate, chat_template, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError, did_you_mean
from llamita.model.locate import locate
from llamita.model.records import read_config, tokenizer_directory

if TYPE_CHECKING:
    from llamita.architecture.config import ModelConfig
    from llamita.inference.engine import Engine

ENGINES = ("auto", "torch", "llama.cpp")
DTYPES = ("auto", "float32", "bfloat16")
QUANTIZE = "q8_0"  # a quarter of float32's size, at 0.1% of its bits per byte (docs/export.md)
# llama.cpp takes the memory of a context when it starts, and a model's may be of 131,072 tokens.
_MOST_CONTEXT = 8192
# Where a driver shows that a GPU may be there; asking torch takes seconds.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `open_engine` was asked for, and what it has found of the MODEL."""

    model: str | Path
    directory: Path
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    quantize: str | None
    slots: int
    context: int | None
    device: str
    dtype: str
    say: Callable[[str], None]

    @property
    def end_ids(self) -> frozenset[int]:
        return end_ids(self.config, self.tokenizer, self.template)


def open_engine(
    model: str | Path,
    *,
    engine: str = "auto",
    quantize: str | None = None,
    slots: int = 1,
    context: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    say: Callable[[str], None] = print,
) -> Engine:
    """A MODEL, ready to write; its `about` says what was taken and why.

    `auto` takes llama.cpp where no GPU is used, xllamacpp is installed and the model can be written
    as GGUF; `quantize` asks for it, `dtype` and a device for torch.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file, or a hub id.
        engine: auto, torch or llama.cpp.
        quantize: the type of llama.cpp's weights; q8_0 if none is given, and a .gguf file as it is.
        slots: requests that are worked on at a time.
        context: tokens of prompt and answer together that each has; by default the model's, with
            llama.cpp 8,192 at most.
        device: of torch: auto, cpu, cuda, mps.
        dtype: of torch: float32 or bfloat16; auto is bfloat16 on a GPU that has it.
        template: chatml, zephyr, llama-2 or a file of Jinja; by default the model's own.
        say: told what is made on the way.

    Raises:
        UserError: no such model, an engine that cannot run it, or settings that belong to the other
            engine.
    """
    check_names(engine, dtype)
    if slots < 1:
        raise UserError(f"slots {slots}: give 1 or more")
    directory = locate(model)
    config = read_config(directory)
    longest = config.max_position_embeddings
    if context is not None and not 2 <= context <= longest:
        raise UserError(
            f"context {context:,}: give 2 to {longest:,} tokens, which the model was made for"
        )
    tokenizer = load_tokenizer(tokenizer_directory(directory))
    chosen = chat_template(tokenizer, template)
    asked = _Asked(
        model, directory, config, tokenizer, chosen, quantize, slots, context, device, dtype, say
    )
    if engine == "torch":
        return _torch(asked, "as asked")
    if engine == "llama.cpp":
        return _llama_cpp(asked, "as asked")
    if quantize is not None:
        return _llama_cpp(asked, f"{quantize} is asked for")
    reason = _why_torch(asked)
    if reason is None:
        try:
            gguf, kind = _gguf(asked)
        except UserError as error:
            reason = f"the model cannot be had as GGUF ({error})"
        else:
            return _open_llama_cpp(asked, gguf, kind, "no GPU here")
    return _torch(asked, reason)


def end_ids(config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[int]:
    """The ids at which an answer ends, or a text: the config's, the template's, the tokenizer's."""
    return frozenset({*config.eos_token_ids, *end_of_turn_ids(tokenizer, template)})


def check_names(engine: str, dtype: str) -> None:
    """Refuse what no MODEL has; `open_engine` does so too.

    Raises:
        UserError: an engine or a dtype that does not exist.
    """
    for name, value, known in (("engine", engine, ENGINES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UserError(
                f"{name} {value!r}: there is {', '.join(known)}.{did_you_mean(value, known)}"
            )


def _why_torch(asked: _Asked) -> str | None:
    """Why not llama.cpp, as far as can be said before the model is written as GGUF."""
    if asked.device not in ("auto", "cpu"):
        return f"the device {asked.device} is asked for"
    if asked.dtype != "auto":
        return f"{asked.dtype} is asked for"
    if find_spec("xllamacpp") is None:
        return "xllamacpp is not installed, which is faster on a CPU (pip install 'llamita[cpu]')"
    if asked.device == "auto" and _may_have_gpu():
        from llamita.model.devices import choose_device

        found = choose_device("auto")
        if found.type != "cpu":
            return f"there is a GPU, {found.type}"
    return None


def _may_have_gpu() -> bool:
    return sys.platform != "linux" or any(Path(name).exists() for name in _GPU_FILES)


def _gguf(asked: _Asked) -> tuple[Path, str]:
    """The file that llama.cpp is to load, and what to call it."""
    named = Path(asked.model).expanduser()
    if asked.quantize is None and named.is_file():
        return named, f"{named.name} as it is"
    from llamita.formats.gguf_made import gguf_of

    quantize = asked.quantize or QUANTIZE
    return gguf_of(asked.directory, quantize=quantize, say=asked.say), quantize


def _llama_cpp(asked: _Asked, why: str) -> Engine:
    from llamita.inference.llama_cpp_server import import_xllamacpp

    import_xllamacpp()  # before a model is written for it
    if asked.device not in ("auto", "cpu"):
        raise UserError(
            f"device {asked.device} is torch's, and llama.cpp runs on the CPU here: leave out one "
            "of --device and --engine llama.cpp (or --quantize)"
        )
    if asked.dtype != "auto":
        raise UserError(
            f"dtype {asked.dtype} is torch's: for llama.cpp give --quantize f32, bf16, q8_0 or "
            "another type of GGUF"
        )
    return _open_llama_cpp(asked, *_gguf(asked), why)


def _open_llama_cpp(asked: _Asked, gguf: Path, kind: str, why: str) -> Engine:
    from llamita.inference.llama_cpp_engine import LlamaCppEngine

    longest = asked.config.max_position_embeddings
    context = asked.context or min(longest, _MOST_CONTEXT)
    threads = num_threads()
    of_all = "" if context == longest else f" of {longest:,}"
    return LlamaCppEngine(
        gguf,
        asked.tokenizer,
        asked.template,
        slots=asked.slots,
        context=context,
        threads=threads,
        about=f"llama.cpp, {kind}, context {context:,}{of_all}, {_threads(threads)}: {why}",
        end_ids=asked.end_ids,
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _torch(asked: _Asked, why: str) -> Engine:
    if asked.quantize is not None:
        raise UserError(
            f"quantize {asked.quantize} is llama.cpp's: torch computes in a dtype; leave out "
            "--quantize, or take --engine llama.cpp"
        )
    import torch

    from llamita.inference.torch_engine import TorchEngine
    from llamita.model.devices import choose_device
    from llamita.model.huggingface import load_model

    device = choose_device(asked.device)
    dtype = asked.dtype
    if dtype == "auto":
        # Greedy texts meet exact ties in bfloat16, and not every CPU has units for it.
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if half else "float32"

    def made() -> TorchEngine:
        decoder = load_model(asked.directory, device=device)
        decoder.compute_dtype = getattr(torch, dtype)
        return TorchEngine(
            decoder,
            asked.tokenizer,
            asked.template,
            slots=asked.slots,
            context=asked.context,
            why=why,
        )

    # In a thread that ends. libgomp keeps helpers for each thread that has computed, and where all
    # helpers are more than the cores, they sleep between operations instead of spinning: a token
    # of SmolLM2-135M takes 85 ms in place of 63 then (docs/performance.md).
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()
