"""What begins with a slash at the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.errors import UserError, did_you_mean
from llamita.terminal.parameters import NAMES, set_parameters, shown
from llamita.terminal.saved import load_messages, save_conversation

if TYPE_CHECKING:
    from llamita.terminal.session import Session

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Command:
    usage: str
    summary: str
    run: Callable[[Session, str], None]

    @property
    def takes_argument(self) -> bool:
        return " " in self.usage


def run_command(session: Session, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        UserError: no such command, or its argument is wrong.
    """
    name, _, argument = line.strip().partition(" ")
    name = _ALSO.get(name, name)
    argument = argument.strip()
    if name not in COMMANDS:
        raise UserError(
            f"there is no command {name}.{did_you_mean(name, COMMANDS)} /help lists them; a "
            "message that begins with a slash needs a space before it"
        )
    command = COMMANDS[name]
    if argument and not command.takes_argument:
        raise UserError(f"{name} takes no argument")
    command.run(session, argument)


def complete(line: str) -> list[str]:
    """What may stand in place of the last word of a line up to the cursor."""
    name, blank, argument = line.partition(" ")
    if not blank:
        found = [known for known in COMMANDS if name.startswith("/") and known.startswith(name)]
        return [f"{known} " if COMMANDS[known].takes_argument else known for known in found]
    word = argument.rsplit(" ", 1)[-1]
    if name == "/params":
        return [f"{known}=" for known in NAMES if known.startswith(word)]
    if name in ("/save", "/load"):
        return _files(word)
    return []


def _files(word: str) -> list[str]:
    folder, slash, beginning = word.rpartition("/")
    place = Path(folder + slash if slash else ".").expanduser()
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    hidden = beginning.startswith(".")
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(beginning) and entry.name.startswith(".") <= hidden
    ]


def _help(session: Session, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"  {command.usage:<{width}}  {command.summary}" for command in COMMANDS.values()]
    session.view.say(
        "\n".join(
            [
                *lines,
                "A line that ends in \\ goes on in the next one; so do the lines of a block that",
                'begins and ends with """. Ctrl-C stops an answer, or clears what was typed;',
                "Ctrl-D leaves. The arrow keys bring earlier lines back; Tab completes commands.",
            ]
        )
    )


def _system(session: Session, argument: str) -> None:
    conversation = session.conversation
    if not argument:
        session.view.say(conversation.system or "there is no system message", dim=True)
    elif argument == "-":
        conversation.system = None
        session.view.say("no system message from now on", dim=True)
    else:
        conversation.system = argument
        session.view.say("it holds from now on; /reset to begin anew with it", dim=True)


def _reset(session: Session, argument: str) -> None:
    count = session.conversation.num_exchanges
    session.conversation.reset()
    session.view.say(f"forgot {_exchanges(count)}; /undo brings them back", dim=True)


def _save(session: Session, argument: str) -> None:
    path = Path(argument).expanduser() if argument else session.file
    if path is None:
        raise UserError("name a file: /save FILE")
    if not path.suffix:
        path = path.with_name(path.name + ".json")
    if path.exists() and path != session.file:
        raise UserError(f"{path} is there already: name another file, or remove it first")
    save_conversation(path, session.conversation, session.model)
    session.file = path
    count = session.conversation.num_exchanges
    session.view.say(f"{path}: {_exchanges(count)}", dim=True)


def _load(session: Session, argument: str) -> None:
    if not argument:
        raise UserError("name a file: /load FILE")
    path = Path(argument).expanduser()
    session.conversation.restore(load_messages(path))
    session.file = path
    count = session.conversation.num_exchanges
    session.view.say(f"{path}: {_exchanges(count)}; /undo goes back", dim=True)
    if session.conversation.unanswered is not None:
        session.view.say("its last question has no answer: /retry asks it", dim=True)


def _undo(session: Session, argument: str) -> None:
    taken = session.conversation.undo()
    if taken is None:
        raise UserError("there is nothing to undo")
    if taken:
        session.view.say(f"took back: {_short(taken[0].content)}", dim=True)
    else:
        session.view.say(f"back to {_exchanges(session.conversation.num_exchanges)}", dim=True)


def _retry(session: Session, argument: str) -> None:
    conversation = session.conversation
    question = conversation.question_again()
    session.view.say(f"once more: {_short(question)}", dim=True)
    sampling = conversation.sampling
    if sampling.temperature == 0 or sampling.seed is not None:
        why = "temperature=0" if sampling.temperature == 0 else f"seed={sampling.seed}"
        session.view.say(f"(with {why} the answer will be the same: see /params)", dim=True)
    session.answer(question)


def _params(session: Session, argument: str) -> None:
    if argument:
        set_parameters(session.conversation, argument)
    session.view.say(shown(session.conversation), dim=True)


def _exit(session: Session, argument: str) -> None:
    session.leaving = True


def _exchanges(count: int) -> str:
    return "1 question and its answer" if count == 1 else f"{count} questions and their answers"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


COMMANDS: Mapping[str, Command] = {
    "/help": Command("/help", "this list", _help),
    "/system": Command("/system TEXT", "set the system message; - removes it", _system),
    "/reset": Command("/reset", "forget all but the system message", _reset),
    "/save": Command("/save FILE", "write the conversation as JSON", _save),
    "/load": Command("/load FILE", "go on with a conversation that was saved", _load),
    "/undo": Command("/undo", "take the last question and answer back", _undo),
    "/retry": Command("/retry", "ask the last question again", _retry),
    "/params": Command("/params NAME=VALUE …", "show or set how answers are drawn", _params),
    "/exit": Command("/exit", "leave", _exit),
}
_ALSO = {"/quit": "/exit"}
