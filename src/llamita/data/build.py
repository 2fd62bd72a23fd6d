"""Building a dataset: sources to shards, in parallel, in bounded memory, whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import llamita
from llamita.cores import usable_cores
from llamita.data.atomic import exclusive, fresh_directory, publish, sync_files
from llamita.data.blocks import ParseSettings, compile_where
from llamita.data.dataset_sources import SourceDataset
from llamita.data.dedup import SeenHashes
from llamita.data.documents import auto_block_bytes, check_fields, read_blocks
from llamita.data.encode import EncodedBlock, EncodeSettings
from llamita.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    BuildSettings,
    Counts,
    Manifest,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    building_directory,
    read_manifest,
)
from llamita.data.reuse import (
    LISTING_NAME,
    ReadFile,
    find_reusable,
    fingerprint_of,
    licence_of,
    listing_text,
    relabelled,
)
from llamita.data.shard_writer import SplitWriter
from llamita.data.sources import Given, SourceList, list_sources
from llamita.data.tally import Tally, check_bad, raised_fraction
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.data.workers import encode_blocks
from llamita.durable import write_synced
from llamita.errors import UserError

TOKENIZER_DIRECTORY = "tokenizer"
# Starting workers costs about 0.3 s, as much as encoding this many bytes here.
_SMALL_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is: bytes read and in all (0 where a stream has no known end), documents and
    tokens written. `message` is a sentence to show, "" on the regular reports."""

    bytes_read: int
    num_bytes: int
    documents: int
    tokens: int
    message: str = ""


Report = Callable[[Progress], None]


