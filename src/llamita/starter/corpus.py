"""The starter corpus: the prose and the code that come with the Python that is running.

Prose is documentation: docstrings of the standard library and of the packages that llamita itself
requires, pydoc's topics, and the packages' own long descriptions. Code is the standard library's
source with its docstrings taken out. A module's docstrings and its code carry the same `file`, so
that a validation split by file keeps both on one side.

Only llamita's own requirements are read, whatever else is installed, so that the corpus is the same
in a bare environment and in a developer's. Modules are parsed, never imported.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO

from llamita.errors import UserError
from llamita.starter.docstrings import NotPythonError, decode, docstrings, parse, strip_docstrings

STANDARD_LIBRARY = "stdlib"
TOPICS = "pydoc topics"

# Test suites hold little prose and much repetition; _vendor and _generated hold copies of modules.
_SKIPPED_FOLDERS = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "testing",
        "_vendor",
        "_generated",
        "site-packages",
        "dist-packages",
    }
)
# No code to learn from: 1.5 MB of character maps, pydoc's topics (which are prose already), and
# the settings of this one machine's build, its paths among them.
_TABLES = ("encodings/", "pydoc_data/", "_sysconfigdata", "config-")
_MIN_CHARACTERS = 80  # below this a text is a heading and a phrase
# A package's file is parsed only if this share of it stands between triple quotes: on 86 MB of
# packages that saves 36% of the parsing, which is most of the time, and costs 5% of the prose.
_MIN_PROSE_SHARE = 0.1
# Paragraphs of this length in two topics mean that one includes the other's section.
_SHARED_PARAGRAPH = 100
_CHANGES = re.compile(
    r"^(#+ *|)(change ?log|changes|release notes|release history|history)\b.*$",
    re.IGNORECASE | re.MULTILINE,
)
_BADGE = re.compile(
    r"^(\[!\[|!\[|\.\. \||\.\. image::|<img|<a href|</?p\b|</?div).*\n?", re.MULTILINE
)


@dataclass(frozen=True)
class PythonFile:
    """One Python file to read: where it lies, whose it is, and its name below its root."""

    path: Path
    source: str  # STANDARD_LIBRARY or a distribution's normalised name
    name: str  # such as json/decoder.py

    @property
    def file(self) -> str:
        """The name that prose and code from this file share, the same on every machine."""
        return f"{STANDARD_LIBRARY}/{self.name}" if self.source == STANDARD_LIBRARY else self.name

    @property
    def module(self) -> str:
        """Dotted module name: json.decoder for json/decoder.py, json for json/__init__.py."""
        parts = PurePosixPath(self.name).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

    @property
    def gives_code(self) -> bool:
        """Whether its source is wanted: the standard library's, tables apart."""
        return self.source == STANDARD_LIBRARY and not self.name.startswith(_TABLES)


@dataclass(frozen=True)
class Record:
    """One document of the corpus."""

    text: str
    source: str
    file: str


@dataclass
class Count:
    """How much a source brought."""

    documents: int = 0
    bytes: int = 0  # of UTF-8 text

    def add(self, text: str) -> None:
        self.documents += 1
        self.bytes += len(text.encode())


@dataclass
class CorpusSummary:
    """What `collect_python_corpus` wrote, by source, and what it passed over, by reason."""

    prose_path: Path
    code_path: Path
    prose: dict[str, Count] = field(default_factory=dict)
    code: dict[str, Count] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def prose_bytes(self) -> int:
        """UTF-8 bytes of all prose."""
        return sum(count.bytes for count in self.prose.values())

    @property
    def code_bytes(self) -> int:
        """UTF-8 bytes of all code."""
        return sum(count.bytes for count in self.code.values())


def collect_python_corpus(out: Path) -> CorpusSummary:
    """Write `out`/prose.jsonl and `out`/code.jsonl from the Python that is running.

    Each line is {"text", "source", "file"}. The files appear whole or not at all, and are the same
    bytes each time for the same Python and packages. About 20 s on one core. Raises
    UserError where Python comes without its library's source or llamita is not installed.
    """
    packages = required_distributions("llamita")
    files = list(standard_library_files())
    for name, distribution in packages.items():
        files.extend(distribution_files(name, distribution))
    descriptions = [
        Record(text, name, f"{name}/METADATA")
        for name, distribution in packages.items()
        if (text := description(distribution))
    ]
    return write_corpus(files, descriptions, out)


