"""Showing datasets: what a mixture holds, and what its tokens read like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.build import TOKENIZER_DIRECTORY
from llamita.data.manifest import Manifest, SourceRecord, SplitRecord
from llamita.data.shards import Dataset, TokenStream, open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError

_MARK = re.compile("⟨[^⟨⟩\n]*⟩")


def describe_data(
    paths: str | Path | Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    tokens: float | None = None,
    samples: int = 2,
    sample_tokens: int = 128,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> list[str]:
    """Datasets as lines of text: a tree of splits and sources, then samples.

    Args:
        paths: one or more built datasets.
        weights: shares of a mixture, one a dataset, of any sum.
        tokens: a budget of training tokens: says how many epochs of each dataset it takes (by
            `weights`, or by size).
        samples: how many places to show of each dataset: the end of one training document and the
            start of the next, special tokens written as ⟨s⟩.
        sample_tokens: tokens shown at each place.
        seed: of the choice of places.
        tokenizer: for decoding; the one that the dataset keeps by default.

    Raises:
        UserError: no dataset there, or weights that do not fit.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    datasets = [open_dataset(path) for path in given]
    shares = _shares(datasets, weights)
    total = sum(dataset.train.num_tokens for dataset in datasets)
    documents = sum(dataset.train.num_documents for dataset in datasets)
    lines = [
        f"{len(datasets)} dataset{'s'[: len(datasets) > 1]}: {total:,} training tokens in "
        f"{documents:,} documents"
    ]
    for number, (dataset, share) in enumerate(zip(datasets, shares, strict=True)):
        mixed = len(datasets) > 1 or tokens is not None
        body = _tree(dataset, share if mixed else None, tokens)
        lines.extend(_branch(body, last=number == len(datasets) - 1))
    if samples > 0:
        generator = np.random.default_rng(seed)
        for dataset in datasets:
            decoder = tokenizer or load_tokenizer(dataset.path / TOKENIZER_DIRECTORY)
            lines.extend(_samples(dataset, decoder, samples, sample_tokens, generator))
    return lines


def show_data(
    paths: str | Path | Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    tokens: float | None = None,
    samples: int = 2,
    sample_tokens: int = 128,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> list[str]:
    """Print `describe_data` (same arguments) with special tokens in colour; returns its lines."""
    from rich.console import Console
    from rich.text import Text

    lines = describe_data(
        paths,
        weights=weights,
        tokens=tokens,
        samples=samples,
        sample_tokens=sample_tokens,
        seed=seed,
        tokenizer=tokenizer,
    )
    console = Console(highlight=False)
    for line in lines:
        text = Text(line)
        text.highlight_regex(_MARK.pattern, "bold magenta")
        console.print(text, soft_wrap=True)
    return lines


def mark_specials(tokens: NDArray[Any], tokenizer: Tokenizer) -> str:
    """The text of `tokens` with special tokens as ⟨name⟩ and a line break after each EOS."""
    special = {*tokenizer.special_ids, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    pieces: list[str] = []
    held: list[int] = []
    for token in tokens.tolist():
        if token not in special:
            held.append(token)
            continue
        pieces.append(tokenizer.decode(held) if held else "")
        held = []
        name = tokenizer.token_of(token) or str(token)
        pieces.append(f"⟨{name.strip('<|>') or name}⟩")
        if token == tokenizer.eos_id:
            pieces.append("\n")
    pieces.append(tokenizer.decode(held) if held else "")
    return "".join(pieces)


def _shares(datasets: Sequence[Dataset], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        weights = [dataset.train.num_tokens for dataset in datasets]
    if len(weights) != len(datasets):
        raise UserError(f"{len(weights)} weights for {len(datasets)} datasets: give one for each.")
    if any(weight < 0 for weight in weights) or sum(weights) <= 0:
        raise UserError(f"weights must not be negative and not all zero: {list(weights)}.")
    return [weight / sum(weights) for weight in weights]


def _tree(dataset: Dataset, share: float | None, tokens: float | None) -> list[str]:
    manifest = dataset.manifest
    head = manifest.name
    if share is not None:
        head += f"  {share:.1%}"
        if tokens is not None:
            epochs = share * tokens / max(dataset.train.num_tokens, 1)
            head += f" of {tokens:,.0f} tokens = {share * tokens:,.0f}, {epochs:.2f} epochs"
    lines = [head]
    splits = [(name, split) for name, split in manifest.splits.items() if split.documents]
    lines += [f"├─ {name}: {_split_line(split)}" for name, split in splits]
    lines.append(f"├─ {_made_of(manifest)}")
    for number, source in enumerate(manifest.sources):
        turn = "└─" if number == len(manifest.sources) - 1 else "├─"
        lines.append(f"{turn} from {_source_line(source)}")
    return lines


def _source_line(source: SourceRecord) -> str:
    dataset = source.dataset
    parts = []
    if dataset is None or dataset.kind == "saved":
        parts += [f"{source.files:,} file{'s'[: source.files != 1]}", _bytes(source.bytes)]
    if dataset is not None:
        parts += [f"{source.records:,} rows", dataset.kind]
        parts += [f"revision {dataset.revision[:12]}"] if dataset.revision else []
    if source.licence:
        parts.append(f"licence {source.licence}")
    return f"{source.name}: {', '.join(parts)}"


def _split_line(split: SplitRecord) -> str:
    return (
        f"{split.tokens:,} tokens · {split.documents:,} documents · {_bytes(split.text_bytes)} of "
        f"text · {split.text_bytes / max(split.tokens, 1):.2f} bytes/token · "
        f"{len(split.shards)} shard{'s'[: len(split.shards) != 1]}"
    )


def _made_of(manifest: Manifest) -> str:
    counts = manifest.counts
    left_out = [
        f"{count:,} {what}"
        for count, what in (
            (counts.duplicates, "duplicates"),
            (counts.filtered, "filtered"),
            (counts.empty, "empty"),
            (counts.bad, "bad"),
            (counts.ignored_files, "binary files ignored"),
        )
        if count
    ]
    around = [
        name for name, on in (("BOS", manifest.settings.bos), ("EOS", manifest.settings.eos)) if on
    ]
    return (
        f"{counts.records:,} records, left out: {', '.join(left_out) or 'none'}; around each "
        f"document: {' and '.join(around) or 'nothing'}; tokenizer "
        f"{manifest.tokenizer.fingerprint[:12]} of {manifest.tokenizer.vocab_size:,}"
    )


def _branch(body: Sequence[str], *, last: bool) -> Iterator[str]:
    yield ("└─ " if last else "├─ ") + body[0]
    for line in body[1:]:
        yield ("   " if last else "│  ") + line


def _samples(
    dataset: Dataset, tokenizer: Tokenizer, samples: int, size: int, generator: np.random.Generator
) -> Iterator[str]:
    stream = dataset.train
    chosen = generator.choice(
        stream.num_documents, size=min(samples, stream.num_documents), replace=False
    )
    for number in sorted(chosen.tolist()):
        following = f" and {number + 1}" if number + 1 < stream.num_documents else ""
        yield ""
        yield f"── {dataset.manifest.name}, training document {number}{following}"
        yield from mark_specials(_around_end(stream, number, size), tokenizer).splitlines()


def _around_end(stream: TokenStream, number: int, size: int) -> NDArray[Any]:
    before = stream.document(number)[-max(size // 2, 1) :]
    if number + 1 == stream.num_documents:
        return before
    return np.concatenate((before, stream.document(number + 1)[: size - len(before)]))


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
