"""From a file, folder or dataset to the documents that a model is scored on.

The readers are those of `llamita data build`. A record that it would count as bad and pass over is
an error here, because a score of half a file is a wrong score.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamita.data.blocks import ParseSettings
from llamita.data.build import TOKENIZER_DIRECTORY
from llamita.data.documents import check_fields, parse_block, read_blocks
from llamita.data.manifest import MANIFEST_NAME, BuildSettings, read_manifest
from llamita.data.shards import open_dataset
from llamita.data.sources import Source, list_sources
from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.evaluation.text import unknown_id

__all__ = ["TextSource", "find_texts"]

# What a folder is searched for. Other files are read only where they are named themselves.
_SUFFIXES = frozenset({".txt", ".md", ".jsonl", ".ndjson", ".parquet"})
_COMPRESSED = frozenset({".gz", ".zst"})
# Bytes of text that a byte on disk holds, about: what a progress bar goes by.
_UNPACKED = 4


@dataclass(frozen=True)
class TextSource:
    """One file, or the validation split of one dataset.

    name: as it is shown, free of machine paths. num_bytes: of its text in UTF-8; of a dataset
    exact, of files a guess from their size on disk. path: of a dataset, else None.
    """

    name: str
    num_bytes: int
    path: Path | None = None
    file: Source | None = None
    text_field: str = "text"

    def documents(self) -> Iterator[str]:
        """Its documents in order; blank ones are left out.

        Raises:
            UserError: something cannot be read, or is no text.
        """
        if self.path is not None:
            return _of_dataset(self.path)
        assert self.file is not None
        return _of_file(self.file, ParseSettings(text_field=self.text_field))


def find_texts(source: str | Path, *, text_field: str = "text") -> list[TextSource]:
    """The texts that `source` names, in the order of their names.

    Args:
        source: a dataset of `llamita data build` (its validation split); a file that it reads:
            `.jsonl`, `.ndjson` and `.parquet` hold a document a record, any other file is one
            document, `.gz` and `.zst` are unpacked; or a folder of these, where `.txt`, `.md` and
            the three are taken. Besides `hf:NAME`, as `data build` has it.
        text_field: of a record.

    Raises:
        UserError: nothing there, or no text in it.
    """
    place = Path(source).expanduser()
    if _is_dataset(place):
        return [_dataset_source(place, place.resolve().name)]
    settings = ParseSettings(text_field=text_field)
    if not place.is_dir():
        return _file_sources(source, settings)
    found: list[TextSource] = []
    for entry in _walk(place):
        name = entry.relative_to(place).as_posix()
        if _is_dataset(entry):
            found.append(_dataset_source(entry, name))
        else:
            found += _file_sources(entry, settings, name)
    if not found:
        raise UserError(
            f"the folder {place} holds no text; put .txt, .md, .jsonl or .parquet files or a "
            "dataset of `llamita data build` there, or name a file of another kind itself."
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Datasets, and files whose names say text, in the order of their names."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if _suffix(entry) in _SUFFIXES:
                yield entry
        elif _is_dataset(entry):
            yield entry
        elif not entry.is_symlink():  # which may lead round in a circle
            yield from _walk(entry)


def _suffix(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_dataset(place: Path) -> bool:
    """Whether it is one, or what an interrupted or damaged build left, which is then said."""
    return (place / MANIFEST_NAME).is_file() or (place.is_dir() and any(place.glob("*.ds.index")))


def _dataset_source(path: Path, name: str) -> TextSource:
    manifest = read_manifest(path)
    if manifest.kind != "text":
        raise UserError(
            f"{path} holds {manifest.kind}, whose turns are no running text; name text, or a "
            "dataset of text."
        )
    split = manifest.splits["validation"]
    if not split.documents:
        raise UserError(
            f"{path} has no validation split; build it with --validation, or name the text itself."
        )
    return TextSource(name, split.text_bytes, path=path)


def _file_sources(
    source: str | Path, settings: ParseSettings, name: str | None = None
) -> list[TextSource]:
    files = list_sources(source).files
    check_fields(files, settings)
    return [
        TextSource(
            name or file.name,
            file.size * (_UNPACKED if file.compression else 1),
            file=file,
            text_field=settings.text_field,
        )
        for file in files
    ]


def _of_file(file: Source, settings: ParseSettings) -> Iterator[str]:
    # A file of text is one document, however long, where `data build` would divide it.
    for block in read_blocks([file], sys.maxsize, settings):
        parsed = parse_block(block, settings, [])
        if parsed.bad:
            raise UserError(
                f"{parsed.first_bad[0]}: this cannot be scored, and without it the score would be "
                "of another text; mend the file."
            )
        for document in parsed.documents:
            yield document.text


def _of_dataset(path: Path) -> Iterator[str]:
    """The validation split as text: what the tokenizer's normaliser, if it has one, made of it."""
    dataset = open_dataset(path)
    settings, record = dataset.manifest.settings, dataset.manifest.tokenizer
    assert isinstance(settings, BuildSettings), "a dataset of text"
    tokenizer = load_tokenizer(path / TOKENIZER_DIRECTORY)
    begin = int(settings.bos and record.bos_id is not None)
    end = int(settings.eos and record.eos_id is not None)
    stream = dataset.validation
    for number in range(stream.num_documents):
        ids = stream.document(number)
        ids = ids[begin : len(ids) - end]
        if (ids == unknown_id(tokenizer)).any():
            raise UserError(
                f"{path}: document {number + 1} has characters that its tokenizer does not know, "
                "and cannot be had back from its tokens; name the files that it was built of."
            )
        yield tokenizer.decode(ids.tolist())