def write_corpus(
    files: Iterable[PythonFile], descriptions: Iterable[Record], out: Path
) -> CorpusSummary:
    """Read `files` in their order, and write the corpus of them and of `descriptions` to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    summary = CorpusSummary(out / "prose.jsonl", out / "code.jsonl")
    seen: set[str] = set()
    temporary = [_temporary(summary.prose_path), _temporary(summary.code_path)]
    try:
        with temporary[0].open("wb") as prose, temporary[1].open("wb") as code:
            for file in files:
                try:
                    text = decode(file.path.read_bytes())
                    if file.source != STANDARD_LIBRARY and not _worth_parsing(text):
                        summary.skipped["little prose"] += 1
                        continue
                    tree = parse(text)
                    stripped = strip_docstrings(text, tree) if file.gives_code else ""
                except (NotPythonError, OSError) as error:
                    summary.skipped[type(error).__name__] += 1
                    continue
                for record in _prose_records(file, tree, seen):
                    _write(record, prose, summary.prose, summary.skipped, seen)
                if stripped:
                    record = Record(stripped, file.source, file.file)
                    _write(record, code, summary.code, summary.skipped, seen)
            for record in descriptions:
                _write(record, prose, summary.prose, summary.skipped, seen)
            for handle in (prose, code):
                handle.flush()
                os.fsync(handle.fileno())
        temporary[0].replace(summary.prose_path)
        temporary[1].replace(summary.code_path)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return summary


def standard_library_files(root: Path | None = None) -> Iterator[PythonFile]:
    """The standard library's modules (those of `root` if given), sorted, without its test suite."""
    root = root or Path(sysconfig.get_path("stdlib"))
    found = [
        PythonFile(path, STANDARD_LIBRARY, path.relative_to(root).as_posix())
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
    ]
    if not found:
        raise UserError(
            f"Python's standard library has no source files in {root}. The quickstart reads them: "
            "use a Python that comes with its library as .py files, or train on your own text."
        )
    yield from sorted(found, key=lambda file: file.name)


def required_distributions(name: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that `name` requires, and what they require, without extras.

    Sorted by normalised name; `name` itself is left out. Requirements that are not installed, such
    as those for other platforms, are passed over. UserError if `name` is not installed.
    """
    try:
        waiting = _requirements(metadata.distribution(name))
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"{name} is not installed in this Python, so its requirements are unknown: "
            "run `pip install -e .` in its checkout."
        ) from error
    found: dict[str, metadata.Distribution] = {}
    passed = {_normalised(name)}
    while waiting:
        wanted = waiting.pop()
        if wanted in passed:
            continue
        passed.add(wanted)
        try:
            found[wanted] = metadata.distribution(wanted)
        except metadata.PackageNotFoundError:
            continue
        waiting |= _requirements(found[wanted])
    return dict(sorted(found.items()))


def distribution_files(name: str, distribution: metadata.Distribution) -> Iterator[PythonFile]:
    """The Python files that an installed distribution lists as its own, sorted, without tests."""
    for path in sorted(distribution.files or [], key=str):
        # ".." leads to scripts outside the packages' folder.
        if path.suffix == ".py" and not (_SKIPPED_FOLDERS | {".."}) & set(path.parts):
            yield PythonFile(Path(str(distribution.locate_file(path))), name, path.as_posix())


def description(distribution: metadata.Distribution) -> str:
    """A distribution's long description (its README), without badges and without its changes."""
    text = str(distribution.metadata.json.get("description", "")).replace("\r\n", "\n")
    if changes := _CHANGES.search(text):
        text = text[: changes.start()]
    return _BADGE.sub("", text).strip()


def topic_records(tree: ast.Module, file: str) -> Iterator[Record]:
    """pydoc's topics, each a document, from the parsed pydoc_data/topics.py.

    Some topics hold others whole (`compound` holds `if`, `while`, ...): topics that share a long
    paragraph get one `file`, so that a split by file never puts the same text on both sides.
    """
    topics = _literal_dictionary(tree)
    leader = {name: name for name in topics}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    first_with: dict[str, str] = {}
    for name, text in topics.items():
        for paragraph in (" ".join(part.split()) for part in re.split(r"\n\s*\n", text)):
            if len(paragraph) >= _SHARED_PARAGRAPH:
                other = first_with.setdefault(paragraph, name)
                leader[find(name)] = find(other)
    for name, text in topics.items():
        yield Record(text.strip(), TOPICS, f"{file}#{find(name)}")


def _literal_dictionary(tree: ast.Module) -> dict[str, str]:
    """The dictionary of strings that a module assigns, sorted by key; empty if it assigns none."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            return dict(sorted(ast.literal_eval(statement.value).items()))
    return {}


def _worth_parsing(text: str) -> bool:
    return sum(map(len, text.split('"""')[1::2])) >= _MIN_PROSE_SHARE * len(text)


def _prose_records(file: PythonFile, tree: ast.Module, seen: set[str]) -> Iterator[Record]:
    if file.file == f"{STANDARD_LIBRARY}/pydoc_data/topics.py":
        yield from topic_records(tree, file.file)
        return
    parts: list[str] = []
    for name, text in docstrings(tree, file.module):
        if text not in seen:  # inherited documentation is often copied, into other files too
            seen.add(text)
            parts.append(f"{'##' if parts else '#'} {name}\n\n{text}\n")
    if parts:
        yield Record("\n".join(parts), file.source, file.file)


def _write(
    record: Record,
    handle: IO[bytes],
    counts: dict[str, Count],
    skipped: Counter[str],
    seen: set[str],
) -> None:
    if len(record.text) < _MIN_CHARACTERS:
        skipped["too short"] += 1
    elif record.text in seen:
        skipped["duplicate"] += 1
    else:
        seen.add(record.text)
        line = {"text": record.text, "source": record.source, "file": record.file}
        handle.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        counts.setdefault(record.source, Count()).add(record.text)


def _requirements(distribution: metadata.Distribution) -> set[str]:
    names = set()
    for requirement in distribution.requires or []:
        name, _, marker = requirement.partition(";")
        matched = re.match(r"[A-Za-z0-9._-]+", name.strip())
        if matched and "extra" not in marker:
            names.add(_normalised(matched[0]))
    return names


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
