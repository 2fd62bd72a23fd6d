"""An engine that writes what it is told to, and a server round it on a free port."""

from __future__ import annotations

import codecs
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

# Engines have torch loaded when they are served; here the first request would wait for it.
import llamita.inference.sampling  # noqa: F401
from llamita.data.chat_template import ChatTemplate, chat_template
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.inference.engine import (
    Alternative,
    Capabilities,
    Deliver,
    Engine,
    Finish,
    Piece,
    Request,
    Token,
    check_request,
)

# Special tokens after the 256 bytes.
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
IM_START, IM_END, END_OF_TEXT = 256, 257, 258


@cache
def byte_tokenizer() -> Tokenizer:
    """A token for each byte (its id is the byte), and ChatML's marks: counts are plain to see."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = (byte for byte in range(256) if byte not in kept)
    vocabulary = {chr(byte): byte for byte in kept}
    vocabulary.update({chr(0x100 + place): byte for place, byte in enumerate(moved)})
    added = [
        {
            "id": 256 + number,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, name in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    specification = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": None},
    }
    return Tokenizer(json.dumps(specification), bos_id=None, eos_id=END_OF_TEXT)


@dataclass(frozen=True)
class Script:
    """What is written for a request: `text`, a token a byte, then its end.

    first_delay, delay: seconds before the first token and before each. error: raised after the
    text in place of an end. log_prob: of every token. burst: tokens that come in one piece.
    """

    text: str = "Hello, wörld!"
    first_delay: float = 0.0
    delay: float = 0.0
    error: Exception | None = None
    log_prob: float = -0.5
    burst: int = 1
    cached_tokens: int = 0
    ends: bool = True  # False: goes on saying it until max_tokens or the context is met


@dataclass(eq=False)
class _Job:
    """A request, and the handle to it."""

    request: Request
    deliver: Deliver
    engine: FakeEngine
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()
        self.engine.forget(self)


@dataclass
class FakeEngine:
    """`Engine`, with a thread for each slot.

    script: one for every request, or a function of the request. What happened is in `requests`
    (all that were taken), `finishes` (how each ended) and `most_at_once`.
    """

    script: Script | Callable[[Request], Script] = field(default_factory=Script)
    name: str = "torch"
    about: str = "a script, for tests"
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(
            streaming=True, log_probs=True, scoring=False, adapters=False
        )
    )
    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    template: ChatTemplate = field(default_factory=lambda: chat_template(byte_tokenizer()))
    end_ids: frozenset[int] = frozenset({IM_END, END_OF_TEXT})
    context: int = 4096
    slots: int = 4

    def __post_init__(self) -> None:
        self.requests: list[Request] = []
        self.finishes: list[Finish | Exception] = []
        self.most_at_once = 0
        self.closed = False
        self._running = 0
        self._jobs: deque[_Job] = deque()
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(self.slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, deliver: Deliver) -> _Job:
        if self.closed:
            raise UserError("the engine is closed")
        check_request(self, request)
        job = _Job(request, deliver, self)
        with self._news:
            self.requests.append(request)
            self._jobs.append(job)
            self._news.notify()
        return job

    def waiting(self) -> tuple[int, int]:
        with self._news:
            return self._running, len(self._jobs)

    def close(self) -> None:
        with self._news:
            self.closed = True
            self._news.notify_all()

    def forget(self, job: _Job) -> None:
        """What waits ends at once when it is cancelled."""
        with self._news:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            last = Finish("cancelled", len(job.request.prompt), 0)
            self.finishes.append(last)
        threading.Thread(target=job.deliver, args=(last,)).start()

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Wait until nothing runs or waits; fails after `seconds`."""
        end = time.monotonic() + seconds
        while self.waiting() != (0, 0):
            assert time.monotonic() < end, f"still at work: {self.waiting()}"
            time.sleep(0.005)

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._jobs or self.closed)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._running += 1
                self.most_at_once = max(self.most_at_once, self._running)
            last = self._answer(job)
            with self._news:
                self._running -= 1
                self.finishes.append(last)
            job.deliver(last)

    def _answer(self, job: _Job) -> Finish | Exception:
        request = job.request
        script = self.script(request) if callable(self.script) else self.script
        writing = _Writing(request, script)
        room = self.context - len(request.prompt)
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        started = time.monotonic()
        job.cancelled.wait(script.first_delay)
        data = script.text.encode()
        place = 0
        while not job.cancelled.is_set():
            if place >= len(data) and script.ends:
                job.deliver(writing.rest())
                return script.error or writing.finish("stop", started, self.end_ids)
            if writing.count >= most:
                job.deliver(writing.rest())
                return writing.finish("length", started, None)
            job.cancelled.wait(script.delay)
            burst = min(script.burst, most - writing.count)
            part = [data[(place + step) % len(data)] for step in range(burst)]
            if script.ends:
                part = part[: len(data) - place]
            place += len(part)
            job.deliver(writing.push(part))
            if writing.stopped is not None:
                return writing.finish("stop", started, None)
        job.deliver(writing.rest())
        return writing.finish("cancelled", started, None)


