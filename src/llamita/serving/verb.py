"""`serve`: a MODEL behind OpenAI's HTTP interface, until a signal."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.errors import UserError

if TYPE_CHECKING:
    import socket

    from llamita.inference.engine import Engine

KEYS_VARIABLE = "LLAMITA_API_KEYS"
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: str = "auto",
    quantize: str | None = None,
    slots: int = 4,
    context: int | None = None,
    max_waiting: int = 64,
    api_key_file: str | Path | None = None,
    allow_origin: Sequence[str] = (),
    grace: float = 30.0,
    name: str | None = None,
    template: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: Callable[[str], None] = print,
) -> None:
    """Serve a MODEL until a signal ends it.

    Args:
        model: a Hugging Face directory, a run, an adapter, a .gguf file, or a hub id.
        host, port: where to listen; port 0 takes a free one.
        engine, quantize, context, template, device, dtype: as of `llamita.load`.
        slots: answers that are written at a time.
        max_waiting: answers that may wait for a slot; beyond it clients are told to come again.
        api_key_file: a file of keys, one a line, any of which lets a client in; LLAMITA_API_KEYS
            in the environment, separated by commas, counts as well. None: everyone is let in.
        allow_origin: origins whose web pages may use the server, as https://example.org; "*" for
            all.
        grace: seconds that answers have to end after the first signal.
        name: what clients call the model; by default the last part of `model`.
        say: called with what is to be known, line by line.

    Raises:
        UserError: the extra `serve` is not installed, the port is in use, or the model cannot be
            run.
    """
    _check_installed()
    if slots < 1 or max_waiting < 0 or not 0 <= grace < float("inf"):
        raise UserError(
            f"--slots {slots}, --max-waiting {max_waiting}, --grace {grace}: give at least 1 slot, "
            "and numbers from 0 up"
        )
    keys = read_keys(api_key_file)
    _check_origins(allow_origin)
    from llamita.inference.engines import open_engine
    from llamita.serving.app import make_app
    from llamita.serving.server import Server, listen

    bound = listen(host, port)
    with bound:
        opened = open_engine(
            model,
            engine=engine,
            quantize=quantize,
            slots=slots,
            context=context,
            device=device,
            dtype=dtype,
            template=template,
            say=say,
        )
        try:
            local = is_loopback(bound)
            app = make_app(
                opened,
                model_name=name or name_of(model),
                api_keys=keys,
                max_waiting=max_waiting,
                allow_origins=allow_origin,
                hosts=_host_names(host) if local else None,
            )
            server = Server(app, bound, grace=grace)
            for line in banner(bound, host, opened, name or name_of(model), keys, grace):
                say(line)
            server.run()
        finally:
            opened.close()
    say("closed")


def name_of(model: str | Path) -> str:
    """The last part of a MODEL's name: of a path, or of a hub id."""
    path = Path(model).expanduser()
    if path.exists():
        path = path.resolve()
    return path.stem if path.suffix == ".gguf" else path.name


def read_keys(file: str | Path | None) -> list[str]:
    """Keys of a file and of the environment.

    Raises:
        UserError: a file that cannot be read or holds no key; a key that no header can carry.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        path = Path(file).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {file} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UserError(f"--api-key-file {file} holds no key; write one a line")
        keys += found
    keys = [key for key in dict.fromkeys(keys) if key]
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError("an API key has spaces or signs beyond ASCII: no header can carry it")
    return keys


def banner(
    bound: socket.socket, host: str, engine: Engine, name: str, keys: Sequence[str], grace: float
) -> list[str]:
    """What someone who starts a server should know."""
    port = bound.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    lines = [
        f"{name} at {url}  (a page to talk to it; OpenAI's interface at {url}/v1)",
        f"engine: {engine.about}",
        f"{engine.slots} answers at a time, each with {engine.context:,} tokens of context",
        f"{len(keys)} API key{'s' if len(keys) != 1 else ''}" if keys else "no API keys",
    ]
    if not keys and not is_loopback(bound):
        lines.append(
            f"WARNING: anyone who reaches {url} may use it; give keys with --api-key-file, or "
            "listen on 127.0.0.1"
        )
    lines.append(f"Ctrl-C lets answers end, for up to {grace:g} s; a second one cancels them")
    return lines


def is_loopback(bound: socket.socket) -> bool:
    address = str(bound.getsockname()[0])
    return address == "::1" or address.startswith("127.")


def _host_names(host: str) -> list[str]:
    names = dict.fromkeys((*_LOOPBACK, host))
    return [f"[{name}]" if ":" in name else name for name in names]


def _check_origins(origins: Sequence[str]) -> None:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"--allow-origin {origin}: give scheme, name and port as browsers do, for example "
                "https://example.org or http://localhost:3000, with nothing behind; or *"
            )


def _check_installed() -> None:
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"serving needs {module}: install the extra serve, for example "
                "pip install 'llamita[serve]'"
            ) from error
