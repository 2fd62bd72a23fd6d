"""A conversation of several turns with an engine, and the prompt that a conversation is."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamita.data.chat_records import Message, RowError
from llamita.errors import UserError
from llamita.inference.engine import Engine, Finish, Piece, Request, Stream

if TYPE_CHECKING:
    from llamita.inference.sampling import Sampling

Exchange = tuple[Message, ...]
# Roles that every chat template shows; of others some say nothing.
_SHOWN = ("user", "assistant")


def prompt_of(engine: Engine, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids that ask for the answer to `messages`: what the engine's chat template renders of
    them with its generation prompt, tokenised as Transformers' `apply_chat_template` does.

    Raises:
        UserError: the template refuses the messages, leaves some of them out, or they are no
            Unicode.
    """
    template = engine.template
    try:
        text = template.render(messages, add_generation_prompt=True)
    except RowError as error:
        raise UserError(_refusal(engine, messages, error)) from error
    for role in dict.fromkeys(message.role for message in messages):
        if role not in _SHOWN and _leaves_out(engine, messages, role, text):
            raise UserError(_no_place(engine, role, "it leaves it out"))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("a message is broken Unicode: it holds a lone surrogate") from None
    return tuple(engine.tokenizer.encode_chat(text))


def _leaves_out(engine: Engine, messages: Sequence[Message], role: str, text: str) -> bool:
    said = any(message.role == role and message.content.strip() for message in messages)
    return said and text == _rendered_without(engine, messages, role)


def _rendered_without(engine: Engine, messages: Sequence[Message], role: str) -> str | None:
    """What the template makes of the messages of all other roles, `None` if it refuses them."""
    rest = [message for message in messages if message.role != role]
    try:
        return engine.template.render(rest, add_generation_prompt=True) if rest else None
    except RowError:
        return None


def _refusal(engine: Engine, messages: Sequence[Message], error: RowError) -> str:
    for role in dict.fromkeys(message.role for message in messages):
        if role not in _SHOWN and _rendered_without(engine, messages, role) is not None:
            return _no_place(engine, role, str(error))
    return f"{error}; change the messages, or name another template, for example --template chatml"


def _no_place(engine: Engine, role: str, why: str) -> str:
    instead = (
        "put its text at the beginning of the first user's message"
        if role == "system"
        else "leave those messages out"
    )
    return (
        f"the chat template {engine.template.name} has no place for a message of the role {role} "
        f"({why}): {instead}, or name another template, for example --template chatml"
    )


class Answer:
    """An answer as it is written: iterate over it, once.

    It joins the conversation when the iteration ends: whole, or as far as it came if it was
    cancelled, closed or left early. One without any text does not join, nor does one that failed;
    the conversation keeps its question as `unanswered`.

    text: so far. prompt_tokens: of its prompt. left_out: exchanges that its prompt is the first
    to do without, for want of room. first_seconds: from the question to the first token, `None`
    before. finish: the engine's account, there when the iteration has ended.
    """

    def __init__(
        self, stream: Stream, join: Callable[[str], None], *, prompt_tokens: int, left_out: int
    ) -> None:
        self.text = ""
        self.prompt_tokens = prompt_tokens
        self.left_out = left_out
        self.first_seconds: float | None = None
        self.finish: Finish | None = None
        self._stream, self._join = stream, join
        self._began = time.monotonic()

    def __iter__(self) -> Iterator[Piece]:
        try:
            for piece in self._stream:
                if self.first_seconds is None and piece.tokens:
                    self.first_seconds = time.monotonic() - self._began
                self.text += piece.text
                yield piece
        finally:
            self.close()

    def cancel(self) -> None:
        """Ask for the end without waiting; the iteration goes on to it. A signal's handler may
        call it."""
        self._stream.cancel()

    def close(self) -> None:
        """Cancel what is still being written, and let what there is join the conversation."""
        self._stream.close()
        if self.finish is None and self._stream.finish is not None:
            self.finish = self._stream.finish
            if self.text.strip():
                self._join(self.text)


@dataclass(frozen=True, slots=True)
class _State:
    system: str | None
    exchanges: tuple[Exchange, ...]
    unanswered: str | None


