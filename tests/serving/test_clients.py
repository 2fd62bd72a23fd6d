"""Clients that leave, that do not read, that are many."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tests.serving.http_calls import CHAT, begin_chat, call, events
from tests.serving.serving_fakes import FakeEngine, Running, Script, running_server

ENDLESS = Script(ends=False, delay=0.005)


def _until(happens) -> None:
    end = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def endless():
    with running_server(FakeEngine(ENDLESS, slots=1, context=10**6), max_waiting=8) as running:
        yield running


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_its_slot(endless: Running, stream: bool) -> None:
    engine = endless.engine
    connection = begin_chat(endless.port, stream=stream, n=2)
    _until(lambda: engine.waiting() == (1, 1))
    if stream:
        assert b"200 OK" in connection.recv(100)
    before, ended = _gone(endless), len(engine.finishes)
    connection.close()
    engine.wait_idle()
    assert [finish.reason for finish in engine.finishes[ended:]] == ["cancelled"] * 2
    _until(lambda: endless.app.state.admission.count == 0)
    assert _gone(endless) == before + 1


def _gone(running: Running) -> float:
    text = call(running.port, "/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("llamita_client_dis"))
    return float(line.split()[1])


def test_client_that_does_not_read_is_given_up() -> None:
    """A million tokens are written; what waits for it stays bounded."""
    script = Script(text="x" * 64, ends=False, burst=64)
    engine = FakeEngine(script, slots=1, context=10**7)
    with running_server(engine) as served:
        # A small buffer and large events, so that few of them fit between the two.
        large = {"logprobs": True, "top_logprobs": 20}
        connection = begin_chat(served.port, stream=True, receive_buffer=4096, **large)
        _until(lambda: engine.finishes)
        assert engine.finishes[0].reason == "cancelled"
        assert engine.finishes[0].completion_tokens < 10**6
        # When it reads on, it is told.
        said = b""
        while part := connection.recv(1 << 16):
            said = said[-1000:] + part
            if b'"code": "client_too_slow"' in said:
                break
        assert b"client_too_slow" in said
        connection.close()


def test_curl_sees_a_stream() -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    with running_server(FakeEngine(Script("abc", delay=0.3))) as served:
        body = '{"model": "tiny", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
        command = [curl, "-sN", f"{served.url}{CHAT}", "-H", "Content-Type: application/json"]
        with subprocess.Popen([*command, "-d", body], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            times, lines = [], []
            for line in process.stdout:
                times.append(time.monotonic())
                lines.append(line.decode())
        text = "".join(lines)
        choices = [event["choices"][0] for event in events(text)]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "abc"
        # It came as it was written, and not at the end.
        assert times[-1] - times[0] > 0.4


def test_many_clients_at_once() -> None:
    """Each gets the whole of its own answer."""

    def script(request) -> Script:
        return Script(bytes(request.prompt).decode() * 3, delay=0.001)

    engine = FakeEngine(script, slots=8)
    with running_server(engine, max_waiting=64) as served:

        def ask(number: int) -> bool:
            asked = {"model": "tiny", "prompt": f"<{number}>", "stream": number % 2 == 0}
            reply = call(served.port, "/v1/completions", asked)
            parts = events(reply.text) if asked["stream"] else [reply.json]
            text = "".join(choice["text"] for part in parts for choice in part["choices"])
            return reply.status == 200 and text == (f"<{number}>" * 3)[:16]

        with ThreadPoolExecutor(64) as pool:
            assert all(pool.map(ask, range(64)))
        engine.wait_idle()
        assert engine.most_at_once == 8
        _until(lambda: served.app.state.admission.count == 0)


def test_a_long_prompt_does_not_hold_up_others(
    endless: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read beside the event loop: others are answered meanwhile."""
    tokenizer = endless.engine.tokenizer
    encode, reading, answered = tokenizer.encode_prompt, Event(), Event()

    def read_slowly(text: str) -> list[int]:
        reading.set()
        assert answered.wait(30), "nobody was answered while a prompt was read"
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode_prompt", read_slowly)
    with ThreadPoolExecutor(1) as pool:
        long = {"model": "tiny", "prompt": "a" * 1000, "logit_bias": {"300": 1}}
        asked = pool.submit(call, endless.port, "/v1/completions", long)
        assert reading.wait(30)
        assert call(endless.port, "/health").status == 200
        answered.set()
        assert asked.result().error["param"] == "logit_bias"
