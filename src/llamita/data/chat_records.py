"""Conversations, pre-rendered texts and preference pairs, and how a row of a file becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llamita.data.chat_marks import MARKS, find_answers
from llamita.errors import did_you_mean

ChatKind = Literal["chats", "preferences"]
Form = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "text", "preferences"]
FORMS: Mapping[Form, str] = {
    "messages": "messages of role and content",
    "sharegpt": "ShareGPT conversations of from and value",
    "alpaca": "Alpaca instruction, input and output",
    "prompt-completion": "prompt and completion",
    "text": "text rendered already",
    "preferences": "preference pairs, chosen and rejected",
}

Record = Mapping[str, Any]

# The names that public data sets call a speaker by. A role beyond the first three goes to the
# template as it is, which may know it or refuse it.
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "function",
    "ipython": "ipython",
}
_HH_USER, _HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SHOWN = 60


class RowError(ValueError):
    """A row that is no example. `reason` is the same for all rows with that fault; the message
    says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `learns` is what the source says (`loss_weight` or `weight`), `None` where it
    says nothing and the default rule holds."""

    role: str
    content: str
    learns: bool | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns for a chat template to render; at least one is the assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A text with its speakers' marks in it; `answers` are the character spans that learn, up to
    where the next speaker's mark begins or the text ends."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt. `prompt` ends with the user's turn, `chosen` and `rejected`
    begin with the assistant's."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


Example = Conversation | RenderedText | Preference


def recognise(rows: Iterable[Record], kind: ChatKind = "chats") -> Form:
    """The form of a file's rows, from the names of their fields: the first row of a known form
    decides.

    Raises:
        RowError: no row is of a form that `kind` knows; the message names the fields that are
            there and the forms that there are.
    """
    names: dict[str, None] = {}
    paired = False
    for row in rows:
        names.update(dict.fromkeys(row))
        form = _form_of(row, kind)
        if form is not None:
            return form
        paired = paired or {"chosen", "rejected"} <= row.keys()
    fields = ", ".join(map(repr, list(names)[:12])) or "none"
    if kind == "chats" and paired:
        raise RowError(
            "preference pairs",
            "chosen and rejected are pairs, not chats; llamita align and data build --preferences "
            "read them",
        )
    if kind == "preferences":
        raise RowError(
            "no preference pairs",
            f"a pair has 'chosen' and 'rejected', and 'prompt' or 'conversations' (fields here: "
            f"{fields}); chats without pairs are for tuning, not for preferences",
        )
    raise RowError(
        "no known form",
        f"fields here: {fields}. Rows are read that have 'messages' (role and content), "
        "'conversations' (from and value), 'instruction' and 'output', 'prompt' and 'completion', "
        f"or 'text'{_near(names)}",
    )


def parse_row(row: Any, form: Form) -> Example:
    """The example of a row.

    Raises:
        RowError: the row is none of `form`, or its turns make no sense.
    """
    if not isinstance(row, Mapping):
        raise RowError("no object", f"a row must be a JSON object, this is {type(row).__name__}")
    try:
        example = _PARSERS[form](row)
    except RecursionError:
        raise RowError("nested too deeply") from None
    _check_unicode(example)
    return example


def _form_of(row: Record, kind: ChatKind) -> Form | None:
    has = row.keys()
    if kind == "preferences":
        return "preferences" if {"chosen", "rejected"} <= has else None
    if "messages" in has:
        return "messages"
    if "conversations" in has:
        return None if {"chosen", "rejected"} <= has else "sharegpt"
    if {"instruction", "output"} <= has:
        return "alpaca"
    if {"prompt", "completion"} <= has:
        return "prompt-completion"
    return "text" if "text" in has else None


def _near(names: Iterable[str]) -> str:
    known = ("messages", "conversations", "instruction", "output", "prompt", "completion", "text")
    for name in names:
        hint = did_you_mean(name, known)
        if hint and name not in known:
            return f"; {name!r} is none of them.{hint}"
    return ""


def _parse_messages(row: Record) -> Conversation:
    return _conversation(_leading_system(row) + _turns(_field(row, "messages"), "messages"))


def _parse_sharegpt(row: Record) -> Conversation:
    turns = _turns(_field(row, "conversations"), "conversations")
    return _conversation(_leading_system(row) + turns)


def _parse_alpaca(row: Record) -> Conversation:
    answer = _text(_field(row, "output"), "output")
    turns = (*_alpaca_prompt(row), Message("assistant", answer))
    return _conversation(turns)


def _alpaca_prompt(row: Record) -> tuple[Message, ...]:
    instruction = _text(_field(row, "instruction"), "instruction")
    given = _text(row.get("input") or "", "input")
    history = row.get("history") or ()
    if isinstance(history, str) or not isinstance(history, Sequence):
        raise RowError("no list", "'history' must be a list of pairs of instruction and answer")
    turns = list(_leading_system(row))
    for number, pair in enumerate(history):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError("no pair", f"history[{number}] must be [instruction, answer]")
        turns.append(Message("user", _text(pair[0], f"history[{number}][0]")))
        turns.append(Message("assistant", _text(pair[1], f"history[{number}][1]")))
    # As LLaMA-Factory joins them (data/converter.py, AlpacaDatasetConverter).
    turns.append(Message("user", f"{instruction}\n{given}" if given.strip() else instruction))
    return tuple(turns)


def _parse_prompt_completion(row: Record) -> Conversation:
    prompt = _side(_field(row, "prompt"), "prompt", "user")
    answer = _side(_field(row, "completion"), "completion", "assistant")
    # Only the completion learns, as in TRL's SFTTrainer.
    quiet = tuple(replace(turn, learns=False) for turn in prompt)
    return _conversation(_leading_system(row) + quiet + answer)


def _parse_text(row: Record) -> RenderedText:
    text = _text(_field(row, "text"), "text").rstrip()
    answers = find_answers(text)
    if not answers:
        raise RowError("no answer in the text", f"none of the marks {', '.join(MARKS)} is in it")
    if any(not text[start:stop].strip() for start, stop in answers):
        raise RowError("empty answer")
    return RenderedText(text, answers)


def _parse_preference(row: Record) -> Preference:
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    shared = _prompt_of(row)
    if isinstance(chosen, str) and isinstance(rejected, str) and not shared:
        sides = _turns_of_dialogue(chosen, "chosen"), _turns_of_dialogue(rejected, "rejected")
    else:
        sides = _side(chosen, "chosen", "assistant"), _side(rejected, "rejected", "assistant")
    sides = _without_repeat(shared, sides[0]), _without_repeat(shared, sides[1])
    common = 0
    for left, right in zip(*sides, strict=False):
        if (left.role, left.content) != (right.role, right.content):
            break
        common += 1
    if common == len(sides[0]) == len(sides[1]):
        raise RowError("chosen and rejected are the same")
    prompt = shared + sides[0][:common]
    # What both sides begin with is prompt up to the user's last turn; equal answers are answers.
    while prompt[len(shared) :] and prompt[-1].role == "assistant":
        prompt, common = prompt[:-1], common - 1
    pair = Preference(prompt, sides[0][common:], sides[1][common:])
    _check_pair(pair)
    return pair


def _prompt_of(row: Record) -> tuple[Message, ...]:
    """The prompt that stands apart from the two sides, if one does."""
    system = _leading_system(row)
    if "conversations" in row:
        return system + _turns(row["conversations"], "conversations")
    if "instruction" in row:
        return _alpaca_prompt(row)
    name = "question" if "question" in row and "prompt" not in row else "prompt"
    if row.get(name) is None:
        return system
    return system + _side(row[name], name, "user")


def _without_repeat(prompt: tuple[Message, ...], side: tuple[Message, ...]) -> tuple[Message, ...]:
    """`side` without the prompt, where it is the whole conversation (UltraFeedback's rows have
    the prompt in both places)."""
    for number, turn in enumerate(side):
        if not prompt or turn.role == "assistant":
            break
        if (turn.role, turn.content.strip()) == (prompt[-1].role, prompt[-1].content.strip()):
            return side[number + 1 :]
    return side


def _check_pair(pair: Preference) -> None:
    if not any(turn.role == "user" for turn in pair.prompt):
        raise RowError(
            "no prompt", "give 'prompt', or let chosen and rejected begin with the same messages"
        )
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not side:
            raise RowError("no answer", f"'{name}' has no assistant's turn after the prompt")
        if side[0].role != "assistant":
            raise RowError("no answer", f"'{name}' begins with {side[0].role!r} after the prompt")
        _check_turns(pair.prompt + side)


def _turns_of_dialogue(text: str, where: str) -> tuple[Message, ...]:
    """Turns of a text such as Anthropic's HH-RLHF has, marked Human: and Assistant:."""
    if not text.startswith(_HH_USER) or _HH_ASSISTANT not in text:
        raise RowError("no prompt", f"'{where}' is a string, and the row has no 'prompt'")
    turns = []
    for part in text.split(_HH_USER)[1:]:
        question, *answers = part.split(_HH_ASSISTANT)
        turns.append(Message("user", question.strip()))
        turns.extend(Message("assistant", answer.strip()) for answer in answers)
    return tuple(turns)


