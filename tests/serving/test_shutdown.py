"""The end in good order: by `stop` in a thread, and by a real signal to a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.serving.server import listen
from tests.serving.http_calls import begin_chat, call, chat, events, reply_on
from tests.serving.serving_fakes import FakeEngine, Running, Script, running_server

ROOT = Path(__file__).resolve().parents[2]
LONG = Script("x" * 60, delay=0.02)


def _running(engine: FakeEngine, count: int = 1) -> None:
    end = time.monotonic() + 5
    while engine.waiting()[0] < count:
        assert time.monotonic() < end
        time.sleep(0.005)


def _closing(served: Running) -> None:
    end = time.monotonic() + 5
    while not served.app.state.admission.closing:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_answers_end_and_new_ones_are_refused() -> None:
    engine = FakeEngine(LONG)
    with running_server(engine) as served:
        kept, idle = begin_chat(served.port, stream=True), begin_chat(served.port)
        _running(engine, 2)
        served.server.stop()
        _closing(served)
        reply = chat(served.port)
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
        assert int(reply.headers["retry-after"]) >= 1
        health = call(served.port, "/health")
        assert (health.status, health.json) == (503, {"status": "closing"})
        streamed = reply_on(kept)
        assert streamed is not None
        texts = [event["choices"][0]["delta"].get("content", "") for event in events(streamed.text)]
        assert "".join(texts) == "x" * 60
        whole = reply_on(idle)
        assert whole is not None
        assert whole.json["choices"][0]["message"]["content"] == "x" * 60
        _ended(served)
    assert [finish.reason for finish in engine.finishes] == ["stop", "stop"]


def _ended(served: Running) -> None:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", served.port), timeout=1).close()
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail("the server still listens")


@pytest.mark.parametrize(("grace", "stops"), [(0.1, 1), (60.0, 2)])
def test_answers_are_cancelled_after_the_grace_or_at_once(grace: float, stops: int) -> None:
    engine = FakeEngine(Script(ends=False, delay=0.01), slots=1)
    with running_server(engine, grace=grace) as served:
        streamed, whole = begin_chat(served.port, stream=True), begin_chat(served.port)
        _running(engine)
        assert streamed.recv(1)
        began = time.monotonic()
        for _ in range(stops):
            served.server.stop()
        reply = reply_on(whole)
        assert reply is not None
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
        text = b""
        while part := streamed.recv(1 << 16):
            text += part
        *_, last = text.decode().strip().removesuffix("\r\n0").strip().split("data: ")
        assert json.loads(last)["error"]["code"] == "shutting_down"
        assert time.monotonic() - began < 5
        _ended(served)
    assert {finish.reason for finish in engine.finishes} == {"cancelled"}


PROCESS = """
import sys
from llamita import cli
from llamita.inference import engines
from tests.serving.serving_fakes import FakeEngine, Script
engines.open_engine = lambda *given, **settings: FakeEngine(Script("x" * 40, delay=0.02))
sys.argv = ["llamita", "serve", "some/tiny-model", "--port", "0", "--grace", "10"]
cli.main()
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signals(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        assert "tiny-model at http://127.0.0.1:" in lines[0], process.communicate(timeout=5)
        port = int(lines[0].partition("127.0.0.1:")[2].split()[0])
        assert lines[1] == "engine: a script, for tests\n"
        assert lines[2] == "4 answers at a time, each with 4,096 tokens of context\n"
        assert lines[3] == "no API keys\n"
        end = time.monotonic() + 20
        while call(port, "/health").status != 200:
            assert time.monotonic() < end
        body = {"model": "tiny-model", "prompt": "a", "max_tokens": 40}
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            data = json.dumps(body).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
            while "llamita_running 1.0" not in call(port, "/metrics").text:
                assert time.monotonic() < end
            process.send_signal(number)
            reply = reply_on(connection)
        assert reply is not None
        assert reply.json["choices"][0]["text"] == "x" * 40
        out, errors = process.communicate(timeout=10)
        assert (process.returncode, out, errors) == (0, "closed\n", "")
    finally:
        process.kill()
        process.communicate()


def test_port_in_use() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: something listens there"):
            listen("127.0.0.1", port)


def test_addresses_that_are_not_here() -> None:
    with pytest.raises(UserError, match="--host"):
        listen("192.0.2.1", 0)
    with pytest.raises(UserError, match="no such address"):
        listen("no.such.host.invalid", 0)
