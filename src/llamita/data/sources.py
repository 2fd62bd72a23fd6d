"""From folders, globs, files and datasets to a list of what to read, in an order that depends on
names alone."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamita.data.blocks import Kind
from llamita.data.dataset_sources import (
    INFO,
    SPLITS,
    STATE,
    SourceDataset,
    is_dataset,
    is_saved,
    refuse_cache,
    saved_files,
    saved_record,
    saved_split,
    source_dataset,
)
from llamita.data.hub_datasets import is_hub_name, load_hub_dataset
from llamita.data.manifest import DatasetRecord
from llamita.errors import UserError

SNIFF_BYTES = 8192

# What a walk through a folder takes unread; files of other names are looked into.
_TEXT_NAMES = """
    txt text md markdown mdx rst adoc org tex bib html htm xml css scss json yaml yml toml ini cfg
    conf csv tsv srt vtt po py pyi pyx ipynb c h cc cpp cxx hh hpp hxx cu cuh rs go java kt kts
    scala groovy clj cljs cs fs vb swift m mm js jsx mjs cjs ts tsx vue svelte rb php pl pm lua r jl
    hs ml mli elm ex exs erl hrl lisp lsp el scm rkt nim zig d dart f f90 f95 for ada adb ads pas
    asm s v sv vhd vhdl sh bash zsh fish bat ps1 sql proto graphql cmake mk gradle diff patch log
"""
_TEXT_SUFFIXES = frozenset(f".{name}" for name in _TEXT_NAMES.split())
_RECORD_SUFFIXES = (".jsonl", ".ndjson")
_COLUMN_SUFFIXES = (".parquet", ".arrow", ".feather")
_COMPRESSIONS: dict[str, Literal["gz", "zst"]] = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read. `name` is its name inside its source, free of machine paths."""

    path: Path
    name: str
    source: int
    kind: Kind
    compression: Literal["gz", "zst"] | None
    size: int
    mtime_ns: int


Source = SourceFile | SourceDataset
# A path, a glob, `hf:NAME`, or an object of `datasets`, whose types are not imported here.
Given = str | Path | Any