def _leading_system(row: Record) -> tuple[Message, ...]:
    system = row.get("system")
    if system is None or system == "":
        return ()
    return (Message("system", _text(system, "system")),)


def _field(row: Record, name: str) -> Any:
    if name not in row:
        fields = ", ".join(map(repr, list(row)[:12])) or "none"
        raise RowError(f"no field {name!r}", f"fields here: {fields}")
    return row[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError("no string", f"{where} must be a string, it is {type(value).__name__}")
    return value


def _side(value: Any, where: str, role: str) -> tuple[Message, ...]:
    """A string as a turn of `role`, one message, or a list of them."""
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return (_message(value, where),)
    return _turns(value, where)


def _turns(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        looks = value.lstrip()[:1] in ("[", "{")
        what = "is a string that holds JSON; store the list itself" if looks else "is a string"
        raise RowError("no list of messages", f"{where} {what}")
    if not isinstance(value, Sequence):
        raise RowError("no list of messages", f"{where} is {type(value).__name__}")
    if not value:
        raise RowError("empty conversation", f"{where} has no messages")
    return tuple(_message(turn, f"{where}[{number}]") for number, turn in enumerate(value))


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("no message", f"{where} must be an object, it is {type(turn).__name__}")
    speaker = "role" if turn.get("role") is not None else "from"
    said = "content" if "content" in turn or "value" not in turn else "value"
    if turn.get(speaker) is None or said not in turn:
        fields = ", ".join(map(repr, turn)) or "none"
        raise RowError(
            "no message", f"{where} needs role and content, or from and value (it has {fields})"
        )
    for calls in ("tool_calls", "function_call"):
        if turn.get(calls):
            raise RowError("calls of tools", f"{where} has {calls!r}, which are not read")
    return Message(_role(turn[speaker], where), _content(turn[said], where), _learns(turn, where))


def _role(value: Any, where: str) -> str:
    role = _ROLES.get(value.strip().lower()) if isinstance(value, str) else None
    if role is None:
        shown = repr(value)[:_SHOWN]
        raise RowError(
            f"unknown role {shown}", f"{where}; roles are {', '.join(_ROLES)}, nothing else"
        )
    return role


def _content(value: Any, where: str) -> str:
    """A string, or the joined texts of a list of parts of type "text"."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RowError(
            "content is no string", f"{where} has content of type {type(value).__name__}"
        )
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            what = f"of type {kind!r}" if isinstance(kind, str) else "no text"
            raise RowError("content is no text", f"{where}: part {number} of the content is {what}")
        texts.append(text)
    return "".join(texts)


def _learns(turn: Record, where: str) -> bool | None:
    for name in ("loss_weight", "weight"):
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise RowError("weight is neither 0 nor 1", f"{where} has {name} {value!r}")
        return bool(value)
    return None


def _conversation(turns: tuple[Message, ...]) -> Conversation:
    _check_turns(turns)
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError("no answer", "no message is the assistant's")
    return Conversation(turns)


def _check_turns(turns: tuple[Message, ...]) -> None:
    before = ""
    for number, turn in enumerate(turns):
        if turn.role in ("user", "assistant"):
            if turn.role == before:
                raise RowError(
                    f"two turns of the {turn.role} running", f"messages {number} and {number + 1}"
                )
            if not turn.content.strip():
                what = "answer" if turn.role == "assistant" else "question"
                raise RowError(f"empty {what}", f"message {number + 1} is blank")
        before = turn.role


def _check_unicode(example: Example) -> None:
    if isinstance(example, RenderedText):
        texts = [example.text]
    elif isinstance(example, Conversation):
        texts = [turn.content for turn in example.messages]
    else:
        sides = (example.prompt, example.chosen, example.rejected)
        texts = [turn.content for side in sides for turn in side]
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise RowError("broken Unicode", "a lone surrogate") from None


_PARSERS: Mapping[Form, Callable[[Record], Example]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "prompt-completion": _parse_prompt_completion,
    "text": _parse_text,
    "preferences": _parse_preference,
}
