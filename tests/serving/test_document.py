"""The OpenAPI document is true: what it describes is taken, and answered as it says."""

from __future__ import annotations

import re

import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from schemathesis.config import SchemathesisConfig

from llamita.serving.app import make_app
from tests.serving.http_calls import call
from tests.serving.serving_fakes import FakeEngine, Running, Script

_APP = make_app(FakeEngine(Script("ok"), slots=8), model_name="tiny", hosts=None)
# Fields that contradict each other, and what depends on the model or the server.
_BEYOND_A_SCHEMA = (
    "max_tokens: (it says another number|0 is for echo)|top_logprobs: it needs|stream_options: it "
    "needs|best_of: choosing|there is no token|it has no tokens|asks for .* answers|cannot score|"
    "max_tokens 0 writes nothing"
)
_CONFIG = SchemathesisConfig()
_CONFIG.projects.default.generation.modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
_SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", _APP, config=_CONFIG)


@_SCHEMA.exclude(path="/metrics").parametrize()
@seed(20)
@settings(
    max_examples=15,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_requests_made_up_from_the_document(case: schemathesis.Case) -> None:
    """Right ones and wrong ones: never a defect, never a status, type or shape that is not
    declared, nothing wrong is taken, and nothing right is refused but for what no schema says."""
    response = case.call_and_validate(excluded_checks=[positive_data_acceptance])
    right = case.meta is not None and case.meta.generation.mode.is_positive
    if right and response.status_code == 400:
        message = response.json()["error"]["message"]
        assert re.search(_BEYOND_A_SCHEMA, message), message


def test_the_document(served: Running) -> None:
    reply = call(served.port, "/openapi.json")
    assert reply.status == 200
    document = reply.json
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/health",
        "/metrics",
    }
    # FastAPI's own errors are never sent, and without keys there is no 401.
    assert "422" not in reply.text
    assert "HTTPValidationError" not in reply.text
    assert '"401"' not in reply.text
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"application/json", "text/event-stream"} <= set(answers["200"]["content"])
    for status in ("400", "404", "413", "415", "429", "503"):
        shape = answers[status]["content"]["application/json"]["schema"]["$ref"]
        assert shape == "#/components/schemas/ErrorBody"


def test_the_document_asks_for_keys_where_the_server_does() -> None:
    document = make_app(FakeEngine(), model_name="tiny", api_keys=["key"]).openapi()
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
    assert "security" not in document["paths"]["/health"]["get"]
