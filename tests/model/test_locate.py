"""From a MODEL's name to its directory: directories, runs, and a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model, save_model
from llamita.model.initialization import initialize
from llamita.model.locate import checkpoints, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def _checkpoint(directory: Path, *, whole: bool = True) -> Path:
    _model(directory)
    (directory / "training").mkdir()
    if whole:
        (directory / "training" / "complete.json").write_text("{}")
    return directory


def test_a_model_directory(tmp_path: Path) -> None:
    model = _model(tmp_path / "model")
    assert locate(model) == locate(str(model)) == model


def test_the_newest_checkpoint_by_number(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "step-900")
    newest = _checkpoint(tmp_path / "step-1000")
    _checkpoint(tmp_path / "step-2000", whole=False)
    _checkpoint(tmp_path / "step-3000.tmp")
    (tmp_path / "step-4000").mkdir()
    assert locate(tmp_path) == newest
    assert [path.name for path in checkpoints(tmp_path)] == ["step-900", "step-1000"]


def test_latest_is_followed_while_it_is_whole(tmp_path: Path) -> None:
    older = _checkpoint(tmp_path / "step-100")
    newer = _checkpoint(tmp_path / "step-200")
    (tmp_path / "latest").write_text("step-100\n")
    assert locate(tmp_path) == older
    (tmp_path / "latest").write_text("step-300\n")
    assert locate(tmp_path) == newer


def test_final_comes_first(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "step-100")
    (tmp_path / "latest").write_text("step-100")
    assert locate(tmp_path) == tmp_path / "step-100"
    assert locate(_model(tmp_path / "final").parent) == tmp_path / "final"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a model .* nor a run"):
        locate(tmp_path)
    _model(tmp_path / "tiny-model")
    with pytest.raises(UserError, match="Did you mean 'tiny-model'"):
        locate(tmp_path / "tiny-modle")
    with pytest.raises(UserError, match="is a file"):
        locate(tmp_path / "tiny-model" / "config.json")
    (tmp_path / "tiny-model" / "tiny.gguf").write_bytes(b"GGUF")
    # Not a hub id, though it could be one.
    with pytest.raises(UserError, match=r"there is no file .*tiny.ggfu?.gguf"):
        locate("tiny-model/tiny.ggf.gguf")


def _adapter(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (directory / name).write_text("{}")
    return directory


def test_adapters_are_models(tmp_path: Path) -> None:
    assert locate(_adapter(tmp_path / "adapter")) == tmp_path / "adapter"
    older = _adapter(tmp_path / "run" / "step-10")
    assert locate(tmp_path / "run") == older
    final = _adapter(tmp_path / "run" / "final")
    assert locate(tmp_path / "run") == final
    (final / "adapter_model.safetensors").unlink()
    assert locate(tmp_path / "run") == older


def test_a_gguf_by_name_or_by_its_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def import_once(path: Path) -> Path:
        asked.append(path)
        return tmp_path

    monkeypatch.setattr("llamita.formats.gguf_cache.cached", import_once)
    (tmp_path / "a.gguf").write_bytes(b"whatever")
    (tmp_path / "b").write_bytes(b"GGUF....")
    assert locate(tmp_path / "a.gguf") == locate(str(tmp_path / "b")) == tmp_path
    assert asked == [tmp_path / "a.gguf", tmp_path / "b"]


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub asks for: a model's files, and their contents."""

    directory: Path

    def _serve(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        names = sorted(entry.name for entry in self.directory.iterdir())
        if path.startswith("/api/models/org/tiny/revision"):
            siblings = [{"rfilename": name} for name in names]
            info = {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings}
            self._serve(200, json.dumps(info).encode(), Content_Type="application/json")
        elif path.startswith("/api/models/org/tiny/tree"):
            tree = [
                {"type": "file", "path": name, "oid": "0" * 40,
                 "size": (self.directory / name).stat().st_size}
                for name in names
            ]  # fmt: skip
            self._serve(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            body = (self.directory / path.rsplit("/", 1)[1]).read_bytes()
            tag = hashlib.sha256(body).hexdigest()
            self._serve(200, body, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
        else:
            self._serve(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    config = ModelConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = Decoder(config)
    initialize(model, "llama")
    save_model(tmp_path / "served", model)
    (tmp_path / "served" / "modeling_evil.py").write_text("raise SystemExit('executed')")
    handler = type("Handler", (_Hub,), {"directory": tmp_path / "served"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _fetch(endpoint: str, name: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = (
        "import sys\nfrom llamita.errors import UserError\n"
        "from llamita.model.locate import locate\n"
        "try: print(locate(sys.argv[1]))\n"
        "except UserError as error: sys.exit(f'UserError: {error}')"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **more}
    environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_hub_id(hub: str, tmp_path: Path) -> None:
    fetched = _fetch(hub, "org/tiny", tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    directory = Path(fetched.stdout.strip())
    assert (directory / "model.safetensors").is_file()
    assert not list(directory.glob("*.py"))
    state = load_model(directory).state_dict()
    served = load_model(tmp_path / "served").state_dict()
    assert all(torch.equal(state[name], served[name]) for name in served)
    # What was fetched is found again without the network.
    offline = _fetch(hub, "org/tiny", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout.strip() == str(directory), offline.stderr


def test_a_hub_id_that_does_not_exist(hub: str, tmp_path: Path) -> None:
    fetched = _fetch(hub, "org/absent", tmp_path / "home")
    assert "UserError" in fetched.stderr
    assert "does not exist" in fetched.stderr


@pytest.mark.parametrize("offline", ["0", "1"])
def test_offline(tmp_path: Path, offline: str) -> None:
    # Port 9 (discard) of loopback: nothing listens there.
    fetched = _fetch("http://127.0.0.1:9", "org/tiny", tmp_path, HF_HUB_OFFLINE=offline)
    assert fetched.stderr.startswith("UserError"), fetched.stderr
    assert "cannot be reached" in fetched.stderr
