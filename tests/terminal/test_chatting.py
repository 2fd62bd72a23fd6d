"""`llamita.chat` on pipes: answers on standard output, the rest on standard error."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

import llamita
from llamita.errors import UserError
from llamita.inference import engines
from llamita.terminal.chatting import chat
from tests.data.chats import MARKERS, byte_level
from tests.terminal.scripted import ScriptedEngine


class Pipe:
    """`chat` with a scripted engine in place of a MODEL, and bytes on standard input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer = byte_level(*MARKERS)
        self.engine: ScriptedEngine | None = None
        self.asked: dict[str, Any] = {}
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(engines, "open_engine", self._open)

    def _open(self, model: str, **asked: Any) -> ScriptedEngine:
        self.asked = {"model": model, **asked}
        self.engine = ScriptedEngine(self.tokenizer, context=asked["context"] or 4096)
        return self.engine

    def __call__(self, text: bytes, **settings: Any) -> int:
        stdin = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
        self._monkeypatch.setattr(sys, "stdin", stdin)
        return chat("models/tiny", **settings)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    return Pipe(monkeypatch)


def test_all_of_standard_input_is_one_question(
    pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe("\ufeffone\nand two: naïve\n".encode(), system="Be brief.") == 0
    out, err = capsys.readouterr()
    assert out == "(Be brief.) answer 1 to one\nand two: naïve\n"
    assert err.startswith("tiny · scripted: a test · context 4,096 tokens\n")
    assert pipe.engine is not None
    assert pipe.engine.closed


def test_lines_are_questions_of_one_conversation(
    pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"one\n\n/undo\r\nescape", lines=True)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:2] == ["answer 1 to one", "answer 2 to /undo"]
    assert lines[2].startswith("red [31mtext[0m 2J")
    counts = re.findall(r"prompt \d+ \((\d+) cached\)", err)
    assert [int(cached) > 0 for cached in counts] == [False, True, True]


def test_settings_reach_the_engine(pipe: Pipe) -> None:
    pipe(b"hi", temperature=0, seed=4, max_tokens=3, stop=["x"], min_p=0.1, repetition_penalty=1.5)
    assert pipe.engine is not None
    (request,) = pipe.engine.requests
    assert (request.max_tokens, request.stop) == (3, ("x",))
    sampling = request.sampling
    assert (sampling.temperature, sampling.seed, sampling.min_p) == (0, 4, 0.1)
    assert sampling.repetition_penalty == 1.5
    pipe(b"hi", engine="torch", quantize="q8_0", device="cpu", dtype="bfloat16", context=99)
    del pipe.asked["say"]
    assert pipe.asked == {
        "model": "models/tiny",
        "engine": "torch",
        "quantize": "q8_0",
        "context": 99,
        "device": "cpu",
        "dtype": "bfloat16",
        "template": None,
    }


@pytest.mark.parametrize(
    ("text", "settings", "error"),
    [
        (b" \n", {}, "standard input is empty"),
        (b"\xff\xfe", {}, r"no UTF-8 text \(byte 0\)"),
        (b"word " * 3000, {"context": 100}, r"comes to [\d,]+ tokens .* context holds 100"),
        (b"hi", {"top_p": 2}, "top_p 2"),
        (b"hi", {"max_tokens": 0}, "max_tokens 0"),
        # Before the question is read, which somebody may have to type.
        (b"", {"engine": "torhc"}, r"engine 'torhc'.*Did you mean 'torch'"),
        (b"", {"dtype": "fp32"}, "dtype 'fp32'"),
    ],
)
def test_mistakes(
    pipe: Pipe,
    text: bytes,
    settings: dict[str, Any],
    error: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=error):
        pipe(text, **settings)
    assert capsys.readouterr().out == ""
    assert pipe.engine is None or pipe.engine.closed


def test_lines_need_a_pipe(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(UserError, match="--lines is of questions that are piped in"):
        chat("models/tiny", lines=True)


def test_it_is_a_verb() -> None:
    assert llamita.chat is chat
