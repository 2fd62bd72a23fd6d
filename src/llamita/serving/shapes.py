"""Answers in the two endpoints' shapes: whole, and in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel

from llamita.serving.log_probs import (
    ShownTokens,
    chat_log_probs,
    completion_log_probs,
    joined,
)
from llamita.serving.responses import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogProbs,
    Delta,
    FinishReason,
    PromptDetails,
    Usage,
)

if TYPE_CHECKING:
    from llamita.inference.engine import Finish, Token
    from llamita.serving.answers import News

Tokens = Sequence[tuple["Token", int]]


@dataclass
class Written:
    """An answer so far. `tokens` are filled where log-probabilities were asked for."""

    text: str = ""
    tokens: list[tuple[Token, int]] = field(default_factory=list)
    finish: Finish | None = None
    shown: ShownTokens = field(default_factory=ShownTokens)

    def add(self, news: News, *, keep_tokens: bool) -> tuple[str, list[tuple[Token, int]]]:
        """What is new: the text, and the tokens that it shows."""
        text = "".join(piece.text for piece in news.pieces)
        self.text += text
        self.finish = news.finish
        if not keep_tokens:
            return text, []
        tokens = self.shown.push(news.pieces)
        if news.finish is not None:
            stopped = isinstance(news.finish.stopped_by, str)
            tokens += self.shown.rest(stopped=stopped)
        self.tokens += tokens
        return text, tokens


@dataclass(frozen=True)
class Echo:
    """A prompt to give back before its continuation."""

    text: str
    log_probs: CompletionLogProbs | None = None


class Shape(ABC):
    """What one request of a client is answered.

    Args:
        log_probs: alternatives asked for with each token, `None` for no log-probabilities.
        per_prompt: answers to each prompt; a prompt's tokens count once.
    """

    def __init__(
        self, kind: str, model: str, count: int, log_probs: int | None, per_prompt: int
    ) -> None:
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        self.written = [Written() for _ in range(count)]
        self.log_probs = log_probs
        self._per_prompt = per_prompt

    def add(self, news: News) -> tuple[str, list[tuple[Token, int]]]:
        return self.written[news.index].add(news, keep_tokens=self.log_probs is not None)

    def usage(self) -> Usage:
        finishes = [one.finish for one in self.written if one.finish is not None]
        prompt = sum(finish.prompt_tokens for finish in finishes[:: self._per_prompt])
        cached = sum(finish.cached_tokens for finish in finishes[:: self._per_prompt])
        completion = sum(finish.completion_tokens for finish in finishes)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )

    @abstractmethod
    def whole(self) -> BaseModel: ...

    @abstractmethod
    def opening(self) -> Iterator[BaseModel]:
        """Chunks that come before all others."""

    @abstractmethod
    def chunk(self, index: int, text: str, tokens: Tokens) -> BaseModel: ...

    @abstractmethod
    def ending(self, index: int, reason: FinishReason) -> BaseModel: ...

    @abstractmethod
    def usage_chunk(self) -> BaseModel: ...


class ChatShape(Shape):
    def __init__(self, model: str, count: int, log_probs: int | None) -> None:
        super().__init__("chatcmpl", model, count, log_probs, count)

    def whole(self) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                ChatChoice(
                    index=index,
                    message=AnswerMessage(content=one.text),
                    logprobs=None if self.log_probs is None else chat_log_probs(one.tokens),
                    finish_reason=reason_of(one.finish),
                )
                for index, one in enumerate(self.written)
            ],
            usage=self.usage(),
        )

    def opening(self) -> Iterator[ChatChunk]:
        for index in range(len(self.written)):
            delta = Delta(role="assistant", content="")
            yield self._chunk([ChunkChoice(index=index, delta=delta)])

    def chunk(self, index: int, text: str, tokens: Tokens) -> ChatChunk:
        log_probs = None if self.log_probs is None else chat_log_probs(tokens)
        delta = Delta(content=text)
        return self._chunk([ChunkChoice(index=index, delta=delta, logprobs=log_probs)])

    def ending(self, index: int, reason: FinishReason) -> ChatChunk:
        return self._chunk([ChunkChoice(index=index, delta=Delta(), finish_reason=reason)])

    def usage_chunk(self) -> ChatChunk:
        return self._chunk([], self.usage())

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


class CompletionShape(Shape):
    """`echoes`: one for each prompt, or none at all."""

    def __init__(
        self,
        model: str,
        count: int,
        log_probs: int | None,
        per_prompt: int,
        echoes: Sequence[Echo] = (),
    ) -> None:
        super().__init__("cmpl", model, count, log_probs, per_prompt)
        self._echoes = echoes

    def whole(self) -> Completion:
        return self._completion(
            [
                CompletionChoice(
                    index=index,
                    text=self._echoed(index).text + one.text,
                    logprobs=self._all_log_probs(index, one.tokens),
                    finish_reason=reason_of(one.finish),
                )
                for index, one in enumerate(self.written)
            ],
            self.usage(),
        )

    def opening(self) -> Iterator[Completion]:
        for index in range(len(self.written) if self._echoes else 0):
            echo = self._echoed(index)
            yield self._one(index, echo.text, echo.log_probs)

    def chunk(self, index: int, text: str, tokens: Tokens) -> Completion:
        return self._one(index, text, self._log_probs(index, tokens))

    def ending(self, index: int, reason: FinishReason) -> Completion:
        return self._one(index, "", None, reason)

    def usage_chunk(self) -> Completion:
        return self._completion([], self.usage())

    def _echoed(self, index: int) -> Echo:
        return self._echoes[index // self._per_prompt] if self._echoes else Echo("")

    def _log_probs(self, index: int, tokens: Tokens) -> CompletionLogProbs | None:
        if self.log_probs is None:
            return None
        return completion_log_probs(tokens, self.log_probs, len(self._echoed(index).text))

    def _all_log_probs(self, index: int, tokens: Tokens) -> CompletionLogProbs | None:
        written, echo = self._log_probs(index, tokens), self._echoed(index).log_probs
        return written if written is None or echo is None else joined(echo, written)

    def _one(
        self,
        index: int,
        text: str,
        log_probs: CompletionLogProbs | None,
        reason: FinishReason | None = None,
    ) -> Completion:
        choice = CompletionChoice(index=index, text=text, logprobs=log_probs, finish_reason=reason)
        return self._completion([choice], None)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


def reason_of(finish: Finish | None) -> FinishReason:
    """A request that was cancelled has no shape but an error's."""
    assert finish is not None
    assert finish.reason != "cancelled"
    return finish.reason
