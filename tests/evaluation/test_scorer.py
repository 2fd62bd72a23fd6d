"""Likelihoods of continuations beside Transformers, one text at a time, and what is computed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_utils import PreTrainedModel

from llamita.errors import UserError
from llamita.evaluation.prefix_tree import grow, passes
from llamita.evaluation.scorer import (
    Continuation,
    Likelihood,
    score_continuations,
    tokens_to_read,
)
from llamita.model.attention import attention
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from llamita.model.segment_attention import Segment, SegmentAttention
from tests.model.shapes import transformers_model

LONGEST = 64


def _pair(shape: str, folder: Path) -> tuple[PreTrainedModel, Decoder]:
    theirs = transformers_model(shape)
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Decoder]:
    return _pair("llama-untied", tmp_path_factory.mktemp("llama"))


@torch.no_grad()
def _slowly(model: PreTrainedModel, asked: Continuation, max_length: int) -> tuple[float, bool]:
    """As lm-eval's `hf` cuts and scores one request."""
    ids = (asked.context + asked.target)[-(max_length + 1) :]
    count = len(asked.target)
    log_probs = model(torch.tensor([ids[:-1]])).logits[0, -count:].double().log_softmax(-1)
    target = torch.tensor(asked.target)
    likeliest = bool((log_probs.argmax(-1) == target).all())
    return float(log_probs.gather(1, target[:, None]).sum()), likeliest


def _greedy(model: PreTrainedModel, context: tuple[int, ...], count: int) -> tuple[int, ...]:
    ids = list(context)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(context) :])


def _questions(model: PreTrainedModel, seed: int = 0, count: int = 24) -> list[Continuation]:
    """Requests that share beginnings of all lengths, some of them cut where others go on."""
    draw = random.Random(seed)
    heads = [tuple(draw.randrange(97) for _ in range(length)) for length in (1, 5, 33, 40, 20)]
    asked = []
    for _ in range(count):
        context = draw.choice(heads) + draw.choice(heads)[: draw.randrange(9)]
        context += tuple(draw.randrange(3) for _ in range(draw.randrange(8)))
        asked.append(
            Continuation(context, tuple(draw.randrange(3) for _ in range(draw.randrange(1, 5))))
        )
    asked += [Continuation(each.context, _greedy(model, each.context, 2)) for each in asked[:4]]
    return [*asked, asked[0], Continuation(asked[0].context, (1,) * 20)]


@pytest.mark.parametrize("shape", ["llama-untied", "minicpm-shaped"])
def test_as_transformers(shape: str, tmp_path: Path) -> None:
    theirs, ours = _pair(shape, tmp_path)
    asked = _questions(theirs)
    for max_length, sizes in ((LONGEST, (40, None)), (30, (1,))):
        expected = [_slowly(theirs, each, max_length) for each in asked]
        assert sum(is_greedy for _, is_greedy in expected) >= 2
        for batch_tokens in sizes:
            found = score_continuations(
                ours, asked, max_length=max_length, batch_tokens=batch_tokens
            )
            for got, (log_prob, is_greedy), each in zip(found, expected, asked, strict=True):
                assert got.log_prob == pytest.approx(log_prob, abs=1e-4)
                assert got.is_greedy == is_greedy
                whole = len(each.context) + len(each.target)
                assert got.truncated == (whole > max_length + 1)


class _Read:
    """Tokens that a model reads, and rows of its head, counted."""

    def __init__(self, model: Decoder) -> None:
        self.tokens: list[int] = []
        self.asked = 0
        self._hooks = [
            model.register_forward_pre_hook(self._note, with_kwargs=True),
        ]

    def _note(self, _module: object, args: tuple[torch.Tensor], kwargs: dict) -> None:
        self.tokens.append(args[0].numel())
        self.asked += len(kwargs["asked"][0])

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _reads(model: Decoder, asked: list[Continuation], batch_tokens: int) -> _Read:
    read = _Read(model)
    score_continuations(model, asked, max_length=LONGEST, batch_tokens=batch_tokens)
    read.close()
    assert sum(read.tokens) == tokens_to_read(asked, max_length=LONGEST, batch_tokens=batch_tokens)
    return read


def test_a_shared_context_is_read_once(llama) -> None:
    context = tuple(range(20))
    asked = [Continuation(context, (30 + number, 3, 4)) for number in range(4)]
    read = _reads(llama[1], asked, 1000)
    assert read.tokens == [20 + 4 * 2]
    assert read.asked == 4 * 3


def test_letters_behind_one_question_are_one_row(llama) -> None:
    asked = [Continuation(tuple(range(20)), (letter,)) for letter in range(50, 54)]
    assert _reads(llama[1], asked, 1000).tokens == [20]


def test_a_long_beginning_is_held_for_many_passes(llama) -> None:
    header = tuple(range(40))
    asked = [Continuation((*header, 50 + number, 2, 3), (1,)) for number in range(30)]
    read = _reads(llama[1], asked, 45)
    assert read.tokens == [40, 45, 45]


