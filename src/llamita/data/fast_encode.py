"""Encoding several times faster than `tokenizers` alone, with the same ids.

Most words of a text were met before. Where a text can be cut into words exactly as the tokenizer
would, a word's ids come from a table, and only new words go to `tokenizers`. Cutting is exact in
two cases, and everything else is left to `tokenizers`:

- byte-level BPE with one of the known pre-tokenizers: the same expression runs in Python's `re`,
  with the character classes that the tokenizer's own regex engine reports;
- sentencepiece-like BPE without a pre-tokenizer (Llama 2), where no token spans a place between a
  letter and a following space mark, or a line end: no merge can cross such a place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.pre_tokenizers import pre_tokenizer_name
from llamita.data.tokenizer import Tokenizer

_SPACE = "▁"
_CACHED_WORDS = 1 << 17  # with about 200 bytes each: 25 MiB a worker
_CACHED_LENGTH = 64
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_PLANE = 1 << 16
_BEYOND_PLANE = re.compile("[\U00010000-\U0010ffff]")

_FOLDED = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_PLAIN = "'s|'t|'re|'ve|'m|'ll|'d"
_TAIL = r" ?[^{s}{l}{n}]+[\r\n]*|[{s}]*[\r\n]+|[{s}]+(?![^{s}])|[{s}]+"
# One expression each, of the classes s (white space), l (letters) and n (numbers). smollm's two
# steps become one: a digit ends a piece, so that white space before it is at the piece's end.
_EXPRESSIONS = {
    "llama-bpe": rf"{_FOLDED}|[^\r\n{{l}}{{n}}]?[{{l}}]+|[{{n}}]{{{{1,3}}}}|{_TAIL}",
    "qwen2": rf"{_FOLDED}|[^\r\n{{l}}{{n}}]?[{{l}}]+|[{{n}}]|{_TAIL}",
    "gpt-2": (
        rf"{_PLAIN}| ?[{{l}}]+| ?[{{n}}]+| ?[^{{s}}{{l}}{{n}}]+|[{{s}}]+(?![^{{s}}])|[{{s}}]+"
    ),
    "smollm": (
        rf"[{{n}}]|{_PLAIN}| ?[{{l}}]+| ?[^{{s}}{{l}}{{n}}]+|[{{s}}]+(?![^{{s}}{{n}}])|[{{s}}]+"
    ),
}

Cut = Callable[[str], list[str] | None]


class FastEncoder:
    """Texts to arrays of ids of `dtype`: the ids of `Tokenizer.encode`."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._cut, self._words = _cutter(tokenizer)
        self._known: dict[str, bytes] = {}

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizer is one whose words can be cut exactly."""
        return self._cut is not None

    def __call__(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        found: list[NDArray[Any] | None] = [self._by_words(text) for text in texts]
        rest = [number for number, ids in enumerate(found) if ids is None]
        for number, ids in zip(
            rest, self._tokenizer.encode_batch([texts[number] for number in rest]), strict=True
        ):
            found[number] = np.array(ids, dtype=self._dtype)
        return [ids for ids in found if ids is not None]

    def _by_words(self, text: str) -> NDArray[Any] | None:
        words = self._cut(text) if self._cut is not None else None
        if words is None:
            return None
        known = self._known
        if len(known) > _CACHED_WORDS:
            known.clear()
        new = list(set(words).difference(known))
        long: list[str] = []
        encodings = self._words.encode_batch_fast(new, add_special_tokens=False) if new else ()
        for word, encoding in zip(new, encodings, strict=True):
            known[word] = np.array(encoding.ids, dtype=self._dtype).tobytes()
            if len(word) > _CACHED_LENGTH:
                long.append(word)
        ids = np.frombuffer(b"".join(map(known.__getitem__, words)), dtype=self._dtype)
        for word in long:
            del known[word]
        return ids


def _cutter(tokenizer: Tokenizer) -> tuple[Cut | None, Any]:
    """How to cut texts into words, and the `tokenizers` object that encodes one word."""
    specification = tokenizer.specification
    model = specification["model"]
    if (
        model.get("type") != "BPE"
        or model.get("dropout")
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
        or any(not token.get("special") for token in specification.get("added_tokens") or ())
    ):
        return None, None
    name = pre_tokenizer_name(specification)
    normalizer = specification.get("normalizer") or {}
    if name is not None and normalizer.get("type") is None:
        return _expression_cut(name), _bare(specification, byte_level=True)
    prefix = _space_mark_prefix(specification)
    if prefix is not None:
        return _space_mark_cut(prefix, specification), _bare(specification, byte_level=False)
    return None, None


def _bare(specification: Mapping[str, Any], *, byte_level: bool) -> Any:
    """The tokenizer without normalizer and splitting: what is left encodes one word."""
    import tokenizers
    from tokenizers import pre_tokenizers

    stripped = dict(specification) | {"normalizer": None, "pre_tokenizer": None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(stripped))
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.encode_special_tokens = True
    return backend


def _expression_cut(name: str) -> Cut:
    classes = {key: _class_of(expression) for key, expression in _CLASSES.items()}
    find = re.compile(_EXPRESSIONS[name].format(**classes)).findall

    def cut(text: str) -> list[str] | None:
        # The classes cover the first plane only; emoji and the like go to `tokenizers`.
        if not text.isascii() and _BEYOND_PLANE.search(text):
            return None
        return find(text)

    return cut


_CLASSES = {"s": r"\s", "l": r"\p{L}", "n": r"\p{N}"}


def _class_of(expression: str) -> str:
    """The characters of the first plane that `tokenizers`' regex engine counts to a class, as
    ranges for `re`. Python's own Unicode tables may be of another version."""
    from tokenizers import Regex, pre_tokenizers

    characters = "".join(map(chr, (*range(0xD800), *range(0xE000, _PLANE))))
    split = pre_tokenizers.Split(Regex(f"{expression}+"), behavior="removed")
    ranges: list[str] = []
    end = 0
    for _, (first, last) in [*split.pre_tokenize_str(characters), ("", (len(characters),) * 2)]:
        if first > end:
            ranges.append(f"{re.escape(characters[end])}-{re.escape(characters[first - 1])}")
        end = last
    return "".join(ranges)


