"""An engine that says what it is told to, and a program that talks with it.

    python -m tests.terminal.scripted TOKENIZER.json [ARGUMENTS OF llamita chat]

needs neither torch nor weights, so that a terminal's tests take milliseconds a turn.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from llamita.data.chat_template import ChatTemplate, chat_template, end_of_turn_ids
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.engine import (
    Capabilities,
    Deliver,
    Engine,
    Finish,
    Handle,
    Piece,
    Request,
    Token,
    check_request,
)

ANSWERS = {
    "markdown": "# Ships\n\nA *ship* has **masts**:\n\n1. fore\n2. main\n\n"
    "```python\ndef sail(wind):\n    return wind * 2\n```\n\nline one\nline two <b>bold</b>",
    "escape": "red \x1b[31mtext\x1b[0m \x9b2J &#27;[2J \x07bell \x1b]0;title\x07end\r\nnext",
    "endless": "word " * 100_000,
    "long": "Here it is:\n\n```text\n" + "".join(f"line {n}\n" for n in range(40)) + "```\n\nDone.",
    "wide": "漢字と😀 and naïve, " * 20,
    "nothing": "",
    "fail": "half an answer",
}


class ScriptedEngine:
    """Answers by the first word of the last question, or with how often it was asked.

    It reuses the longest beginning that a prompt shares with the last prompt and its answer, as
    engines do, and says how long that was.

    Args:
        pause: seconds a token.
    """

    name = "scripted"
    about = "scripted: a test"
    capabilities = Capabilities(streaming=True, log_probs=False, scoring=False, adapters=False)
    slots = 1

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        *,
        context: int = 4096,
        pause: float = 0.0,
        answers: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template or chat_template(tokenizer)
        self.end_ids = frozenset(end_of_turn_ids(tokenizer, self.template))
        self.context = context
        self.requests: list[Request] = []
        self.closed = False
        self._pause = pause
        self._answers = iter(answers)
        self._numbers = itertools.count(1)
        self._cached: list[int] = []

    def submit(self, request: Request, deliver: Deliver) -> Handle:
        if self.closed:
            raise UserError("the engine is closed")
        check_request(self, request)
        self.requests.append(request)
        run = _Run(self, request, deliver, self._answer(request))
        threading.Thread(target=run.work, daemon=True).start()
        return run

    def waiting(self) -> tuple[int, int]:
        return (0, 0)

    def close(self) -> None:
        self.closed = True

    def reused(self, prompt: Sequence[int]) -> int:
        pairs = zip(prompt, self._cached, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def remember(self, ids: Sequence[int]) -> None:
        self._cached = list(ids)

    def _answer(self, request: Request) -> str:
        told = next(self._answers, None)
        if told is not None:
            return told
        shown = self.tokenizer.decode(request.prompt, skip_special_tokens=False)
        question = shown.rsplit("user\n", 1)[-1].split("<|im_end|>")[0]
        word = question.split()[0] if question.split() else ""
        number = next(self._numbers)
        system = "system\n" in shown and shown.split("system\n")[1].split("<|im_end|>")[0]
        lead = f"({system}) " if system else ""
        return ANSWERS.get(word, f"{lead}answer {number} to {question}")


class _Run:
    def __init__(
        self, engine: ScriptedEngine, request: Request, deliver: Deliver, text: str
    ) -> None:
        self._engine, self._request, self._deliver, self._text = engine, request, deliver, text
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def work(self) -> None:
        engine, request = self._engine, self._request
        cached = min(engine.reused(request.prompt), len(request.prompt) - 1)
        room = engine.context - len(request.prompt)
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        table = engine.tokenizer.token_bytes()
        written: list[int] = []
        shown, data, began = 0, b"", time.monotonic()
        for number in self._ids():
            if len(written) == most or self._cancelled.wait(engine._pause):
                break
            written.append(number)
            data += table[number]
            text = data.decode(errors="ignore")
            self._deliver(Piece(text[shown:], (Token(number, table[number]),)))
            shown = len(text)
        if self._text == ANSWERS["fail"]:
            self._deliver(UserError("the engine broke down"))
            return
        cancelled = self._cancelled.is_set()
        engine.remember([*request.prompt, *written])
        self._deliver(
            Finish(
                "cancelled" if cancelled else "length" if len(written) == most else "stop",
                len(request.prompt),
                len(written),
                cached_tokens=cached,
                decode_seconds=max(time.monotonic() - began, 1e-6),
            )
        )

    def _ids(self) -> Iterator[int]:
        yield from self._engine.tokenizer.encode(self._text)


def main() -> None:
    # Nothing here computes, and importing torch takes seconds.
    torch = ModuleType("torch")
    torch.Tensor = object  # type: ignore[attr-defined]
    sys.modules["torch"] = torch
    from llamita import cli
    from llamita.data.tokenizer import load_tokenizer

    engines = ModuleType("llamita.inference.engines")
    path, *arguments = sys.argv[1:]

    def open_engine(model: str | Path, **settings: object) -> Engine:
        tokenizer = load_tokenizer(path)
        named = settings["template"]
        template = chat_template(tokenizer, named if isinstance(named, str) else None)
        context = settings["context"]
        return ScriptedEngine(
            tokenizer,
            template,
            context=context if isinstance(context, int) else 4096,
            pause=float(os.environ.get("PAUSE", "0.002")),
        )

    engines.open_engine = open_engine  # type: ignore[attr-defined]
    engines.check_names = lambda engine, dtype: None  # type: ignore[attr-defined]
    sys.modules["llamita.inference.engines"] = engines
    sys.argv = ["llamita", "chat", "models/tiny", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
