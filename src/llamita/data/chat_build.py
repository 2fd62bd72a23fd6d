"""Building a dataset of chats or preferences: whole or not at all, reused if nothing changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

import llamita
from llamita.data.atomic import exclusive, fresh_directory, publish, sync_files
from llamita.data.build import (
    TOKENIZER_DIRECTORY,
    Progress,
    Report,
    built_message,
    check_out,
    fingerprint_at,
    keep_tokenizer,
    source_records,
    tokenizer_record,
)
from llamita.data.chat_encoding import Encoded, Learn, encode_conversations, encode_preferences
from llamita.data.chat_pass import Chunk, Pass
from llamita.data.chat_records import ChatKind, Example, Preference, RowError
from llamita.data.chat_sources import list_chat_sources
from llamita.data.chat_template import ChatTemplate, chat_template
from llamita.data.dataset_sources import SourceDataset
from llamita.data.dedup import SeenHashes
from llamita.data.held_out import with_held_out
from llamita.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    ChatRecord,
    ChatSettings,
    Counts,
    Manifest,
    SplitRecord,
    building_directory,
)
from llamita.data.reuse import (
    LISTING_NAME,
    ReadFile,
    find_reusable,
    fingerprint_of,
    hash_file,
    listing_text,
    relabelled,
)
from llamita.data.shard_writer import SplitWriter
from llamita.data.show import split_contents, what_is_learnt
from llamita.data.sources import Given, SourceList
from llamita.data.tally import fraction_holding_ten
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.durable import write_synced
from llamita.errors import UserError

_SHARD_TOKENS = 500_000_000
_VALIDATION = 0.05
# Split keys that `fraction_holding_ten` wants to see.
_SMALLEST_KEYS = 11


def build_chats(
    sources: Given | Sequence[Given],
    out: str | Path,
    tokenizer: Tokenizer | str | Path,
    *,
    kind: ChatKind = "chats",
    template: str | None = None,
    learn: Learn = "assistant",
    name: str | None = None,
    validation: float | None = None,
    held_out: Given | Sequence[Given] | None = None,
    max_bad_fraction: float = 0.01,
    max_examples: int | None = None,
    dedup: bool = True,
    progress: Report | None = None,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Build the dataset `out` from conversations or pairs of answers, or reuse it if nothing
    changed.

    Args:
        sources: files, folders and globs of .json, .jsonl, .parquet and .arrow, names of datasets
            (`hf:NAME:SPLIT`), and objects of the library `datasets`, as `list_chat_sources` takes
            them. The form of their rows is recognised.
        out: the dataset's directory; an older dataset there is replaced once the new one is whole.
        tokenizer: a Tokenizer or the path of one.
        kind: "chats", or "preferences" for pairs of a chosen and a rejected answer.
        template: the chat template, as `chat_template` takes it: the tokenizer's own by default.
            The dataset's tokenizer carries it, and so will models that learn from the dataset.
        learn: what is learnt of a chat: the "assistant"'s turns, the "last" of them, or "all". Of
            preferences it is always the answers.
        name: the dataset's name in reports; the last part of `out` by default.
        validation: fraction of examples, by hash, held out; 0 for none, 0.05 by default. Where so
            few are given that none falls in it, it is raised to hold about ten of them.
        held_out: sources that are held out, all of them and they alone, in place of a fraction.
            They are read first, so that `dedup` drops what stands in both from training.
        max_bad_fraction: more wrong rows than this is an error.
        max_examples: reading ends with the example that brings both splits together to so many;
            those of `held_out` do not count.
        dedup: drop examples that are the same, word for word, as one before.
        progress: called with a `Progress` now and then.
        say: receives every line meant for people.

    Returns:
        The manifest, which is the last file written.

    Raises:
        UserError: wrong settings, unusable sources, too many wrong rows, no example in a split that
            must have some, a full disk, or another process building the same `out`. `out` is then
            as it was before.
    """
    out = Path(out)
    kept_back = _held_out_sources(held_out, validation)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    chosen = chat_template(tokenizer, template)
    settings = ChatSettings(
        kind=kind,
        template_sha256=hashlib.sha256(chosen.source.encode()).hexdigest(),
        learn=learn,
        validation=_validation(validation, kept_back),
        dedup=dedup,
        max_bad_fraction=max_bad_fraction,
        max_examples=max_examples,
        held_out=0 if kept_back is None else len(kept_back.names),
    )
    _check_settings(settings)
    check_out(out)
    listed = list_chat_sources(sources)
    if kept_back is not None:
        listed = with_held_out(listed, kept_back)
    tokenizer = _with_template(tokenizer, chosen)
    record = tokenizer_record(tokenizer)
    name = name or out.resolve().name
    with exclusive(out, "dataset"):
        manifest = find_reusable(out, listed, record, settings)
        if manifest is not None:
            manifest = relabelled(out, manifest, name, None)
            keep_tokenizer(out / TOKENIZER_DIRECTORY, tokenizer)
            message = f"{out} is up to date: nothing changed, reused."
        else:
            before = fingerprint_at(out)
            with fresh_directory(building_directory(out)) as directory:
                build = _Build(listed, directory, tokenizer, chosen, settings)
                manifest = build.run(name, progress or (lambda _: None))
                publish(directory, out)
            message = built_message(out, before, manifest)
    for line in (message, *describe_build(manifest)):
        say(line)
    return manifest


