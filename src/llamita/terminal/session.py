"""A talk at a terminal: prompt, answer, what it took, again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamita.errors import UserError
from llamita.terminal.commands import run_command
from llamita.terminal.interrupts import silent_keyboard, stopping
from llamita.terminal.keyboard import Cancelled

if TYPE_CHECKING:
    from llamita.inference.conversation import Answer, Conversation
    from llamita.terminal.keyboard import Keyboard
    from llamita.terminal.showing import View

HOW_TO_LEAVE = "Ctrl-D or /exit leaves; so does Ctrl-C once more"


class Session:
    """What the commands work on.

    model: its name as the user gave it. file: where the conversation was saved or loaded.
    """

    def __init__(
        self, conversation: Conversation, keyboard: Keyboard, view: View, *, model: str
    ) -> None:
        self.conversation = conversation
        self.view = view
        self.model = model
        self.file: Path | None = None
        self.leaving = False
        self._keyboard = keyboard

    def run(self) -> None:
        """Until the user leaves."""
        pressed = False
        while not self.leaving:
            try:
                text = self._keyboard.read()
            except EOFError:
                self.view.say("")
                return
            except Cancelled as cancelled:
                self.view.say("")
                if cancelled.empty and pressed:
                    return
                pressed = cancelled.empty
                if pressed:
                    self.view.say(HOW_TO_LEAVE, dim=True)
                continue
            pressed = False
            if text.strip():
                self._take(text)

    def _take(self, text: str) -> None:
        asked = not text.startswith("/")
        try:
            if asked:
                self.answer(text.strip())
            else:
                run_command(self, text)
        except UserError as error:
            self.view.say(f"llamita: {error}")
            if asked and self.conversation.unanswered is not None:
                self.view.say("/retry asks it again", dim=True)
        if not self.leaving:
            self.view.say("")

    def answer(self, question: str) -> None:
        """Ask, show the answer while it is written, and what it took."""
        with silent_keyboard(), stopping() as stopper:
            answer = self.conversation.ask(question)
            stopper.attach(answer.cancel)
            if answer.left_out:
                self.view.say(left_out_line(answer), dim=True)
            self.view.begin(f"… reading {answer.prompt_tokens:,} tokens")
            try:
                for piece in answer:
                    self.view.add(piece.text)
            finally:
                self.view.end()
        if not answer.text.strip():
            self.view.say("(no answer; the question is not kept: /retry asks it again)", dim=True)
        self.view.say(status_line(answer, self.conversation.engine.context), dim=True)


def left_out_line(answer: Answer) -> str:
    count = answer.left_out
    what = "the oldest exchange is" if count == 1 else f"the {count} oldest exchanges are"
    return f"({what} no longer told to the model: the context is full)"


def status_line(answer: Answer, context: int) -> str:
    """Tokens, tokens a second, seconds to the first, cached tokens of the prompt, context used."""
    finish = answer.finish
    if finish is None:  # the engine failed, and its error is on its way
        return ""
    count = finish.completion_tokens
    said = f"{count:,} token{'s' * (count != 1)}"
    if count > 1 and finish.decode_seconds > 0:
        said += f" at {count / finish.decode_seconds:.3g}/s"
    parts = [said]
    if answer.first_seconds is not None:
        parts.append(f"first after {answer.first_seconds:.2f} s")
    parts.append(f"prompt {finish.prompt_tokens:,} ({finish.cached_tokens:,} cached)")
    used = finish.prompt_tokens + count
    parts.append(f"context {used:,} of {context:,}")
    if finish.reason == "cancelled":
        parts.insert(0, "stopped")
    elif finish.reason == "length":
        full = used >= context
        parts.insert(0, "cut: the context is full" if full else "cut: max_tokens")
    return " · ".join(parts)
