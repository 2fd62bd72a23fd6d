"""What an engine is: something that continues token ids, for many at once, and says what it can.

There are two, `torch` (torch_engine.py) and `llama.cpp` (llama_cpp_engine.py); `open_engine`
(engines.py) chooses. Everything above, the terminal, the server, Python, knows this module alone.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from llamita.errors import UserError

if TYPE_CHECKING:
    from llamita.data.chat_template import ChatTemplate
    from llamita.data.tokenizer import Tokenizer
    from llamita.inference.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can.

    log_probs: of the tokens that it writes; scoring: of a text that it is given; adapters: it runs
    an adapter beside its base, without a merged copy.
    """

    streaming: bool
    log_probs: bool
    scoring: bool
    adapters: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue.

    prompt: token ids, at least one. max_tokens: None goes on to the end of the context.
    stop_ids: ids that end the text and are no part of it. stop: strings that do, wherever they
    stand across tokens. top_log_probs: None asks for no log-probabilities; k for that of each
    token and of the k likeliest in its place.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    top_log_probs: int | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood in a place, with the natural logarithm of its probability
    by the model alone: before penalties, temperature and truncation."""

    id: int
    data: bytes
    log_prob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token written. `data`: the bytes it stands for, which may be part of a character."""

    id: int
    data: bytes
    log_prob: float | None = None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece. `text` holds whole characters only, and nothing that may
    yet turn out to be a stop string; it may be empty."""

    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a request.

    reason: "stop" at a stop string or id, "length" at `max_tokens` or the end of the context,
    "cancelled" when it was asked to. stopped_by: the string or id. cached_tokens: those of the
    prompt that were not computed again. Seconds are of the wall.
    """

    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    stopped_by: str | int | None = None
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


# What a request's receiver is called with: pieces, then one Finish or one exception, and no more.
Deliver = Callable[[Piece | Finish | Exception], None]


class Handle(Protocol):
    def cancel(self) -> None:
        """Ask for the end; a Finish with reason "cancelled" follows, unless it has ended."""


class Engine(Protocol):
    """A model, ready to write.

    name: "torch" or "llama.cpp". about: what it took and why, a line for people. context: tokens
    of prompt and answer together that every request may have, however many run. slots: requests
    that are worked on at a time; more wait their turn.
    """

    name: str
    about: str
    capabilities: Capabilities
    tokenizer: Tokenizer
    template: ChatTemplate
    end_ids: frozenset[int]  # the ids at which an answer, or a text, ends
    context: int
    slots: int

    def submit(self, request: Request, deliver: Deliver) -> Handle:
        """Begin a request; returns at once. `deliver` is called from the engine's thread, must
        not block, and if it raises, the request is cancelled and the exception reported.

        Raises:
            UserError: an empty prompt, one that leaves no room in the context, ids outside the
                vocabulary, something that the engine is not capable of, or a closed engine.
        """

    def waiting(self) -> tuple[int, int]:
        """Requests that run, and that wait."""

    def close(self) -> None:
        """Cancel what runs, end the thread, free the memory. May be called twice."""


class Stream:
    """A request's pieces as an iterator; `finish` is there when they have ended.

    Leaving the iteration early, `close()`, or an exception in it (Ctrl-C) cancels the request and
    waits for its end.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.finish: Finish | None = None
        self._arrived: queue.SimpleQueue[Piece | Finish | Exception] = queue.SimpleQueue()
        self._handle = engine.submit(request, self._arrived.put)
        self._ended = False

    def __iter__(self) -> Iterator[Piece]:
        try:
            while not self._ended:
                event = self._arrived.get()
                if isinstance(event, Piece):
                    yield event
                else:
                    self._end(event)
        finally:
            self.close()

    def cancel(self) -> None:
        """Ask for the end without waiting for it: what was written still comes, then the end.
        A signal's handler may call it."""
        self._handle.cancel()

    def close(self) -> None:
        if self._ended:
            return
        self._handle.cancel()
        while not self._ended:
            event = self._arrived.get()
            if not isinstance(event, Piece):
                self._end(event)

    def _end(self, event: Finish | Exception) -> None:
        self._ended = True
        if isinstance(event, Exception):
            raise event
        self.finish = event


def check_request(engine: Engine, request: Request) -> None:
    """What every engine refuses alike.

    Raises:
        UserError: see `Engine.submit`.
    """
    if not request.prompt:
        raise UserError("the prompt is empty, and the tokenizer adds no BOS token to begin with")
    if len(request.prompt) >= engine.context:
        raise UserError(
            f"the prompt has {len(request.prompt):,} tokens and the context holds "
            f"{engine.context:,}: shorten the prompt"
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise UserError(f"max_tokens {request.max_tokens}: give 1 or more")
    if request.top_log_probs is not None:
        if not engine.capabilities.log_probs:
            raise UserError(f"the engine {engine.name} gives no log-probabilities")
        if not 0 <= request.top_log_probs <= 20:
            raise UserError(f"top_log_probs {request.top_log_probs}: give 0 to 20")
