"""Datasets of chats and preferences out of arrays, without templates or tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from llamita.data.manifest import (
    ChatRecord,
    ChatSettings,
    Counts,
    Manifest,
    SplitRecord,
    TokenizerRecord,
)
from llamita.data.shard_writer import SplitWriter

Example = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]


def chats(seed: int, lengths: Sequence[int], *, vocab_size: int = 300) -> list[Example]:
    """Random tokens; random ones of them are learnt, the last always."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        learns = generator.random(length) < 0.4
        learns[-1] = True
        made.append((generator.integers(0, vocab_size, length), learns))
    return made


def pairs(seed: int, lengths: Sequence[tuple[int, int, int]]) -> list[Example]:
    """From (prompt, chosen, rejected): both sides of each pair; the answers alone are learnt."""
    generator = np.random.default_rng(seed)
    made = []
    for prompt, *answers in lengths:
        shared = generator.integers(0, 300, prompt)
        for answer in answers:
            tokens = np.concatenate((shared, generator.integers(0, 300, answer)))
            made.append((tokens, np.arange(len(tokens)) >= prompt))
    return made


def write_packed(
    directory: Path,
    splits: Mapping[str, Sequence[Example]],
    *,
    kind: Literal["chats", "preferences"] = "chats",
    shard_tokens: int = 10**9,
    fingerprint: str = "f" * 64,
) -> Manifest:
    """A dataset of these examples; each has 10 bytes of learnt text for every learnt token."""
    directory.mkdir(parents=True, exist_ok=True)
    records: dict[str, SplitRecord] = {}
    for name in ("train", "validation"):
        with SplitWriter(directory, name, 2, shard_tokens, "none", marks=True) as writer:
            for tokens, learns in splits.get(name, ()):
                writer.write(
                    tokens.astype("<u2"),
                    np.array([len(tokens)]),
                    np.array([10 * int(learns.sum())]),
                    learns,
                )
            records[name] = writer.finish()
    settings = ChatSettings(
        kind=kind,
        template_sha256="0" * 64,
        learn="assistant",
        validation=0.05,
        dedup=True,
        max_bad_fraction=0.01,
    )
    manifest = Manifest(
        format_version=1,
        name=directory.name,
        created_by="a test",
        fingerprint=fingerprint,
        sources=(),
        tokenizer=TokenizerRecord(fingerprint="t", vocab_size=300, bos_id=0, eos_id=1),
        settings=settings,
        validation_fraction=0.05,
        token_bytes=2,
        counts=Counts(
            records=0, documents=0, duplicates=0, filtered=0, empty=0, bad=0, ignored_files=0
        ),
        first_bad=(),
        notes=(),
        splits=records,
        kind=kind,
        chats=ChatRecord(
            template="none",
            template_sha256="0" * 64,
            learn="assistant",
            forms=(),
            learning_tokens={},
            wrong={},
        ),
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    return manifest
