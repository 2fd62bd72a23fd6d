"""Pairs of answers laid out in rows by hand, for comparisons with TRL and Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from llamita.data.batch import Batch
from llamita.data.rows import Rows
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.model.huggingface import load_model
from tests.model.shapes import BASE


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Prompts of 2 to 4 tokens, answers of 1 to 6."""
    random = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        found: list[int] = random.integers(
            3, BASE["vocab_size"], random.integers(low, high)
        ).tolist()
        return found

    return [Pair(tokens(2, 5), tokens(1, 7), tokens(1, 7)) for _ in range(count)]


class PairStream:
    """What `PackedStream` serves of these pairs, which lie in rows as `layout` has them."""

    def __init__(self, pairs: Sequence[Pair], layout: Sequence[Sequence[int]]) -> None:
        self.pairs, self.layout = pairs, layout
        self.num_documents = 2 * len(pairs)

    def num_windows(self, sequence_length: int) -> int:
        return len(self.layout)

    def rows(self, indices: Any, sequence_length: int) -> Rows:
        most = 2 * max(len(row) for row in self.layout)
        shape = (len(indices), sequence_length)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        documents, positions = np.full(shape, most, np.int32), np.zeros(shape, np.int32)
        examples = np.full((len(indices), most), -1, np.int64)
        for place, index in enumerate(indices):
            first = number = 0
            for pair in self.layout[index]:
                prompt = self.pairs[pair].prompt
                answers = (self.pairs[pair].chosen, self.pairs[pair].rejected)
                for side, answer in enumerate(answers):
                    whole = [*prompt, *answer]
                    here = slice(first, first + len(whole) - 1)
                    tokens[place, here] = whole[:-1]
                    targets[place, here] = whole[1:]
                    targets[place, first : first + len(prompt) - 1] = IGNORE
                    documents[place, here] = number
                    positions[place, here] = np.arange(len(whole) - 1)
                    examples[place, number] = 2 * pair + side
                    first, number = here.stop, number + 1
        return Rows(tokens, targets, documents, positions, examples)

    def batch(self, sequence_length: int = 48) -> Batch:
        """All rows."""
        return Batch.of(self.rows(range(len(self.layout)), sequence_length))


def ours(theirs: PreTrainedModel, directory: Path) -> Decoder:
    """Our decoder with the weights of a Transformers model."""
    theirs.save_pretrained(directory)
    return load_model(directory)


@torch.no_grad()
def answer_log_prob(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """By Transformers, the answer alone behind its prompt, unpadded."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    scores = logits.double().log_softmax(-1)
    return float(scores.gather(1, torch.tensor(answer)[:, None]).sum())
