"""Sources of the library `datasets` (extra `datasets`): its objects, names on the hub, and folders
that it saved."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamita.data.blocks import READ_BYTES, ROW_MARK, Part, json_like
from llamita.data.columns import columns_for, parts_of, pyarrow_for, rows_in_order
from llamita.data.manifest import DatasetRecord
from llamita.data.where import FieldError
from llamita.errors import UserError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class SourceDataset:
    """One dataset to read. `token` stands for its contents where the library vouches for them
    ("" where nothing does, so that it is read again); `from_name` says that a name was given."""

    dataset: Any = field(repr=False)
    name: str
    source: int
    kind: Literal["columns", "records"]
    record: DatasetRecord
    token: str
    from_name: bool = False
    size: int = 0
    mtime_ns: int = 0
    compression: None = None

    @property
    def streaming(self) -> bool:
        """Is it read as it comes, without a length?"""
        return self.record.kind == "streaming"

    @property
    def path(self) -> str:
        """What messages call it."""
        return self.name


def is_dataset(value: object) -> bool:
    """Is it an object of `datasets`, a dictionary of splits included?"""
    library = sys.modules.get("datasets")
    if library is None:
        return False
    kinds = (
        library.Dataset,
        library.IterableDataset,
        library.DatasetDict,
        library.IterableDatasetDict,
    )
    return isinstance(value, kinds)


def source_dataset(
    dataset: Any, source: int, *, given: str | None = None, revision: str | None = None
) -> SourceDataset:
    """A `datasets` object as a source; `given` is the name that it was loaded by.

    Raises:
        UserError: it is a dictionary of splits, or has a transform that makes its rows.
    """
    if isinstance(dataset, dict):
        dataset = _only_split(dataset, given)
    import datasets

    streaming = isinstance(dataset, datasets.IterableDataset)
    name = given or _name_of(dataset)
    if not streaming and dataset.format["type"] == "custom":
        raise UserError(
            f"{name} has a transform (set_transform), whose results are not its contents; apply it "
            "with dataset.map(…), or take it off with dataset.reset_format()."
        )
    info = dataset.info
    revision = _revision(info) or revision
    token = ""
    if not streaming:
        token = _token(dataset)
    elif given is not None and revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        token = f"{given}@{revision}"
    record = DatasetRecord(
        kind="streaming" if streaming else "map-style",
        name=_library_name(info),
        config=info.config_name,
        split=None if dataset.split is None else str(dataset.split),
        revision=revision,
        fingerprint=None if streaming else dataset._fingerprint,
        rows=None if streaming else len(dataset),
        licence=info.license or None,
    )
    return SourceDataset(
        dataset=dataset,
        name=name,
        source=source,
        kind="records" if streaming else "columns",
        record=record,
        token=token,
        from_name=given is not None,
        size=0 if streaming else _size(dataset),
    )


def _only_split(splits: dict[str, Any], given: str | None) -> Any:
    if len(splits) == 1:
        return next(iter(splits.values()))
    named = ", ".join(map(str, splits))
    example = f"{given}:{next(iter(splits))}" if given else f"dataset[{next(iter(splits))!r}]"
    raise UserError(
        f"{given or 'a dictionary of datasets'} has the splits {named}; name the one to read, for "
        f"example {example}."
    )


def _library_name(info: Any) -> str | None:
    return info.dataset_name or info.builder_name or None


def _name_of(dataset: Any) -> str:
    info = dataset.info
    name = _library_name(info) or "dataset"
    # default-<hash> names a list of files, paths included
    if info.config_name and not info.config_name.startswith("default"):
        name += f"/{info.config_name}"
    return name if dataset.split is None else f"{name}:{dataset.split}"


def _revision(info: Any) -> str | None:
    """The commit on the hub that the files were fetched from, as their addresses name it."""
    for address in info.download_checksums or ():
        found = re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", address)
        if found:
            return found[1]
    return None


def _token(dataset: Any) -> str:
    files = []
    for entry in dataset.cache_files:
        status = Path(entry["filename"]).stat()
        files.append((Path(entry["filename"]).name, status.st_size, status.st_mtime_ns))
    on_disk = hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()
    return f"{dataset._fingerprint}:{len(dataset)}:{on_disk}"


def _size(dataset: Any) -> int:
    """Bytes in memory or on disk, by which progress is shown."""
    rows = dataset.data.num_rows
    return dataset.data.nbytes * len(dataset) // rows if rows else 0


class DatasetReader:
    """The rows of a dataset, whatever format it is set to."""

    def __init__(
        self,
        file: SourceDataset,
        fields: Sequence[str],
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        self._file = file
        self._fields = fields
        self._advance = advanced or (lambda _: None)
        self._row = 0

    def __enter__(self) -> DatasetReader:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def digest(self) -> str:
        return ""

    def check(self) -> None:
        """Are the columns there, as far as the dataset knows them before it is read?"""
        features = self._file.dataset.features
        if features is not None:
            columns_for(features.arrow_schema, self._fields, self._file.name)

    def parts(self, block_bytes: int) -> Iterator[Part | str]:
        read = self._rows if self._file.kind == "columns" else self._stream
        if not self._file.from_name:
            yield from read()  # an error of the caller's own code is the caller's to see
            return
        try:
            yield from read()
        except UserError:
            raise
        except Exception as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise UserError(
                f"{self._file.name}: reading failed after {self._row:,} rows: {reason}; run the "
                "same command again."
            ) from error

    def _rows(self) -> Iterator[Part]:
        pyarrow_for(self._file.name)
        dataset = self._file.dataset
        if not len(dataset):
            return
        columns = columns_for(dataset.features.arrow_schema, self._fields, self._file.name)
        names = dataset.column_names
        tops = [name if name in names else name.split(".")[0] for name in columns]
        chosen = dataset.with_format("arrow", columns=list(dict.fromkeys(tops)))
        a_row = max(1, self._file.size // len(dataset))
        rows = min(_MAX_ROWS, max(1, 4 * READ_BYTES // a_row))
        for batch in rows_in_order(chosen.iter(batch_size=rows)):
            yield from parts_of(batch, self._file.name, self._row + 1)
            self._row += batch.num_rows
            self._advance(a_row * batch.num_rows)

    def _stream(self) -> Iterator[Part | str]:
        """Rows as lines of JSON: a stream's rows need not be alike, so they share no schema."""
        dataset = self._file.dataset.with_format(None)
        lines: list[bytes] = []
        held = 0
        for example in _chosen(dataset, self._fields):
            self._row += 1
            try:
                line = _line(example, self._fields)
            except ValueError as error:
                yield from self._part(lines)
                lines, held = [], 0
                yield f"{self._file.name}{ROW_MARK}{self._row}: {error}"
                continue
            lines.append(line)
            held += len(line)
            if held >= READ_BYTES:
                yield from self._part(lines, after=self._row)
                lines, held = [], 0
        yield from self._part(lines, after=self._row)

    def _part(self, lines: list[bytes], after: int | None = None) -> Iterator[Part]:
        last = self._row - 1 if after is None else after
        if lines:
            data = b"\n".join(lines)
            self._advance(len(data))
            yield Part(self._file.name, last - len(lines) + 1, data, ROW_MARK)


