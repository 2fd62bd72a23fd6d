"""Finding stretches of text that evaluation items and training text share.

Items are few, training text is long. All windows of 16 letters of all items go into a table, and of
the training text every eighth window, aligned, is looked up: a stretch of 23 letters or more that
both have cannot be missed. Each hit is compared letter by letter and followed both ways to the ends
of the stretch that is equal; what counts is which n-grams lie in it. So nothing is found by a hash
alone.

Shapes: L letters of all items, padding between them; W words of all items; P pairs of a window of
the text and an equal one of an item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamita.evaluation.folding import words_of
from llamita.evaluation.text_batches import PADDING as TEXT_PADDING
from llamita.evaluation.text_batches import Batch

SHORTEST_LETTERS = 24
"""What an n-gram must hold: 13 words of a formula may be 13 letters, and stand anywhere."""
_WINDOW = 16
_STEP = 8
assert SHORTEST_LETTERS >= _WINDOW + _STEP - 1, "aligned windows would miss the shortest n-gram"
# Odd numbers, for a hash whose upper bits are good (Dietzfelbinger et al., J. Algorithms 25:19).
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
# Differs from the text's padding and from all letters, so that no stretch runs over an end.
_PADDING = b"\x00" * _WINDOW
# Pairs that are followed at a time: some 40 MB.
_PAIRS = 1 << 18

_Numbers = NDArray[np.uint64]
_Places = NDArray[np.int64]


@dataclass(frozen=True)
class Stretch:
    """Words of an item that stand in a row in the training text, and the document where."""

    words: tuple[str, ...]
    document: int


class ItemTable:
    """The windows, words and n-grams of items, and what has been found of them.

    Args:
        texts: the items.
        n: words of an n-gram.
        shortest: words of the shortest item that is looked for.
    """

    _hashes: _Numbers
    _windows: NDArray[np.int32]
    _present: NDArray[np.bool_]
    _shift: np.uint64

    def __init__(self, texts: Sequence[str], n: int, shortest: int) -> None:
        self._words = [words_of(text) for text in texts]
        self._grams = [_gram_words(words, n, shortest) for words in self._words]
        self._lay_out()
        self._index()
        self._covered = np.zeros(len(self._word_begins), dtype=np.bool_)
        self._open = np.ones(len(self._letters), dtype=np.bool_)
        self._num_closed = 0
        self._longest: dict[int, tuple[int, int, int]] = {}

    @property
    def longest(self) -> int:
        """Letters of the longest item that is looked for; 0 where there is none."""
        return max((stop - start for start, stop in self._spans.values()), default=0)

    def num_words(self, item: int) -> int:
        return len(self._words[item])

    def gram_words(self, item: int) -> int:
        """Words of an item's n-grams; 0 where it is too short to be looked for."""
        return self._grams[item]

    def num_covered(self, item: int) -> int:
        """Words of an item that lie in n-grams that were found."""
        return int(self._covered[self._word_span(item)].sum()) if self._grams[item] else 0

    def longest_stretch(self, item: int) -> Stretch | None:
        """The most words in a row that were found in one place while some of them were still to be
        found; `None` where nothing was."""
        if item not in self._longest:
            return None
        first, stop, document = self._longest[item]
        begin = self._first_words[item]
        return Stretch(tuple(self._words[item][first - begin : stop - begin]), document)

    def search(self, batch: Batch) -> None:
        """Look through some training text. What of an item was found is not looked for again."""
        if self._num_closed > len(self._windows) // 16:
            kept = self._open[self._windows]
            self._hashes, self._windows = self._hashes[kept], self._windows[kept]
            self._num_closed = 0
        text = np.frombuffer(batch.letters, dtype=np.uint64)
        hashes = _hash(text[:-1], text[1:])
        hits = np.flatnonzero(self._present[hashes >> self._shift])
        low = np.searchsorted(self._hashes, hashes[hits], side="left")
        counts = np.searchsorted(self._hashes, hashes[hits], side="right") - low
        for part in _parts(counts):
            repeats = counts[part]
            total = int(repeats.sum())
            within = np.arange(total) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            windows = self._windows[np.repeat(low[part], repeats) + within].astype(np.int64)
            places = np.repeat(hits[part], repeats)
            wanted = self._open[windows]
            self._follow(text, places[wanted], windows[wanted], batch)

    def _follow(self, text: _Numbers, places: _Places, windows: _Places, batch: Batch) -> None:
        """Places (P,) of `text`, and (P,) of the items' letters where hashes are equal."""
        letters = self._letters
        equal = text[places] == letters[windows]
        equal &= text[places + 1] == letters[windows + _STEP]
        if not equal.any():
            return
        places, windows = places[equal], windows[equal]
        before = _equal_letters(text, letters, places - 1, windows - _STEP, -1)
        behind = _equal_letters(text, letters, places + 2, windows + _WINDOW, 1)
        begins, ends = windows - before, windows + _WINDOW + behind
        first = np.searchsorted(self._word_begins, begins, side="left")
        last = np.searchsorted(self._gram_ends, ends, side="right") - 1
        stop = np.searchsorted(self._word_ends, ends, side="right")
        where = _STEP * places - before - len(TEXT_PADDING)
        found = np.stack((first, stop, where, where - begins), axis=1)[last >= first]
        # a text often holds the same again: an n-gram needs no second place, a whole item may
        again = np.where(self._is_whole[self._items_at[begins[last >= first]]], found[:, 2], -1)
        _, once = np.unique(np.stack((found[:, 0], found[:, 1], again)), axis=1, return_index=True)
        for first_word, stop_word, letter, shift in found[once].tolist():
            self._record(first_word, stop_word, letter, shift, batch)

    def _record(self, first: int, stop: int, where: int, shift: int, batch: Batch) -> None:
        """Words `first` to `stop` stand in a batch from its letter `where` on, and hold an n-gram;
        letter i of the items is i + `shift` there."""
        item = int(self._items_at[self._word_begins[first]])
        if self._is_whole[item]:
            end = int(self._word_ends[stop - 1]) + shift
            if not (batch.is_word_edge(where) and batch.is_word_edge(end)):
                return
        if self._covered[first:stop].all():
            return
        self._covered[first:stop] = True
        known = self._longest.get(item)
        if known is None or stop - first > known[1] - known[0]:
            self._longest[item] = (first, stop, batch.document_at(where))
        self._close(item)

    def _close(self, item: int) -> None:
        """Follow no more windows of an item that lie eight letters or more from all that is still
        to be found: a stretch with some of that in it has a nearer window."""
        start, stop = self._spans[item]
        words = self._word_span(item)
        lengths = self._word_ends[words] - self._word_begins[words]
        missing = np.repeat(~self._covered[words], lengths)
        before = np.concatenate(([0], np.cumsum(missing)))
        windows = np.arange(stop - start - _WINDOW + 1)
        low = np.maximum(windows - _STEP, 0)
        high = np.minimum(windows + _WINDOW + _STEP, stop - start)
        is_open = before[high] > before[low]
        part = self._open[start : start + len(windows)]
        self._num_closed += int(part.sum()) - int(is_open.sum())
        part[:] = is_open

    def _word_span(self, item: int) -> slice:
        first = self._first_words[item]
        return slice(first, first + len(self._words[item]))

    def _lay_out(self) -> None:
        """Letters, words and n-grams one behind the other."""
        pieces, place = [_PADDING], len(_PADDING)
        begins: list[int] = []
        ends: list[int] = []
        grams: list[int] = []
        self._spans: dict[int, tuple[int, int]] = {}
        self._first_words: dict[int, int] = {}
        self._is_whole = np.zeros(len(self._words), dtype=np.bool_)
        for item, words in enumerate(self._words):
            n = self._grams[item]
            if not n:
                continue
            parts = [word.encode() for word in words]
            edges = place + np.concatenate(([0], np.cumsum([len(part) for part in parts])))
            self._first_words[item] = len(begins)
            self._spans[item] = (place, int(edges[-1]))
            self._is_whole[item] = n == len(words)
            begins += edges[:-1].tolist()
            ends += edges[1:].tolist()
            grams += _gram_ends(edges, n)
            pieces += [*parts, _PADDING]
            place = int(edges[-1]) + len(_PADDING)
        self._word_begins = np.array(begins, dtype=np.int64)
        self._word_ends = np.array(ends, dtype=np.int64)
        self._gram_ends = np.array(grams, dtype=np.int64)
        joined = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(joined, 8)
        # the eight letters from each letter on, as one number
        self._letters = np.ascontiguousarray(windows).view(np.uint64)[:, 0]

    def _index(self) -> None:
        """The table of windows by hash: sorted, behind a table of bits that says what is not."""
        self._items_at = np.zeros(len(self._letters), dtype=np.int32)
        starts = [np.empty(0, dtype=np.int64)]
        for item, (start, stop) in self._spans.items():
            self._items_at[start:stop] = item
            starts.append(np.arange(start, stop - _WINDOW + 1))
        windows = np.concatenate(starts)
        hashes = _hash(self._letters[windows], self._letters[windows + _STEP])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._windows = hashes[order], windows[order].astype(np.int32)
        # 16 places a window let 6% of what is not there through
        bits = min(26, max(10, (16 * len(windows)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, dtype=np.bool_)
        self._present[hashes >> self._shift] = True


def _gram_words(words: Sequence[str], n: int, shortest: int) -> int:
    """Words of an item's n-grams: its own where it has fewer; 0 where that is too short."""
    if len(words) < shortest or len("".join(words).encode()) < SHORTEST_LETTERS:
        return 0
    return min(n, len(words))


def _gram_ends(edges: _Places, n: int) -> list[int]:
    """Where the n-gram ends that begins with each word, given where words begin and the last ends.

    Behind the item where there is none: ends ascend, and no stretch reaches that far.
    """
    enough = np.searchsorted(edges, edges[:-1] + SHORTEST_LETTERS, side="left")
    last = np.maximum(enough, np.arange(len(edges) - 1) + n)
    ends = np.concatenate((edges, [edges[-1] + 1]))[np.minimum(last, len(edges))]
    return [int(end) for end in ends]


def _hash(first: _Numbers, second: _Numbers) -> _Numbers:
    return first * _FIRST + second * _SECOND


def _parts(counts: _Places) -> Iterator[slice]:
    """Runs of hits of some `_PAIRS` pairs, at least one hit each."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
        yield slice(start, stop)
        start = stop


def _equal_letters(
    text: _Numbers, letters: _Numbers, places: _Places, windows: _Places, way: int
) -> _Places:
    """How many letters are equal from each pair of eight on, to the right (`way` 1) or left (-1).

    Args:
        places: (P,) of the text's eights. windows: (P,) of the items' letters.
    """
    found = np.zeros(len(places), dtype=np.int64)
    active = np.arange(len(places))
    steps = 0
    while len(active):
        differ = text[places[active] + way * steps]
        differ = differ ^ letters[windows[active] + way * _STEP * steps]
        unequal = differ.view(np.uint8).reshape(-1, _STEP)[:, ::way] != 0
        equal = differ == 0
        found[active] += np.where(equal, _STEP, unequal.argmax(axis=1))
        active = active[equal]
        steps += 1
    return found
