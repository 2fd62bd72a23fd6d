"""Tiny conversations, pairs and recipes that tune on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamita.architecture.config import ModelConfig
from llamita.data.chat_build import build_chats
from llamita.data.tokenizer import load_tokenizer
from llamita.model.decoder import Decoder
from llamita.model.huggingface import save_model
from llamita.model.initialization import initialize
from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import Recipe
from tests.data.corpus import sentences, small_tokenizer
from tests.training.helpers import quiet, tiny_values

ROW = 64
STEP = 2 * ROW
LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}


def write_base(directory: Path) -> Path:
    """A random model with a tokenizer that has no chat template."""
    tokenizer = small_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    model = Decoder(config)
    initialize(model, "llama", seed=1)
    save_model(directory, model)
    tokenizer.save(directory)
    return directory


def write_chats(file: Path, count: int = 60) -> Path:
    """Questions that name a number, and answers that name it again."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is {number}?"},
                {"role": "assistant", "content": f"{number}, " + sentences(number, 1)[:20]},
            ]
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_pairs(file: Path, count: int = 60) -> Path:
    """Of two answers the one that names the number is chosen."""
    rows = [
        {"prompt": f"what is {n}?", "chosen": f"{n}.", "rejected": f"the {sentences(n, 1)[:9]}"}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def build_tiny_chats(folder: Path, model: Path) -> Path:
    """`chats` and `pairs`, built with a model's tokenizer."""
    tokenizer = load_tokenizer(model)
    for name, kind, source in (
        ("chats", "chats", write_chats(folder / "chats.jsonl")),
        ("pairs", "preferences", write_pairs(folder / "pairs.jsonl")),
    ):
        build_chats(source, folder / name, tokenizer, kind=kind, validation=0.2, say=quiet)  # type: ignore[arg-type]
    return folder


def tuning_recipe(
    data: Path, start_from: Path, kind: str = "chats", steps: int = 6, **changes: Any
) -> Recipe:
    """A stage of `steps` over `kind`, with an adapter unless `changes` say otherwise."""
    objective = {"kind": "preference"} if kind == "pairs" else {"kind": "language_modelling"}
    stage = {
        "name": kind,
        "tokens": steps * STEP,
        "mixture": {kind: 1.0},
        "objective": objective,
        "schedule": {"kind": "cosine"},
    }
    values = {
        key: value
        for key, value in tiny_values(data).items()
        if key in ("optimizer", "runtime", "validation", "checkpoints")
    }
    values |= {
        "name": "tuned",
        "start_from": str(start_from),
        "adapter": LORA,
        "sequence_length": ROW,
        "batch_tokens": STEP,
        "datasets": {kind: {"path": str(data / kind), "max_epochs": 100}},
        "stages": [stage],
    }
    return check_recipe(values | changes, "tuned")
