"""Rows of whole examples: the oracle is the arrays that the dataset was written from."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llamita.architecture.config import ModelConfig
from llamita.data import packed_stream
from llamita.data.batch import Batch, Cursor, StageData
from llamita.data.build import build_data
from llamita.data.manifest import Manifest, read_manifest
from llamita.data.packed_stream import PackedStream, packed_rows, packing_facts
from llamita.data.rows import IGNORE
from llamita.data.shards import Stream, TokenStream, open_dataset
from llamita.data.tokenizer import Tokenizer
from llamita.model import head
from llamita.model.decoder import Decoder
from llamita.model.initialization import initialize
from tests.data.corpus import sentences, write_records
from tests.data.packed import Example, chats, pairs, write_packed

T = 64
LENGTHS = [int(n) for n in np.random.default_rng(5).integers(2, 50, 120)]


def opened(folder: Path, examples: list[Example], **options: object) -> PackedStream:
    write_packed(folder, {"train": examples}, **options)  # type: ignore[arg-type]
    stream = open_dataset(folder).train
    assert isinstance(stream, PackedStream)
    return stream


def in_rows(stream: PackedStream, length: int = T) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Inputs, targets and positions of every example, by its number, as the rows hold them."""
    rows = stream.rows(np.arange(stream.num_windows(length)), length)
    assert rows.documents is not None
    assert rows.positions is not None
    assert rows.examples is not None
    found = {}
    for row, numbers in enumerate(rows.examples):
        for document, number in enumerate(numbers.tolist()):
            here = rows.documents[row] == document
            assert here.any() == (number >= 0)
            if number >= 0:
                assert number not in found, "an example lies in two places"
                parts = (rows.tokens, rows.targets, rows.positions)
                found[number] = tuple(torch.from_numpy(part[row][here]) for part in parts)
    return found


def test_ignore_is_the_models() -> None:
    assert IGNORE == head.IGNORE == torch.nn.CrossEntropyLoss().ignore_index


@pytest.mark.parametrize("shard_tokens", [10**9, 300])
def test_rows_hold_every_example_once_and_exactly(tmp_path: Path, shard_tokens: int) -> None:
    examples = chats(0, LENGTHS)
    stream = opened(tmp_path / "data", examples, shard_tokens=shard_tokens)
    found = in_rows(stream)
    assert sorted(found) == list(range(len(examples)))
    for number, (tokens, learns) in enumerate(examples):
        inputs, targets, positions = found[number]
        assert inputs.tolist() == tokens[:-1].tolist()
        assert targets.tolist() == np.where(learns[1:], tokens[1:], IGNORE).tolist()
        assert positions.tolist() == list(range(len(tokens) - 1))
        assert np.array_equal(stream.learns(number), learns)
        assert stream.document(number).tolist() == tokens.tolist()


def test_padding_is_nobodys(tmp_path: Path) -> None:
    stream = opened(tmp_path / "data", chats(0, LENGTHS))
    rows = stream.rows([0, 1, 2], T)
    every = stream.rows(np.arange(stream.num_windows(T)), T)
    assert rows.documents is not None
    assert every.documents is not None
    assert every.examples is not None
    most = every.examples.shape[1]
    assert most == (every.examples >= 0).sum(axis=1).max()
    padding = every.documents == most
    assert padding.any(), "no row has padding"
    assert (every.targets[padding] == IGNORE).all()
    assert (every.tokens[padding] == 0).all()
    places = sum(LENGTHS) - len(LENGTHS)
    assert (~padding).sum() == places
    for array, dtype in (
        (rows.tokens, np.int64),
        (rows.targets, np.int64),
        (rows.documents, np.int32),
        (rows.positions, np.int32),
        (rows.examples, np.int64),
    ):
        assert array is not None
        assert array.dtype == dtype
    assert rows.tokens.shape == rows.documents.shape == (3, T)
    for index in (-1, stream.num_windows(T)):
        with pytest.raises(IndexError, match=f"row {index} of"):
            stream.rows([0, index], T)


