"""Writing text, one token at a time, with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.drawing import Sampler
from llamita.inference.sampling import Sampling
from llamita.inference.text_stream import TextStream
from llamita.model.cache import KeyValueCache
from llamita.model.decoder import Decoder


@torch.inference_mode()
def generate_tokens(
    model: Decoder,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[int] = (),
) -> Iterator[int]:
    """Yield up to `max_tokens` new ids; the id that stops it, one of `stop`, is not yielded.

    Raises:
        UserError: an empty prompt, or one that leaves no room in the model's context.
    """
    limit = model.config.max_position_embeddings
    if not prompt:
        raise UserError("the prompt is empty, and the tokenizer adds no BOS token to begin with")
    if len(prompt) >= limit:
        raise UserError(
            f"the prompt has {len(prompt):,} tokens and the model's context holds {limit:,}: "
            "shorten the prompt"
        )
    device = next(model.parameters()).device
    length = min(limit, len(prompt) + max_tokens)
    cache = KeyValueCache(model.config, 1, length, dtype=model.compute_dtype, device=device)
    sampler = Sampler(sampling, prompt, model.config.vocab_size)
    tokens = torch.tensor([list(prompt)], device=device)
    for _ in range(length - len(prompt)):
        logits = model(tokens, cache=cache, logits_to_keep=1)[0, -1].float().cpu()
        chosen = sampler.choose(logits)
        if chosen in stop:
            return
        yield chosen
        tokens = torch.tensor([[chosen]], device=device)


def stream_text(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    """The text of ids as they come; a character is held back until all its bytes are there."""
    stream = TextStream(tokenizer)
    for token in ids:
        piece = stream.push(token)
        if piece:
            yield piece
    rest = stream.finish()
    if rest:
        yield rest


def continue_prompt(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling | None = None,
) -> Iterator[str]:
    """Continue `prompt`; yields the text of the continuation in pieces.

    The model's end-of-text tokens stop it. The prompt is encoded with the special tokens that the
    tokenizer itself adds, so that it begins as documents began in training.
    """
    stop = set(model.config.eos_token_ids)
    if tokenizer.eos_id is not None:
        stop.add(tokenizer.eos_id)
    ids = generate_tokens(
        model,
        tokenizer.encode_prompt(prompt),
        max_tokens=max_tokens,
        sampling=sampling or Sampling(),
        stop=tuple(stop),
    )
    return stream_text(tokenizer, ids)