def build_data(
    sources: Given | Sequence[Given],
    out: str | Path,
    tokenizer: Tokenizer | str | Path,
    *,
    name: str | None = None,
    text_field: str = "text",
    where: str | Sequence[str] | None = None,
    validation: float = 0.01,
    split_by: str | None = None,
    bos: bool = True,
    eos: bool = True,
    dedup: bool = True,
    num_workers: int | None = None,
    shard_tokens: int = 500_000_000,
    block_bytes: int | None = None,
    max_bad_fraction: float = 0.01,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    licence: str | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Build the dataset `out` from text, or reuse it if nothing changed.

    Args:
        sources: folders, globs, files, names of datasets (`hf:NAME:SPLIT`), and `Dataset` and
            `IterableDataset` objects of the library `datasets`, as `list_sources` takes them.
        out: the dataset's directory; an older dataset there is replaced once the new one is whole.
        tokenizer: a Tokenizer or the path of one.
        name: the dataset's name in reports; the last part of `out` by default.
        text_field: field or column of records that holds the text (dots reach nested fields).
        where: conditions on record fields, all of which must hold (see `parse_where`).
        validation: fraction of documents, by hash, held out; 0 for none. Where so few documents
            are given that none falls in it, it is raised to hold about ten of them.
        split_by: record field whose value's hash decides the split instead of the text's, so that
            records with the same value stay on one side. Plain text is split by its text.
        bos, eos: put the tokenizer's BOS before and EOS after every document.
        dedup: drop documents whose text was met before.
        num_workers: processes that encode; all usable cores by default, 0 for this process.
        shard_tokens: a shard ends with the document that brings it to this many tokens.
        block_bytes: size of the blocks that large text files are divided into at line ends, each a
            document (see `auto_block_bytes` for the default).
        max_bad_fraction: more bad records than this (and than 10) is an error.
        max_documents, max_tokens: reading ends with the document that brings the dataset, both
            splits together, to so many. Meant for streams.
        licence: recorded with the sources; a dataset's own by default.
        progress: called with a `Progress` now and then.

    Returns:
        The manifest, which is the last file written.

    Raises:
        UserError: wrong settings, unusable sources, too many bad records, no documents, a full
            disk, or another process building the same `out`. `out` is then as it was before.
    """
    out = Path(out)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    settings = BuildSettings(
        text_field=text_field,
        where=(where,) if isinstance(where, str) else tuple(where or ()),
        validation=validation,
        split_by=split_by,
        bos=bos,
        eos=eos,
        dedup=dedup,
        shard_tokens=shard_tokens,
        block_bytes=block_bytes,
        max_bad_fraction=max_bad_fraction,
        max_documents=max_documents,
        max_tokens=max_tokens,
    )
    _check_settings(settings, tokenizer, num_workers)
    check_out(out)
    report = progress or (lambda _: None)
    listed = list_sources(sources)
    record = tokenizer_record(tokenizer)
    name = name or out.resolve().name
    with exclusive(out, "dataset"):
        manifest = find_reusable(out, listed, record, settings)
        if manifest is not None:
            manifest = relabelled(out, manifest, name, licence)
            keep_tokenizer(out / TOKENIZER_DIRECTORY, tokenizer)
            report(_whole(manifest, listed, f"{out} is up to date: nothing changed, reused."))
            return manifest
        before = fingerprint_at(out)
        with fresh_directory(building_directory(out)) as directory:
            build = _Build(listed, directory, tokenizer, settings, num_workers, report)
            manifest = build.run(name, licence)
            publish(directory, out)
        report(_whole(manifest, listed, built_message(out, before, manifest)))
        return manifest


def built_message(out: Path, before: str | None, manifest: Manifest) -> str:
    """What to say of a build; `before` is the fingerprint of what stood there."""
    if before == manifest.fingerprint:
        return (
            f"{out} was read and built again, since nothing vouched for its sources: the contents "
            "are the same as before."
        )
    return f"{out} is built."


def fingerprint_at(out: Path) -> str | None:
    """The fingerprint of the dataset at `out`, if there is one that is whole."""
    try:
        return read_manifest(out).fingerprint
    except UserError:
        return None  # there is none, or a damaged one


class _Build:
    def __init__(
        self,
        sources: SourceList,
        directory: Path,
        tokenizer: Tokenizer,
        settings: BuildSettings,
        num_workers: int | None,
        report: Report,
    ) -> None:
        self._sources = sources
        self._directory = directory
        self._tokenizer = tokenizer
        self._settings = settings
        self._num_workers = _num_workers(num_workers, sources)
        self._report = report
        self._token_bytes = 2 if tokenizer.vocab_size <= 1 << 16 else 4
        self._bytes_read = 0

    def run(self, name: str, licence: str | None) -> Manifest:
        """Encode everything and write the manifest last."""
        fraction = self._settings.validation
        notes: list[str] = []
        check_fields(self._sources.files, self._encode_settings().parse)
        tally, splits = self._encode(fraction)
        if fraction > 0 and splits["validation"].documents == 0:
            fraction = raised_fraction(tally)
            notes.append(
                f"no document of {tally.documents} fell in a validation split of "
                f"{self._settings.validation:g}; it was raised to {fraction:.3g}."
            )
            self._report(Progress(0, self._sources.num_bytes, 0, 0, notes[-1]))
            tally, splits = self._encode(fraction)
        if splits["train"].documents == 0:
            raise UserError(
                f"all {tally.documents} documents fell in the validation split; lower "
                "--validation, or split by a field that has more values."
            )
        notes += _cut_notes(tally, self._settings)
        self._tokenizer.save(self._directory / TOKENIZER_DIRECTORY)
        sync_files(self._directory / TOKENIZER_DIRECTORY)
        files = tally.read_files()
        write_synced(self._directory / LISTING_NAME, listing_text(files))
        manifest = self._manifest(name, licence, fraction, notes, tally, files, splits)
        write_synced(self._directory / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        return manifest

    def _encode(self, fraction: float) -> tuple[Tally, dict[str, SplitRecord]]:
        """One pass: all blocks encoded, deduplicated in order, and written by split."""
        tally = Tally(self._sources.files)
        self._bytes_read = 0
        blocks = read_blocks(
            self._sources.files,
            self._settings.block_bytes or auto_block_bytes(self._sources.files),
            self._encode_settings().parse,
            finished=tally.finished,
            advanced=self._advance,
        )
        encoded = encode_blocks(blocks, self._encode_settings(), self._num_workers)
        threshold = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        seen = SeenHashes(self._directory / "seen.sqlite") if self._settings.dedup else None
        try:
            with self._writer("train") as train, self._writer("validation") as validation:
                for block in encoded:
                    kept = np.ones(len(block.lengths), dtype=np.bool_)
                    if seen is not None:
                        kept = seen.add(block.hashes)
                    kept = tally.add(block, kept, self._settings)
                    check_bad(tally, self._settings, final=False)
                    held_out = block.split_keys < threshold
                    _write(train, block, kept & ~held_out)
                    _write(validation, block, kept & held_out)
                    self._report(self._progress(tally))
                    if tally.cut:
                        break
                check_bad(tally, self._settings, final=True)
                splits = {"train": train.finish(), "validation": validation.finish()}
        finally:
            encoded.close()
            if seen is not None:
                seen.close()
        return tally, splits

    def _advance(self, size: int) -> None:
        self._bytes_read += size

    def _progress(self, tally: Tally) -> Progress:
        return Progress(self._bytes_read, self._sources.num_bytes, tally.documents, tally.tokens)

    def _writer(self, split: str) -> SplitWriter:
        return SplitWriter(
            self._directory,
            split,
            self._token_bytes,
            self._settings.shard_tokens,
            self._tokenizer.fingerprint,
        )

    def _encode_settings(self) -> EncodeSettings:
        settings = self._settings
        return EncodeSettings(
            tokenizer_json=self._tokenizer.to_json(),
            bos_id=self._tokenizer.bos_id if settings.bos else None,
            eos_id=self._tokenizer.eos_id if settings.eos else None,
            token_bytes=self._token_bytes,
            parse=ParseSettings(settings.text_field, settings.where, settings.split_by),
        )

    def _manifest(
        self,
        name: str,
        licence: str | None,
        fraction: float,
        notes: list[str],
        tally: Tally,
        files: Sequence[ReadFile],
        splits: dict[str, SplitRecord],
    ) -> Manifest:
        tokenizer = tokenizer_record(self._tokenizer)
        return Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            created_by=f"llamita {llamita.__version__}",
            fingerprint=fingerprint_of(files, tokenizer, self._settings),
            sources=source_records(self._sources, tally.records_of, licence),
            tokenizer=tokenizer,
            settings=self._settings,
            validation_fraction=fraction,
            token_bytes=self._token_bytes,
            counts=Counts(
                records=tally.records,
                documents=tally.documents,
                duplicates=tally.duplicates,
                filtered=tally.filtered,
                empty=tally.empty,
                bad=tally.bad,
                ignored_files=len(self._sources.ignored),
            ),
            first_bad=tuple(tally.first_bad),
            notes=tuple(notes),
            splits=splits,
            cut=tally.cut,
        )


def _write(writer: SplitWriter, block: EncodedBlock, chosen: NDArray[np.bool_]) -> None:
    if chosen.all():
        tokens = block.tokens
    else:
        tokens = block.tokens[np.repeat(chosen, block.lengths)]
    writer.write(tokens, block.lengths[chosen], block.text_bytes[chosen])


def _check_settings(settings: BuildSettings, tokenizer: Tokenizer, num_workers: int | None) -> None:
    if not 0 <= settings.validation < 1:
        raise UserError(f"validation is a fraction from 0 to below 1, not {settings.validation}.")
    if not 0 <= settings.max_bad_fraction <= 1:
        raise UserError(f"max_bad_fraction is from 0 to 1, not {settings.max_bad_fraction}.")
    if settings.shard_tokens < 1:
        raise UserError(f"shard_tokens must be 1 or more, not {settings.shard_tokens}.")
    if settings.block_bytes is not None and settings.block_bytes < 16:
        raise UserError(f"block_bytes must be 16 or more, not {settings.block_bytes}.")
    for name, bound in (
        ("max_documents", settings.max_documents),
        ("max_tokens", settings.max_tokens),
    ):
        if bound is not None and bound < 1:
            raise UserError(f"{name} must be 1 or more, not {bound}.")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"num_workers must be 0 or more, not {num_workers}.")
    for flag, wanted, token in (
        ("bos", settings.bos, tokenizer.bos_id),
        ("eos", settings.eos, tokenizer.eos_id),
    ):
        if wanted and token is None:
            raise UserError(
                f"the tokenizer has no {flag.upper()} token; build with --no-{flag}, or name one "
                f"as {flag}_token in its tokenizer_config.json."
            )
    compile_where(settings.where)


def check_out(out: Path) -> None:
    """Raise a UserError if `out` is something else than a dataset."""
    if out.is_dir() and not (out / MANIFEST_NAME).exists() and any(out.iterdir()):
        raise UserError(
            f"{out} exists and is not a dataset; name another --out, or remove it yourself."
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory as --out.")


def _num_workers(wanted: int | None, sources: SourceList) -> int:
    if wanted is not None:
        return wanted
    size = sum(
        file.size * (4 if file.compression or file.kind == "columns" else 1)
        for file in sources.files
    )
    streamed = any(isinstance(file, SourceDataset) and file.streaming for file in sources.files)
    if size <= _SMALL_BYTES and not streamed:
        return 0
    cores = usable_cores()
    return cores if streamed else min(cores, math.ceil(size / _SMALL_BYTES))


def tokenizer_record(tokenizer: Tokenizer) -> TokenizerRecord:
    """What a manifest keeps of a tokenizer."""
    return TokenizerRecord(
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )


def keep_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Write what may differ between tokenizers that make the same tokens."""
    try:
        kept = load_tokenizer(directory)
    except UserError:
        kept = None
    if kept is None or (kept.pad_id, kept.chat_template) != (
        tokenizer.pad_id,
        tokenizer.chat_template,
    ):
        tokenizer.save(directory)


def source_records(
    sources: SourceList, records_of: Mapping[int, int], licence: str | None
) -> tuple[SourceRecord, ...]:
    """What a manifest keeps of the sources; `records_of` counts the records read of each."""
    return tuple(
        SourceRecord(
            name=name,
            files=sum(file.source == number for file in sources.files),
            bytes=sum(file.size for file in sources.files if file.source == number),
            licence=licence_of(licence, sources.datasets.get(number)),
            records=records_of[number],
            dataset=sources.datasets.get(number),
        )
        for number, name in enumerate(sources.names)
    )


def _cut_notes(tally: Tally, settings: BuildSettings) -> list[str]:
    if not tally.cut:
        return []
    bounds = [
        f"{name} {bound:,}"
        for name, bound in (
            ("max_documents", settings.max_documents),
            ("max_tokens", settings.max_tokens),
        )
        if bound is not None
    ]
    return [
        f"reading ended at {' and '.join(bounds)}, with {tally.documents:,} documents and "
        f"{tally.tokens:,} tokens; the rest of the sources was left unread."
    ]


def _whole(manifest: Manifest, sources: SourceList, message: str) -> Progress:
    size = sources.num_bytes
    return Progress(size, size, manifest.counts.documents, manifest.num_tokens, message)