def test_pairs_lie_side_by_side_and_keep_their_answers(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    sizes = [tuple(map(int, generator.integers(1, 60, 3))) for _ in range(80)]
    examples = pairs(1, sizes)  # type: ignore[arg-type]
    stream = opened(tmp_path / "data", examples, kind="preferences", shard_tokens=500)
    rows = stream.rows(np.arange(stream.num_windows(T)), T)
    assert rows.examples is not None
    chosen, rejected = rows.examples[:, 0::2], rows.examples[:, 1::2]
    there = chosen >= 0
    assert np.array_equal(rejected[there], chosen[there] + 1)
    assert (rejected[~there] == -1).all()
    assert sorted(chosen[there].tolist()) == list(range(0, 160, 2))
    found = in_rows(stream)
    cut = 0
    for number, (tokens, learns) in enumerate(examples):
        prompt, answer = sizes[number // 2][0], sizes[number // 2][1 + number % 2]
        other = sizes[number // 2][2 - number % 2]
        inputs, targets, positions = found[number]
        kept = targets[targets != IGNORE].tolist()
        assert kept == tokens[prompt:][: len(kept)].tolist()
        if 2 * prompt + answer + other - 2 <= T:
            assert inputs.tolist() == tokens[:-1].tolist()
        elif answer + other <= T:
            cut += 1
            assert len(kept) == answer == int(learns.sum())
            assert inputs.tolist() == tokens[-1 - len(inputs) : -1].tolist()
        assert positions.tolist() == list(range(len(inputs)))
    assert cut > 10
    facts = stream.facts(T)
    assert facts.truncated == sum(2 * p + c + r - 2 > T for p, c, r in sizes)
    assert (facts.examples, facts.left_out) == (80, 0)


def test_facts_without_opening_the_dataset(tmp_path: Path) -> None:
    late = (np.arange(100), np.arange(100) >= 90)
    long = (np.arange(100), np.arange(100) >= 20)
    manifest = write_packed(
        tmp_path / "data", {"train": [*chats(0, LENGTHS), late, long], "validation": [long]}
    )
    stream = open_dataset(tmp_path / "data").train
    facts = packing_facts(tmp_path / "data", manifest, "train", T)
    assert packed_rows(tmp_path / "data", manifest, "train", T) == facts.rows
    assert facts.rows == stream.num_windows(T)
    assert (facts.examples, facts.truncated, facts.left_out) == (len(LENGTHS) + 1, 1, 1)
    assert facts.utilisation == pytest.approx((sum(LENGTHS) - len(LENGTHS) + T) / facts.rows / T)
    assert packed_rows(tmp_path / "data", manifest, "validation", T) == 1
    assert packed_rows(tmp_path / "data", manifest, "validation", 4) == 0
    assert stream.longest == 100


def test_a_packing_is_kept_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_stream, "_STORED_FROM", 100)
    folder = tmp_path / "data"
    rows = opened(folder, chats(0, LENGTHS)).rows([0, 3], T)
    file = folder / f"packing-train-{T}.npz"
    assert file.exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("packed again")

    with monkeypatch.context() as patched:
        patched.setattr(packed_stream, "pack", refuse)
        stream = open_dataset(folder).train
        again = stream.rows([0, 3], T)
        assert np.array_equal(again.tokens, rows.tokens)
        assert np.array_equal(again.targets, rows.targets)
        write_packed(folder, {"train": chats(1, LENGTHS)}, fingerprint="e" * 64)
        with pytest.raises(AssertionError, match="packed again"):
            open_dataset(folder).train.num_windows(T)  # the file is of other data
    file.write_bytes(file.read_bytes()[:200])
    assert open_dataset(folder).train.num_windows(T) > 0
    assert not list(folder.glob(".packing*"))


def test_a_disk_that_cannot_be_written_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(packed_stream, "_STORED_FROM", 100)
    stream = opened(tmp_path / "data", chats(0, LENGTHS))
    monkeypatch.setattr(packed_stream.os, "fsync", full)
    assert stream.num_windows(T) > 0
    assert not [file for file in (tmp_path / "data").iterdir() if "packing" in file.name]


def test_held_out_rows_and_the_bytes_that_they_answer_for(tmp_path: Path) -> None:
    stream = opened(tmp_path / "data", chats(0, LENGTHS))
    every = stream.held_out_rows(T)
    assert every.tolist() == list(range(stream.num_windows(T)))
    assert stream.learning_bytes(every, T) == stream.num_bytes
    some = stream.held_out_rows(T, 200)
    assert some.tolist() == list(range(len(some)))
    packing = stream.packing(T)
    ends = np.cumsum([(packing.lengths[packing.row(n)] - 1).sum() for n in every])
    assert ends[len(some) - 2] < 200 <= ends[len(some) - 1]
    assert stream.held_out_rows(T, 0).tolist() == []


def test_bytes_of_what_was_cut_off_do_not_count(tmp_path: Path) -> None:
    """Ten bytes a token that is learnt: of 20, 5 of which targets stay in 15 places."""
    stream = opened(tmp_path / "data", [(np.arange(31), np.arange(31) >= 11)])
    assert stream.learning_bytes([0], 30) == 200
    assert stream.learning_bytes([0], 15) == 50
    folder = tmp_path / "pairs"
    stream = opened(folder, pairs(0, [(30, 5, 7)]), kind="preferences")
    assert stream.learning_bytes([0], 40) == 120  # the prompt was cut, the answers are whole


# -- batches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("text")
    source = write_records(folder / "a.jsonl", [{"text": sentences(n, 3)} for n in range(60)])
    build_data(source, folder / "prose", tokenizer, validation=0, num_workers=0)
    return folder / "prose"


@pytest.fixture(scope="module")
def streams(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stream]:
    folder = tmp_path_factory.mktemp("mixed")
    write_packed(folder / "chats", {"train": chats(0, LENGTHS)})
    write_packed(folder / "more", {"train": chats(1, [9] * 90)})
    return {
        "prose": open_dataset(text).train,
        "chats": open_dataset(folder / "chats").train,
        "more": open_dataset(folder / "more").train,
    }


def stage(
    streams: dict[str, Stream], mixture: dict[str, float], *, masking: bool = False, rows: int = 8
) -> StageData:
    return StageData(
        streams,
        mixture,
        sequence_length=T,
        windows_per_step=rows,
        seed=1,
        document_masking=masking,
    )


def test_a_mixed_stage_meets_its_quota(streams: dict[str, Stream]) -> None:
    mixture = {"prose": 0.5, "chats": 0.3, "more": 0.2}
    data, cursor = stage(streams, mixture), Cursor.beginning()
    counts = np.zeros(3)
    for step in range(1, 30):
        batch, cursor = data.batch(cursor)
        counts += np.bincount(batch.sources, minlength=3)
        assert (abs(counts - step * 8 * np.array([0.5, 0.3, 0.2])) < 1).all()
    assert cursor.consumed[f"chats@{T}"] == counts[1]
    assert data.epochs(cursor)["chats"] == counts[1] / streams["chats"].num_windows(T)
    assert data.epochs(cursor)["chats"] > 1


@pytest.mark.parametrize("masking", [False, True])
def test_rows_of_a_mixed_batch_are_their_sources(streams: dict[str, Stream], masking: bool) -> None:
    mixture = {"prose": 0.5, "chats": 0.3, "more": 0.2}
    data = stage(streams, mixture, masking=masking, rows=40)
    batch, _ = data.batch(Cursor.beginning())
    assert batch.documents is not None
    assert batch.positions is not None
    assert batch.examples is not None
    most = batch.examples.shape[1]
    for row, source in enumerate(batch.sources.tolist()):
        stream = streams[list(mixture)[source]]
        tokens, documents = batch.tokens[row], batch.documents[row]
        if isinstance(stream, TokenStream):
            windows = stream.rows(np.arange(stream.num_windows(T)), T, document_masking=True)
            [here] = np.flatnonzero((windows.tokens == tokens.numpy()).all(axis=1))
            assert np.array_equal(batch.targets[row], windows.targets[here])
            assert windows.documents is not None
            wanted = windows.documents[here] if masking else np.zeros(T)
            assert np.array_equal(documents, wanted)
            assert batch.positions[row].tolist() == list(range(T))
            assert (batch.examples[row] == -1).all()
            continue
        numbers = batch.examples[row][batch.examples[row] >= 0].tolist()
        [here] = {
            int(np.searchsorted(stream.packing(T).offsets, place, side="right")) - 1
            for place in np.flatnonzero(np.isin(stream.packing(T).examples, numbers))
        }
        alone = stream.rows([here], T)
        assert alone.documents is not None
        assert alone.examples is not None
        own = alone.examples.shape[1]
        assert np.array_equal(tokens, alone.tokens[0])
        assert np.array_equal(batch.targets[row], alone.targets[0])
        wanted = np.where(alone.documents[0] == own, most, alone.documents[0])
        assert np.array_equal(documents, wanted)
    assert most == max(streams[name].packing(T).max_examples for name in ("chats", "more"))  # type: ignore[union-attr]


def test_the_cursor_alone_says_what_comes(streams: dict[str, Stream]) -> None:
    mixture = {"prose": 0.4, "chats": 0.6}
    data, cursor = stage(streams, mixture), Cursor.beginning()
    batches = []
    for _ in range(12):
        batches.append((cursor, data.batch(cursor)[0]))
        cursor = data.batch(cursor)[1]
    fresh = stage(streams, mixture)
    for before, batch in batches[::-5]:
        again, _ = fresh.batch(before)
        for name in ("tokens", "targets", "documents", "positions", "examples"):
            assert torch.equal(getattr(again, name), getattr(batch, name))


def test_every_row_once_an_epoch(streams: dict[str, Stream]) -> None:
    data, cursor = stage(streams, {"chats": 1.0}, rows=1), Cursor.beginning()
    total = streams["chats"].num_windows(T)
    seen = []
    for _ in range(total):
        batch, cursor = data.batch(cursor)
        assert batch.examples is not None
        seen += batch.examples[batch.examples >= 0].tolist()
    assert sorted(seen) == list(range(len(LENGTHS)))


def test_splitting_and_moving_keep_all_parts(streams: dict[str, Stream]) -> None:
    batch, _ = stage(streams, {"prose": 0.5, "chats": 0.5}).batch(Cursor.beginning())
    parts = [part.to(torch.device("cpu")) for part in batch.split(3)]
    for name in ("tokens", "targets", "documents", "positions", "examples"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name))
    for part in parts:
        assert part.scored is not None
        flat = part.targets.flatten()
        assert torch.equal(part.scored, torch.nonzero(flat != IGNORE).flatten())
        assert len(part.scored) < flat.numel()
    plain, _ = stage(streams, {"prose": 1.0}).batch(Cursor.beginning())
    assert plain.to(torch.device("cpu")).scored is None
    assert plain.positions is None
    assert plain.examples is None


# -- the model ------------------------------------------------------------------------------------


def tiny_decoder() -> Decoder:
    config = ModelConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=T,
    )
    model = Decoder(config)
    initialize(model, "llama", seed=0)
    return model