def _space_mark_prefix(specification: Mapping[str, Any]) -> str | None:
    """What the normalizer puts in front ("" or the space mark) if words can be cut at space marks
    and line ends, else `None`."""
    model = specification["model"]
    normalizer = specification.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    if steps not in ([replace], [prepend, replace]) or specification.get("pre_tokenizer"):
        return None
    # With a token for every byte nothing is unknown, so that unknown neighbours cannot fuse.
    if not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    if any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256)):
        return None
    if _is_spanned(f"[^{_SPACE}]{_SPACE}|.\n|\n.", specification):
        return None
    return _SPACE if len(steps) == 2 else ""


def _is_spanned(places: str, specification: Mapping[str, Any]) -> bool:
    """Whether a token that merging can make has one of `places` inside it."""
    inside = re.compile(places, re.DOTALL)
    whole = {str(token["content"]) for token in specification.get("added_tokens") or ()}
    return any(
        inside.search(token)
        for token in specification["model"]["vocab"]
        if token not in whole and not _BYTE_TOKEN.fullmatch(token)
    )


def _space_mark_cut(prefix: str, specification: Mapping[str, Any]) -> Cut:
    """Cut at space marks and line ends; in vocabularies that keep letters, punctuation and single
    digits apart (Llama 2's does, in ASCII), also between these."""
    letter, mark, digit = "A-Za-z", "!-/:-@\\[-`{-~", "0-9"
    places = f"[{letter}][{mark}]|[{mark}][{letter}]|[{digit}][^{_SPACE}]|[^{_SPACE}][{digit}]"
    expression = f"{_SPACE}+[^{_SPACE}\n]*|\n+|[^{_SPACE}\n]+"
    if not _is_spanned(places, specification):
        # a run next to any other character stays with it
        other = f"[^{letter}{mark}{digit}{_SPACE}\n]"
        expression = (
            f"{_SPACE}*[{letter}]++(?!{other})|{_SPACE}*[{mark}]++(?!{other})|{_SPACE}*[{digit}]"
            f"|{_SPACE}*[^{_SPACE}{digit}\n]+|\n+|{_SPACE}+"
        )
    find = re.compile(expression).findall

    def cut(text: str) -> list[str] | None:
        return find(prefix + text.replace(" ", _SPACE)) if text else []

    return cut
