"""Showing datasets: what a mixture holds, and what its tokens read like."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.build import TOKENIZER_DIRECTORY
from llamita.data.manifest import (
    BuildSettings,
    Counts,
    Manifest,
    SourceRecord,
)
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import Dataset, TokenStream, open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError

_MARK = re.compile("⟨[^⟨⟩\n]*⟩")
# Round what is learnt of an example.
_LEARNS, _ENDS = "▸", "◂"
_HEADING = "── "
_LEARNT = {
    "assistant": "the assistant's turns",
    "last": "the assistant's last turn",
    "all": "everything",
}


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
        samples: how many places to show of each dataset: of text, the end of one training document
            and the start of the next; of chats and preferences, an example, with what is learnt
            of it between ▸ and ◂. Special tokens are written as ⟨s⟩.
        sample_tokens: tokens shown at each place, or of each side of a preference.
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
    """Print `describe_data` (same arguments), on a terminal with special tokens and what is learnt
    in colour; returns its lines."""
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
    learns = False
    for line in lines:
        text = Text(line)
        learns = learns and not line.startswith(_HEADING)
        for part in re.finditer(f"[{_LEARNS}{_ENDS}]|[^{_LEARNS}{_ENDS}]+", line):
            learns = part.group() == _LEARNS or (learns and part.group() != _ENDS)
            if learns:
                text.stylize("green", *part.span())
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
    for name, split in manifest.splits.items():
        if split.documents:
            lines.append(f"├─ {name}: {_split_line(manifest, name)}")
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


def split_contents(manifest: Manifest, name: str) -> str:
    """How much a split of chats or preferences holds, and how much of that is learnt."""
    assert manifest.chats is not None
    split, learnt = manifest.splits[name], manifest.chats.learning_tokens[name]
    pairs = manifest.kind == "preferences"
    what = f"{split.documents // 2:,} pairs" if pairs else f"{split.documents:,} chats"
    share = learnt / max(split.tokens, 1)
    return f"{split.tokens:,} tokens, {share:.1%} of them learnt · {what}"


def what_is_learnt(manifest: Manifest) -> str:
    """The chat template, and what of a chat or a pair is learnt, in words."""
    assert manifest.chats is not None
    learnt = "the answers" if manifest.kind == "preferences" else _LEARNT[manifest.chats.learn]
    return f"chat template {manifest.chats.template}; learnt: {learnt}"


def _split_line(manifest: Manifest, name: str) -> str:
    split = manifest.splits[name]
    shards = f"{len(split.shards)} shard{'s'[: len(split.shards) != 1]}"
    if manifest.kind != "text":
        return f"{split_contents(manifest, name)} · {shards}"
    return (
        f"{split.tokens:,} tokens · {split.documents:,} documents · {_bytes(split.text_bytes)} of "
        f"text · {split.text_bytes / max(split.tokens, 1):.2f} bytes/token · {shards}"
    )


def _made_of(manifest: Manifest) -> str:
    counts = manifest.counts
    if manifest.chats is not None:
        how = f"{'; '.join(manifest.chats.forms)}; {what_is_learnt(manifest)}"
    else:
        assert isinstance(manifest.settings, BuildSettings)
        ends = (("BOS", manifest.settings.bos), ("EOS", manifest.settings.eos))
        around = [name for name, on in ends if on]
        how = f"around each document: {' and '.join(around) or 'nothing'}"
    return (
        f"{counts.records:,} records, left out: {_left_out(counts)}; {how}; tokenizer "
        f"{manifest.tokenizer.fingerprint[:12]} of {manifest.tokenizer.vocab_size:,}"
    )


def _left_out(counts: Counts) -> str:
    found = [
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
    return ", ".join(found) or "none"


def _branch(body: Sequence[str], *, last: bool) -> Iterator[str]:
    yield ("└─ " if last else "├─ ") + body[0]
    for line in body[1:]:
        yield ("   " if last else "│  ") + line


def _samples(
    dataset: Dataset, tokenizer: Tokenizer, samples: int, size: int, generator: np.random.Generator
) -> Iterator[str]:
    stream, name = dataset.train, dataset.manifest.name
    if isinstance(stream, PackedStream):
        yield from _example_samples(dataset, stream, tokenizer, samples, size, generator)
        return
    for number in _some(stream.num_documents, samples, generator):
        following = f" and {number + 1}" if number + 1 < stream.num_documents else ""
        yield ""
        yield f"{_HEADING}{name}, training document {number}{following}"
        yield from mark_specials(_around_end(stream, number, size), tokenizer).splitlines()


def _example_samples(
    dataset: Dataset,
    stream: PackedStream,
    tokenizer: Tokenizer,
    samples: int,
    size: int,
    generator: np.random.Generator,
) -> Iterator[str]:
    name = dataset.manifest.name
    pairs = dataset.manifest.kind == "preferences"
    for number in _some(stream.num_documents // (2 if pairs else 1), samples, generator):
        sides = [("pair", 2 * number, ": chosen"), ("pair", 2 * number + 1, ": rejected")]
        for what, document, side in sides if pairs else [("chat", number, "")]:
            yield ""
            yield f"{_HEADING}{name}, training {what} {number}{side}"
            text = _mark_learning(
                stream.document(document), stream.learns(document), tokenizer, size
            )
            yield from text.splitlines()


def _some(total: int, wanted: int, generator: np.random.Generator) -> list[int]:
    chosen: list[int] = generator.choice(total, size=min(wanted, total), replace=False).tolist()
    return sorted(chosen)


def _mark_learning(
    tokens: NDArray[Any], learns: NDArray[np.bool_], tokenizer: Tokenizer, size: int
) -> str:
    """Up to `size` tokens with what is learnt between marks, half of them from before its
    beginning where all have no room."""
    first = max(0, min(int(np.argmax(learns)) - size // 2, len(tokens) - size))
    cut = first + size < len(tokens)
    tokens, learns = tokens[first : first + size], learns[first : first + size]
    pieces = ["…"] if first else []
    edges = [0, *(np.flatnonzero(np.diff(learns)) + 1).tolist(), len(tokens)]
    for start, stop in itertools.pairwise(edges):
        text = mark_specials(tokens[start:stop], tokenizer)
        pieces.append(f"{_LEARNS}{text}{_ENDS}" if learns[start] else text)
    return "".join(pieces) + ("…" if cut else "")


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