def test_packed_rows_cost_what_examples_alone_cost(tmp_path: Path) -> None:
    """Loss and gradients of whole rows, against each example by itself in PyTorch's own
    cross-entropy over the model's logits."""
    examples = chats(2, [n for n in LENGTHS if n > 4][:30])
    stream = opened(tmp_path / "data", examples)
    batch = Batch.of(stream.rows(np.arange(stream.num_windows(T)), T))
    model = tiny_decoder()
    packed = -model(
        batch.tokens, batch.targets, documents=batch.documents, positions=batch.positions
    ).log_probs.sum()
    packed.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = torch.zeros(())
    for tokens, learns in examples:
        ids = torch.from_numpy(tokens)
        wanted = torch.from_numpy(np.where(learns[1:], tokens[1:], IGNORE))
        logits = model(ids[None, :-1])[0]
        alone = alone + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    alone.backward()
    count = sum(int(learns[1:].sum()) for _, learns in examples)
    assert abs((packed - alone).item()) / count < 1e-5
    assert len(gradients) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-5 * count, rtol=1e-4), name


def test_old_manifests_are_of_text(text: Path) -> None:
    manifest = read_manifest(text)
    old = manifest.model_dump(exclude={"kind", "chats"})
    assert Manifest.model_validate(old) == manifest
    assert (manifest.kind, manifest.chats) == ("text", None)
