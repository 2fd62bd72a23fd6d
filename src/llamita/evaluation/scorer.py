"""How likely a model finds continuations of contexts, with what they share computed once.

Evaluations ask about the same beginnings again and again: four endings of one story, four letters
behind one question, a few worked examples before every question of a subject. All that is asked is
laid out as a tree (prefix_tree.py), of which the model reads each token once; where paths meet,
attention alone knows (model/segment_attention.py). The head is computed where something is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamita.errors import UserError
from llamita.evaluation.prefix_tree import Ids, Node, Pass, ask, grow, passes
from llamita.model.cache import KeyValueCache
from llamita.model.decoder import Decoder
from llamita.model.head import Answers
from llamita.model.segment_attention import Segment, SegmentAttention

# Tokens of a pass: enough that a GPU's matrix products are at full speed; on a CPU they are with
# a few hundred, and activations of 2,048 take 100 MB of a model of 1B.
_BATCH_TOKENS_CPU, _BATCH_TOKENS_GPU = 2048, 16384


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids: of a context, at least one, and of what is to follow it, at least one."""

    context: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of a continuation.

    log_prob: nats, summed over the target's tokens. is_greedy: whether at each of them no other
    token was likelier. truncated: whether the context lost its beginning.
    """

    log_prob: float
    is_greedy: bool
    truncated: bool = False


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a pass where nobody says how many."""
    return _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS_GPU


