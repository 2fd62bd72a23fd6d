"""From a sentencepiece model to tokenizer.json, checked against sentencepiece's own ids."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamita.errors import UserError

_SPACE = "▁"
# Fields of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_PROBES = (
    "Hello world",
    " Two  spaces,   tabs\tand\nlines\n\n  indented",
    "def f(x: int) -> str:\n    return f'{x!r}' * 2  # 1234567890",
    "naïve café, Straße, Ελληνικά, русский, 日本語, 한국어, 🙂🏽 \u200b end ",
    "",
    "a" * 40 + "   " + "=" * 33,
)


def convert_sentencepiece(path: Path) -> str:
    """The tokenizer.json of a sentencepiece model (BPE or unigram).

    Raises:
        UserError: sentencepiece is not installed, the model cannot be read, or the conversion does
            not give sentencepiece's own ids on texts that probe it.
    """
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            f"{path} needs the package sentencepiece: pip install 'llamita[sentencepiece]'."
        ) from None
    try:
        data = path.read_bytes()
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        model = _Model(data)
    except (OSError, RuntimeError, ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path} is not a readable sentencepiece model: {error}") from error
    backend = _convert(model, path)
    plain = _without_post_processor(backend)
    for probe in _PROBES:
        wanted = processor.encode(probe)
        found = plain.encode(probe, add_special_tokens=False).ids
        if found != wanted:
            raise UserError(
                f"{path} cannot be converted: for {probe[:40]!r} sentencepiece gives {wanted[:12]}"
                f" and the conversion {found[:12]}; convert it with Transformers' "
                "AutoTokenizer(...).save_pretrained and name the tokenizer.json."
            )
    text: str = backend.to_str()
    return text


class _Model:
    """The fields of a ModelProto that matter here, in sentencepiece's defaults if absent."""

    def __init__(self, data: bytes) -> None:
        self.pieces: list[tuple[str, float, int]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(data):
            if number == _PIECES:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                self.pieces.append((piece[1].decode("utf-8"), score, piece.get(3, _NORMAL)))
            elif number == _TRAINER:
                trainer = dict(_fields(value))
            elif number == _NORMALIZER:
                normalizer = dict(_fields(value))
        self.model_type: int = trainer.get(3, _UNIGRAM)
        self.byte_fallback = bool(trainer.get(35, 0))
        self.suffix_space = bool(trainer.get(24, 0))
        # int32 fields: -1 is written as 64 bits of ones
        self.bos_id = _signed(trainer.get(41, 1))
        self.charsmap: bytes = normalizer.get(2, b"")
        self.add_dummy_prefix = bool(normalizer.get(3, 1))
        self.remove_extra_whitespaces = bool(normalizer.get(4, 1))


def _convert(model: _Model, path: Path) -> Any:
    import tokenizers
    from tokenizers import decoders, processors

    if model.suffix_space:
        raise UserError(f"{path} treats white space as a suffix, which has no tokenizer.json form.")
    backend = tokenizers.Tokenizer(_core(model, path))
    unknown = next(piece for piece, _, kind in model.pieces if kind == _UNKNOWN)
    special = [piece for piece, _, kind in model.pieces if kind == _CONTROL]
    backend.add_special_tokens([unknown, *special])
    user = [piece for piece, _, kind in model.pieces if kind == _USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in user])
    normalizer = _normalizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    if 0 <= model.bos_id < len(model.pieces):
        bos = model.pieces[model.bos_id][0]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, model.bos_id)],
        )
    return backend


def _core(model: _Model, path: Path) -> Any:
    from tokenizers import models

    unknown = next(
        (number for number, piece in enumerate(model.pieces) if piece[2] == _UNKNOWN), None
    )
    if unknown is None:
        raise UserError(f"{path} has no unknown token, which sentencepiece models must have.")
    if model.model_type == _UNIGRAM:
        scores = [(piece, score) for piece, score, _ in model.pieces]
        return models.Unigram(scores, unk_id=unknown, byte_fallback=model.byte_fallback)
    if model.model_type != _BPE:
        raise UserError(f"{path} is neither a BPE nor a unigram model; these two are read.")
    vocabulary = {piece: number for number, (piece, _, _) in enumerate(model.pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(model, vocabulary),
        unk_token=model.pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(model: _Model, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Sentencepiece merges the pair whose joint piece scores best; every way to make a piece from
    two others is a merge of that rank."""
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece, score, kind in model.pieces:
        if kind != _NORMAL:
            continue
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in vocabulary and right in vocabulary:
                order = (vocabulary[piece], vocabulary[left], vocabulary[right])
                found.append((-score, *order, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(model: _Model) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Strip(left=True, right=True))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _without_post_processor(backend: Any) -> Any:
    import tokenizers

    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = True
    return copy


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: integers, and bytes for everything else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if place + size > len(data):
            raise ValueError("the file is cut short")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
