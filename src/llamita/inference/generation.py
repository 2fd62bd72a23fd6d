"""Writing text, one token at a time, with a key-value cache."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.model.cache import KeyValueCache
from llamita.model.decoder import Decoder


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: 0 takes the likeliest token; top_k: 0 keeps all; top_p: 1 keeps all.

    Raises:
        UserError: a value outside its range.
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}: give 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: give a share above 0 and up to 1")


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
    generator = torch.Generator(device="cpu")
    if sampling.seed is not None:
        generator.manual_seed(sampling.seed)
    else:
        generator.seed()
    tokens = torch.tensor([list(prompt)], device=device)
    for _ in range(length - len(prompt)):
        logits = model(tokens, cache=cache, logits_to_keep=1)[0, -1].float().cpu()
        chosen = draw(logits, sampling, generator)
        if chosen in stop:
            return
        yield chosen
        tokens = torch.tensor([[chosen]], device=device)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from logits (V,): temperature, then top-k, then top-p, as Transformers does."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        threshold = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while those before it hold less than top_p, so the first always stays.
        outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(
            torch.zeros_like(outside).scatter(0, order, outside), -torch.inf
        )
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def stream_text(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    """The text of ids as they come; a character is held back until all its bytes are there."""
    table = tokenizer.token_bytes()
    special = tokenizer.special_ids
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        # A model may have more rows than its tokenizer has tokens; those are no text.
        known = token < len(table) and token not in special
        piece = decoder.decode(table[token] if known else b"")
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
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