class Conversation:
    """Questions and answers with an engine, which keeps what it has computed of them.

    Each prompt is the whole conversation as the template renders it. Where that leaves an answer
    as the model wrote it, a prompt begins with the last one and its answer, and the engine
    computes the new question alone.

    When less than a quarter of the context (or `max_tokens`, if that is less) would be free for
    the answer, the oldest exchanges are no longer told to the model, as many as leave half the
    context free, so that the prompt need not be computed anew at every turn from then on. The
    system message always stays. `messages` keeps everything.

    Args:
        system: the system message.
        sampling, max_tokens, stop: as of `Request`; they may be set anew between questions.

    Raises:
        UserError: the template has no place for a system message.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        from llamita.inference.sampling import Sampling

        self.engine = engine
        self.sampling = sampling or Sampling()
        self.max_tokens = max_tokens
        self.stop = tuple(stop)
        # A question that has no answer, since that failed or held no text.
        self.unanswered: str | None = None
        # The oldest exchanges, so many, that the model is not told of.
        self.left_out = 0
        self._system: str | None = None
        self._exchanges: list[Exchange] = []
        self._before: _State | None = None
        self.system = system

    @property
    def system(self) -> str | None:
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        """Takes effect for all of the conversation; a template without a place for it is a
        UserError, and nothing changes."""
        if text:
            prompt_of(self.engine, [Message("system", text), Message("user", "?")])
        self._system = text or None

    @property
    def messages(self) -> tuple[Message, ...]:
        """All of it: the system message, then the exchanges."""
        return (*self._lead(), *(message for one in self._exchanges for message in one))

    @property
    def num_exchanges(self) -> int:
        return len(self._exchanges)

    def ask(self, text: str) -> Answer:
        """Begin the answer to a question.

        Raises:
            UserError: a blank question; one that is too long for the context by itself; or what
                `Engine.submit` refuses.
        """
        if not text.strip():
            raise UserError("the question is blank")
        prompt, first = self._prompt(Message("user", text))
        request = Request(
            prompt=prompt,
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            stop_ids=self.engine.end_ids,
            stop=self.stop,
        )
        stream = Stream(self.engine, request)
        newly, self.left_out = first - self.left_out, first
        self.unanswered, self._before = text, None

        def join(answer: str) -> None:
            self._exchanges.append((Message("user", text), Message("assistant", answer)))
            self.unanswered = None

        return Answer(stream, join, prompt_tokens=len(prompt), left_out=newly)

    def undo(self) -> Exchange | None:
        """Take the last exchange back, or the question that has no answer, and return it; right
        after `reset` or `restore`, go back to what was before and return nothing."""
        if self._before is not None:
            before, self._before = self._before, None
            self._take(before)
            return ()
        if self.unanswered is not None:
            question, self.unanswered = self.unanswered, None
            return (Message("user", question),)
        if not self._exchanges:
            return None
        self.left_out = 0
        return self._exchanges.pop()

    def question_again(self) -> str:
        """The last question, for `ask`; its exchange is taken back, and it stays `unanswered`
        until it has an answer.

        Raises:
            UserError: there is none.
        """
        if self.unanswered is not None:
            return self.unanswered
        if not self._exchanges or self._exchanges[-1][0].role != "user":
            raise UserError("there is no question to ask again")
        self.left_out = 0
        self.unanswered = self._exchanges.pop()[0].content
        return self.unanswered

    def reset(self) -> None:
        """Forget everything but the system message; `undo` brings it back."""
        before = self._state()
        self._take(_State(self._system, (), None))
        self._before = before

    def restore(self, messages: Sequence[Message]) -> None:
        """Go on from these messages instead; `undo` brings the old ones back. A question at their
        end becomes `unanswered`.

        Raises:
            UserError: the template refuses them, and nothing changes.
        """
        turns = list(messages)
        if not turns:
            raise UserError("there are no messages to go on from")
        prompt_of(self.engine, turns)
        before = self._state()
        system = turns.pop(0).content if turns[0].role == "system" else None
        unanswered = turns.pop().content if turns and turns[-1].role == "user" else None
        exchanges: list[Exchange] = []
        for message in turns:
            if message.role == "user" or not exchanges:
                exchanges.append((message,))
            else:
                exchanges[-1] += (message,)
        self._take(_State(system, tuple(exchanges), unanswered))
        self._before = before

    def _state(self) -> _State:
        return _State(self._system, tuple(self._exchanges), self.unanswered)

    def _take(self, state: _State) -> None:
        self._system, self.unanswered = state.system, state.unanswered
        self._exchanges, self.left_out = list(state.exchanges), 0

    def _lead(self) -> tuple[Message, ...]:
        return () if self._system is None else (Message("system", self._system),)

    def _prompt(self, question: Message) -> tuple[tuple[int, ...], int]:
        """The prompt, and how many of the oldest exchanges it does without."""

        def without(first: int) -> tuple[int, ...]:
            kept = (message for one in self._exchanges[first:] for message in one)
            return prompt_of(self.engine, [*self._lead(), *kept, question])

        context = self.engine.context
        room = context // 4 if self.max_tokens is None else min(context // 4, self.max_tokens)
        prompt = without(self.left_out)
        if len(prompt) <= context - room or self.left_out == len(self._exchanges):
            first = self.left_out
        else:
            candidates = range(self.left_out + 1, len(self._exchanges))
            first = self.left_out + 1
            first += bisect_left(
                candidates, True, key=lambda number: len(without(number)) <= context // 2
            )
            prompt = without(first)
        if len(prompt) >= context:
            raise UserError(
                f"this message comes to {len(prompt):,} tokens with the system message and the "
                f"template's marks, and the context holds {context:,}, the answer included: "
                "shorten it"
            )
        return prompt, first