def describe_build(manifest: Manifest) -> list[str]:
    """What a dataset of chats or preferences was made of, as lines."""
    assert manifest.chats is not None
    counts = manifest.counts
    duplicates = f", {counts.duplicates:,} duplicates left out" if counts.duplicates else ""
    return [
        f"{counts.records:,} rows: {'; '.join(manifest.chats.forms)}{duplicates}; "
        f"{what_is_learnt(manifest)}",
        *manifest.notes,
        *(
            f"{name}: {split_contents(manifest, name)}"
            for name, split in manifest.splits.items()
            if split.documents
        ),
    ]


class _Build:
    def __init__(
        self,
        sources: SourceList,
        directory: Path,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        settings: ChatSettings,
    ) -> None:
        self._sources = sources
        self._directory = directory
        self._tokenizer = tokenizer
        self._template = template
        self._settings = settings
        self._token_bytes = 2 if tokenizer.vocab_size <= 1 << 16 else 4
        self._num_held_out = sum(file.source < settings.held_out for file in sources.files)

    def run(self, name: str, report: Report) -> Manifest:
        """Encode everything and write the manifest last."""
        fraction = self._settings.validation
        # Before they are read: what changes in between is then not vouched for.
        hashes = {
            number: hash_file(source)
            for number, source in enumerate(self._sources.files)
            if not isinstance(source, SourceDataset)
        }
        found, splits = self._encode(fraction, report)
        notes = found.tally.warnings()
        if fraction > 0 and not splits["validation"].documents:
            fraction = _raised_fraction(found)
            notes.append(
                f"no example of {found.examples:,} fell in a validation split of "
                f"{self._settings.validation:g}; it was raised to {fraction:.3g}."
            )
            found, splits = self._encode(fraction, report)
        _check_splits(found, splits, self._settings)
        if found.cut:
            notes.append(f"reading ended at max_examples {self._settings.max_examples:,}.")
        self._tokenizer.save(self._directory / TOKENIZER_DIRECTORY)
        sync_files(self._directory / TOKENIZER_DIRECTORY)
        files = [
            found.read_file(number, source, hashes)
            for number, source in enumerate(self._sources.files)
        ]
        write_synced(self._directory / LISTING_NAME, listing_text(files))
        manifest = self._manifest(name, fraction, notes, found, files, splits)
        write_synced(self._directory / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        return manifest

    def _encode(self, fraction: float, report: Report) -> tuple[Pass, dict[str, SplitRecord]]:
        """One pass: all examples encoded, deduplicated in order, and written by split."""
        found = Pass(self._sources, self._settings)
        threshold = min(int(fraction * 2.0**64), 2**64 - 1)
        seen = SeenHashes(self._directory / "seen.sqlite") if self._settings.dedup else None
        try:
            with self._writer("train") as train, self._writer("validation") as validation:
                writers = {"train": train, "validation": validation}
                for chunk in found.chunks():
                    self._encode_chunk(chunk)
                    self._write(chunk, found, seen, threshold, writers)
                    tokens = train.num_tokens + validation.num_tokens
                    total = self._sources.num_bytes
                    report(Progress(found.bytes_read, total, found.examples, tokens))
                    if found.cut:
                        break
                found.tally.check(self._settings.max_bad_fraction)
                splits = {name: writer.finish() for name, writer in writers.items()}
        finally:
            if seen is not None:
                seen.close()
        return found, splits

    def _encode_chunk(self, chunk: Chunk) -> None:
        pairs = [example for example in chunk.examples if isinstance(example, Preference)]
        if pairs:
            chunk.sides += encode_preferences(pairs, self._tokenizer, self._template)
        else:
            chats = [example for example in chunk.examples if not isinstance(example, Preference)]
            learn = self._settings.learn
            for side in encode_conversations(chats, self._tokenizer, self._template, learn=learn):
                chunk.sides.append(side if isinstance(side, RowError) else (side,))
        for number, sides in enumerate(chunk.sides):
            # A row's first token is never a target.
            if isinstance(sides, tuple) and not all(side.learns[1:].any() for side in sides):
                chunk.sides[number] = RowError("nothing in it learns")

    def _write(
        self,
        chunk: Chunk,
        found: Pass,
        seen: SeenHashes | None,
        threshold: int,
        writers: dict[str, SplitWriter],
    ) -> None:
        kept: dict[str, list[Encoded]] = {split: [] for split in writers}
        keys = []
        for where, source, example, sides in zip(
            chunk.where, chunk.sources, chunk.examples, chunk.sides, strict=True
        ):
            if isinstance(sides, RowError):
                found.tally.refuse(where, sides)
                continue
            digest = _digest(example)
            found.met(source, digest)
            if seen is not None and not seen.add([digest])[0]:
                found.duplicates += 1
                continue
            found.tally.special += any(side.holds_special for side in sides)
            found.examples += 1
            if source < self._num_held_out:
                found.held_out += 1
                kept["validation"] += sides
                continue
            keys.append(int.from_bytes(digest[:8], "little"))
            kept["validation" if keys[-1] < threshold else "train"] += sides
            if found.examples - found.held_out == self._settings.max_examples:
                found.cut = True
                break
        smallest = np.concatenate((found.smallest_keys, np.array(keys, dtype=np.uint64)))
        found.smallest_keys = np.unique(smallest)[:_SMALLEST_KEYS]
        for split, documents in kept.items():
            if documents:
                found.learning_tokens[split] += _append(writers[split], documents)

    def _writer(self, split: str) -> SplitWriter:
        return SplitWriter(
            self._directory,
            split,
            self._token_bytes,
            _SHARD_TOKENS,
            self._tokenizer.fingerprint,
            marks=True,
        )

    def _manifest(
        self,
        name: str,
        fraction: float,
        notes: list[str],
        found: Pass,
        files: Sequence[ReadFile],
        splits: dict[str, SplitRecord],
    ) -> Manifest:
        record, settings, tally = tokenizer_record(self._tokenizer), self._settings, found.tally
        return Manifest(
            format_version=FORMAT_VERSION,
            name=name,
            created_by=f"llamita {llamita.__version__}",
            fingerprint=fingerprint_of(files, record, settings),
            sources=source_records(self._sources, found.records_of, None),
            tokenizer=record,
            settings=settings,
            validation_fraction=fraction,
            token_bytes=self._token_bytes,
            counts=Counts(
                records=tally.rows,
                documents=found.examples,
                duplicates=found.duplicates,
                filtered=0,
                empty=0,
                bad=tally.wrong,
                ignored_files=len(self._sources.ignored),
            ),
            first_bad=tuple(tally.first),
            notes=tuple(notes),
            splits=splits,
            cut=found.cut,
            kind=settings.kind,
            chats=ChatRecord(
                template=self._template.name,
                template_sha256=settings.template_sha256,
                learn=settings.learn,
                forms=tuple(dict.fromkeys(tally.forms.values())),
                learning_tokens=found.learning_tokens,
                wrong=dict(tally.reasons),
            ),
        )


def _append(writer: SplitWriter, documents: Sequence[Encoded]) -> int:
    """Write documents; how many of their tokens are learnt."""
    learns = np.concatenate([document.learns for document in documents])
    writer.write(
        np.concatenate([document.tokens for document in documents]).astype(writer.dtype),
        np.array([len(document.tokens) for document in documents], dtype=np.int64),
        np.array([document.num_bytes for document in documents], dtype=np.int64),
        learns,
    )
    return int(learns.sum())


def _digest(example: Example) -> bytes:
    """BLAKE2b-128 of what an example says, whatever file and form it came in."""
    content = [type(example).__name__, asdict(example)]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _with_template(tokenizer: Tokenizer, template: ChatTemplate) -> Tokenizer:
    return Tokenizer(
        tokenizer.to_json(),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        chat_template=template.source,
    )


def _held_out_sources(
    held_out: Given | Sequence[Given] | None, validation: float | None
) -> SourceList | None:
    if held_out is None:
        return None
    if validation is not None:
        raise UserError(
            f"--validation {validation:g}: --held-out says already what is held out; give one of "
            "them."
        )
    return list_chat_sources(held_out)


def _validation(validation: float | None, held_out: SourceList | None) -> float:
    if held_out is not None:
        return 0.0
    return _VALIDATION if validation is None else validation


def _check_splits(found: Pass, splits: dict[str, SplitRecord], settings: ChatSettings) -> None:
    if settings.held_out:
        if not splits["validation"].documents:
            raise UserError("no row of --held-out is right; name files that have some.")
        if not splits["train"].documents:
            raise UserError(
                "every example of the sources is held out too, or wrong; name others to learn from."
            )
    if not splits["train"].documents:
        raise UserError(
            f"all {found.examples:,} examples fell in the validation split; lower --validation."
        )


def _raised_fraction(found: Pass) -> float:
    if len(found.smallest_keys) < 2:
        raise UserError(
            f"{found.examples} examples cannot be divided into training and validation; give more, "
            "or --validation 0."
        )
    return fraction_holding_ten(found.smallest_keys, found.examples)


def _check_settings(settings: ChatSettings) -> None:
    if not 0 <= settings.validation < 1:
        raise UserError(f"validation is a fraction from 0 to below 1, not {settings.validation}.")
    if not 0 <= settings.max_bad_fraction <= 1:
        raise UserError(f"max_bad_fraction is from 0 to 1, not {settings.max_bad_fraction}.")
    if settings.max_examples is not None and settings.max_examples < 1:
        raise UserError(f"max_examples must be 1 or more, not {settings.max_examples}.")
    if settings.kind == "preferences" and settings.learn != "assistant":
        raise UserError(
            "of preferences it is always the answers that are learnt; leave --learn out."
        )
