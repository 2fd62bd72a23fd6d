"""`load`: a MODEL ready to write, in one line of Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from llamita.data.chat_records import Message
from llamita.errors import UserError, did_you_mean
from llamita.inference.conversation import Conversation, prompt_of
from llamita.inference.engine import Engine, Request, Stream

if TYPE_CHECKING:
    from llamita.data.chat_template import ChatTemplate
    from llamita.data.tokenizer import Tokenizer

Messages = str | Sequence[Message | Mapping[str, Any]]


class Settings(TypedDict, total=False):
    """What `Sampling` takes."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None


class Model:
    """A model ready to write, by an engine that it owns.

    with llamita.load("TinyLlama/TinyLlama-1.1B-Chat-v1.0") as model:
        print(model.chat("How many helicopters can a human eat in one sitting?"))

    Every call takes the settings of `Sampling` (temperature, top_k, top_p, …), `max_tokens` (new
    tokens at most; `None`: to the end of the context) and `stop` (strings that end the text).
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The chat template that conversations are rendered by."""
        return self.engine.template

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **settings: Unpack[Settings],
    ) -> str:
        """The answer to a question, or to a conversation.

        Args:
            messages: a user's question; or messages in order, as OpenAI's
                {"role": "user", "content": "…"} or as `Message`.

        Raises:
            UserError: messages that the template refuses, a prompt longer than the context, a
                value out of range.
        """
        return "".join(self.stream_chat(messages, max_tokens=max_tokens, stop=stop, **settings))

    def stream_chat(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **settings: Unpack[Settings],
    ) -> Iterator[str]:
        """As `chat`, in pieces as they are written. Leaving the iteration stops the engine."""
        prompt = prompt_of(self.engine, as_messages(messages))
        return self._texts(prompt, max_tokens, stop, settings)

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **settings: Unpack[Settings],
    ) -> str:
        """The continuation of a text, without the chat template and without the text itself."""
        return "".join(self.stream_complete(prompt, max_tokens=max_tokens, stop=stop, **settings))

    def stream_complete(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **settings: Unpack[Settings],
    ) -> Iterator[str]:
        """As `complete`, in pieces as they are written."""
        return self._texts(self.tokenizer.encode_prompt(prompt), max_tokens, stop, settings)

    def conversation(
        self,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **settings: Unpack[Settings],
    ) -> Conversation:
        """A conversation of several turns, which keeps its history."""
        from llamita.inference.sampling import Sampling

        _check_names(settings)
        return Conversation(
            self.engine,
            system=system,
            sampling=Sampling(**settings),
            max_tokens=max_tokens,
            stop=stop,
        )

    def close(self) -> None:
        """Free the memory. May be called twice."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<llamita model: {self.engine.about}, context {self.engine.context:,} tokens>"

    def _texts(
        self,
        prompt: Sequence[int],
        max_tokens: int | None,
        stop: Sequence[str],
        settings: Settings,
    ) -> Iterator[str]:
        from llamita.inference.sampling import Sampling

        _check_names(settings)
        if isinstance(stop, str):
            raise UserError(f"stop {stop!r}: give a list of strings")
        request = Request(
            prompt=tuple(prompt),
            sampling=Sampling(**settings),
            max_tokens=max_tokens,
            stop_ids=self.engine.end_ids,
            stop=tuple(stop),
        )
        # Made here and not in a generator, so that what is refused is refused at the call.
        stream = Stream(self.engine, request)
        return (piece.text for piece in stream if piece.text)


def load(
    model: str | Path,
    *,
    engine: str = "auto",
    quantize: str | None = None,
    context: int | None = None,
    template: str | None = None,
    slots: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Model:
    """A MODEL ready to write.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file, or a hub id.
        engine: auto, torch or llama.cpp.
        quantize: a type to keep the weights in, such as q8_0; by default what the engine takes.
        context: tokens of prompt and answer together; by default the model's.
        template: chatml, zephyr, llama-2 or a file of Jinja; by default the model's own.
        slots: requests that are worked on at a time.
        device, dtype: of the engine torch.
        say: called with lines about what is being done.

    Raises:
        UserError: no such model, or one that the engine cannot run.
    """
    from llamita.inference.engines import open_engine

    return Model(
        open_engine(
            model,
            engine=engine,
            quantize=quantize,
            slots=slots,
            context=context,
            device=device,
            dtype=dtype,
            template=template,
            say=say,
        )
    )


def as_messages(messages: Messages) -> list[Message]:
    """A question, OpenAI's messages or ours, as ours.

    Raises:
        UserError: one that is none of these, by its number from 0.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    if isinstance(messages, Mapping):
        raise UserError("messages is one message: give a list of them, or the question's text")
    if not messages:
        raise UserError("messages is empty: give at least the user's question")
    return [_as_message(message, number) for number, message in enumerate(messages)]


def _as_message(message: Message | Mapping[str, Any], number: int) -> Message:
    if isinstance(message, Message):
        return message
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is {type(message).__name__}: give an object of role and content")
    for name in message:
        if name not in ("role", "content"):
            raise UserError(f"{where} has {name!r}; a message has role and content, nothing else")
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            raise UserError(f"{where}: give {name} as a string")
    return Message(message["role"], message["content"])


def _check_names(settings: Settings) -> None:
    known = Settings.__annotations__
    for name in settings:
        if name not in known:
            raise UserError(
                f"there is no setting {name!r}.{did_you_mean(name, known)} Settings are "
                f"max_tokens, stop, {', '.join(known)}"
            )
