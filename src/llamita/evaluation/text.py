"""How well a model predicts text, document by document: bits per byte and perplexity.

Bits per byte are the length of the text if the model compressed it, by which models of different
vocabularies can be compared. Perplexity is per token: between tokenizers it means nothing.

Shapes: B rows of a pass, T tokens of the longest, W windows of some documents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

import llamita
from llamita.data.rows import IGNORE
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.evaluation.intervals import Difference, Estimate, paired_ratio
from llamita.evaluation.scores import TaskScore, unique_ids
from llamita.inference.scoring import cut_windows
from llamita.model.decoder import Decoder, TokenScores

__all__ = ["DEFAULT_CONTEXT", "Prefix", "TextScore", "difference", "score_documents", "unknown_id"]

Prefix = Literal["bos", "eos"] | None
"""What stands before each document: BOS, EOS where the tokenizer has no BOS, else nothing."""

DEFAULT_CONTEXT = 2048
_DEFAULT_BATCH_TOKENS = 4096
# Documents are scored in pools of about so many batches, of 4 characters a token, and ordered by
# length in each: rows of a pass are then about equally long, and memory is bounded.
_POOL_BATCHES = 64
_TOKEN_CHARACTERS = 4

_Entry = TypeVar("_Entry")
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextScore:
    """What a model says of documents; `nats`, `tokens`, `bytes` and `ids` have an entry for each.

    nats: negative log-likelihood. tokens: predictions that it is a sum of. bytes: of the text, in
    UTF-8. ids: SHA-256 (hex) of that.
    context: tokens that a pass reads at most. stride: tokens from one pass's start to the next, so
    that a token has at least `context` − `stride` before it, or all there are.
    prefix: what stands before each document. unknown: tokens for what the vocabulary lacks, from
    which the text cannot be had back: with many of them the score flatters.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    ids: tuple[str, ...]
    context: int
    stride: int
    prefix: Prefix
    unknown: int = 0

    @property
    def bits_per_byte(self) -> Estimate:
        """Σ bits / Σ bytes. Raises UserError where all documents are empty."""
        return self.task_scores("text")[0].estimate

    @property
    def perplexity(self) -> Estimate:
        """exp(Σ nats / Σ tokens). Raises UserError where all documents are empty."""
        return self.task_scores("text")[1].estimate

    def task_scores(self, task: str) -> tuple[TaskScore, TaskScore]:
        """`bits_per_byte` and `perplexity` as an evaluation holds them, without empty documents.

        Raises:
            UserError: all documents are empty.
        """
        nats = self._of_full(self.nats)
        if not nats:
            raise UserError(f"{task} holds no text to score; name files that do.")
        bits = TaskScore(
            task=task,
            metric="bits_per_byte",
            values=tuple(each / math.log(2) for each in nats),
            weights=tuple(map(float, self._of_full(self.bytes))),
            ids=unique_ids(self._of_full(self.ids)),
            chance=None,
            num_fewshot=0,
            version="1",
            harness=f"llamita {llamita.__version__}",
            higher_is_better=False,
            config={"context": self.context, "stride": self.stride, "prefix": self.prefix},
        )
        tokens = tuple(map(float, self._of_full(self.tokens)))
        return bits, replace(bits, metric="perplexity", values=nats, weights=tokens)

    def __add__(self, other: TextScore) -> TextScore:
        """The documents of both, which were scored alike."""
        settings = (self.context, self.stride, self.prefix)
        assert settings == (other.context, other.stride, other.prefix), "scored differently"
        return TextScore(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.ids + other.ids,
            *settings,
            self.unknown + other.unknown,
        )

    def _of_full(self, entries: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        return tuple(each for each, size in zip(entries, self.bytes, strict=True) if size)


def difference(first: TextScore, second: TextScore) -> Difference:
    """Bits per byte of `first` minus those of `second`, paired by document. Contexts, strides and
    tokenizers may differ.

    Raises:
        UserError: they are not of the same documents in the same order, or all are empty.
    """
    if first.ids != second.ids:
        raise UserError(
            f"these are scores of different texts ({len(first.ids)} and {len(second.ids)} "
            "documents); score both models on the same files."
        )
    a, b = (each.task_scores("text")[0] for each in (first, second))
    assert a.weights is not None
    return paired_ratio(a.values, b.values, a.weights)


@torch.no_grad()
def score_documents(
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = _DEFAULT_BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> TextScore:
    """Score every token of every document, each document by itself and each token once.

    Before a document stands BOS, or EOS where the tokenizer has no BOS, as context; EOS behind it
    is not scored, so that only the text counts. Where the tokenizer has neither, nothing predicts
    the first token, and it is charged as one drawn evenly from the vocabulary. A document longer
    than `context` is read in windows: the first counts whole, of the next the last `stride` tokens,
    and the last is moved back to be full.

    Args:
        texts: documents; empty ones are kept, with nothing to score.
        context: tokens of a window, what stands before the document included; by default 2048, or
            the model's longest where that is shorter.
        stride: by default half of `context`, for twice the cost of windows that do not overlap.
        batch_tokens: tokens of a forward pass, or one window where that is longer.
        progress: called with the number of bytes scored since it was last called.

    Raises:
        UserError: a context or stride that cannot be; a document that is no valid Unicode or has no
            tokens; a tokenizer whose ids the model does not have.
    """
    context, stride = _checked(model, context, stride)
    prefix, before = _prefix(tokenizer)
    scorer = _Scorer(model, context, stride, batch_tokens, progress or (lambda _: None))
    no_word = unknown_id(tokenizer)
    nats: list[float] = []
    tokens: list[int] = []
    sizes: list[int] = []
    ids: list[str] = []
    unknown = 0
    for pool in _pools(texts, _POOL_BATCHES * _TOKEN_CHARACTERS * batch_tokens):
        encoded = [_utf8(text, len(ids) + place) for place, text in enumerate(pool)]
        found = [np.asarray(each, dtype=np.int64) for each in tokenizer.encode_batch(pool)]
        _check_ids(model, found, encoded, len(ids))
        unknown += sum(int((each == no_word).sum()) for each in found)
        sizes += map(len, encoded)
        ids += (hashlib.sha256(each).hexdigest() for each in encoded)
        tokens += map(len, found)
        nats += scorer.score(found, before, sizes[-len(pool) :])
    return TextScore(
        tuple(nats), tuple(tokens), tuple(sizes), tuple(ids), context, stride, prefix, unknown
    )


class _Scorer:
    """Documents of ids to nats."""

    def __init__(
        self,
        model: Decoder,
        context: int,
        stride: int,
        batch_tokens: int,
        progress: Callable[[int], None],
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._context, self._stride = context, stride
        self._batch_tokens = batch_tokens
        self._progress = progress

    def score(
        self, documents: Sequence[_Ids], before: int | None, sizes: Sequence[int]
    ) -> list[float]:
        """Nats of each document, of so many bytes, after the token `before`."""
        uniform = math.log(self._model.config.vocab_size) if before is None else 0.0
        nats = np.array([uniform if len(each) else 0.0 for each in documents])
        if before is not None:
            documents = [np.concatenate(([before], each)) for each in documents]
        windows = self._windows(documents)
        # Bytes are told as windows are done: a document's, evenly over its predictions.
        rates = np.array(sizes) / [max(1, len(each) - 1) for each in documents]
        done = told = 0
        share = 0.0
        for rows in self._passes(windows):
            scored = self._score_rows(documents, rows)
            np.add.at(nats, rows[:, 0], scored)
            share += float(rates[rows[:, 0]] @ (rows[:, 3] - rows[:, 2]))
            done = min(int(share), sum(sizes))
            self._progress(done - told)
            told = done
        self._progress(sum(sizes) - told)
        found: list[float] = nats.tolist()
        return found

    def _windows(self, documents: Sequence[_Ids]) -> _Ids:
        """(W, 4): document, first input, first prediction that counts, predictions; long first, so
        that what needs most memory comes at once."""
        found = []
        for number, document in enumerate(documents):
            predicted = len(document) - 1
            if predicted < 1:
                continue
            starts, first = cut_windows(predicted, self._context, self._stride, last_full=True)
            lengths = np.minimum(self._context, predicted - starts)
            found.append(np.stack((np.full_like(starts, number), starts, first, lengths), axis=1))
        windows = np.concatenate([np.empty((0, 4), dtype=np.int64), *found])
        return windows[np.argsort(-windows[:, 3], kind="stable")]

    def _passes(self, windows: _Ids) -> Iterator[_Ids]:
        start = 0
        while start < len(windows):
            rows = max(1, self._batch_tokens // int(windows[start, 3]))
            yield windows[start : start + rows]
            start += rows

    def _score_rows(self, documents: Sequence[_Ids], rows: _Ids) -> npt.NDArray[np.float64]:
        """Nats of what counts in each window (B,)."""
        shape = (len(rows), int(rows[0, 3]))
        tokens = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        for row, (number, start, first, length) in enumerate(rows.tolist()):
            document = documents[number]
            tokens[row, :length] = document[start : start + length]
            targets[row, first:length] = document[start + first + 1 : start + length + 1]
        # The head, half of a small model, works on what counts alone.
        counts = np.flatnonzero(targets != IGNORE)
        scores = self._model(
            torch.from_numpy(tokens).to(self._device),
            torch.from_numpy(targets).to(self._device),
            scored=torch.from_numpy(counts).to(self._device),
        )
        assert isinstance(scores, TokenScores)
        nats: npt.NDArray[np.float64] = -scores.log_probs.cpu().double().sum(1).numpy()
        return nats


def _checked(model: Decoder, context: int | None, stride: int | None) -> tuple[int, int]:
    longest = model.config.max_position_embeddings
    if context is None:
        context = min(DEFAULT_CONTEXT, longest)
    if not 1 <= context <= longest:
        raise UserError(
            f"a context of {context} tokens is outside what the model reads, 1 to {longest}; "
            "write a number between them."
        )
    if stride is None:
        stride = max(1, context // 2)
    if not 1 <= stride <= context:
        raise UserError(
            f"a stride of {stride} tokens would leave some out or never get on; write a number "
            f"from 1 to the context, {context}."
        )
    return context, stride


def _prefix(tokenizer: Tokenizer) -> tuple[Prefix, int | None]:
    if tokenizer.bos_id is not None:
        return "bos", tokenizer.bos_id
    if tokenizer.eos_id is not None:
        return "eos", tokenizer.eos_id
    return None, None


def unknown_id(tokenizer: Tokenizer) -> int:
    """The id for what the vocabulary lacks; −1, which no token has, where there is none."""
    model = tokenizer.specification["model"]
    if isinstance(number := model.get("unk_id"), int):  # a unigram model's
        return number
    name = model.get("unk_token")
    found = tokenizer.id_of(name) if isinstance(name, str) else None
    return -1 if found is None else found


def _pools(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    pool: list[str] = []
    held = 0
    for text in texts:
        pool.append(text)
        held += len(text)
        if held >= characters:
            yield pool
            pool, held = [], 0
    if pool:
        yield pool


def _utf8(text: str, place: int) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"document {place + 1} has a lone surrogate at character {error.start + 1}, which is "
            "no text; mend it or leave it out."
        ) from None


def _check_ids(
    model: Decoder, documents: Sequence[_Ids], encoded: Sequence[bytes], before: int
) -> None:
    size = model.config.vocab_size
    for place, (ids, text) in enumerate(zip(documents, encoded, strict=True)):
        if len(ids) and int(ids.max()) >= size:
            raise UserError(
                f"document {before + place + 1} has the token {int(ids.max())}, the model has "
                f"{size:,}; take the tokenizer that the model was trained with."
            )
        if text and not len(ids):
            raise UserError(
                f"document {before + place + 1} has {len(text)} bytes and no tokens: the tokenizer "
                "drops them, and a score would be wrong; leave it out."
            )
