"""Commands on a conversation, its files, and lines from the keyboard, without a terminal."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.data.chat_records import Conversation as Rows
from llamita.data.chat_sources import RowTally, list_chat_sources, read_examples
from llamita.errors import UserError
from llamita.inference.conversation import Conversation
from llamita.terminal import keyboard as keyboards
from llamita.terminal.commands import COMMANDS, complete, run_command
from llamita.terminal.keyboard import Cancelled, Keyboard, history_file
from llamita.terminal.parameters import set_parameters, shown
from llamita.terminal.saved import load_messages
from llamita.terminal.session import Session
from llamita.terminal.showing import PlainView
from tests.data.chats import MARKERS, byte_level
from tests.terminal.scripted import ScriptedEngine


class Talk:
    """A session whose keyboard is a list of lines and whose screen is a text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.engine = ScriptedEngine(byte_level(*MARKERS), **settings)
        self.conversation = Conversation(self.engine)
        self.file = io.StringIO()
        self._lines: list[str | type[BaseException]] = []
        monkeypatch.setattr("builtins.input", self._input)
        keyboard = Keyboard()
        self.session = Session(
            self.conversation, keyboard, PlainView(self.file), model="models/tiny"
        )

    def type(self, *lines: str | type[BaseException]) -> str:
        """What is shown in answer to these lines, after which Ctrl-D is pressed."""
        self._lines = [*lines, EOFError]
        start = len(self.file.getvalue())
        self.session.leaving = False
        self.session.run()
        return self.file.getvalue()[start:]

    def _input(self, prompt: str) -> str:
        line = self._lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(monkeypatch)


def test_help_names_every_command(talk: Talk) -> None:
    said = talk.type("/help")
    assert all(f"  {command.usage} " in said for command in COMMANDS.values())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/undoo", "no command /undoo. Did you mean '/undo'?"),
        ("/etc/passwd what is it?", "needs a space before it"),
        ("/reset now", "/reset takes no argument"),
        ("/undo", "nothing to undo"),
        ("/retry", "no question to ask again"),
        ("/save", "name a file"),
        ("/save x", "nothing to save yet"),
        ("/load", "name a file"),
        ("/load no-such-file", "there is no file no-such-file"),
        ("/params warmth=1", "no parameter 'warmth'"),
        ("/params temperatur=1", "Did you mean 'temperature'?"),
        ("/params top_k", "write top_k=VALUE"),
        ("/params top_k=1.5", "top_k '1.5': give a whole number"),
        ("/params temperature=-1", "temperature -1.0: give 0"),
        ("/params temperature=nan", "temperature nan"),
        ("/params max_tokens=0", "max_tokens 0"),
        ("/params stop='x", "no closing quotation"),
    ],
)
def test_mistakes_are_said_and_change_nothing(talk: Talk, line: str, error: str) -> None:
    before = shown(talk.conversation)
    said = talk.type(line)
    assert said.startswith("llamita: ")
    assert error in said
    assert talk.engine.requests == []
    assert shown(talk.conversation) == before


def test_params_are_set_together_and_shown_as_they_can_be_typed(talk: Talk) -> None:
    said = talk.type("/params temperature=0.25 top-k=7 seed=-3 max_tokens=9 stop='a b' stop=c")
    assert "temperature=0.25 top_k=7 top_p=0.95" in said
    sampling = talk.conversation.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.25, 7, -3)
    assert (talk.conversation.max_tokens, talk.conversation.stop) == (9, ("a b", "c"))
    line = shown(talk.conversation)
    other = Conversation(talk.engine)
    set_parameters(other, line)
    assert shown(other) == line
    # One that is wrong undoes none of the others.
    talk.type("/params temperature=0.5 top_p=7")
    assert talk.conversation.sampling.temperature == 0.25
    talk.type("/params seed=none max_tokens=none stop=none")
    assert (talk.conversation.sampling.seed, talk.conversation.max_tokens) == (None, None)
    assert talk.conversation.stop == ()


def test_system_reset_undo_and_retry(talk: Talk) -> None:
    assert "there is no system message" in talk.type("/system")
    assert "(Be brief.) answer 1 to one" in talk.type("/system Be brief.", "one")
    assert talk.type("/system").startswith("Be brief.")
    assert "(Be brief.) answer 2 to one" in talk.type("/retry")
    assert len(talk.conversation.messages) == 3
    said = talk.type("two", "/undo")
    assert "took back: two" in said
    assert "forgot 1 question and its answer" in talk.type("/reset")
    assert len(talk.conversation.messages) == 1
    assert "back to 1 question and its answer" in talk.type("/undo")
    assert len(talk.conversation.messages) == 3
    talk.type("/system -")
    assert len(talk.conversation.messages) == 2
    assert "the same: see /params" in talk.type("/params temperature=0", "/retry")