def _chosen(dataset: Any, fields: Sequence[str]) -> Any:
    """The dataset with no more columns than needed, where it knows what it has."""
    names = dataset.column_names
    if names is None:
        return dataset
    tops = {name if name in names else name.split(".")[0] for name in fields}
    return dataset.select_columns([name for name in names if name in tops])


def _line(example: dict[str, Any], fields: Sequence[str]) -> bytes:
    """A row as JSON, of the fields that are needed; where one is missing, the names of all.

    Raises:
        FieldError: it holds what JSON has no form for, or a text with a lone surrogate.
    """
    tops = dict.fromkeys(name if name in example else name.split(".")[0] for name in fields)
    kept = {name: json_like(example[name]) for name in tops if name in example}
    if len(kept) < len(tops):
        kept = {**dict.fromkeys(example), **kept}
    try:
        return json.dumps(kept, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError("broken Unicode (a lone surrogate)") from None


def is_saved(names: Sequence[str] | set[str]) -> bool:
    """Is a folder with files of these names what `Dataset.save_to_disk` wrote?"""
    return STATE in names and INFO in names


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved dataset, in order.

    Raises:
        UserError: its description is damaged, a file is missing, or it has an indices mapping,
            so that its files alone are not its contents.
    """
    state = _read_json(folder / STATE)
    # `datasets` before 2.0 could save a choice of rows beside the whole table.
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(
            f"{folder} was saved with an indices mapping (rows filtered or shuffled, not written "
            "out), so its files are not its contents; load it with datasets.load_from_disk and "
            "save dataset.flatten_indices() anew."
        )
    try:
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / STATE} lists no data files; save the dataset again.") from error
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, which {folder / STATE} names; save it again.")
    return files


def saved_split(folder: Path) -> str:
    """The one split of a saved dictionary of datasets.

    Raises:
        UserError: it has several.
    """
    splits = _read_json(folder / SPLITS).get("splits")
    if not isinstance(splits, list) or not splits:
        raise UserError(f"{folder / SPLITS} names no splits; save the datasets again.")
    if len(splits) > 1:
        raise UserError(
            f"{folder} has the splits {', '.join(map(str, splits))}; name the one to read, for "
            f"example {folder / str(splits[0])}."
        )
    return str(splits[0])


def saved_record(folder: Path) -> DatasetRecord | None:
    """Where a saved dataset is from, as it says itself; `None` of any other folder."""
    if (folder / SPLITS).is_file():
        folder = folder / saved_split(folder)
    if not ((folder / STATE).is_file() and (folder / INFO).is_file()):
        return None
    state, info = _read_json(folder / STATE), _read_json(folder / INFO)
    split = state.get("_split")
    sizes = info.get("splits") or {}
    rows = (sizes.get(split) or {}).get("num_examples") if isinstance(sizes, dict) else None
    return DatasetRecord(
        kind="saved",
        name=info.get("dataset_name") or info.get("builder_name"),
        config=info.get("config_name"),
        split=split,
        revision=None,
        fingerprint=state.get("_fingerprint"),
        rows=rows,
        licence=info.get("license") or None,
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; save the dataset again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is no description of a dataset; save the dataset again.")
    return value


def refuse_cache(folder: Path, names: Sequence[str]) -> None:
    """Raise a UserError for a folder of the cache of `datasets`, where results of `map` lie beside
    the splits."""
    if INFO in names and STATE not in names and any(name.endswith(".arrow") for name in names):
        raise UserError(
            f"{folder} is a cache of datasets and not a saved dataset; name the dataset itself "
            "(hf:NAME:SPLIT), or write it with dataset.save_to_disk."
        )


def offline() -> bool:
    """Is the hub switched off by the environment?"""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)
