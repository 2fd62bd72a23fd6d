"""Requests by hand, for what OpenAI's client would not send."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, RemoteDisconnected
from typing import Any, NamedTuple

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose shape is checked."""
        (error,) = self.json.values()
        assert list(self.json) == ["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        return dict(error)


def call(
    port: int,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """`body`: bytes as they are, anything else as JSON."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {} if data is None else {"Content-Type": "application/json"}
    try:
        verb = method or ("GET" if data is None else "POST")
        connection.request(verb, path, data, {**sent, **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, text)
    finally:
        connection.close()


def chat(port: int, **fields: Any) -> Reply:
    return call(port, CHAT, {"model": "tiny", "messages": MESSAGES, **fields})


def events(text: str) -> list[Any]:
    """Of a stream, without its [DONE], which must be there."""
    *data, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in data]


def raw(port: int, sent: bytes) -> Reply | None:
    """What comes back for these bytes; `None` if the connection is closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        return reply_on(connection)


def reply_on(connection: socket.socket) -> Reply | None:
    response = HTTPResponse(connection)
    try:
        response.begin()
    except RemoteDisconnected:
        return None
    found = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, found, response.read().decode())


def begin_chat(port: int, *, receive_buffer: int = 0, **fields: Any) -> socket.socket:
    """A connection on which a chat has been asked for."""
    body = json.dumps({"model": "tiny", "messages": MESSAGES, **fields}).encode()
    connection = socket.socket()
    connection.settimeout(10)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection
