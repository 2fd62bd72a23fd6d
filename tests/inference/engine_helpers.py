"""Small engines, and receivers that remember."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from llamita.data.chat_template import chat_template
from llamita.inference.engine import Finish, Piece, Request, Token
from llamita.inference.sampling import Sampling
from llamita.inference.torch_engine import TorchEngine
from llamita.model.huggingface import load_model
from tests.data.corpus import small_tokenizer
from tests.model.shapes import transformers_model

GREEDY = Sampling(temperature=0)
TOKENIZER = small_tokenizer()
TEMPLATE = chat_template(TOKENIZER)
PATIENCE = 60.0


def pair(shape: str, folder: Path, **options: Any) -> tuple[PreTrainedModel, TorchEngine]:
    """A random model in Transformers, and in an engine."""
    theirs = transformers_model(shape)
    theirs.save_pretrained(folder)
    return theirs, TorchEngine(load_model(folder), TOKENIZER, TEMPLATE, **options)


@torch.no_grad()
def their_greedy(theirs: PreTrainedModel, prompt: tuple[int, ...], count: int) -> list[int]:
    tokens = torch.tensor([prompt])
    found = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return found[0, len(prompt) :].tolist()


class Receiver:
    """What came for one request."""

    def __init__(self, engine: TorchEngine, request: Request) -> None:
        self.events: list[Piece | Finish | Exception] = []
        self._end = threading.Event()
        self._first = threading.Event()
        self.handle = engine.submit(request, self._take)

    def _take(self, event: Piece | Finish | Exception) -> None:
        self.events.append(event)
        self._first.set()
        if not isinstance(event, Piece):
            self._end.set()

    def first(self) -> None:
        assert self._first.wait(PATIENCE), "nothing came"

    def end(self) -> Finish | Exception:
        assert self._end.wait(PATIENCE), "it has not ended"
        last = self.events[-1]
        assert not isinstance(last, Piece)
        return last

    def finish(self) -> Finish:
        found = self.end()
        assert isinstance(found, Finish), found
        return found

    @property
    def tokens(self) -> list[Token]:
        return [
            token for event in self.events if isinstance(event, Piece) for token in event.tokens
        ]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))


def ask(prompt: tuple[int, ...], count: int | None = 8, **more: Any) -> Request:
    return Request(prompt, more.pop("sampling", GREEDY), max_tokens=count, **more)
