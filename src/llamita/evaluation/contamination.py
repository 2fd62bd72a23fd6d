"""Whether a model's training text holds the questions it is judged by.

An item is a text (a question with its choices, say). It overlaps with training text where n words
in a row, 13 by default as for GPT-3 (arXiv 2005.14165, appendix C), stand there in the same order.
Words are compared by their letters and digits alone, as one sequence without gaps: neither case,
accents, punctuation and spacing nor where one training document ends and the next begins make a
difference, not even inside a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llamita.errors import UserError
from llamita.evaluation.intervals import Estimate, mean
from llamita.evaluation.overlap_search import ItemTable
from llamita.evaluation.text_batches import batches

DEFAULT_WORDS = 13
SHORTEST_WORDS = 5


@dataclass(frozen=True)
class Overlap:
    """How much of an item stands in the training text.

    words: words of the item. covered: those of them that lie in stretches found, of an n-gram or
    more. n: words of an n-gram, the item's own where it is shorter; 0 where it is too short to be
    judged.
    document: the number of the training document in which the longest stretch begins, from 0.
    longest: that stretch, as words.
    """

    words: int
    covered: int
    n: int
    document: int | None = None
    longest: str = ""

    @property
    def judged(self) -> bool:
        """Whether the item is long enough to tell."""
        return self.n > 0

    @property
    def share(self) -> float:
        """Share of the item's words that lie in n-grams found."""
        return self.covered / self.words if self.words else 0.0


@dataclass(frozen=True)
class CleanScore:
    """A score over all items, over those not contaminated, and over those contaminated; `None`
    where there are none. `unjudged` items were too short to tell and count among the clean."""

    all: Estimate
    clean: Estimate | None
    contaminated: Estimate | None
    unjudged: int


def find_overlaps(
    items: Mapping[str, str],
    documents: Iterable[str],
    *,
    n: int = DEFAULT_WORDS,
    shortest: int = SHORTEST_WORDS,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Overlap]:
    """Look for the n-grams of items in training text, in one pass over it.

    Args:
        items: texts by id.
        documents: the training text in its order (`training_text.shard_texts`).
        n: words of an n-gram. Where they hold fewer than 24 letters, so many more as make 24.
        shortest: an item with fewer words than n is looked for whole, and must then begin and end
            where words do; with fewer words than `shortest`, or than 24 letters, it is not judged.
        progress: called with the bytes of UTF-8 of each megabyte or so that was read.

    Returns:
        An `Overlap` for each item, in order.

    Raises:
        UserError: `shortest` is below 1 or `n` below `shortest`.
    """
    if not 1 <= shortest <= n:
        raise UserError(
            f"contamination is looked for by {n} words in a row, in items of at least {shortest}: "
            "the first must be no smaller than the second, and both at least 1."
        )
    table = ItemTable(list(items.values()), n, shortest)
    if table.longest:
        for batch in batches(documents, table.longest, progress):
            table.search(batch)
    return {name: _overlap(table, number) for number, name in enumerate(items)}


def contaminated(overlaps: Mapping[str, Overlap], threshold: float = 0.5) -> frozenset[str]:
    """The ids of items of which at least the share `threshold` of the words was found.

    0 takes every item of which an n-gram was found.

    Raises:
        UserError: the threshold is not between 0 and 1.
    """
    check_threshold(threshold)
    return frozenset(
        name for name, found in overlaps.items() if found.covered and found.share >= threshold
    )


def check_threshold(threshold: float) -> None:
    """Refuse what is no share.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: it is a share of an item's words, from 0 to 1.")


def clean_score(
    ids: Sequence[str],
    values: Sequence[float],
    overlaps: Mapping[str, Overlap],
    threshold: float = 0.5,
) -> CleanScore:
    """A mean score with and without contaminated items; `values` by item, as `ids`.

    Raises:
        UserError: no items, or a threshold that is not between 0 and 1.
    """
    dirty = contaminated(overlaps, threshold)
    kept = [value for name, value in zip(ids, values, strict=True) if name not in dirty]
    taken = [value for name, value in zip(ids, values, strict=True) if name in dirty]
    return CleanScore(
        all=mean(values),
        clean=mean(kept) if kept else None,
        contaminated=mean(taken) if taken else None,
        unjudged=sum(not overlaps[name].judged for name in ids),
    )


def _overlap(table: ItemTable, number: int) -> Overlap:
    stretch = table.longest_stretch(number)
    return Overlap(
        words=table.num_words(number),
        covered=table.num_covered(number),
        n=table.gram_words(number),
        document=None if stretch is None else stretch.document,
        longest="" if stretch is None else " ".join(stretch.words),
    )
