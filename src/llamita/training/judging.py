"""Held-out data of a run: how a model does on them, and what it writes between."""

from __future__ import annotations

from functools import cached_property

import torch

from llamita.data.packed_stream import PackedStream
from llamita.data.token_stream import TokenStream
from llamita.inference.answering import answer
from llamita.inference.generation import continue_prompt
from llamita.inference.sampling import Sampling
from llamita.inference.scoring import (
    HeldOut,
    HeldOutRows,
    Score,
    held_out,
    held_out_rows,
    score_rows,
    score_text,
)
from llamita.model.decoder import Decoder
from llamita.recipes.schema import Samples
from llamita.training.preparation import Preparation


class Judge:
    """What validation reads, opened when it is first needed.

    Args:
        micro_batch_size: rows of a pass of training; a pass here takes as many tokens.
    """

    def __init__(self, preparation: Preparation, micro_batch_size: int) -> None:
        self._preparation = preparation
        self._most = preparation.recipe.validation.tokens
        self.length = preparation.plan.longest_sequence
        tokens = micro_batch_size * preparation.plan.stages[0].sequence_length
        self.rows = max(1, tokens // self.length)
        """Rows of the longest sequence in a forward pass."""

    @cached_property
    def texts(self) -> dict[str, HeldOut]:
        """What is read of each dataset of text that has anything held out."""
        found = {
            name: held_out(dataset.validation, self._most)
            for name, dataset in self._preparation.datasets.items()
            if isinstance(dataset.validation, TokenStream)
        }
        return {name: text for name, text in found.items() if text.num_bytes and text.num_predicted}

    @cached_property
    def chats(self) -> dict[str, HeldOutRows]:
        """What is read of each dataset of conversations that has any held out."""
        found = {
            name: held_out_rows(dataset.validation, self.length, self.rows, self._most)
            for name, dataset in self._preparation.datasets.items()
            if isinstance(dataset.validation, PackedStream) and dataset.manifest.kind == "chats"
        }
        return {name: rows for name, rows in found.items() if rows.num_predicted}

    @property
    def num_passes(self) -> int:
        """Forward passes of one `score`."""
        windows = [-(-text.num_predicted // self.length) for text in self.texts.values()]
        passes = sum(-(-number // self.rows) for number in windows)
        return passes + sum(len(chats.batches) for chats in self.chats.values())

    def score(self, model: Decoder) -> dict[str, Score]:
        """The model on the held-out part of each dataset of text or conversations."""
        scores = {
            name: score_text(model, text, sequence_length=self.length, rows=self.rows)
            for name, text in self.texts.items()
        }
        return scores | {name: score_rows(model, chats) for name, chats in self.chats.items()}

    def one_pass(self, model: Decoder) -> None:
        """A forward pass as `score` makes them: what a plan times."""
        for text in self.texts.values():
            part = HeldOut(text.tokens[: self.rows * self.length + 1], 1)
            score_text(model, part, sequence_length=self.length, rows=self.rows)
            return
        for chats in self.chats.values():
            score_rows(model, HeldOutRows(chats.batches[:1], 1))
            return

    def write(self, model: Decoder, prompt: str, settings: Samples, seed: int) -> str:
        """What the model makes of a prompt: its answer, or how it goes on."""
        tokenizer = self._preparation.tokenizer
        assert tokenizer is not None
        write = answer if settings.chat else continue_prompt
        # Every length is another shape: eager here, or each would be compiled.
        with torch.compiler.set_stance("force_eager"):
            pieces = write(
                model,
                tokenizer,
                prompt,
                max_tokens=settings.max_tokens,
                sampling=Sampling(temperature=settings.temperature, seed=seed),
            )
            return "".join(pieces)
