"""Log-probabilities in the shapes of OpenAI's two endpoints, for the tokens whose text is shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamita.serving.responses import (
    ChatLogProbs,
    CompletionLogProbs,
    TokenLogProb,
    TopLogProb,
)

if TYPE_CHECKING:
    from llamita.inference.engine import Piece, Token

# OpenAI's for "very unlikely"; JSON has no infinity.
_LEAST = -9999.0


class ShownTokens:
    """Tokens as their text is given out. A token whose text is held back, because a stop string
    may begin in it, waits; where the stop string comes, it is dropped with its text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._read = 0
        self._shown = 0
        self._waiting: list[tuple[Token, int]] = []

    def push(self, pieces: Sequence[Piece]) -> list[tuple[Token, int]]:
        """Tokens that are shown now, each with the character of the answer at which it begins."""
        for piece in pieces:
            for token in piece.tokens:
                self._waiting.append((token, self._read))
                self._read += len(self._decoder.decode(token.data))
            self._shown += len(piece.text)
        count = sum(1 for _, place in self._waiting if place < self._shown)
        shown, self._waiting = self._waiting[:count], self._waiting[count:]
        return shown

    def rest(self, *, stopped: bool) -> list[tuple[Token, int]]:
        """What waits at the end; nothing if a stop string (`stopped`) has cut it off."""
        rest, self._waiting = self._waiting, []
        return [] if stopped else rest


def chat_log_probs(tokens: Sequence[tuple[Token, int]]) -> ChatLogProbs:
    return ChatLogProbs(
        content=[
            TokenLogProb(
                token=_chat_name(token.data),
                logprob=_finite(token.log_prob),
                bytes=list(token.data),
                top_logprobs=[
                    TopLogProb(
                        token=_chat_name(other.data),
                        logprob=_finite(other.log_prob),
                        bytes=list(other.data),
                    )
                    for other in token.top
                ],
            )
            for token, _ in tokens
        ]
    )


def completion_log_probs(
    tokens: Sequence[tuple[Token, int]], wanted: int, offset: int = 0
) -> CompletionLogProbs:
    """`wanted`: alternatives asked for; the token itself is among them always, as OpenAI's."""
    return CompletionLogProbs(
        tokens=[_completion_name(token.data) for token, _ in tokens],
        token_logprobs=[_finite(token.log_prob) for token, _ in tokens],
        top_logprobs=[_top(token) for token, _ in tokens] if wanted else None,
        text_offset=[offset + place for _, place in tokens],
    )


def echoed_log_probs(
    data: Sequence[bytes], scores: Sequence[float], *, unseen: bool
) -> CompletionLogProbs:
    """Of a prompt's tokens, by their bytes; `scores` has one for each but the first, which is no
    part of the text if `unseen`."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offsets, place = [], 0
    for number, part in enumerate(data):
        offsets.append(place)
        if number > 0 or not unseen:
            place += len(decoder.decode(part))
    return CompletionLogProbs(
        tokens=[_completion_name(part) for part in data],
        token_logprobs=[None, *(_finite(score) for score in scores)],
        top_logprobs=None,
        text_offset=offsets,
    )


def joined(first: CompletionLogProbs, second: CompletionLogProbs) -> CompletionLogProbs:
    """Of a text and its continuation, neither with alternatives."""
    return CompletionLogProbs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=None,
        text_offset=first.text_offset + second.text_offset,
    )


def _top(token: Token) -> dict[str, float]:
    found = {_completion_name(other.data): _finite(other.log_prob) for other in token.top}
    found.setdefault(_completion_name(token.data), _finite(token.log_prob))
    return found


def _finite(log_prob: float | None) -> float:
    return _LEAST if log_prob is None else max(log_prob, _LEAST)


def _completion_name(data: bytes) -> str:
    """The text, or as OpenAI names parts of characters, `bytes:\\xe2\\x82`."""
    return _text(data) or ("bytes:" + _escaped(data) if data else "")


def _chat_name(data: bytes) -> str:
    """The text, or `\\xe2\\x82`."""
    return _text(data) or _escaped(data)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)
