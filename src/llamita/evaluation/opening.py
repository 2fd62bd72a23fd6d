"""From what a user calls a MODEL to one that can be asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamita.data.chat_template import ChatTemplate, chat_template
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.formats.gguf_made import model_name
from llamita.formats.model_cache import cache_root
from llamita.inference.engine import Engine
from llamita.model.adapted import base_fingerprint
from llamita.model.adapters import freeze_to
from llamita.model.decoder import Decoder
from llamita.model.devices import choose_device
from llamita.model.huggingface import load_model
from llamita.model.locate import locate
from llamita.model.records import recorded_tokens, tokenizer_directory

# To be raised when answers would be computed otherwise.
_CACHE_FORMAT = 1
_SLOTS = 4  # texts that llama.cpp writes at a time: more gain little on a CPU


@dataclass(frozen=True)
class Opened:
    """A model to be asked, and what is known of it.

    directory: of its weights. fingerprint: of those (`base_fingerprint`). tokens: that it was
    trained on, where its run says so. generation: of generation_config.json. dtype: as it was
    opened; torch's engine computes in another where a CPU has no units for it.
    """

    model: str | Path
    directory: Path
    name: str
    fingerprint: str
    tokens: int | None
    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate
    generation: dict[str, Any]
    dtype: str

    @property
    def device(self) -> torch.device:
        return self.decoder.model.norm.weight.device

    @property
    def about(self) -> str:
        trained = "" if self.tokens is None else f", trained on {self.tokens:,} tokens"
        count = sum(each.numel() for each in self.decoder.parameters())
        return f"{count:,} parameters{trained}; {self.dtype} on {self.device}"

    def llama_cpp(self, context: int | None, say: Callable[[str], None]) -> Engine:
        """The same model in llama.cpp's engine, which writes texts."""
        from llamita.inference.engines import open_engine

        return open_engine(self.model, engine="llama.cpp", slots=_SLOTS, context=context, say=say)

    def writer(self, engine: str) -> str:
        """What writes texts, with the type of its weights where they are not the model's own."""
        from llamita.inference.engines import QUANTIZE

        own = engine == "torch" or Path(self.model).is_file()
        return engine if own else f"{engine} ({QUANTIZE})"

    def cache_file(self, engine: str, context: int) -> Path:
        """Where answers of these weights, computed in this way, are kept."""
        told = json.dumps(
            [
                _CACHE_FORMAT,
                self.fingerprint,
                self.tokenizer.fingerprint,
                self.template.source,
                self.generation,
                self.dtype,
                self.device.type,
                engine,
                context,
            ],
            sort_keys=True,
        )
        key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        return cache_root().parent / "answers" / f"{key}.sqlite"


def open_model(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
) -> Opened:
    """Load a MODEL for evaluation.

    Raises:
        UserError: no such model, or one without a tokenizer.
    """
    directory = locate(model)
    tokenizer = load_tokenizer(tokenizer_directory(directory))
    place = choose_device(device)
    decoder = load_model(directory, device=place, merge=True)
    if dtype == "auto":
        # Scores of CPUs without bfloat16 units and of those with them are the same so.
        half = place.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if half else "float32"
    decoder.compute_dtype = getattr(torch, dtype)
    decoder.requires_grad_(False)
    freeze_to(decoder, decoder.compute_dtype)  # once, and not in every pass
    settings = directory / "generation_config.json"
    return Opened(
        model=model,
        directory=directory,
        name=_name(model, directory),
        fingerprint=base_fingerprint(directory),
        tokens=recorded_tokens(directory),
        decoder=decoder,
        tokenizer=tokenizer,
        template=chat_template(tokenizer, template),
        generation=json.loads(settings.read_text("utf-8")) if settings.is_file() else {},
        dtype=dtype,
    )


def _name(model: str | Path, directory: Path) -> str:
    """What results call it: a checkpoint after its run and step, a file or a hub id as given."""
    if directory.name.startswith("step-"):
        return f"{model_name(directory)}/{directory.name}"
    given = Path(model)
    if given.is_dir():
        return model_name(directory)
    return given.name if given.is_file() else str(model)
