"""Batches as a pure function of the cursor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from llamita.data.batch import Batch, Cursor, StageData
from llamita.data.shards import TokenStream, open_dataset
from llamita.errors import UserError
from llamita.training.parallelism import World

T = 32
MIXTURE = {"prose": 0.7, "code": 0.3}


@pytest.fixture(scope="module")
def streams(tiny_data: Path) -> dict[str, TokenStream]:
    return {name: open_dataset(tiny_data / name).train for name in MIXTURE}


def stage(
    streams: dict[str, TokenStream],
    mixture: dict[str, float] = MIXTURE,
    *,
    rows: int = 8,
    length: int = T,
    seed: int = 1,
    masking: bool = False,
) -> StageData:
    return StageData(
        streams,
        mixture,
        sequence_length=length,
        windows_per_step=rows,
        seed=seed,
        document_masking=masking,
    )


def read(
    data: StageData, steps: int, cursor: Cursor | None = None
) -> tuple[torch.Tensor, torch.Tensor, Cursor]:
    """Tokens and targets of some steps, and the cursor after them."""
    cursor = cursor or Cursor.beginning()
    batches = []
    for _ in range(steps):
        batch, cursor = data.batch(cursor)
        batches.append(batch)
    tokens = torch.cat([batch.tokens for batch in batches])
    return tokens, torch.cat([batch.targets for batch in batches]), cursor


def rows_of(tokens: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in tokens.tolist()]


def test_shapes_and_shift(streams: dict[str, TokenStream]) -> None:
    batch, cursor = stage(streams).batch(Cursor.beginning())
    assert batch.tokens.shape == batch.targets.shape == (8, T)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.documents is None
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert sum(cursor.consumed.values()) == 8


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_the_order_does_not_depend_on_how_steps_are_cut(
    streams: dict[str, TokenStream], rows: int
) -> None:
    """The same 64 rows in the same order, as 64 steps of one or 8 of eight."""
    wanted, targets, end = read(stage(streams, rows=8), 8)
    ours, our_targets, our_end = read(stage(streams, rows=rows), 64 // rows)
    assert torch.equal(ours, wanted)
    assert torch.equal(our_targets, targets)
    assert our_end == end


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 8, 100])
def test_accumulation_splits_are_the_batch_cut_in_order(
    streams: dict[str, TokenStream], micro: int
) -> None:
    batch, _ = stage(streams, masking=True).batch(Cursor.beginning())
    parts = batch.split(micro)
    assert all(len(part.tokens) <= micro for part in parts)
    for field in ("tokens", "targets", "documents"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(batch, field))
    assert np.array_equal(np.concatenate([part.sources for part in parts]), batch.sources)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_share_a_batch_without_overlap(streams: dict[str, TokenStream], size: int) -> None:
    batch, _ = stage(streams).batch(Cursor.beginning())
    shares = [World(rank, size).rows(batch) for rank in range(size)]
    assert torch.equal(torch.cat([share.tokens for share in shares]), batch.tokens)
    assert {len(share.tokens) for share in shares} == {8 // size}


def test_ranks_that_cannot_share_evenly(streams: dict[str, TokenStream]) -> None:
    batch, _ = stage(streams).batch(Cursor.beginning())
    with pytest.raises(UserError, match="8 sequences a step, which 3 processes"):
        World(0, 3).rows(batch)


def test_each_window_once_an_epoch(streams: dict[str, TokenStream]) -> None:
    total = streams["code"].num_windows(T)
    data = stage(streams, {"code": 1.0}, rows=1)
    tokens, _, cursor = read(data, 2 * total)
    windows = Counter(tuple(streams["code"].window(i, T)[:-1].tolist()) for i in range(total))
    first, second = rows_of(tokens[:total]), rows_of(tokens[total:])
    assert Counter(first) == Counter(second) == windows
    assert first != second  # another order each epoch
    assert first != [tuple(streams["code"].window(i, T)[:-1].tolist()) for i in range(total)]
    assert data.epochs(cursor) == {"code": 2.0}


def test_a_batch_across_the_end_of_an_epoch(streams: dict[str, TokenStream]) -> None:
    total = streams["code"].num_windows(T)
    assert total % 7, "choose another number of rows"
    many, _, _ = read(stage(streams, {"code": 1.0}, rows=7), total // 7 + 1)
    single, _, _ = read(stage(streams, {"code": 1.0}, rows=1), total + 7 - total % 7)
    assert torch.equal(many, single)


def test_epochs_and_shares_are_right_at_every_step(streams: dict[str, TokenStream]) -> None:
    data, cursor, seen = stage(streams), Cursor.beginning(), Counter[int]()
    for step in range(1, 40):
        batch, cursor = data.batch(cursor)
        seen.update(batch.sources.tolist())
        for number, (name, share) in enumerate(MIXTURE.items()):
            assert abs(seen[number] - step * 8 * share) < 1
            assert cursor.consumed[f"{name}@{T}"] == seen[number]
            assert data.realised(cursor)[name] == seen[number] / (8 * step)
            assert data.epochs(cursor)[name] == seen[number] / streams[name].num_windows(T)


def test_rows_come_from_the_source_they_name(streams: dict[str, TokenStream]) -> None:
    batch, _ = stage(streams).batch(Cursor.beginning())
    for number, name in enumerate(MIXTURE):
        windows = {
            tuple(streams[name].window(i, T)[:-1].tolist())
            for i in range(streams[name].num_windows(T))
        }
        for row in rows_of(batch.tokens[batch.sources == number]):
            assert row in windows


def test_a_new_stage_counts_shares_anew_and_reads_unread_data(
    streams: dict[str, TokenStream],
) -> None:
    before, _, cursor = read(stage(streams), 10)
    cursor = cursor.enter_stage()
    later = {"code": 0.5, "prose": 0.5}
    data = stage(streams, later)
    after, _, end = read(data, 5, cursor)
    assert not set(rows_of(before)) & set(rows_of(after))
    assert data.realised(end) == {"code": 0.5, "prose": 0.5}
    assert sum(end.consumed.values()) == 15 * 8
    # The stage before takes no part in the new quota.
    alone = [data.batch(c)[0].sources for c in (cursor, Cursor.beginning())]
    assert np.array_equal(*alone)


def test_lengths_are_counted_apart(streams: dict[str, TokenStream]) -> None:
    _, _, cursor = read(stage(streams), 3)
    _, _, cursor = read(stage(streams, length=16), 2, cursor.enter_stage())
    assert cursor.consumed[f"prose@{T}"] + cursor.consumed[f"code@{T}"] == 24
    assert cursor.consumed["prose@16"] + cursor.consumed["code@16"] == 16


def test_seeds_and_names_decide_the_order(streams: dict[str, TokenStream]) -> None:
    one, _, _ = read(stage(streams, seed=1), 4)
    again, _, _ = read(stage(streams, seed=1), 4)
    other, _, _ = read(stage(streams, seed=2), 4)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_batch_does_not_change_its_cursor(streams: dict[str, TokenStream]) -> None:
    cursor = Cursor.beginning()
    data = stage(streams)
    first, _ = data.batch(cursor)
    second, _ = data.batch(cursor)
    assert dict(cursor.consumed) == {}
    assert torch.equal(first.tokens, second.tokens)


def test_documents_change_after_each_end_of_text(streams: dict[str, TokenStream]) -> None:
    """The number moves on right after `</s>` (id 1) and nowhere else, from 0 in every row."""
    tokens, numbers = [], []
    data, cursor = stage(streams, masking=True), Cursor.beginning()
    for _ in range(20):
        batch, cursor = data.batch(cursor)
        assert batch.documents is not None
        tokens.append(batch.tokens)
        numbers.append(batch.documents)
    rows, documents = torch.cat(tokens), torch.cat(numbers)
    assert documents.dtype == torch.int32
    assert documents.shape == rows.shape
    ended = (rows == 1).int().cumsum(1)
    wanted = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int32), ended[:, :-1].int()], dim=1)
    assert torch.equal(documents, wanted)
    assert documents.max() > 0, "no boundary was met"


def test_moving_a_batch_keeps_it(streams: dict[str, TokenStream]) -> None:
    batch, _ = stage(streams, masking=True).batch(Cursor.beginning())
    moved: Batch = batch.to(torch.device("cpu"))
    assert torch.equal(moved.tokens, batch.tokens)
    assert moved.documents is not None
    assert torch.equal(moved.documents, batch.documents)
