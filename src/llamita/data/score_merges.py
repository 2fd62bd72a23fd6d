"""Merges of a byte-pair vocabulary that is ordered by scores, as sentencepiece's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def merges_by_score(
    pieces: Mapping[str, float], vocabulary: Mapping[str, int]
) -> Sequence[tuple[str, str]]:
    """The merge list that `tokenizers` needs to give sentencepiece's ids.

    Sentencepiece merges the neighbours whose joint piece scores best; so every way to make a piece
    of two tokens is a merge, ranked by the piece's score (then by ids, which settles nothing as
    long as scores differ).

    Args:
        pieces: the score of each piece that merging may make.
        vocabulary: the id of every token, those included that merging does not make.
    """
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece, score in pieces.items():
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in vocabulary and right in vocabulary:
                order = (vocabulary[piece], vocabulary[left], vocabulary[right])
                found.append((-score, *order, left, right))
    return [(left, right) for *_, left, right in sorted(found)]
