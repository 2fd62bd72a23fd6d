"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.data.atomic import exclusive, fresh_directory, publish, sync_files
from llamita.data.blocks import READ_BYTES, Parsed, ParseSettings, compile_where
from llamita.data.documents import check_fields, parse_block, read_blocks
from llamita.data.manifest import building_directory
from llamita.data.pre_tokenizers import PRE_TOKENIZERS, make_pre_tokenizer
from llamita.data.sources import Given, list_sources
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tokenizers

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
_ALLOWED_BAD = 10


def train_tokenizer(
    sources: Given | Sequence[Given],
    out: str | Path,
    vocab_size: int,
    *,
    pre_tokenizer: str = "llama-bpe",
    special_tokens: Sequence[str] = CHAT_TOKENS,
    chat_template: str | None = None,
    text_field: str = "text",
    where: str | Sequence[str] | None = None,
    max_bytes: int | None = 256_000_000,
    max_documents: int | None = None,
    max_bad_fraction: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """Train a tokenizer and write it as a directory that Transformers reads.

    All 256 bytes are in the vocabulary, so nothing is ever unknown. `<s>`, `</s>` and `<pad>` get
    the ids 0, 1 and 2, `special_tokens` the next ones; `encode_prompt` puts `<s>` in front. The
    same sources give the same tokenizer.

    Args:
        sources, text_field, where, max_bad_fraction: as for `build_data`.
        out: the tokenizer's directory; a tokenizer that is there is replaced.
        vocab_size: number of tokens in all.
        pre_tokenizer: how text is cut before merging, by llama.cpp's name (`PRE_TOKENIZERS`).
        special_tokens: special tokens after the three.
        chat_template: a Jinja chat template to store.
        max_bytes: train on at most so much text, drawn evenly over all documents by their hash
            and held in memory; `None` for all of it, streamed.
        max_documents: read no more than so many documents of the sources: for a stream, all of
            which would be read otherwise.
        progress: called with bytes read and bytes in all, on disk (0 where that is not known).

    Raises:
        UserError: an unknown pre-tokenizer, a vocab_size that the specials and bytes do not leave
            room in or that the text is too small for, unusable sources.
    """
    specials = (BOS, EOS, PAD, *special_tokens)
    _check(vocab_size, pre_tokenizer, specials, max_bytes, max_documents)
    out = Path(out)
    if out.exists() and not (out / "tokenizer.json").is_file() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not a tokenizer; name another --out.")
    conditions = (where,) if isinstance(where, str) else tuple(where or ())
    texts = _Texts(
        sources,
        ParseSettings(text_field, conditions),
        max_bad_fraction,
        max_bytes,
        max_documents,
        progress,
    )
    with exclusive(out, "tokenizer"):
        backend = _train(texts, vocab_size, pre_tokenizer, specials)
        if texts.num_documents == 0:
            raise UserError(f"the sources hold no text to train on.{texts.examples}")
        if backend.get_vocab_size() < vocab_size:
            raise UserError(
                f"vocab_size {vocab_size} is more than the text gives: it has merges for "
                f"{backend.get_vocab_size()} tokens; write --vocab-size "
                f"{backend.get_vocab_size()} or less, or train on more text."
            )
        tokenizer = Tokenizer(
            backend.to_str(), bos_id=0, eos_id=1, pad_id=2, chat_template=chat_template
        )
        with fresh_directory(building_directory(out)) as directory:
            tokenizer.save(directory)
            sync_files(directory)
            publish(directory, out)
    return tokenizer


def _train(
    texts: _Texts, vocab_size: int, pre_tokenizer: str, specials: Sequence[str]
) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = make_pre_tokenizer(pre_tokenizer)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer=trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return backend


class _Texts:
    """The texts of the sources in batches: all of them, or those with the smallest hashes that fit
    in `max_bytes`."""

    def __init__(
        self,
        sources: Given | Sequence[Given],
        settings: ParseSettings,
        max_bad_fraction: float,
        max_bytes: int | None,
        max_documents: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._listed = list_sources(sources)
        check_fields(self._listed.files, settings)
        self._settings = settings
        self._where = compile_where(settings.where)
        self._max_bad_fraction = max_bad_fraction
        self._max_bytes = max_bytes
        self._max_documents = max_documents
        self._progress = progress
        self._bytes_read = 0
        self.num_documents = 0
        self.examples = ""

    def __iter__(self) -> Iterator[list[str]]:
        if self._max_bytes is None:
            for parsed in self._parsed():
                yield [document.text for document in parsed.documents]
            return
        for text in self._sample(self._max_bytes):
            yield [text]

    def _parsed(self) -> Iterator[Parsed]:
        records, bad, first_bad = 0, 0, list[str]()
        blocks = read_blocks(self._listed.files, READ_BYTES, self._settings, advanced=self._advance)
        for block in blocks:
            parsed = parse_block(block, self._settings, self._where)
            if self._max_documents is not None:
                del parsed.documents[self._max_documents - self.num_documents :]
            records += parsed.records
            bad += parsed.bad
            first_bad = (first_bad + parsed.first_bad)[:5]
            self.num_documents += len(parsed.documents)
            yield parsed
            if self.num_documents == self._max_documents:
                break
        self.examples = "".join(f"\n  {reason}" for reason in first_bad)
        if bad > max(_ALLOWED_BAD, self._max_bad_fraction * records) or 2 * bad > records:
            raise UserError(
                f"{bad} of {records} records are bad; mend or leave out those files, or raise "
                f"--max-bad-fraction. The first ones:{self.examples}"
            )

    def _sample(self, max_bytes: int) -> list[str]:
        kept: list[tuple[int, int, str]] = []  # a heap with the largest hash first
        size = number = 0
        for parsed in self._parsed():
            for document in parsed.documents:
                number += 1
                digest = hashlib.blake2b(document.encoded, digest_size=8).digest()
                entry = (-int.from_bytes(digest, "big"), number, document.text)
                heapq.heappush(kept, entry)
                size += len(document.encoded)
                while size > max_bytes and len(kept) > 1:
                    size -= len(heapq.heappop(kept)[2].encode())
        return [text for _, _, text in sorted(kept, key=lambda entry: entry[1])]

    def _advance(self, size: int) -> None:
        self._bytes_read += size
        if self._progress is not None:
            self._progress(self._bytes_read, self._listed.num_bytes)


def _check(
    vocab_size: int,
    pre_tokenizer: str,
    specials: Sequence[str],
    max_bytes: int | None,
    max_documents: int | None,
) -> None:
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise UserError(
            f"there is no pre-tokenizer {pre_tokenizer!r}."
            f"{did_you_mean(pre_tokenizer, PRE_TOKENIZERS)} Known: {', '.join(PRE_TOKENIZERS)}."
        )
    if len(set(specials)) < len(specials) or not all(specials):
        raise UserError(f"special tokens must differ and not be empty: {', '.join(specials)}.")
    least = 256 + len(specials)
    if vocab_size < least:
        raise UserError(
            f"vocab_size {vocab_size} leaves no room for 256 bytes and {len(specials)} special "
            f"tokens; write {least} or more (8192 suits a few megabytes of text)."
        )
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"max_bytes must be 1 or more, not {max_bytes}.")
    if max_documents is not None and max_documents < 1:
        raise UserError(f"max_documents must be 1 or more, not {max_documents}.")
