"""From folders, globs and files to a list of files, in an order that depends on names alone."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
_COMPRESSIONS: dict[str, Literal["gz", "zst"]] = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read. `name` is its name inside its source, free of machine paths."""

    path: Path
    name: str
    source: int
    kind: Literal["text", "records"]
    compression: Literal["gz", "zst"] | None
    size: int
    mtime_ns: int


@dataclass(slots=True)
class SourceList:
    """All files of all sources, in reading order, each once."""

    names: list[str] = field(default_factory=list)
    files: list[SourceFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)


def list_sources(sources: str | Path | Sequence[str | Path]) -> SourceList:
    """Resolve sources to files.

    Args:
        sources: folders (walked; hidden entries and built datasets are skipped; files whose names
            are not known as text are looked into and ignored when binary), globs, or files.
            `.jsonl` and `.ndjson` hold one record a line, everything else is text; both may end in
            `.gz` or `.zst`.

    Raises:
        UserError: no sources; one is missing, matches nothing, holds no text, or is unreadable.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise UserError("no sources: name at least one folder, file or glob of text or .jsonl.")
    found = SourceList()
    seen: set[Path] = set()
    for number, source in enumerate(given):
        text = str(source)
        path = Path(text).expanduser()
        before = len(found.files) + len(seen)
        if path.is_dir():
            found.names.append(path.resolve().name)
            entries = _walk(path, found.ignored)
        elif path.exists():
            found.names.append(path.name)
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


def _walk(folder: Path, ignored: list[str]) -> Iterator[tuple[Path, str]]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    root = folder.resolve().name
    for parent, folders, files in os.walk(folder, onerror=refuse):
        if any(name.endswith(".ds.index") for name in files):
            folders.clear()  # a built dataset: its manifest and tokenizer are no text
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
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
    for match in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True)):  # noqa: PTH207
        place = Path(match)
        if place.is_dir():
            # "**" matches the folders themselves too; a plain "*" that meets a folder walks it.
            if "**" not in pattern:
                yield from _walk(place, ignored)
        else:
            yield place, os.path.relpath(place, root)


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
    status = path.stat()
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: permission denied.")
    return SourceFile(
        path=path,
        name=name,
        source=source,
        kind="records" if inner and inner[-1] in _RECORD_SUFFIXES else "text",
        compression=compression,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _known_by_name(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and (suffixes[-1] in _TEXT_SUFFIXES or suffixes[-1] in _RECORD_SUFFIXES)


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
        "source code or .jsonl."
    )
