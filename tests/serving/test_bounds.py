"""Clients that send too much, too slowly, or too many at once; other origins, hosts and keys."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from tests.serving.http_calls import (
    CHAT,
    MESSAGES,
    Reply,
    begin_chat,
    call,
    chat,
    raw,
    reply_on,
)
from tests.serving.serving_fakes import FakeEngine, Running, Script, running_server

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """Small bounds."""
    with running_server(
        FakeEngine(),
        header_seconds=0.4,
        body_seconds=0.4,
        max_connections=20,
        max_body=10_000,
        api_keys=["key"],
        allow_origins=["https://example.org"],
    ) as running:
        yield running


def _said(reply: Reply | None) -> tuple[int, str]:
    assert reply is not None
    return reply.status, reply.error["code"]


AUTHORISED = HEAD + "Authorization: Bearer key\r\n"


def test_headers_that_do_not_end(strict: Running) -> None:
    reply = raw(strict.port, b"GET /health HTTP/1.1\r\nHost: local")
    assert _said(reply) == (408, "request_timeout")


def test_a_connection_that_says_nothing(strict: Running) -> None:
    assert raw(strict.port, b"") is None


def test_half_headers_on_a_connection_that_was_used(strict: Running) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = reply_on(connection)
        assert first is not None
        assert first.status == 200
        connection.sendall(b"GET /hea")
        assert _said(reply_on(connection)) == (408, "request_timeout")


def test_headers_in_small_pieces_are_no_way_round(strict: Running) -> None:
    """The time is for all of them, not for each piece."""
    sent = b"GET /health HTTP/1.1\r\n" + b"X-Header: a\r\n" * 100

    def drip(connection: socket.socket) -> None:
        for byte in sent:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    began = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", strict.port), timeout=5) as connection,
        pytest.raises(OSError, match=r"reset|pipe"),
    ):
        drip(connection)
    assert time.monotonic() - began < 3


def test_body_that_does_not_come(strict: Running) -> None:
    reply = raw(strict.port, (AUTHORISED + "Content-Length: 100\r\n\r\n{").encode())
    assert _said(reply) == (408, "request_timeout")


def test_body_that_is_declared_too_large(strict: Running) -> None:
    """Refused before any of it has come."""
    reply = raw(strict.port, (AUTHORISED + "Content-Length: 10001\r\n\r\n").encode())
    assert _said(reply) == (413, "request_too_large")


def test_chunks_without_end(strict: Running) -> None:
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    head = (AUTHORISED + "Transfer-Encoding: chunked\r\n\r\n").encode()
    reply = raw(strict.port, head + 4 * chunk)
    assert _said(reply) == (413, "request_too_large")


def test_client_that_sends_before_it_reads_gets_its_413(strict: Running) -> None:
    body = b"x" * 2_000_000
    reply = raw(strict.port, (AUTHORISED + f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
    assert _said(reply) == (413, "request_too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000,
    ],
)
def test_malformed_requests(strict: Running, sent: bytes) -> None:
    reply = raw(strict.port, sent)
    assert _said(reply) == (400, "malformed_request")


def test_malformed_chunks(strict: Running) -> None:
    reply = raw(strict.port, (AUTHORISED + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode())
    assert _said(reply) == (400, "malformed_request")


def test_connections_are_bounded(strict: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", strict.port), timeout=5) for _ in range(20)]
    try:
        reply = raw(strict.port, b"")
        assert _said(reply) == (503, "too_many_connections")
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)
    assert call(strict.port, "/health").status == 200


def test_other_hosts(strict: Running) -> None:
    """What a page reaches by a name of its own that it points to the loopback."""
    key = {"Authorization": "Bearer key"}
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[::2]:80"):
        reply = call(strict.port, "/v1/models", headers={"Host": host, **key})
        assert (reply.status, reply.error["code"]) == (403, "unknown_host")
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:80"):
        assert call(strict.port, "/v1/models", headers={"Host": host, **key}).status == 200


def test_what_keys_protect(strict: Running) -> None:
    for path in ("/v1/models", "/v1/nothing", "/metrics"):
        reply = call(strict.port, path)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/", "/openapi.json"):
        assert call(strict.port, path).status == 200
    for given in ("Basic key", "key", "Bearer", "Bearer ké", "Bearer key x"):
        headers = {"Authorization": given}
        assert call(strict.port, "/v1/models", headers=headers).status == 401
    assert call(strict.port, "/metrics", headers={"Authorization": "bearer key"}).status == 200
    assert chat(strict.port).status == 401


def test_other_origins(strict: Running, served: Running) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    for origin, allowed in (("https://example.org", True), ("https://evil.example", False)):
        reply = call(strict.port, CHAT, method="OPTIONS", headers={"Origin": origin, **asks})
        assert (reply.headers.get("access-control-allow-origin") == origin) is allowed
        assert (reply.status == 200) is allowed
        refused = call(strict.port, "/v1/models", headers={"Origin": origin})
        assert (refused.headers.get("access-control-allow-origin") == origin) is allowed
    reply = call(served.port, CHAT, method="OPTIONS", headers={"Origin": "https://x.org", **asks})
    assert "access-control-allow-origin" not in reply.headers


def test_queue_is_bounded() -> None:
    engine = FakeEngine(Script(ends=False, delay=0.01), slots=2)
    with running_server(engine, max_waiting=1) as served:
        held = [begin_chat(served.port, stream=True) for _ in range(3)]
        _until(lambda: len(engine.requests) == 3)
        reply = chat(served.port)
        assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
        assert reply.error["type"] == "rate_limit_error"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert chat(served.port, n=4).status == 400
        # One leaves that waits, and its place is free at once.
        held.pop().close()
        _until(lambda: engine.finishes and engine.waiting() == (2, 0), engine)
        held.append(begin_chat(served.port, stream=True))
        _until(lambda: len(engine.requests) == 4)
        for connection in held:
            connection.close()
        engine.wait_idle()
        assert engine.most_at_once == 2
        # The engine is done a moment before the server has heard of it.
        _until(lambda: served.app.state.admission.count == 0)


def _until(happens, engine: FakeEngine | None = None) -> None:
    end = time.monotonic() + 5
    while not happens():
        assert time.monotonic() < end, engine and engine.waiting()
        time.sleep(0.005)


def test_retry_after_follows_how_long_answers_take() -> None:
    from llamita.serving.admission import Admission
    from llamita.serving.errors import ApiError

    admission = Admission(slots=2, max_waiting=4)
    for seconds in (8.0, 12.0):
        admission.enter(1)
        admission.leave(seconds)
    admission.enter(6)
    with pytest.raises(ApiError) as caught:
        admission.enter(1)
    # Mean 10 s, two slots: one ends every 5 s, and five must before there is a slot.
    assert caught.value.headers["Retry-After"] == "25"


def test_connection_is_kept_and_used_again(served: Running) -> None:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=5)
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True})
    connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
    sock = connection.sock
    assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is sock
    connection.close()
