"""An answer to a question, as a model's chat template puts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamita.data.chat_records import Message
from llamita.data.chat_template import ChatTemplate, chat_template, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer
from llamita.inference.generation import generate_tokens, stream_text
from llamita.inference.sampling import Sampling
from llamita.model.decoder import Decoder


def answer_tokens(
    model: Decoder,
    tokenizer: Tokenizer,
    question: str | Sequence[Message],
    *,
    template: ChatTemplate | None = None,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
) -> Iterator[int]:
    """The ids of an answer to a user's question, or to a whole conversation.

    It ends with the turn: at the template's end of an assistant's turn, or at the model's end of
    text, neither of which is yielded.

    Args:
        template: by default the tokenizer's own, or the one it would be given.
    """
    form = template or chat_template(tokenizer)
    messages = [Message("user", question)] if isinstance(question, str) else list(question)
    stop = {*model.config.eos_token_ids, *end_of_turn_ids(tokenizer, form)}
    if tokenizer.eos_id is not None:
        stop.add(tokenizer.eos_id)
    return generate_tokens(
        model,
        tokenizer.encode_chat(form.render(messages, add_generation_prompt=True)),
        max_tokens=max_tokens,
        sampling=sampling or Sampling(),
        stop=tuple(stop),
    )


def answer(
    model: Decoder,
    tokenizer: Tokenizer,
    question: str | Sequence[Message],
    *,
    template: ChatTemplate | None = None,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
) -> Iterator[str]:
    """The text of `answer_tokens`, in pieces as it is written."""
    ids = answer_tokens(
        model, tokenizer, question, template=template, max_tokens=max_tokens, sampling=sampling
    )
    return stream_text(tokenizer, ids)
