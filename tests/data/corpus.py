"""Small texts and a small tokenizer for the data room's tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from llamita.data.tokenizer import Tokenizer

WORDS = [
    "the",
    "a",
    "model",
    "learns",
    "to",
    "write",
    "short",
    "and",
    "plain",
    "text",
    "from",
    "what",
    "people",
    "wrote",
    "before",
]


def sentences(seed: int, count: int) -> str:
    """`count` lines of words and numbers, different for every seed."""
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        words = generator.choices(WORDS, k=8)
        lines.append(" ".join([*words, str(generator.randrange(10**6))]) + ".\n")
    return "".join(lines)


def write_records(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of 300 tokens made with `tokenizers` alone."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([sentences(0, 200)], trainer=trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return Tokenizer(backend.to_str(), bos_id=0, eos_id=1, pad_id=2)
