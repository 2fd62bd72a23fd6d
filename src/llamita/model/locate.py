"""From what a user calls a MODEL to a Hugging Face directory, or an adapter's."""

from __future__ import annotations

import re
from pathlib import Path

from llamita.errors import UserError, did_you_mean
from llamita.model.adapter_directory import is_adapter
from llamita.model.records import COMPLETE

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Never code: what a checkpoint brings along as *.py is not fetched, let alone run.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja"]


def _is_model(directory: Path) -> bool:
    if is_adapter(directory):
        return True
    present = (directory / "config.json").is_file()
    return present and any((directory / name).is_file() for name in _WEIGHTS)


def _step(directory: Path) -> int | None:
    match = re.fullmatch(r"step-(\d+)", directory.name)
    return int(match[1]) if match and directory.is_dir() else None


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run directory, oldest first, by number and not by name.

    A checkpoint is whole when its last-written marker exists, or when it is a plain Hugging Face
    directory without a `training/`; temporary directories never count.
    """
    steps = [(step, path) for path in run.glob("step-*") if (step := _step(path)) is not None]
    whole = [
        (step, path)
        for step, path in steps
        if _is_model(path) and ((path / COMPLETE).is_file() or not (path / "training").exists())
    ]
    return [path for _, path in sorted(whole)]


def _in_run(run: Path) -> Path | None:
    """`final/` if the run has ended, else what `latest` names, else the newest whole step."""
    if _is_model(run / "final"):
        return run / "final"
    whole = checkpoints(run)
    pointer = run / "latest"
    if pointer.is_file():
        named = run / pointer.read_text(encoding="utf-8").strip()
        if named in whole:
            return named
    return whole[-1] if whole else None


def _from_hub(name: str, endpoint: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"{name!r} is no directory here; to fetch it as a hub id, "
            "install the extra: pip install 'llamita[hub]'"
        ) from None
    try:
        found = snapshot_download(name, allow_patterns=_HUB_PATTERNS, endpoint=endpoint)
    except (LocalEntryNotFoundError, ConnectionError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            raise UserError(
                f"the hub does not give out {name!r} (HTTP {status}): it does not exist, or needs "
                "a login (`hf auth login`) and the acceptance of its terms"
            ) from None
        raise UserError(
            f"{name!r} is no directory here, and the hub cannot be reached to fetch it "
            f"({type(error).__name__}). Check the spelling of the path, or go online once: what "
            "has been fetched is found offline later."
        ) from None
    except HFValidationError as error:
        raise UserError(f"{name!r} is neither a directory nor a hub id: {error}") from None
    return Path(found)


def _near(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, siblings)


def _is_gguf(path: Path) -> bool:
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def locate(model: str | Path, *, endpoint: str | None = None) -> Path:
    """The Hugging Face directory, or adapter directory, that `model` means.

    Args:
        model: a Hugging Face directory; an adapter directory; a run directory, whose `final/` or
            newest whole checkpoint is taken; a .gguf file (extra `gguf`), which is imported once
            into a cache; or a hub id such as `HuggingFaceTB/SmolLM2-135M` (extra `hub`).
        endpoint: the hub's address, where it is not the usual one (or `HF_ENDPOINT`).

    Raises:
        UserError: nothing of the kind is there; the message says what was looked for.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if _is_model(path):
            return path
        inside = _in_run(path)
        if inside is not None:
            return inside
        raise UserError(
            f"{path} is neither a model (config.json and model.safetensors or pytorch_model.bin) "
            "nor an adapter (adapter_config.json and adapter_model.safetensors) "
            "nor a run with a whole checkpoint (final/ or step-N/)"
        )
    if path.is_file() and _is_gguf(path):
        # The one arrow that points upwards, and only when a GGUF file is named: whoever has a
        # MODEL asks here, and a file becomes a directory by `formats`, which knows `model`.
        from llamita.formats.gguf_cache import cached

        return cached(path)
    if path.is_file():
        raise UserError(f"{path} is a file; a MODEL is the directory that holds it, or a .gguf")
    if path.suffix.lower() == ".gguf":
        raise UserError(f"there is no file {path}.{_near(path)}")
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return _from_hub(model, endpoint)
    raise UserError(
        f"there is no directory {path}.{_near(path)} A MODEL is a Hugging Face directory, a run or "
        "adapter directory, a .gguf file, or a hub id (organisation/name)."
    )
