"""The program on a real pseudo-terminal, and in pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.data.chats import MARKERS, byte_level

ROOT = Path(__file__).resolve().parents[2]
_SEQUENCES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
SECONDS = 30.0


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The scripted program, without arguments of `llamita chat`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(*MARKERS).save(folder)
    return [sys.executable, "-m", "tests.terminal.scripted", str(folder)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        "TERM": "xterm-256color",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }


class Terminal:
    """A program on a pseudo-terminal of 140 × 24."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.raw = ""
        self._read_to = 0
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 140))
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/terminal/on_its_terminal.py"), *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until this is shown, colours and movements left out; all that came up to there.

        A line may be broken at any of its spaces: where depends on the length of a path in it.
        """
        wanted = re.compile(re.sub(r"(?<=\S)\\ (?=\S)", r"(?: |\\s*\\n\\s*)", re.escape(text)))
        end = time.monotonic() + SECONDS
        while True:
            shown = _SEQUENCES.sub("", self.raw)
            if found := wanted.search(shown, self._read_to):
                before = shown[self._read_to : found.start()]
                self._read_to = found.end()
                return before
            if time.monotonic() > end or not self._more():
                raise AssertionError(f"never shown: {text!r}; shown: {shown[self._read_to :]!r}")

    def ended(self) -> int:
        while self._more():
            pass
        return self.process.wait(SECONDS)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], SECONDS)
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other side is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


def test_a_talk(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with Terminal([*command, "--system", "Be brief."], environment) as terminal:
        terminal.expect("tiny · scripted: a test · context 4,096 tokens")
        terminal.expect("> ")
        terminal.type("one\r")
        terminal.expect("(Be brief.) answer 1 to one")
        terminal.expect(" cached) · context")
        terminal.expect("> ")
        # Ctrl-C stops the answer, not the program, and what there is of it stays.
        terminal.type("endless\r")
        terminal.expect("word word word")
        terminal.type("\x03")
        terminal.expect("stopped · ")
        terminal.expect("> ")
        # What is typed meanwhile is not echoed into the answer; it stands at the next prompt.
        terminal.type("markdown\r")
        terminal.expect("Ships")
        terminal.type("typed")
        assert "typed" not in terminal.expect("cached)")
        terminal.expect("> ")
        terminal.expect("typed")
        terminal.type("\x03")  # clears the line
        terminal.expect("> ")
        terminal.type("/undo\r")
        terminal.expect("took back: markdown")
        terminal.type("/undoo\r")
        terminal.expect("Did you mean '/undo'?")
        terminal.type(f"/save {saved}\r")
        terminal.expect("2 questions and their answers")
        terminal.type("/undo\r")
        terminal.expect("took back: endless")
        terminal.type("/reset\r")
        terminal.expect("forgot 1 question")
        terminal.type(f"/lo\t{saved}\r")
        terminal.expect("2 questions and their answers; /undo goes back")
        terminal.type("\x1b[A\x1b[A\r")  # two lines up: /reset
        terminal.expect("forgot 2 questions")
        # A pasted text of several lines is one message.
        terminal.type("\x1b[200~escape\nsecond line\x1b[201~\r")
        terminal.expect("red [31mtext[0m")
        terminal.expect("> ")
        terminal.type("\x03")
        terminal.expect("Ctrl-D or /exit leaves")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    assert "Traceback" not in terminal.raw
    for sequence in ("\x1b[31mtext", "\x1b]0", "\x9b"):
        assert sequence not in terminal.raw
    messages = json.loads(saved.read_text())["messages"]
    assert [turn["role"] for turn in messages] == ["system", *["user", "assistant"] * 2]
    assert messages[4]["content"].startswith("word word word")
    assert len(messages[4]["content"]) < 100_000
    remembered = (tmp_path / "state/llamita/chat_history").read_text().splitlines()
    assert remembered[:4] == ["one", "endless", "markdown", "/undo"]


def test_plainly(command: list[str], environment: dict[str, str]) -> None:
    with Terminal([*command, "--plain"], environment) as terminal:
        terminal.expect("> ")
        terminal.type("markdown\r")
        terminal.expect("# Ships\r\n\r\nA *ship* has **masts**")
        terminal.expect("line two <b>bold</b>\r\n")
        terminal.expect("> ")
        terminal.type("\x03")
        terminal.expect("leaves")
        terminal.type("\x03")
        assert terminal.ended() == 0
    # But for what readline does at its prompt, nothing moves and nothing is coloured.
    assert set(_SEQUENCES.findall(terminal.raw)) <= {"\x1b[?2004h", "\x1b[?2004l"}


def piped(
    command: list[str], environment: dict[str, str], text: bytes
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, input=text, capture_output=True, env=environment, cwd=ROOT, timeout=SECONDS
    )


def test_a_pipe_gives_the_answer_and_nothing_else(
    command: list[str], environment: dict[str, str]
) -> None:
    done = piped(command, environment, "one\nand two: naïve\n".encode())
    assert done.returncode == 0
    assert done.stdout.decode() == "answer 1 to one\nand two: naïve\n"
    assert "tiny · scripted" in done.stderr.decode()
    assert not (Path(environment["XDG_STATE_HOME"]) / "llamita").exists()


def test_ctrl_c_in_a_pipe(command: list[str], environment: dict[str, str]) -> None:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"endless")
        process.stdin.close()
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(SECONDS) == 130
    assert rest.endswith(b"\n")
