"""The server object of `xllamacpp`, set up so that nobody else can use it and it keeps quiet.

It opens an HTTP port, whether or not anybody asks for it. Here that is a socket in a directory of
this user's, removed as soon as the server stands, so that no one can connect any more; and it wants
a key that is known to nobody.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError

if TYPE_CHECKING:
    import xllamacpp

# Tokens of a prompt that are computed at once: a prompt can be cancelled, and other requests get
# their next token, in between.
_BATCH = 256
# Keys and values of conversations that are not going on now, beside those in the slots.
_CACHE_MIB = 512
# llama.cpp rounds a context up to a multiple of it.
_CONTEXT_STEP = 256
_SILENT, _ERRORS = 0, 1
_LAST_WORDS, _PATIENCE = "exiting due to", 1.0  # seconds
_MOST_TOKENS = 2**31 - 1


def import_xllamacpp() -> Any:
    """The module.

    Raises:
        UserError: it is not installed, or cannot be loaded here.
    """
    try:
        import xllamacpp
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if missing else f"cannot be loaded ({error})"
        raise UserError(
            f"the engine llama.cpp needs xllamacpp, which {reason}: pip install 'llamita[cpu]'"
        ) from None
    return xllamacpp


def open_server(path: str, name: str, slots: int, context: int, threads: int) -> xllamacpp.Server:
    """Load a GGUF.

    Args:
        path: where it lies; name: what messages call it.
        context: tokens that each of the `slots` has.

    Raises:
        UserError: llama.cpp cannot load it; with what it says.
    """
    module = import_xllamacpp()
    if slots * (context + _CONTEXT_STEP) > _MOST_TOKENS:
        raise UserError(f"{slots} × {context:,} tokens of context are more than llama.cpp counts")
    with tempfile.TemporaryDirectory(prefix="llamita-") as folder:
        socket = Path(folder) / "llama.sock"  # llama.cpp knows a socket by this ending
        params = _params(module, path, slots, context, threads)
        params.hostnames = [str(socket)]
        try:
            return started(module, params)
        except RuntimeError:
            socket.unlink(missing_ok=True)
            params.verbosity = _ERRORS
            said = _errors(module, params)
        raise UserError(f"llama.cpp cannot load {name} with {slots} × {context:,} tokens: {said}")


def started(module: Any, params: Any) -> xllamacpp.Server:
    """A server whose loop runs.

    One that is ended earlier waits for ever, and all of Python with it: the loop's start takes back
    what was said to end it. What it answers shows that it has started.

    Raises:
        RuntimeError: it cannot load the file.
    """
    params.endpoint_metrics = True
    server = module.Server(params)
    server.handle_metrics()
    return server


def _params(module: Any, path: str, slots: int, context: int, threads: int) -> Any:
    params = module.CommonParams()
    params.model.path = path
    params.n_parallel = slots
    # Shared out evenly, since caches are not unified: each slot has a multiple of 256.
    params.n_ctx = slots * (-(-context // _CONTEXT_STEP) * _CONTEXT_STEP)
    params.kv_unified = False
    params.ctx_shift = False
    params.n_batch = params.n_ubatch = _BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    params.fit_params = False  # it would choose another context where memory is short
    params.cache_ram_mib = _CACHE_MIB
    params.warmup = True
    params.verbosity = _SILENT
    # Ours are used; that of the file need not even be readable.
    params.chat_template = "chatml"
    params.api_keys = [secrets.token_hex(32)]
    params.n_threads_http = 1
    params.ui = params.endpoint_slots = params.endpoint_props = False
    return params


def _errors(module: Any, params: Any) -> str:
    """What llama.cpp says of the first error when it tries once more. It says so on the standard
    error stream alone, which goes into a file meanwhile."""
    sys.stderr.flush()
    stream = os.dup(2)
    text = ""
    try:
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            try:
                started(module, params)
            except RuntimeError:
                # A thread of llama.cpp's writes it, somewhat later.
                patience = time.monotonic() + _PATIENCE
                while _LAST_WORDS not in text and time.monotonic() < patience:
                    time.sleep(0.01)
                    said.seek(0)
                    text = said.read().decode("utf-8", "replace")
            finally:
                os.dup2(stream, 2)
    finally:
        os.close(stream)
    lines = (line.partition(" E ")[2].strip() for line in text.splitlines())
    return next((line for line in lines if line), "it gives no reason")