class _Writing:
    """Text as an engine gives it: whole characters, and no beginning of a stop string."""

    def __init__(self, request: Request, script: Script) -> None:
        self._request, self._script = request, script
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.count = 0
        self.stopped: str | None = None

    def push(self, ids: list[int]) -> Piece:
        self.count += len(ids)
        self._held += self._decoder.decode(bytes(ids))
        places = [(self._held.find(stop), stop) for stop in self._request.stop]
        met = min((found for found in places if found[0] >= 0), default=None)
        if met is not None:
            text, self.stopped, self._held = self._held[: met[0]], met[1], ""
        else:
            kept = max((_overlap(self._held, stop) for stop in self._request.stop), default=0)
            text = self._held[: len(self._held) - kept]
            self._held = self._held[len(self._held) - kept :]
        return Piece(text, tuple(self._token(number) for number in ids))

    def rest(self) -> Piece:
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return Piece(text, ())

    def finish(self, reason: Any, started: float, end_ids: frozenset[int] | None) -> Finish:
        by = self.stopped if end_ids is None else min(end_ids)
        seconds = time.monotonic() - started
        prompt = len(self._request.prompt)
        return Finish(reason, prompt, self.count, self._script.cached_tokens, by, 0.0, seconds)

    def _token(self, number: int) -> Token:
        data = bytes([number])
        wanted = self._request.top_log_probs
        if wanted is None:
            return Token(number, data)
        others = [(number + step) % 256 for step in range(wanted)]
        top = tuple(
            Alternative(other, bytes([other]), self._script.log_prob - step)
            for step, other in enumerate(others)
        )
        return Token(number, data, self._script.log_prob, top)


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(frozen=True)
class Running:
    """A server that runs; `url` has no slash at its end."""

    url: str
    port: int
    engine: Engine
    app: Any
    server: Any


@contextlib.contextmanager
def running_server(engine: Engine, **settings: Any) -> Iterator[Running]:
    """A real server on a free port of the loopback, in a thread; `settings` are `make_app`'s."""
    from llamita.serving.app import make_app
    from llamita.serving.server import Server, listen

    settings.setdefault("model_name", "tiny")
    header_seconds = settings.pop("header_seconds", 10.0)
    max_connections = settings.pop("max_connections", 512)
    grace = settings.pop("grace", 5.0)
    app = make_app(engine, **settings)
    sock = listen("127.0.0.1", 0)
    server = Server(
        app, sock, grace=grace, header_seconds=header_seconds, max_connections=max_connections
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 10
        while not server.started:
            assert thread.is_alive(), "the server has ended"
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.005)
        port = int(sock.getsockname()[1])
        yield Running(f"http://127.0.0.1:{port}", port, engine, app, server)
    finally:
        server.stop_now()
        thread.join(10)
        engine.close()
        assert not thread.is_alive(), "the server does not end"
