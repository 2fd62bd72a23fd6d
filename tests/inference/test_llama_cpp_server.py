"""xllamacpp's server object, as we set it up."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from llamita.inference.llama_cpp_server import _params, started
from tests.formats.gguf_models import random_decoder, written

xllamacpp = pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model") / "model.gguf", random_decoder(seed=3))


def test_one_that_is_ended_at_once_ends(gguf: Path) -> None:
    """Many times over, and several at a time: where its loop may run late."""
    code = f"""
from llamita.inference.llama_cpp_server import open_server
for _ in range(40):
    open_server({str(gguf)!r}, "model.gguf", 1, 64, 1)
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    try:
        assert [each.wait(60) for each in running] == [0] * len(running)
    finally:
        for each in running:
            each.kill()
            each.wait()


def test_without_the_key_llama_cpps_server_does_nothing(gguf: Path) -> None:
    """As if the socket could be reached: the same settings on a port."""
    params = _params(xllamacpp, str(gguf), 1, 64, 1)
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = started(xllamacpp, params)
    paths = (
        "completion completions v1/completions chat/completions v1/chat/completions v1/responses "
        "v1/messages infill embedding embeddings v1/embeddings rerank tokenize detokenize "
        "apply-template lora-adapters props slots/0?action=erase"
    )
    found = {}
    for path in paths.split():
        asking = urllib.request.Request(
            f"{server.listening_address}/{path}", b'{"prompt": "a", "n_predict": 1}'
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asking, timeout=20)
        found[path] = refused.value.code
    assert set(found.values()) == {401}, found
