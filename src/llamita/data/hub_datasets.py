"""`hf:NAME[/CONFIG][@REVISION][:SPLIT]`: a dataset of the hub, or of a folder here, by its name."""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamita.data.dataset_sources import (
    INFO,
    SPLITS,
    STATE,
    SourceDataset,
    offline,
    source_dataset,
)
from llamita.errors import UserError

_PREFIX, _STREAM_PREFIX = "hf:", "hf+stream:"
_SPEC = re.compile(r"(?P<name>[^:@]+)(?:@(?P<revision>[^:@]+))?(?::(?P<split>.+))?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){0,2}")
# A name server that does not answer, or a firewall that drops packets, would hold up for minutes.
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Spec:
    given: str
    name: str
    revision: str | None
    split: str | None
    streaming: bool


def is_hub_name(source: str) -> bool:
    """Does it begin with hf: or hf+stream:?"""
    return source.startswith((_PREFIX, _STREAM_PREFIX))


def load_hub_dataset(given: str, source: int) -> SourceDataset:
    """Load what `hf:…` or `hf+stream:…` names.

    Raises:
        UserError: the name is malformed, `datasets` is not installed, there is no such dataset,
            configuration or split, several splits and none named, or the hub cannot be reached.
    """
    spec = _parse(given)
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{given} needs the package datasets: pip install 'llamita[datasets]'."
        ) from None
    local = Path(spec.name).expanduser()
    if local.exists():
        loaded = _load_local(datasets, spec, local)
    elif spec.name.startswith((".", "/", "~")):
        raise UserError(f"{given}: there is no folder {local}.")
    else:
        loaded = _load_named(datasets, spec)
    return source_dataset(loaded, source, given=_shown(spec, local), revision=spec.revision)


def _parse(given: str) -> _Spec:
    streaming = given.startswith(_STREAM_PREFIX)
    found = _SPEC.fullmatch(given.removeprefix(_STREAM_PREFIX if streaming else _PREFIX))
    if found is None:
        raise UserError(
            f"{given!r} names no dataset; write hf:NAME, hf:NAME/CONFIG:SPLIT or "
            "hf+stream:NAME@REVISION:SPLIT."
        )
    return _Spec(given, found["name"], found["revision"], found["split"], streaming)


def _shown(spec: _Spec, local: Path) -> str:
    """The name without the path to a folder here."""
    if not local.exists():
        return spec.given
    prefix = _STREAM_PREFIX if spec.streaming else _PREFIX
    return f"{prefix}{local.resolve().name}" + (f":{spec.split}" if spec.split else "")


def _load_local(datasets: Any, spec: _Spec, local: Path) -> Any:
    if (local / SPLITS).is_file() or ((local / STATE).is_file() and (local / INFO).is_file()):
        if spec.streaming:
            raise UserError(
                f"{spec.given}: a saved dataset is not streamed; name the folder itself."
            )
        loaded = _tried(spec, lambda: datasets.load_from_disk(str(local)))
        if spec.split is None:
            return loaded
        if not isinstance(loaded, dict) or spec.split not in loaded:
            splits = ", ".join(loaded) if isinstance(loaded, dict) else "one dataset, no splits"
            raise UserError(f"{spec.given}: there is no split {spec.split!r}; it has {splits}.")
        return loaded[spec.split]
    return _load(datasets, spec, str(local), None)


def _load_named(datasets: Any, spec: _Spec) -> Any:
    if not _HUB_NAME.fullmatch(spec.name):
        raise UserError(
            f"{spec.given!r} names no dataset: {spec.name!r} is neither a folder here nor a name "
            "on the hub (organisation/name)."
        )
    if not offline():
        _check_reachable(spec)
    parts = spec.name.split("/")
    if len(parts) != 2:
        config = parts[2] if len(parts) == 3 else None
        return _load(datasets, spec, "/".join(parts[:2]), config)
    # organisation/name, or an old name without organisation and its configuration
    try:
        return _load(datasets, spec, spec.name, None)
    except _NotFoundError as error:
        try:
            return _load(datasets, spec, parts[0], parts[1])
        except _NotFoundError:
            raise error from None


class _NotFoundError(UserError):
    pass


def _load(datasets: Any, spec: _Spec, name: str, config: str | None) -> Any:
    def load() -> Any:
        split = spec.split or _only_split_name(datasets, spec, name, config)
        return datasets.load_dataset(
            name, config, split=split, revision=spec.revision, streaming=spec.streaming
        )

    return _tried(spec, load)


def _only_split_name(datasets: Any, spec: _Spec, name: str, config: str | None) -> str:
    splits = datasets.get_dataset_split_names(name, config, revision=spec.revision)
    if len(splits) == 1:
        return str(splits[0])
    raise UserError(
        f"{spec.given} has the splits {', '.join(splits)}; name the one to read, for example "
        f"{spec.given}:{splits[0]}."
    )


def _tried(spec: _Spec, load: Any) -> Any:
    """`load()`, with what `datasets` raises for a wrong name or no network as a UserError."""
    try:
        return load()
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:500].rstrip(".")
        missing = type(error).__name__ in ("DatasetNotFoundError", "DataFilesNotFoundError")
        if offline() and (missing or isinstance(error, ConnectionError)):
            raise _NotFoundError(
                f"{spec.given}: the hub is switched off (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE) "
                f"and the dataset is not in the cache here ({reason}); unset it, or fetch the "
                "dataset once while online."
            ) from error
        kind = _NotFoundError if missing else UserError
        raise kind(f"{spec.given} cannot be loaded: {reason}.") from error


def _check_reachable(spec: _Spec) -> None:
    """Refuse within seconds where the hub cannot be reached; `datasets` itself would try again and
    again for much longer."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies().get(address.scheme) or address.hostname is None:
        return  # a direct connection would say nothing
    port = address.port or (443 if address.scheme == "https" else 80)
    outcome: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=_CONNECT_SECONDS).close()
            outcome.append("")
        except OSError as error:
            outcome.append(error.strerror or str(error))

    # Resolving a name knows no time limit of its own.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_CONNECT_SECONDS + 1)
    reason = outcome[0] if outcome else f"no answer within {_CONNECT_SECONDS:g} s"
    if reason:
        raise UserError(
            f"{spec.given}: the hub ({endpoint}) cannot be reached: {reason}. Go online, name a "
            "folder here, or set HF_HUB_OFFLINE=1 to use what was fetched before."
        )
