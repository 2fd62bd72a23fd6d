"""`chat`: talk with a MODEL at a terminal, or put a question to it through a pipe."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from llamita.errors import UserError
from llamita.terminal.interrupts import stopping

if TYPE_CHECKING:
    from llamita.inference.conversation import Conversation
    from llamita.inference.engine import Engine


def chat(
    model: str | Path,
    *,
    system: str | None = None,
    engine: str = "auto",
    quantize: str | None = None,
    template: str | None = None,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    context: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    plain: bool = False,
    lines: bool = False,
) -> int:
    """Talk with a model: at a terminal turn by turn; of what is piped in, answer it and end.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file, or a hub id.
        system: the system message.
        engine: auto, torch or llama.cpp; quantize: a type to keep the weights in, such as q8_0.
        template: chatml, zephyr, llama-2 or a file of Jinja; by default the model's own.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: as of `Sampling`.
        max_tokens: of an answer at most; by default to the end of the context.
        stop: strings that end an answer.
        context: tokens of the conversation and an answer together; by default the model's.
        device, dtype: of the engine torch.
        plain: no Markdown, colours or cursor movements on a terminal either.
        lines: every line of standard input is a question of its own, in one conversation.

    Returns:
        the exit status: 0, or 130 after Ctrl-C in a pipe.

    Raises:
        UserError: no such model, a value out of range, a template without a place for the system
            message, nothing on standard input.
    """
    from llamita.inference.conversation import Conversation
    from llamita.inference.engines import check_names, open_engine
    from llamita.inference.sampling import Sampling

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens {max_tokens}: give 1 or more")
    talking = sys.stdin.isatty() and sys.stdout.isatty()
    if lines and talking:
        raise UserError("--lines is of questions that are piped in; here is a terminal")
    check_names(engine, dtype)
    # Read first: a mistake in the pipe should not cost the loading of a model.
    questions = [] if talking else _questions(lines)
    opened = open_engine(
        model,
        engine=engine,
        quantize=quantize,
        context=context,
        device=device,
        dtype=dtype,
        template=template,
        say=_note,
    )
    try:
        conversation = Conversation(
            opened, system=system, sampling=sampling, max_tokens=max_tokens, stop=stop
        )
        if talking:
            talk(conversation, str(model), plain=plain)
            return 0
        return answer_all(conversation, str(model), questions)
    finally:
        opened.close()


def talk(conversation: Conversation, model: str, *, plain: bool = False) -> None:
    """Turn by turn at the terminal that standard input and output are."""
    from llamita.terminal.commands import complete
    from llamita.terminal.keyboard import Keyboard, history_file
    from llamita.terminal.session import Session
    from llamita.terminal.showing import PlainView, view_of

    _replace_what_cannot_be_shown(sys.stdout)
    view = view_of(sys.stdout, plain=plain)
    moving = not isinstance(view, PlainView)
    # A Ctrl-C meant for an answer that has just ended must not lose the talk.
    with stopping() as missed:
        keyboard = Keyboard(
            history=history_file(),
            complete=complete,
            bold=moving and "NO_COLOR" not in os.environ,
            warn=sys.stderr,
            missed=missed,
        )
        view.say(banner(conversation.engine, model))
        view.say("/help lists commands · Ctrl-C stops an answer · Ctrl-D leaves\n", dim=True)
        Session(conversation, keyboard, view, model=model).run()


def answer_all(conversation: Conversation, model: str, questions: Sequence[str]) -> int:
    """Answers on standard output and nothing else; the rest on standard error."""
    from llamita.terminal.session import left_out_line, status_line
    from llamita.terminal.showing import PlainView

    _replace_what_cannot_be_shown(sys.stdout)
    view = PlainView(sys.stdout, sys.stderr)
    view.say(banner(conversation.engine, model))
    for question in questions:
        with stopping() as stopper:
            answer = conversation.ask(question)
            stopper.attach(answer.cancel)
            if answer.left_out:
                view.say(left_out_line(answer))
            view.begin("")
            try:
                for piece in answer:
                    view.add(piece.text)
            finally:
                view.end()
        view.say(status_line(answer, conversation.engine.context))
        if stopper.pressed:
            return 128 + signal.SIGINT
    return 0


def banner(engine: Engine, model: str) -> str:
    """Who answers: the model, the engine and why it, and the context."""
    name = Path(model).name or model
    return f"{name} · {engine.about} · context {engine.context:,} tokens"


def _questions(lines: bool) -> list[str]:
    if sys.stdin.isatty():
        _note("type the question, then Ctrl-D on a line of its own")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is no UTF-8 text (byte {error.start:,}): convert it, for example "
            "with iconv"
        ) from None
    found = [line.strip() for line in (text.splitlines() if lines else [text]) if line.strip()]
    if not found:
        raise UserError("standard input is empty: there is no question to answer")
    return found


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _replace_what_cannot_be_shown(file: TextIO) -> None:
    """A terminal of another encoding shows ? for a character that it has not."""
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="replace")
