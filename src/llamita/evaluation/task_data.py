"""Where a task's documents come from when not from the hub: a local folder, in upstream's schema.

A dataset's files are looked for in FOLDER/TASK, FOLDER/DATASET/CONFIG and FOLDER/OWNER/DATASET/
CONFIG, with DATASET the hub's name, and in `data/` there: `SPLIT.jsonl` (`.json`, `.parquet`, the
first two also `.gz`), or `SPLIT-00000-of-00001.parquet` and so on, as a clone of a hub's repository
has them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_WHOLE = (None, "default", "main")
"""Configs of datasets that have one, so that their files may lie in the dataset's own folder."""

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


class DataError(Exception):
    """Why a task's documents cannot be had; a sentence without its first word's capital."""


def find_split(
    folder: Path, task: str, dataset: str | None, config: str | None, split: str
) -> list[Path]:
    """A split's files, in order; [] if there are none."""
    for place in _places(folder, task, dataset, config):
        for inside in (place, place / "data"):
            for suffix in _SUFFIXES:
                if (found := inside / f"{split}{suffix}").is_file():
                    return [found]
            if parts := sorted(inside.glob(f"{split}-[0-9]*-of-[0-9]*.parquet")):
                return _whole(parts)
    return []


def _places(folder: Path, task: str, dataset: str | None, config: str | None) -> Iterator[Path]:
    yield folder / task
    if not dataset or Path(dataset).is_absolute() or ".." in Path(dataset).parts:
        return
    for name in (dataset.rpartition("/")[2], dataset):
        if config is not None:
            yield folder / name / config
        if config in _WHOLE:
            yield folder / name


def _whole(parts: Sequence[Path]) -> list[Path]:
    expected = int(parts[0].stem.rpartition("-of-")[2])
    if len(parts) != expected:
        raise DataError(f"{parts[0].parent} has {len(parts)} of the {expected} parts of its split")
    return list(parts)


def read_split(files: Sequence[Path]) -> Any:
    """A split's documents as a `datasets.Dataset` in memory, with nothing written to a cache.

    Raises:
        DataError: a file cannot be read, is none of its kind, or there is no document in it.
    """
    import pyarrow

    try:
        if files[0].suffix == ".parquet":
            found = _from_parquet(files)
        else:
            found = dataset_of(_json_rows(files[0]))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{files[0]} cannot be read: {error}") from error
    if not len(found):
        raise DataError(f"{files[0]} has no document in it")
    return found


def _from_parquet(files: Sequence[Path]) -> Any:
    import pyarrow
    import pyarrow.parquet

    return _dataset(pyarrow.concat_tables([pyarrow.parquet.read_table(each) for each in files]))


def dataset_of(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Rows as a `datasets.Dataset` in memory; a field that a row lacks is None there."""
    import pyarrow

    kept = list(rows)
    names = dict.fromkeys(name for row in kept for name in row)
    columns = {name: [row.get(name) for row in kept] for name in names}
    return _dataset(pyarrow.table(columns))


def _dataset(table: Any) -> Any:
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.table import InMemoryTable

    # Left alone, datasets takes 40 ms to name even two rows for a cache that is not used here.
    return Dataset(InMemoryTable(table), fingerprint=generate_random_fingerprint())


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode("utf-8-sig")
    numbered: Iterable[tuple[int, Any]]
    if text.lstrip().startswith("["):
        numbered = enumerate(_parsed(text, str(path)), 1)
    else:
        lines = (each for each in enumerate(text.split("\n"), 1) if each[1].strip())
        numbered = ((number, _parsed(line, f"{path}:{number}")) for number, line in lines)
    for number, row in numbered:
        if not isinstance(row, Mapping):
            raise DataError(f"{path}:{number} is no JSON object but {type(row).__name__}")
        yield row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}") from error
