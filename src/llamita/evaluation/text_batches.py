"""Training text as one sequence of letters, in batches that overlap by the longest item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llamita.evaluation.folding import SEPARATORS, fold, is_unspaced, letters_of

BATCH_LETTERS = 1 << 20
PADDING = b"\x01" * 8
"""Stands before and behind a batch's letters. No text folds to it."""
# A document is taken in pieces of so many characters, so that memory is bounded by that.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Some of the text.

    letters: with `PADDING` round them, to a multiple of eight. folded: what they were taken from.
    starts: where in the letters (without padding) documents begin, ascending; the first may lie
    before. first: the number of that document.
    """

    letters: bytes
    folded: bytes
    starts: tuple[int, ...]
    first: int

    def document_at(self, place: int) -> int:
        """The number of the document that a letter belongs to."""
        return self.first + int(np.searchsorted(self.starts, place, side="right")) - 1

    def is_word_edge(self, place: int) -> bool:
        """Whether no word goes on from letter `place` - 1 to letter `place`.

        At the ends of a batch, where only the neighbouring batch would tell, it does not say so:
        what lies there lies whole in that one.
        """
        left = int(self._places[place - 1]) + 1 if place > 0 else 0
        right = int(self._places[place]) if place < len(self._places) else len(self.folded)
        if right > left:
            return True
        before = self.folded[max(0, left - 4) : left].decode(errors="ignore")[-1:]
        after = self.folded[right : right + 4].decode(errors="ignore")[:1]
        return is_unspaced(before) or is_unspaced(after)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Where in `folded` each letter stands."""
        is_letter = np.ones(256, dtype=np.bool_)
        is_letter[list(SEPARATORS)] = False
        return np.flatnonzero(is_letter[np.frombuffer(self.folded, dtype=np.uint8)])


def batches(
    documents: Iterable[str], overlap: int, progress: Callable[[int], None] | None = None
) -> Iterator[Batch]:
    """Documents joined and cut into batches of a million letters or so.

    Each begins with the last `overlap` letters, and one more, of the one before: whatever is no
    longer than `overlap` lies whole in one of them, with what stands on either side of it.

    Args:
        progress: called with the bytes of UTF-8 of each batch, as folded, when it is done.
    """
    held = _Held()
    for number, document in enumerate(documents):
        held.begin(number)
        for start in range(0, len(document), _PIECE):
            end = b" " if start + _PIECE >= len(document) else b""
            held.add(fold(document[start : start + _PIECE]) + end)
            if held.num_new >= BATCH_LETTERS:
                yield held.batch()
                held.drop(overlap + 1, progress)
    if held.num_new:
        yield held.batch()
        held.drop(0, progress)


class _Held:
    """What has been read and not yet dropped."""

    def __init__(self) -> None:
        # so that a word may begin where the text does
        self._folded = [b" "]
        self._letters: list[bytes] = []
        self._num_letters = self.num_new = self._new_bytes = 0
        self._starts: list[int] = []
        self._first = 0

    def begin(self, number: int) -> None:
        if not self._starts:
            self._first = number
        self._starts.append(self._num_letters)

    def add(self, folded: bytes) -> None:
        letters = letters_of(folded)
        self._folded.append(folded)
        self._letters.append(letters)
        self._num_letters += len(letters)
        self.num_new += len(letters)
        self._new_bytes += len(folded)

    def batch(self) -> Batch:
        behind = PADDING + b"\x01" * (-self._num_letters % 8)
        letters = b"".join((PADDING, *self._letters, behind))
        return Batch(letters, b"".join(self._folded), tuple(self._starts), self._first)

    def drop(self, kept: int, progress: Callable[[int], None] | None) -> None:
        """Let go of all but the last `kept` letters."""
        if progress is not None:
            progress(self._new_bytes)
        tail = _tail(b"".join(self._folded), kept)
        letters = letters_of(tail)
        dropped = self._num_letters - len(letters)
        self._folded, self._letters = [tail], [letters]
        self._num_letters, self.num_new, self._new_bytes = len(letters), 0, 0
        starts = [start - dropped for start in self._starts]
        # of the documents that began before what is kept, the last one may still go on
        gone = max(0, sum(start <= 0 for start in starts) - 1)
        self._starts, self._first = starts[gone:], self._first + gone


def _tail(folded: bytes, letters: int) -> bytes:
    """The end of a folded text, with at least so many letters where it has them."""
    size = 2 * letters
    while size < len(folded) and len(letters_of(folded[-size:])) < letters:
        size *= 2
    return folded[-size:] if size else b""
