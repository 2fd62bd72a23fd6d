"""`generate`: text from a MODEL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.inference.answering import answer
from llamita.inference.generation import continue_prompt
from llamita.inference.sampling import Sampling
from llamita.model.devices import choose_device
from llamita.model.huggingface import load_model
from llamita.model.locate import locate
from llamita.model.records import tokenizer_directory


def generate(
    model: str | Path,
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 0.95,
    chat: bool = False,
    seed: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Iterator[str]:
    """Continue a prompt, or answer a question; yields the new text in pieces, as it is written.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file, or a hub id.
        max_tokens: new tokens at most.
        temperature: 0 takes the likeliest token each time.
        top_k: draw from so many likeliest tokens; 0 means all.
        top_p: draw from the likeliest tokens that hold this probability together.
        chat: the prompt is a user's question, put as the model's chat template puts it; the answer
            ends with the turn.
        seed: the same seed gives the same text on the same machine.
        dtype: float32 or bfloat16.

    Raises:
        UserError: no such model, a prompt longer than its context, a value out of range.
    """
    import torch

    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r}: write float32 or bfloat16")
    if max_tokens < 1:
        raise UserError(f"max_tokens {max_tokens}: ask for at least one token")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    directory = locate(model)
    decoder = load_model(directory, device=choose_device(device), merge=True)
    decoder.compute_dtype = getattr(torch, dtype)
    tokenizer = load_tokenizer(tokenizer_directory(directory))
    write = answer if chat else continue_prompt
    return write(decoder, tokenizer, prompt, max_tokens=max_tokens, sampling=sampling)
