"""Questions from the keyboard: line editing, a history, and messages of several lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TextIO

from llamita.terminal.interrupts import Stopper, raising

PROMPT, MORE = "> ", "… "
_KEPT_LINES = 1000
_BLOCK = '"""'


class Cancelled(Exception):
    """Ctrl-C at the prompt. `empty`: nothing had been typed."""

    def __init__(self, *, empty: bool) -> None:
        super().__init__()
        self.empty = empty


class Keyboard:
    """Reads messages by Python's `input`, which edits lines where readline is there.

    Args:
        history: the file that lines are remembered in, readable by its owner alone.
        complete: the words that may stand in place of the last one of a line up to the cursor.
        bold: the prompt may be bold.
        warn: where to say that the history cannot be kept.
        missed: takes Ctrl-C between two prompts; the next prompt is cancelled by it.
    """

    def __init__(
        self,
        *,
        history: Path | None = None,
        complete: Callable[[str], list[str]] | None = None,
        bold: bool = False,
        warn: TextIO | None = None,
        missed: Stopper | None = None,
    ) -> None:
        self._history, self._warn, self._bold = history, warn, bold
        self._missed = missed
        self._complete = complete or (lambda line: [])
        self._readline = _readline()
        if self._readline is not None:
            self._set_up(self._readline)

    def read(self) -> str:
        r"""A message: a line; lines of which all but the last end in \; or a block of lines
        between triple quotes. Ctrl-D ends one that has begun.

        Raises:
            EOFError: Ctrl-D before anything else.
            Cancelled: Ctrl-C.
        """
        line = self._line(PROMPT)
        text = self._block(line) if line.lstrip().startswith(_BLOCK) else self._continued(line)
        self._remember(text)
        return text

    def _block(self, line: str) -> str:
        lines: list[str] = []
        more: str | None = line.lstrip()[len(_BLOCK) :]
        while more is not None and not more.rstrip().endswith(_BLOCK):
            lines.append(more)
            more = self._more()
        if more is not None:
            lines.append(more.rstrip()[: -len(_BLOCK)])
        return "\n".join(lines).strip("\n")

    def _continued(self, line: str) -> str:
        text = line
        while _goes_on(text):
            more = self._more()
            text = text[:-1] if more is None else f"{text[:-1]}\n{more}"
        return text

    def _more(self) -> str | None:
        try:
            return self._line(MORE, begun=True)
        except EOFError:
            return None

    def _line(self, prompt: str, *, begun: bool = False) -> str:
        try:
            with raising(self._missed):
                return input(self._styled(prompt))
        except KeyboardInterrupt:
            typed = "" if self._readline is None else self._readline.get_line_buffer()
            raise Cancelled(empty=not begun and not typed) from None

    def _styled(self, prompt: str) -> str:
        if not self._bold or self._readline is None:
            return prompt
        # \001 and \002 tell readline what takes no room.
        return f"\001\x1b[1m\002{prompt}\001\x1b[0m\002"

    def _set_up(self, readline: ModuleType) -> None:
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._candidate)
        if self._history is not None:
            for line in self._remembered(self._history):
                readline.add_history(line)

    def _candidate(self, word: str, number: int) -> str | None:
        assert self._readline is not None
        line = self._readline.get_line_buffer()[: self._readline.get_endidx()]
        found = self._complete(line)
        return found[number] if number < len(found) else None

    def _remembered(self, path: Path) -> list[str]:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(path, error)
            return []
        if len(lines) > 2 * _KEPT_LINES:
            lines = lines[-_KEPT_LINES:]
            self._write(path, "".join(f"{line}\n" for line in lines), os.O_TRUNC)
        return lines[-_KEPT_LINES:]

    def _remember(self, text: str) -> None:
        if self._history is None or not text.strip():
            return
        lines = (line for line in text.splitlines() if line.strip())
        self._write(self._history, "".join(f"{line}\n" for line in lines), os.O_APPEND)

    def _write(self, path: Path, text: str, how: int) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            self._give_up(path, error)

    def _give_up(self, path: Path, error: OSError) -> None:
        self._history = None
        print(
            f"warning: no history is kept: {path}: {error.strerror or error}",
            file=self._warn,
            flush=True,
        )


def history_file() -> Path:
    """Where the XDG base directory specification puts what a program remembers between runs."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # Relative ones are to be ignored, it says.
    root = Path(state) if Path(state).is_absolute() else Path("~/.local/state").expanduser()
    return root / "llamita" / "chat_history"


def _goes_on(text: str) -> bool:
    r"""Does it end in an odd number of \?"""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # Windows has none
        return None
    return readline