@dataclass(slots=True)
class SourceList:
    """All files and datasets of all sources, in reading order, each file once. `datasets` says of
    sources, by their number, what dataset they are."""

    names: list[str] = field(default_factory=list)
    files: list[Source] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    datasets: dict[int, DatasetRecord] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk; 0, for not known, where one source is a stream."""
        if any(isinstance(file, SourceDataset) and file.streaming for file in self.files):
            return 0
        return sum(file.size for file in self.files)


def list_sources(sources: Given | Sequence[Given]) -> SourceList:
    """Resolve sources to files and datasets.

    Args:
        sources: folders (walked; hidden entries and built datasets are skipped; files whose names
            are not known as text are looked into and ignored when binary), globs, or files.
            `.jsonl` and `.ndjson` hold one record a line, `.parquet`, `.arrow` and `.feather` one
            a row, everything else is text; all but these three may end in `.gz` or `.zst`. A
            folder that `Dataset.save_to_disk` wrote is read as that dataset. Besides,
            `hf:NAME[/CONFIG][@REVISION][:SPLIT]`, the same with `hf+stream:`, and `Dataset` and
            `IterableDataset` objects of the library `datasets`.

    Raises:
        UserError: no sources; one is missing, matches nothing, holds no text, or is unreadable.
    """
    one = isinstance(sources, str | Path) or is_dataset(sources)
    given: list[Given] = [sources] if one else _several(sources)
    if not given:
        raise UserError("no sources: name at least one folder, file or glob of text or .jsonl.")
    found = SourceList()
    seen: set[Path] = set()
    for number, source in enumerate(given):
        if _add_dataset(found, source, number):
            continue
        text = str(source)
        path = Path(text).expanduser()
        before = len(found.files) + len(seen)
        if path.is_dir():
            found.names.append(path.resolve().name)
            record = saved_record(path)
            if record is not None:
                found.datasets[number] = record
            entries = _walk(path, found.ignored)
        elif path.exists():
            found.names.append(path.name)
            _refuse_indexed({path.parent}, [path])
            entries = iter([(path, path.name)])
        elif glob.has_magic(text):
            found.names.append(_without_root(text))
            entries = _expand(text, found.ignored)
        else:
            raise UserError(f"there is no source {text}: no such file or folder.")
        for place, name in entries:
            real = place.resolve()
            if real not in seen:
                seen.add(real)
                found.files.append(_source_file(place, name, number))
        if len(found.files) + len(seen) == before:
            raise UserError(_nothing(text, found.ignored))
    return found


def _several(sources: Any) -> list[Given]:
    if isinstance(sources, bytes | Mapping) or not isinstance(sources, Iterable):
        raise _no_source(sources)
    given: list[Given] = []
    for source in sources:
        # judged one by one: an iterable of rows, taken for one of sources, may be without end
        if not (isinstance(source, str | Path) or is_dataset(source)):
            raise _no_source(source)
        given.append(source)
    return given


def _no_source(value: object) -> UserError:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return UserError(
        f"an object of type {name} is no source; give paths, hf: names, or Dataset and "
        "IterableDataset objects of the library datasets."
    )


def _add_dataset(found: SourceList, source: Given, number: int) -> bool:
    """Add `source` if it is a dataset by name or object."""
    if isinstance(source, str) and is_hub_name(source):
        dataset = load_hub_dataset(source, number)
    elif is_dataset(source):
        dataset = source_dataset(source, number)
    else:
        return False
    found.names.append(dataset.name)
    found.files.append(dataset)
    found.datasets[number] = dataset.record
    return True


def _walk(folder: Path, ignored: list[str]) -> Iterator[tuple[Path, str]]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    root = folder.resolve().name
    for parent, folders, files in os.walk(folder, onerror=refuse):
        if any(name.endswith(".ds.index") for name in files):
            folders.clear()  # a built dataset: its manifest and tokenizer are no text
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if SPLITS in files:
            folders[:] = [saved_split(Path(parent))]
            continue
        if is_saved(files):
            folders.clear()
            for place in saved_files(Path(parent)):
                yield place, f"{root}/{place.relative_to(folder).as_posix()}"
            continue
        refuse_cache(Path(parent), files)
        for name in sorted(files):
            place = Path(parent) / name
            shown = f"{root}/{place.relative_to(folder).as_posix()}"
            if name.startswith(".") or not place.is_file():
                continue
            if _known_by_name(place) or _looks_like_text(place):
                yield place, shown
            else:
                ignored.append(shown)


def _expand(pattern: str, ignored: list[str]) -> Iterator[tuple[Path, str]]:
    root = _fixed_part(pattern)
    # Path.glob takes no absolute pattern
    matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    places = [Path(match) for match in matches]
    saved = {place.parent for place in places if place.name == STATE}
    saved |= {place.parent for place in places if place.suffix == ".arrow"}
    _refuse_indexed(saved, places)
    for place in places:
        if place.name in (STATE, INFO, SPLITS) and (
            place.name == SPLITS or is_saved({entry.name for entry in place.parent.iterdir()})
        ):
            continue  # what a saved dataset says of itself is no text
        if place.is_dir():
            # "**" matches the folders themselves too; a plain "*" that meets a folder walks it.
            if "**" not in pattern:
                yield from _walk(place, ignored)
        else:
            yield place, os.path.relpath(place, root)


def _refuse_indexed(folders: set[Path], places: Sequence[Path]) -> None:
    """Raise a UserError if Arrow files are named one by one whose folder picks rows of them."""
    for folder in sorted(folders):
        if (folder / STATE).is_file() and any(place.suffix == ".arrow" for place in places):
            saved_files(folder)


def _fixed_part(pattern: str) -> str:
    parts = Path(pattern).expanduser().parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:fixed])) if fixed else "."


def _without_root(pattern: str) -> str:
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[fixed:]))


def _source_file(path: Path, name: str, source: int) -> SourceFile:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    inner = suffixes[:-1] if compression else suffixes
    kind: Kind = "text"
    if inner and inner[-1] in _RECORD_SUFFIXES:
        kind = "records"
    elif inner and inner[-1] in _COLUMN_SUFFIXES:
        kind = "columns"
    if kind == "columns" and compression:
        raise UserError(f"{path} is compressed once more; unpack it: {inner[-1]} is read as it is.")
    status = path.stat()
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: permission denied.")
    return SourceFile(
        path=path,
        name=name,
        source=source,
        kind=kind,
        compression=compression,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _known_by_name(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    known = (*_RECORD_SUFFIXES, *_COLUMN_SUFFIXES)
    return bool(suffixes) and (suffixes[-1] in _TEXT_SUFFIXES or suffixes[-1] in known)


def _looks_like_text(path: Path) -> bool:
    """UTF-8 without NUL bytes, as far as the first 8 KiB tell."""
    try:
        with path.open("rb") as stream:
            head = stream.read(SNIFF_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut by the end of the sniffed part is no fault.
        return error.start >= len(head) - 3 and len(head) == SNIFF_BYTES
    return True


def _nothing(source: str, ignored: Sequence[str]) -> str:
    seen = f" (ignored as binary: {', '.join(ignored[:3])})" if ignored else ""
    return (
        f"the source {source} holds no text{seen}; name a folder, glob or file of text, Markdown, "
        "source code, .jsonl, .parquet or .arrow."
    )