def test_a_saved_conversation_is_a_row_that_tuning_reads(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    talk.type("/system Be brief.", "naïve 漢字?", '"""', "two", 'lines"""', "/params seed=5")
    said = talk.type("/save talk", "/save talk", "/save other.json")
    assert said.count("talk.json: 2 questions and their answers") == 2
    messages = talk.conversation.messages
    tally = RowTally()
    sources = list_chat_sources([tmp_path / "talk.json", tmp_path / "other.json"])
    examples = [example for _, example in read_examples(sources.files, tally)]
    assert examples == [Rows(messages)] * 2
    assert tally.wrong == 0
    record = json.loads((tmp_path / "talk.json").read_text())
    assert record["model"] == "models/tiny"
    assert record["sampling"]["seed"] == 5
    assert record["sampling"]["temperature"] == 0.7
    # A file of somebody else's is not overwritten.
    Path("mine.json").write_text("mine")
    assert "is there already" in talk.type("/save mine.json")
    assert Path("mine.json").read_text() == "mine"
    assert "no directory" in talk.type("/save nowhere/x.json")
    talk.type("/reset", "/load talk.json")
    assert talk.conversation.messages == messages
    assert load_messages(tmp_path / "talk.json") == messages


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is (nested too deeply|no JSON)"),
        ("[]", "holds 0 conversations"),
        ("3", "is no conversation"),
        ('{"a": 1}', "is no conversation: no known form"),
        ('{"messages": []}', "empty conversation"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no answer"),
        ('{"messages": [{"role": "nurse", "content": "a"}]}', "unknown role"),
        ('{"messages": [{"role": "user", "content": 1}]}', "content is no string"),
        ('{"text": "a <|im_end|>"}', "is no conversation|rendered already"),
        ('{"messages": "x"}\n{"messages": "y"}', "holds 2 conversations"),
        (b"\xff\xfe", "no UTF-8"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_lost(
    talk: Talk, tmp_path: Path, text: str | bytes, error: str
) -> None:
    talk.type("one")
    before = talk.conversation.messages
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=error):
        run_command(talk.session, f"/load {path}")
    assert talk.conversation.messages == before
    said = talk.type("two")
    assert "answer 2 to two" in said
    assert len(talk.conversation.messages) == 4


def test_a_question_at_a_files_end_can_be_asked(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "open.json"
    turns = [("user", "a"), ("assistant", "b"), ("user", "and c?")]
    path.write_text(json.dumps([{"role": role, "content": said} for role, said in turns]))
    said = talk.type(f"/load {path}", "/retry")
    assert "its last question has no answer" in said
    assert "answer 1 to and c?" in said
    assert len(talk.conversation.messages) == 4


def test_messages_of_several_lines(talk: Talk) -> None:
    def asked(*lines: str | type[BaseException]) -> str:
        talk.type(*lines)
        return talk.conversation.messages[-2].content

    assert asked("a\\", "b\\", "c") == "a\nb\nc"
    assert asked("a\\\\") == "a\\\\"
    assert asked('"""', "  x", "", "  y", '"""') == "x\n\n  y"
    assert asked('"""one"""') == "one"
    assert asked('"""one', 'two"""') == "one\ntwo"
    assert asked('"""', "cut by Ctrl-D", EOFError) == "cut by Ctrl-D"
    assert asked("a\\", EOFError) == "a"
    assert asked(" /reset is a word") == "/reset is a word"


def test_ctrl_c_at_the_prompt(talk: Talk) -> None:
    assert talk.type(KeyboardInterrupt, "one").count("Ctrl-D or /exit leaves") == 1
    said = talk.type(KeyboardInterrupt, KeyboardInterrupt, "not reached")
    assert "not reached" not in said
    # Not of an empty line: nothing is said, and it does not count.
    said = talk.type("a\\", KeyboardInterrupt, KeyboardInterrupt, "reached")
    assert said.count("Ctrl-D or /exit leaves") == 1
    assert "to reached" in said
    talk.type("/exit", "never")
    assert "never" not in talk.file.getvalue()


def test_a_failed_answer_can_be_asked_again(talk: Talk) -> None:
    said = talk.type("fail", "nothing", "/undo")
    assert "llamita: the engine broke down\n/retry asks it again" in said
    assert "(no answer; the question is not kept" in said
    assert "took back: nothing" in said
    assert talk.conversation.messages == ()


def test_the_status_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(monkeypatch, context=100)
    said = talk.type("/params max_tokens=5", "some words please")
    engine = talk.engine
    prompt = len(engine.requests[-1].prompt)
    assert "cut: max_tokens · 5 tokens at " in said
    assert f"prompt {prompt} (0 cached) · context {prompt + 5} of 100" in said
    said = talk.type("/params max_tokens=none", "endless")
    assert "cut: the context is full" in said
    assert "context 100 of 100" in said
    said = talk.type("and")
    assert "(the 2 oldest exchanges are no longer told to the model: the context is full)" in said


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.json").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete("/re") == ["/reset", "/retry"]
    assert complete("/sa") == ["/save "]
    assert complete("hello") == []
    assert complete("/params to") == ["top_k=", "top_p="]
    assert complete("/params top_k=3 mi") == ["min_p="]
    assert complete("/load ") == ["folder/", "talk.json"]
    assert complete("/load t") == ["talk.json"]
    assert complete("/load .") == [".hidden"]
    assert complete(f"/save {tmp_path}/f") == [f"{tmp_path}/folder/"]
    assert complete("/save no/such/x") == []


def test_the_history_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_file()
    assert path == tmp_path / "state" / "llamita" / "chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_file() == Path("~/.local/state/llamita/chat_history").expanduser()
    lines: Iterator[str] = iter(["one", "", "/params", "a\\", "b"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    keyboard = Keyboard(history=path)
    for _ in range(4):
        keyboard.read()
    assert path.read_text() == "one\n/params\na\nb\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(keyboards, "_KEPT_LINES", 1)
    Keyboard(history=path)
    assert path.read_text() == "b\n"


def test_a_history_that_cannot_be_kept_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llamita").touch()
    warned = io.StringIO()
    keyboard = Keyboard(history=tmp_path / "llamita" / "chat_history", warn=warned)
    monkeypatch.setattr("builtins.input", lambda prompt: "text")
    keyboard.read()
    keyboard.read()
    assert warned.getvalue().count("warning: no history is kept") == 1


def test_an_interrupt_at_the_prompt_knows_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(Cancelled) as caught:
        Keyboard().read()
    assert caught.value.empty
