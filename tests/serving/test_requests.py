"""What is refused, with which status, and that the message names the field."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.serving.http_calls import CHAT, MESSAGES, call, chat
from tests.serving.serving_fakes import Running

COMPLETIONS = "/v1/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
SAID = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param", "code", "said"),
    [
        ({"messages": None}, "messages", "invalid_value", "must be a list"),
        ({"messages": []}, "messages", "invalid_value", "empty"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_value", "must be an object"),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "missing_required_parameter",
            "missing",
        ),
        (
            {"messages": [SAID, {"role": "tool", "content": "x"}]},
            "messages[1].role",
            "invalid_value",
            "'system', 'developer', 'user' or 'assistant'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
            "messages[0].content[1].type",
            "unsupported_content",
            "cannot read an image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
            "unsupported_content",
            "cannot read audio",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": {}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
            "'text'",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "invalid_value", "Uni"),
        ({"temprature": 1}, "temprature", "unknown_parameter", "Did you mean 'temperature'?"),
        ({"temperature": "1"}, "temperature", "invalid_value", "number (it is '1')"),
        ({"temperature": True}, "temperature", "invalid_value", "number"),
        ({"temperature": float("nan")}, "temperature", "invalid_value", "finite"),
        ({"temperature": float("inf")}, "temperature", "invalid_value", "finite"),
        ({"temperature": -0.1}, "temperature", "invalid_value", "greater"),
        ({"top_p": 0}, "top_p", "invalid_value", "greater than 0"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value", "1 (it is -1)"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "1 (it is 0)"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value", "integer"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "invalid_value", "give one"),
        ({"n": 0}, "n", "invalid_value", "1"),
        ({"n": 128}, "n", "invalid_value", "takes 68"),
        ({"stop": ""}, "stop", "invalid_value", "empty"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value", "empty"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "at most 16"),
        ({"seed": 2**70}, "seed", "invalid_value", "less than"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "invalid_value", "pattern"),
        ({"logit_bias": {"259": 1}}, "logit_bias", "invalid_value", "no token 259"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value", "100"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "20"),
        ({"stream_options": {}}, "stream_options", "invalid_value", "stream: true"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter", "not supported"),
        ({"audio": {"voice": "alloy"}}, "audio", "unsupported_parameter", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "invalid_value", ""),
    ],
)
def test_refused_chats(
    served: Running, fields: dict[str, Any], param: str, code: str, said: str
) -> None:
    reply = chat(served.port, **fields)
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, code)
    assert reply.error["type"] == "invalid_request_error"
    assert said in reply.error["message"]
    assert param in reply.error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt[0]", "empty"),
        ({"prompt": ["a", 1]}, "prompt[1]", "string"),
        ({"prompt": [1, 259]}, "prompt", "no token 259"),
        ({"prompt": [-1]}, "prompt[0]", "0"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of", "leave it out"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "messages": MESSAGES}, "messages", "no field"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "integer"),
    ],
)
def test_refused_completions(
    served: Running, fields: dict[str, Any], param: str, said: str
) -> None:
    reply = call(served.port, COMPLETIONS, {"model": "tiny", **fields})
    assert reply.status == 400
    assert reply.error["param"] == param
    assert said in reply.error["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body is missing"),
        (b"[]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b'{"model":', "no JSON: Expecting value at character 9"),
        (b'{"model": "\xff"}', "no UTF-8 at byte 11"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bodies_that_are_no_request(served: Running, body: bytes, said: str) -> None:
    reply = call(served.port, CHAT, body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert said in reply.error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {f"a{number}": 1 for number in range(60_000)},
        {"logit_bias": {f"a{number}": 1 for number in range(60_000)}},
        {"messages": [{**SAID, **{f"a{number}": 1 for number in range(60_000)}}]},
        {"stop": [1] * 300_000},
    ],
)
def test_a_body_full_of_faults_is_refused_at_the_first(
    served: Running, fields: dict[str, Any]
) -> None:
    body = json.dumps({"model": "tiny", "messages": MESSAGES, **fields}).encode()
    assert len(body) < 1 << 20
    began = time.thread_time()
    reply = call(served.port, CHAT, body)
    assert reply.status == 400
    assert len(reply.text) < 1000
    assert time.thread_time() - began < 1


def test_other_paths_and_methods(served: Running) -> None:
    reply = call(served.port, "/v1/embeddings", {})
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")
    assert call(served.port, "/v1/models/").status == 404
    reply = call(served.port, CHAT)
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    assert call(served.port, "/docs").status == 404
    assert call(served.port, "/assets/../app.py").status == 404
    assert call(served.port, "/assets/%2e%2e%2fapp.py").status == 404


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_bodies_must_be_declared_as_json(served: Running, kind: str) -> None:
    """So that a page of another origin cannot send one without asking first (CORS's preflight)."""
    body = json.dumps({"model": "tiny", "messages": MESSAGES}).encode()
    reply = call(served.port, CHAT, body, headers={"Content-Type": kind})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


def test_a_charset_may_be_named(served: Running) -> None:
    body = json.dumps({"model": "tiny", "messages": MESSAGES}).encode()
    kind = 'application/json; charset="UTF-8"'
    assert call(served.port, CHAT, body, headers={"Content-Type": kind}).status == 200


def test_health_metrics_and_headers(served: Running) -> None:
    assert call(served.port, "/health").json == {"status": "ok"}
    before = _counts(call(served.port, "/metrics").text)
    assert chat(served.port, n=2).status == 200
    assert chat(served.port, n=0).status == 400
    after = _counts(call(served.port, "/metrics").text)
    added = {name: after[name] - before.get(name, 0) for name in after}
    ok = 'llamita_requests_total{endpoint="/v1/chat/completions",status="200"}'
    assert added[ok] == 1
    assert added[ok.replace("200", "400")] == 1
    assert added["llamita_completion_tokens_total"] == 2 * 14
    assert added["llamita_time_to_first_token_seconds_count"] == 2
    assert added["llamita_time_between_tokens_seconds_count"] == 2 * 13
    assert added['llamita_request_seconds_count{endpoint="/v1/chat/completions"}'] == 2
    assert (after["llamita_running"], after["llamita_slots"]) == (0, 4)
    for path in ("/health", "/", "/nothing"):
        headers = call(served.port, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert "server" not in headers


def _counts(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}
