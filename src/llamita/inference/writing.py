"""`generate`: text from a MODEL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.inference.generation import Sampling, continue_prompt
from llamita.model.devices import choose_device
from llamita.model.huggingface import load_model
from llamita.model.locate import locate


def generate(
    model: str | Path,
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 0.95,
    seed: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Iterator[str]:
    """Continue a prompt; yields the new text in pieces, as it is written.

    Args:
        model: a Hugging Face directory, a run directory, or a hub id.
        max_tokens: new tokens at most.
        temperature: 0 takes the likeliest token each time.
        top_k: draw from so many likeliest tokens; 0 means all.
        top_p: draw from the likeliest tokens that hold this probability together.
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
    decoder = load_model(directory, device=choose_device(device))
    decoder.compute_dtype = getattr(torch, dtype)
    return continue_prompt(
        decoder, load_tokenizer(directory), prompt, max_tokens=max_tokens, sampling=sampling
    )
