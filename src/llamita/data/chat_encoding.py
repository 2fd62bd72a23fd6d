"""Conversations to tokens, and which of the tokens learn.

The whole rendering is tokenised once, so that ids are those that Transformers'
`apply_chat_template` gives; where each token lies in the text says whether it is part of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamita.data.chat_records import (
    Conversation,
    Message,
    Preference,
    RenderedText,
    RowError,
)
from llamita.data.chat_template import ChatTemplate

if TYPE_CHECKING:
    from llamita.data.tokenizer import Tokenizer

Learn = Literal["assistant", "last", "all"]
Span = tuple[int, int]
T = TypeVar("T")
# Texts whose tokens' places stand in memory at once.
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens (n,) int64 and which of them learn (n,) bool.

    `num_bytes` are the UTF-8 bytes of the text that learns, special tokens left out as they are
    no text. `holds_special` says that what a speaker said spells a special token, which is then
    read as that token (as Transformers reads it too).
    """

    tokens: NDArray[np.int64]
    learns: NDArray[np.bool_]
    num_bytes: int
    holds_special: bool = False


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A text, the spans of it that learn (white space at a span's end does not), and whether the
    tokenizer's BOS and EOS go round it."""

    text: str
    spans: Sequence[Span]
    whole: bool = False
    from_template: bool = True
    holds_special: bool = False


@dataclass(frozen=True, slots=True)
class _Ends:
    """What a tokenizer puts at the ends of a text, and which of its ids are special."""

    special: NDArray[np.bool_]
    first: int | None
    eos: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Ends:
        special = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
        special[list(tokenizer.special_ids)] = True
        # A post-processor may put EOS behind too; alone in front it is BOS that it puts there.
        put = tokenizer.encode_prompt("")[:1]
        first = put[0] if put and put[0] != tokenizer.eos_id else None
        return cls(special, first, tokenizer.eos_id)


def encode_conversation(
    example: Conversation | RenderedText,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    learn: Learn = "assistant",
) -> Encoded:
    """Encode one example.

    Args:
        example: a conversation, or a text that is rendered already, to which the tokenizer's own
            BOS is added, and EOS where its last answer ends without a special token.
        learn: "assistant" for the assistant's turns (and whatever turns their source gives a
            weight), "last" for the last of them, "all" for every token.

    Raises:
        RowError: the template refuses it, leaves a message out, or nothing in it learns.
    """
    found = encode_conversations([example], tokenizer, template, learn=learn)[0]
    if isinstance(found, RowError):
        raise found
    return found


def encode_preference(
    example: Preference, tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[Encoded, Encoded]:
    """Both sides of a pair, each with the prompt; only the answers learn.

    Raises:
        RowError: as `encode_conversation`.
    """
    found = encode_preferences([example], tokenizer, template)[0]
    if isinstance(found, RowError):
        raise found
    return found


def encode_conversations(
    examples: Sequence[Conversation | RenderedText],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    learn: Learn = "assistant",
) -> list[Encoded | RowError]:
    """`encode_conversation` of each, faster; an error stands in the place of its example."""
    special = _special_pattern(tokenizer)

    def render(example: Conversation | RenderedText) -> _Rendered:
        if isinstance(example, RenderedText):
            return _of_text(example, learn)
        return _of_messages(example.messages, template, learn, special)

    rendered = [_tried(render, example) for example in examples]
    return list(_encode(rendered, tokenizer))


def encode_preferences(
    examples: Sequence[Preference], tokenizer: Tokenizer, template: ChatTemplate
) -> list[tuple[Encoded, Encoded] | RowError]:
    """`encode_preference` of each, faster; an error stands in the place of its pair."""
    special = _special_pattern(tokenizer)

    def render(side: tuple[Message, ...]) -> _Rendered:
        return _of_messages(side, template, "assistant", special)

    sides = []
    for pair in examples:
        prompt = tuple(replace(turn, learns=False) for turn in pair.prompt)
        sides += [_tried(render, prompt + pair.chosen), _tried(render, prompt + pair.rejected)]
    found = _encode(sides, tokenizer)
    pairs: list[tuple[Encoded, Encoded] | RowError] = []
    for chosen, rejected in zip(found, found, strict=True):
        if isinstance(chosen, RowError):
            pairs.append(chosen)
        elif isinstance(rejected, RowError):
            pairs.append(rejected)
        elif np.array_equal(chosen.tokens, rejected.tokens):
            pairs.append(RowError("chosen and rejected are the same", "once they are rendered"))
        else:
            pairs.append((chosen, rejected))
    return pairs


def _tried(render: Callable[[T], _Rendered], example: T) -> _Rendered | RowError:
    try:
        return render(example)
    except RowError as error:
        return error


def _of_text(example: RenderedText, learn: Learn) -> _Rendered:
    spans = example.answers[-1:] if learn == "last" else example.answers
    return _Rendered(example.text, spans, learn == "all", from_template=False)


def _of_messages(
    messages: tuple[Message, ...],
    template: ChatTemplate,
    learn: Learn,
    special: re.Pattern[str] | None,
) -> _Rendered:
    text = template.render(messages)
    _check_all_shown(messages, text, template)
    spans = [] if learn == "all" else list(_spans(messages, text, template, learn))
    holds = special is not None and any(special.search(turn.content) for turn in messages)
    return _Rendered(text, spans, learn == "all", holds_special=holds)


def _check_all_shown(messages: tuple[Message, ...], text: str, template: ChatTemplate) -> None:
    """Refuse a conversation of which the template drops a message without a word."""
    for number, turn in enumerate(messages):
        if turn.role == "assistant" or turn.content.strip() in text:
            continue
        try:
            without = template.render(messages[:number] + messages[number + 1 :])
        except RowError:
            continue
        if without == text:
            raise RowError(
                f"the chat template {template.name} leaves out messages of role {turn.role!r}",
                f"message {number + 1}",
            )


def _spans(
    messages: tuple[Message, ...], text: str, template: ChatTemplate, learn: Learn
) -> Iterator[Span]:
    answers = [number for number, turn in enumerate(messages) if turn.role == "assistant"]
    learning = [
        number
        for number, turn in enumerate(messages)
        if turn.learns or (turn.learns is None and turn.role == "assistant")
    ]
    if learn == "last":
        learning = [number for number in learning if number in answers[-1:]]
    others: list[Span] | None = None
    for number in learning:
        span = _by_prefixes(messages, number, text, template)
        if span is None and number in answers:
            others = _otherwise(messages, text, template) if others is None else others
            span = others[answers.index(number)]
        if span is None:
            raise _not_found(template)
        yield span


def _by_prefixes(
    messages: tuple[Message, ...], number: int, text: str, template: ChatTemplate
) -> Span | None:
    """A turn's span: what rendering it adds to the prompt before it. `None` where the template
    renders the beginning of a conversation otherwise than within the whole."""
    turn = messages[number]
    answer = turn.role == "assistant"
    try:
        prompt = template.render(messages[:number], add_generation_prompt=answer)
        ended = template.render(messages[: number + 1]) if number + 1 < len(messages) else text
    except RowError:
        return None
    if not (ended.startswith(prompt) and text.startswith(ended) and len(ended) > len(prompt)):
        return None
    start = len(prompt)
    if answer and not (prompt and template.has_generation_prompt):
        # What stands before the answer then is the turn's mark, unless it is only white space.
        said = text.find(turn.content.strip(), start, len(ended))
        if said >= 0 and text[start:said].strip():
            start = said
    return start, len(ended)


def _otherwise(messages: tuple[Message, ...], text: str, template: ChatTemplate) -> list[Span]:
    """Spans of all answers, by the template's own marks or by looking for what was said."""
    answers = [turn.content.strip() for turn in messages if turn.role == "assistant"]
    if template.marks_answers:
        shown, spans = template.render_marked(messages)
        if shown == text and len(spans) == len(answers):
            return spans
    spans, place = [], 0
    for said in answers:
        span = _find(said, text, place, template)
        if span is None:
            raise _not_found(template)
        spans.append(span)
        place = span[1]
    return spans


def _find(said: str, text: str, place: int, template: ChatTemplate) -> Span | None:
    """The first place of an answer with what the template puts round one."""
    found = []
    for turn in template.turns:
        for after in dict.fromkeys((turn.after, "")):
            at = text.find(turn.before + said + after, place)
            if at >= 0:
                start = at + len(turn.before) - turn.lead
                stop = at + len(turn.before) + len(said) + len(after)
                found.append((start, stop))
                break
    return min(found, default=None)


def _not_found(template: ChatTemplate) -> RowError:
    return RowError(
        f"the chat template {template.name} rewrites earlier turns, so answers are not found again",
        "put {% generation %} and {% endgeneration %} round the answer in it, or use another",
    )


def _special_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    names = [tokenizer.token_of(number) for number in sorted(tokenizer.special_ids)]
    spelt = [re.escape(name) for name in names if name]
    return re.compile("|".join(spelt)) if spelt else None


def _encode(
    rendered: Sequence[_Rendered | RowError], tokenizer: Tokenizer
) -> Iterator[Encoded | RowError]:
    ends = _Ends.of(tokenizer)
    for first in range(0, len(rendered), _BATCH):
        batch = rendered[first : first + _BATCH]
        texts = [one.text for one in batch if isinstance(one, _Rendered)]
        encoded = iter(tokenizer.encode_chats(texts))
        for one in batch:
            yield one if isinstance(one, RowError) else _finished(one, *next(encoded), ends)


def _finished(
    one: _Rendered, ids: list[int], places: list[Span], ends: _Ends
) -> Encoded | RowError:
    tokens = np.asarray(ids, dtype=np.int64)
    where = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    learns = np.full(len(tokens), one.whole)
    for start, stop in one.spans:
        said = start + len(one.text[start:stop].rstrip())
        inside = (where[:, 0] >= start) & (where[:, 0] < said) & (where[:, 1] <= stop)
        learns |= inside
    if not learns.any():
        return RowError("nothing in it learns")
    is_special = ends.special[tokens]
    num_bytes = _num_bytes(one.text, where, learns & ~is_special)
    if not one.from_template:
        tokens, learns = _with_ends(one, tokens, learns, ends)
    return Encoded(tokens, learns, num_bytes, one.holds_special)


def _with_ends(
    one: _Rendered, tokens: NDArray[np.int64], learns: NDArray[np.bool_], ends: _Ends
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """With the BOS that the tokenizer itself puts in front, and with EOS after a last answer that
    no special token ends."""
    ended = bool(ends.special[tokens[-1]])
    if ends.first is not None and tokens[0] != ends.first:
        tokens = np.concatenate(([ends.first], tokens))
        learns = np.concatenate(([one.whole], learns))
    at_end = one.whole or one.spans[-1][1] == len(one.text)
    if ends.eos is not None and at_end and not ended:
        tokens = np.append(tokens, ends.eos)
        learns = np.append(learns, True)
    return tokens, learns


def _num_bytes(text: str, where: NDArray[np.int64], learns: NDArray[np.bool_]) -> int:
    """UTF-8 bytes of the text under the tokens that learn; those that share a character count it
    once."""
    edges = np.flatnonzero(np.diff(learns, prepend=False, append=False))
    total = 0
    for first, after in edges.reshape(-1, 2):
        total += len(text[where[first, 0] : where[after - 1, 1]].encode())
    return total
