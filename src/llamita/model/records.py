"""What stands beside a model's weights, read without torch: config.json, and a run's records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import Parametrization
from llamita.errors import UserError

COMPLETE = "training/complete.json"
STATE = "state.json"
PROVENANCE = "provenance.json"
_STEP = re.compile(r"step-(\d+)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_config(directory: str | Path) -> ModelConfig:
    """The config of a Hugging Face directory, or of an adapter's base.

    The ids of generation_config.json are not consulted, config.json's are what training used; an
    adapter has no config.json, and its own ids stand there.

    Raises:
        UserError: no readable config.json, or one that describes another kind of model.
    """
    from llamita.model.adapter_directory import base_directory, is_adapter, with_own_tokens

    if is_adapter(directory):
        return with_own_tokens(read_config(base_directory(directory)), directory)
    path = Path(directory) / "config.json"
    mapping = read_json(path)
    try:
        return ModelConfig.from_huggingface(mapping)
    except UserError as error:
        raise UserError(f"{path.parent}: {error}") from None


def step_directories(run: Path) -> dict[int, Path]:
    """Whole checkpoints of a run by step, ascending. Numbers are compared as numbers."""
    found = {
        int(match[1]): path
        for path in run.glob("step-*")
        if (match := _STEP.fullmatch(path.name)) and (path / COMPLETE).is_file()
    }
    return dict(sorted(found.items()))


def has_training_state(directory: Path) -> bool:
    return (directory / "training" / STATE).is_file()


def training_values(directory: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint's training state: step, stage, cursor and the rest."""
    return read_json(directory / "training" / STATE)


def recorded_parametrization(directory: Path) -> Parametrization:
    """That of the run which wrote this model; `llama` for models from elsewhere."""
    for record in (STATE, PROVENANCE):
        path = directory / "training" / record
        if path.is_file():
            found: Parametrization = read_json(path)["parametrization"]
            return found
    return "llama"


def recorded_tokens(directory: Path) -> int | None:
    """Tokens that the run which wrote this model had trained on by then; None of others' models."""
    for record in (STATE, PROVENANCE):
        path = directory / "training" / record
        if path.is_file():
            found: int = read_json(path)["tokens"]
            return found
    return None


def tokenizer_directory(directory: Path) -> Path:
    """Where a model's tokenizer lies: beside it, or beside the base of an adapter that has none."""
    from llamita.model.adapter_directory import base_directory, is_adapter

    files = ("tokenizer.json", "tokenizer.model")
    if is_adapter(directory) and not any((directory / name).is_file() for name in files):
        return tokenizer_directory(base_directory(directory))
    return directory


def recorded_learning_rate(directory: Path) -> float | None:
    """The rate at which the run that wrote this model took its last step, if it recorded that."""
    path = directory / "training" / PROVENANCE
    found: float | None = read_json(path).get("learning_rate") if path.is_file() else None
    return found