def score_continuations(
    model: Decoder,
    asked: Sequence[Continuation],
    *,
    max_length: int,
    batch_tokens: int | None = None,
    found: Callable[[int, Likelihood], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """The likelihood of each continuation, in the order asked.

    As lm-evaluation-harness does it: of context and target the last `max_length` + 1 tokens count,
    the last of them is predicted but not read, and a token is greedy where it is the argmax.

    Args:
        max_length: tokens that the model reads at most.
        batch_tokens: tokens of a pass; bounds the memory, with the longest text.
        found: told the number and the likelihood of each continuation as soon as it is known.
        progress: told how many more are known, after each pass.

    Raises:
        UserError: a continuation without tokens, or with more than `max_length`.
    """
    device = model.model.norm.weight.device
    most = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    if most < 1:
        raise UserError(f"batch_tokens {most}: give 1 or more")
    questions = _Questions(asked, max_length)
    plan = list(passes(questions.grown(most), most))
    room = max((each.prefix + each.tokens for each in plan), default=1)
    dtype = model.compute_dtype
    cache = KeyValueCache(model.config, 1, room, dtype=dtype, device=device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _eagerly(model):
            for numbers in _one_behind(_read(model, cache, questions, each) for each in plan):
                for number in numbers:
                    if found is not None:
                        found(number, questions.likelihood(number))
                if progress is not None:
                    progress(len(numbers))
    finally:
        model.train(was_training)
    return [questions.likelihood(number) for number in range(len(asked))]


def tokens_to_read(asked: Sequence[Continuation], *, max_length: int, batch_tokens: int) -> int:
    """Tokens that `score_continuations` would have a model read, with what is shared read once."""
    root = _Questions(asked, max_length).grown(batch_tokens)
    return sum(each.tokens for each in passes(root, batch_tokens))


def _eagerly(model: Decoder) -> AbstractContextManager[object]:
    """Passes are of all lengths: a compiled model would be compiled again for each. Of one that is
    not, nothing is asked, because asking alone loads the compiler, which takes seconds."""
    if any(block._compiled_call_impl is not None for block in model.model.layers):
        eagerly: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return eagerly
    return nullcontext()


class _Questions:
    """What is asked, and what has been answered of it so far."""

    def __init__(self, asked: Sequence[Continuation], max_length: int) -> None:
        numbers: dict[bytes, list[int]] = {}
        self._targets: list[Ids] = []
        self.truncated = np.zeros(len(asked), np.bool_)
        for number, each in enumerate(asked):
            _check(number, each, max_length)
            ids = np.array(each.context + each.target, np.int64)[-(max_length + 1) :]
            self.truncated[number] = len(each.context) + len(each.target) > max_length + 1
            # A copy, since a view would keep the whole text alive, once for each of its targets.
            self._targets.append(ids[len(ids) - len(each.target) :].copy())
            # Big-endian, so that the bytes are in the order of the ids.
            numbers.setdefault(ids[:-1].astype(">u4").tobytes(), []).append(number)
        ordered = sorted(numbers)
        self._asking = [numbers[text] for text in ordered]
        self.texts = [np.frombuffer(text, ">u4").astype(np.int64) for text in ordered]
        # Where the first target token of a request is asked for, in its text.
        self._first = np.zeros(len(asked), np.int64)
        self.log_probs = np.zeros(len(asked), np.float64)
        self.greedy = np.ones(len(asked), np.bool_)
        self._open = np.array([len(each) for each in self._targets], np.int64)

    def grown(self, most: int) -> Node:
        """The root of the tree of all texts, with what is asked noted in it."""
        root, ends = grow(self.texts, most)
        for text, end, asking in zip(self.texts, ends, self._asking, strict=True):
            for number in asking:
                count = len(self._targets[number])
                self._first[number] = len(text) - count
                ask(end, number, count)
        return root

    def asked_in(self, nodes: Sequence[Node]) -> tuple[Ids, Ids, Ids]:
        """Of all that is asked in a row of nodes: the place in the row, the token, the request."""
        places, tokens, requests = [], [], []
        start = 0
        for node in nodes:
            for number, first, last in node.questions:
                begin = int(self._first[number])
                places.append(np.arange(first, last) + (start - node.start))
                tokens.append(self._targets[number][first - begin : last - begin])
                requests.append(np.full(last - first, number))
            start += node.length
        if not places:
            return (np.empty(0, np.int64),) * 3
        return np.concatenate(places), np.concatenate(tokens), np.concatenate(requests)

    def answer(self, requests: Ids, said: Answers) -> list[int]:
        """Takes answers to what was asked; returns the requests that are known with them."""
        log_probs: npt.NDArray[np.float32] = said.log_probs.cpu().numpy()
        np.add.at(self.log_probs, requests, log_probs.astype(np.float64))
        np.logical_and.at(self.greedy, requests, said.likeliest.cpu().numpy())
        np.subtract.at(self._open, requests, 1)
        touched = np.unique(requests)
        return [int(number) for number in touched[self._open[touched] == 0]]

    def likelihood(self, number: int) -> Likelihood:
        return Likelihood(
            float(self.log_probs[number]), bool(self.greedy[number]), bool(self.truncated[number])
        )


def _check(number: int, asked: Continuation, max_length: int) -> None:
    assert asked.context, "a context has at least one token"
    if not asked.target:
        raise UserError(f"continuation {number} (from 0) has no tokens: nothing to score")
    if len(asked.target) > max_length:
        raise UserError(
            f"continuation {number} (from 0) has {len(asked.target):,} tokens, and the model reads "
            f"{max_length:,}: it cannot be scored whole"
        )


def _read(
    model: Decoder, cache: KeyValueCache, questions: _Questions, each: Pass
) -> Callable[[], list[int]]:
    """Has the model read a pass. What is returned waits for the answers and says which requests
    are known with them."""
    device = cache.keys[0].device
    nodes = each.nodes
    tokens = np.concatenate([questions.texts[n.text][n.start : n.stop] for n in nodes])
    positions = np.concatenate([np.arange(node.start, node.stop) for node in nodes])
    places, wanted, requests = questions.asked_in(nodes)
    row, at, where, which = _moved((tokens, positions, places, wanted), device)
    segments = [
        Segment(node.length, parent) for node, parent in zip(nodes, each.parents, strict=True)
    ]
    cache.length = each.prefix
    cache.mask = SegmentAttention(segments, each.prefix, device)
    said = model(row[None], positions=at, cache=cache, asked=(where, which))
    assert isinstance(said, Answers)
    return lambda: questions.answer(requests, said)


def _moved(arrays: Sequence[Ids], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays as tensors on a device, in one copy."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return torch.split(joined.to(device, non_blocking=True), [len(each) for each in arrays])


def _one_behind(reads: Iterator[Callable[[], list[int]]]) -> Iterator[list[int]]:
    """What each read answers, asked for when the next has been begun, so that a GPU has work while
    its answers are taken up."""
    pending: Callable[[], list[int]] | None = None
    for read in reads:
        if pending is not None:
            yield pending()
        pending = read
    if pending is not None:
        yield pending()