def test_beginnings_held_within_each_other(llama) -> None:
    """Two that go on from one, and another before them: each pass sees its own path alone."""
    draw = random.Random(7)
    first, one, other, apart = (
        (start, *(draw.randrange(97) for _ in range(32))) for start in (9, 20, 21, 3)
    )
    asked = [
        Continuation((*header, number, 5), (number, 6))
        for header in (apart, first + one, first + other)
        for number in range(30)
    ]
    found = score_continuations(llama[1], asked, max_length=100, batch_tokens=40)
    for number in range(7, len(asked), 30):
        expected, _ = _slowly(llama[0], asked[number], 100)
        assert found[number].log_prob == pytest.approx(expected, abs=1e-4)


def test_a_short_beginning_costs_no_pass(llama) -> None:
    asked = [Continuation((1, 2, number, 4, 5), (1,)) for number in range(40)]
    assert _reads(llama[1], asked, 50).tokens == [50] * 4


def test_no_pass_is_larger_than_asked() -> None:
    draw = random.Random(3)
    texts = {tuple(draw.randrange(2) for _ in range(draw.randrange(1, 120))) for _ in range(200)}
    ordered = [np.array(text) for text in sorted(texts)]
    for most in (1, 10, 50, 300):
        root, ends = grow(ordered, most)
        plan = list(passes(root, most))
        assert max(each.tokens for each in plan) <= most + 31
        # What a text's passes read, put together along its path, is the text.
        for text, end in zip(ordered, ends, strict=True):
            node, parts = end, []
            while node is not None and node.parent is not None:
                parts.append(ordered[node.text][node.start : node.stop])
                node = node.parent
            assert np.concatenate(parts[::-1]).tolist() == text.tolist()


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("prefix", [0, 7])
def test_segments_attend_as_whole_texts(folds: bool, prefix: int) -> None:
    """Beside plain attention over each path of the tree, written out."""
    generator = torch.Generator().manual_seed(0)
    segments = [Segment(5), Segment(3, 0), Segment(1, 1), Segment(9, 0), Segment(300), Segment(2)]
    total = sum(segment.length for segment in segments)
    q = torch.randn(1, 6, total, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, prefix + total, 8, generator=generator)
    mixed = attention(q, k, v, scale=0.3, mask=SegmentAttention(segments, prefix, folds=folds))
    assert mixed.shape == q.shape
    starts = np.cumsum([0, *(segment.length for segment in segments)])
    paths: list[list[int]] = []
    for (length, parent), start in zip(segments, starts[:-1], strict=True):
        own = list(range(start, start + length))
        before = list(range(-prefix, 0)) if parent is None else paths[parent]
        paths.append(before + own)
        keys = torch.tensor(paths[-1]) + prefix
        plain = attention(q[:, :, own], k[:, :, keys], v[:, :, keys], scale=0.3)
        assert (mixed[:, :, own] - plain).abs().max() < 1e-5


def test_told_as_soon_as_known(llama) -> None:
    asked = _questions(llama[0])
    told: dict[int, Likelihood] = {}
    steps: list[int] = []
    found = score_continuations(
        llama[1],
        asked,
        max_length=LONGEST,
        batch_tokens=100,
        found=lambda number, said: told.setdefault(number, said),
        progress=steps.append,
    )
    assert [told[number] for number in range(len(asked))] == found
    assert sum(steps) == len(asked)
    assert len(steps) > 3


def test_a_model_that_trains_goes_on_training(llama) -> None:
    llama[1].train()
    score_continuations(llama[1], [Continuation((1,), (2,))], max_length=LONGEST)
    assert llama[1].training
    assert score_continuations(llama[1], [], max_length=LONGEST) == []


def test_a_compiled_model_is_not_compiled_again(llama, tmp_path: Path) -> None:
    llama[0].save_pretrained(tmp_path)
    model, compiled = load_model(tmp_path), []
    asked = [Continuation((1, 2, 3), (4,))]
    expected = score_continuations(model, asked, max_length=LONGEST)

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    for block in model.model.layers:
        block.compile(backend=backend)
    assert score_continuations(model, asked, max_length=LONGEST) == expected
    assert not compiled
    model(torch.tensor([[1, 2, 3]]))
    assert compiled


def test_what_cannot_be_scored(llama) -> None:
    with pytest.raises(UserError, match=r"continuation 1 .* no tokens"):
        score_continuations(
            llama[1], [Continuation((1,), (2,)), Continuation((1,), ())], max_length=LONGEST
        )
    with pytest.raises(UserError, match="has 9 tokens, and the model reads 8"):
        score_continuations(llama[1], [Continuation((1,), (2,) * 9)], max_length=8)
    with pytest.raises(UserError, match="batch_tokens 0"):
        score_continuations(llama[1], [], max_length=LONGEST, batch_tokens=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(llama, tmp_path: Path, dtype: str) -> None:
    llama[0].save_pretrained(tmp_path)
    ours = load_model(tmp_path, device="cuda")
    ours.compute_dtype = getattr(torch, dtype)
    asked = _questions(llama[0])
    expected = [_slowly(llama[0], each, LONGEST) for each in asked]
    for batch_tokens in (40, None):
        found = score_continuations(ours, asked, max_length=LONGEST, batch_tokens=batch_tokens)
        off = max(abs(a.log_prob - b) for a, (b, _) in zip(found, expected, strict=True))
        # float32 products on a GPU may be of TF32 where a program has asked for that.
        assert off < (1e-2 if dtype == "float32" else 0.5)
