"""Chat templates: Jinja sources that make one text of a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.data.chat_records import Message, RowError
from llamita.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import jinja2

    from llamita.data.tokenizer import Tokenizer

# As SmolLM2's, without the system message that it puts in where there is none.
_CHATML = r"""
{%- for message in messages -%}
    {{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}
"""
# As TinyLlama-1.1B-Chat-v1.0's. That one leaves out what it has no mark for; this one says so.
_ZEPHYR = r"""
{%- for message in messages -%}
    {%- if message.role not in ('system', 'user', 'assistant') -%}
        {{ raise_exception('it has no mark for the role ' ~ message.role) }}
    {%- endif -%}
    {{ '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' }}
{%- endfor -%}
{{- '<|assistant|>\n' if add_generation_prompt else '' -}}
"""
# The chat format of Llama 2 (Touvron et al. 2023, arXiv 2307.09288; its chat code's B_INST, B_SYS):
# the system message stands inside the first user's turn, every exchange has its own BOS and EOS.
_LLAMA_2 = r"""
{%- set system = messages[0].content if messages and messages[0].role == 'system' else none -%}
{%- for message in (messages if system is none else messages[1:]) -%}
    {%- if message.role != ('user' if loop.index0 is even else 'assistant') -%}
        {{ raise_exception('user and assistant must take turns, the user first') }}
    {%- endif -%}
    {%- set lead = '' if system is none or not loop.first else
        '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' -%}
    {%- if message.role == 'user' -%}
        {{ bos_token ~ '[INST] ' ~ (lead ~ message.content).strip() ~ ' [/INST]' }}
    {%- else -%}
        {{ ' ' ~ message.content.strip() ~ ' ' ~ eos_token }}
    {%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True, slots=True)
class _Named:
    source: str
    needs: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()


_NAMED: Mapping[str, _Named] = {
    "chatml": _Named(_CHATML, markers=("<|im_start|>", "<|im_end|>")),
    "zephyr": _Named(_ZEPHYR, needs=("eos_token",)),
    "llama-2": _Named(_LLAMA_2, needs=("bos_token", "eos_token")),
}
_GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
_ASK, _ANSWER = "wherefrom", "therefrom"


@dataclass(frozen=True, slots=True)
class Turn:
    """What stands round an answer in a template's rendering: `before` is between the question and
    the answer, its last `lead` characters after the generation prompt; `after` ends the turn."""

    before: str
    lead: int
    after: str


class ChatTemplate:
    """A compiled chat template.

    Args:
        name: what messages call it.
        source: Jinja, of the dialect that Transformers' `apply_chat_template` takes.
        tokens: the special tokens that the template can name (`bos_token`, `eos_token`, …).

    Raises:
        UserError: a syntax error, with its line.
    """

    def __init__(self, name: str, source: str, tokens: Mapping[str, str] | None = None) -> None:
        import jinja2

        from llamita.data.chat_sandbox import Sandbox

        self.name = name
        self.source = source
        self._tokens = dict(tokens or {})
        self._sandbox = Sandbox()
        try:
            self._compiled: jinja2.Template = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"the chat template {name} is no Jinja: {error.message} (line {error.lineno}); "
                "mend it or name another."
            ) from error
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
            raise self._unfit(error) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, as Transformers' `apply_chat_template` renders it.

        Raises:
            RowError: the template refuses these messages or fails on them.
            UserError: the template tries to leave its sandbox, or does not come to an end.
        """
        return self._render(messages, add_generation_prompt, marking=False)

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans in it that `{% generation %}` marks.

        Raises:
            RowError, UserError: as `render`.
        """
        from llamita.data.chat_sandbox import BEGIN, END

        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        start = place = 0
        for piece in self._render(messages, False, marking=True).split(BEGIN):
            said, ended, rest = piece.partition(END)
            start, place = place, place + len(said)
            if ended:
                spans.append((start, place))
            pieces += (said, rest)
            place += len(rest)
        return "".join(pieces), spans

    @cached_property
    def marks_answers(self) -> bool:
        """Does it have `{% generation %}`?"""
        return _GENERATION.search(self.source) is not None

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """What stands round the answers of a conversation of two exchanges: in its middle, and at
        its end; empty where the template does not show questions and answers as they are."""
        asks, answers = (f"{_ASK} 1", f"{_ASK} 2"), (f"{_ANSWER} 1", f"{_ANSWER} 2")
        turns = [
            Message(role, said)
            for ask, answer in zip(asks, answers, strict=True)
            for role, said in (("user", ask), ("assistant", answer))
        ]
        text = self.render(turns)
        found = []
        for number, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
            start = text.find(ask) + len(ask)
            place = text.find(answer, start)
            if start < len(ask) or place < 0:
                return ()
            prompt = self.render(turns[: 2 * number + 1], add_generation_prompt=True)
            lead = place - len(prompt) if text.startswith(prompt) else 0
            after = self._after(text, place + len(answer), asks[number + 1 : number + 2])
            found.append(Turn(text[start:place], max(lead, 0), after))
        return tuple(found)

    @cached_property
    def has_generation_prompt(self) -> bool:
        """Does `add_generation_prompt` change what it renders?"""
        ask = [Message("user", _ASK)]
        return self.render(ask) != self.render(ask, add_generation_prompt=True)

    def _after(self, text: str, end: int, next_ask: Sequence[str]) -> str:
        """What ends a turn: to the end of the text, or as much of that as stands in the middle."""
        if not next_ask:
            return text[end:].rstrip()
        last = text[text.rfind(f"{_ANSWER} 2") + len(f"{_ANSWER} 2") :].rstrip()
        return last if text.startswith(last, end) else ""

    def _render(self, messages: Sequence[Message], prompt: bool, *, marking: bool) -> str:
        import jinja2
        from jinja2.exceptions import SecurityError

        from llamita.data.chat_sandbox import TemplateRefusalError

        said = [{"role": message.role, "content": message.content} for message in messages]
        variables: dict[str, Any] = {
            **self._tokens,
            "messages": said,
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        self._sandbox.meter.reset(self.source, len(said), marking=marking)
        try:
            return self._compiled.render(variables)
        except TemplateRefusalError as error:
            raise RowError(f"the chat template {self.name} refuses it", str(error)) from error
        except (SecurityError, RecursionError, MemoryError, OverflowError) as error:
            raise self._unfit(error) from error
        except jinja2.UndefinedError as error:
            raise RowError(
                f"the chat template {self.name} fails", f"{error}{self._missing()}"
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            detail = f"{type(error).__name__}: {error}{self._missing()}"
            raise RowError(f"the chat template {self.name} fails", detail) from error
        except AttributeError as error:
            raise RowError(f"the chat template {self.name} fails", str(error)) from error

    def _missing(self) -> str:
        names = [
            name
            for name in ("bos_token", "eos_token")
            if name in self.source and name not in self._tokens
        ]
        return f" (it uses {' and '.join(names)}, which the tokenizer has not)" if names else ""

    def _unfit(self, error: BaseException) -> UserError:
        reason = str(error) or type(error).__name__
        return UserError(
            f"the chat template {self.name} does what no chat template needs to: "
            f"{reason.rstrip('.')}. Name another, for example --template chatml."
        )


def chat_template(tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
    """The template to use with a tokenizer.

    Args:
        tokenizer: its own template is taken where no name is given; where it has none, ChatML if
            the vocabulary has its markers, else Zephyr.
        name: "chatml", "zephyr", "llama-2", or the path of a file of Jinja.

    Raises:
        UserError: no such name or file, a syntax error, a template that fails on a plain
            conversation, or special tokens that it needs and the vocabulary has not.
    """
    tokens = special_tokens(tokenizer)
    if name is None and tokenizer.chat_template is not None:
        template = ChatTemplate("of the tokenizer", tokenizer.chat_template, tokens)
    else:
        if name is None:
            markers = _NAMED["chatml"].markers
            there = all(tokenizer.id_of(marker) is not None for marker in markers)
            name = "chatml" if there else "zephyr"
        if name in _NAMED:
            _check_tokens(name, _NAMED[name], tokenizer, tokens)
            template = ChatTemplate(name, _NAMED[name].source, tokens)
        else:
            template = ChatTemplate(Path(name).name, _read(name), tokens)
    _try_out(template)
    return template


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template can name, as Transformers passes them."""
    found = {}
    ids = (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id))
    for kind, number in ids:
        token = None if number is None else tokenizer.token_of(number)
        if token is not None:
            found[f"{kind}_token"] = token
    unknown = tokenizer.specification["model"].get("unk_token")
    if isinstance(unknown, str):
        found["unk_token"] = unknown
    return found


def end_of_turn_ids(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """Ids that end an assistant's turn, at which generation must stop: the first special token
    after an answer in what the template renders, and the tokenizer's EOS."""
    found = []
    turns = template.turns
    text = template.render([Message("user", _ASK), Message("assistant", _ANSWER)])
    end = text.rfind(_ANSWER) + len(_ANSWER)
    if turns and end >= len(_ANSWER):
        for number, (start, _) in zip(*tokenizer.encode_chats([text])[0], strict=True):
            if start >= end and number in tokenizer.special_ids:
                found.append(number)
                break
    if tokenizer.eos_id is not None:
        found.append(tokenizer.eos_id)
    return tuple(dict.fromkeys(found))


def _check_tokens(
    name: str, named: _Named, tokenizer: Tokenizer, tokens: Mapping[str, str]
) -> None:
    missing = [marker for marker in named.markers if tokenizer.id_of(marker) is None]
    missing += [need for need in named.needs if need not in tokens]
    if not missing:
        return
    fitting = [
        other
        for other, needs in _NAMED.items()
        if all(tokenizer.id_of(marker) is not None for marker in needs.markers)
        and all(need in tokens for need in needs.needs)
    ]
    instead = f"use {' or '.join(fitting)} instead" if fitting else "add them to the tokenizer"
    raise UserError(
        f"the chat template {name} needs {' and '.join(missing)}, which the tokenizer's vocabulary "
        f"has not; {instead}, or name a file of Jinja that does without."
    )


def _read(name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        if "/" in name or path.suffix:
            raise UserError(f"there is no chat template {name}: no such file.")
        known = ", ".join(_NAMED)
        raise UserError(
            f"there is no chat template {name!r}.{did_you_mean(name, _NAMED)} Names are {known}; "
            "anything else is the path of a file of Jinja."
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a chat template: {error}.") from error


def _try_out(template: ChatTemplate) -> None:
    """Render a plain conversation, so that a broken template fails before any data is read."""
    try:
        text = template.render([Message("user", _ASK), Message("assistant", _ANSWER)])
    except RowError as error:
        raise UserError(
            f"{error}: on a plain question and answer; mend the template or name another, for "
            "example --template chatml."
        ) from error
    if _ANSWER not in text:
        raise UserError(
            f"the chat template {template.name} leaves the assistant's answer out; mend it or name "
            "another, for example --template chatml."
        )
