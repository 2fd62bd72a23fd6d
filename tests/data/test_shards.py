"""Opening datasets and serving windows; the oracle is numpy on the bare files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llamita.data.build import build_data
from llamita.data.shards import Dataset, open_dataset
from llamita.data.show import describe_data, mark_specials, show_data
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences, write_records


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Dataset:
    folder = tmp_path_factory.mktemp("shards")
    records = [{"text": sentences(seed, 1 + seed % 9)} for seed in range(300)]
    source = write_records(folder / "a.jsonl", records)
    build_data(source, folder / "out", tokenizer, shard_tokens=4000, validation=0.1, licence="MIT")
    return open_dataset(folder / "out", verify=True)


def shards_of(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    names = [shard.name for shard in dataset.manifest.splits["train"].shards]
    return [
        (
            np.fromfile(dataset.path / f"{name}.ds", dtype="<u2"),
            np.fromfile(dataset.path / f"{name}.ds.index", dtype="<u8"),
        )
        for name in names
    ]


@pytest.mark.parametrize("length", [1, 7, 64, 3000])
def test_windows_cover_each_shard_in_order(dataset: Dataset, length: int) -> None:
    expected, numbers = [], []
    for tokens, ends in shards_of(dataset):
        owners = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0).astype(int))
        for start in range(0, len(tokens) - length, length):
            expected.append(tokens[start : start + length + 1])
            part = owners[start : start + length + 1]
            numbers.append(part - part[0])
    stream = dataset.train
    assert len(shards_of(dataset)) > 3
    assert stream.num_windows(length) == len(expected)
    for index in range(0, len(expected), max(1, len(expected) // 200)):
        assert np.array_equal(stream.window(index, length), expected[index])
        assert np.array_equal(stream.window_documents(index, length), numbers[index])
    chosen = np.random.default_rng(0).integers(0, len(expected), 50)
    assert np.array_equal(stream.windows(chosen, length), np.stack([expected[i] for i in chosen]))
    assert stream.windows(chosen, length).dtype == np.int64
    assert stream.windows(chosen, length, dtype=stream.dtype).dtype == np.dtype("<u2")
    batch = stream.windows_documents(chosen, length)
    assert np.array_equal(batch, np.stack([numbers[i] for i in chosen]))
    assert batch.dtype == np.int32


def test_counts_are_those_of_the_files(dataset: Dataset) -> None:
    stream = dataset.train
    assert stream.num_tokens == sum(len(tokens) for tokens, _ in shards_of(dataset))
    assert stream.num_documents == sum(len(ends) for _, ends in shards_of(dataset))
    total = sum(stream.document_bytes(number) for number in range(stream.num_documents))
    assert stream.num_bytes == total
    lengths = sum(len(stream.document(number)) for number in range(stream.num_documents))
    assert lengths == stream.num_tokens
    assert dataset.fingerprint == dataset.manifest.fingerprint


def test_a_split_too_small_for_a_window_has_none(dataset: Dataset) -> None:
    assert dataset.validation.num_windows(10**7) == 0
    with pytest.raises(IndexError, match="window 0 of 0"):
        dataset.validation.window(0, 10**7)
    for index in (-1, dataset.train.num_windows(16)):
        with pytest.raises(IndexError):
            dataset.train.windows([0, index], 16)
    with pytest.raises(IndexError):
        dataset.train.document(dataset.train.num_documents)


def test_a_dataset_without_validation_opens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("text")
    build_data(tmp_path / "a.txt", tmp_path / "out", tokenizer, validation=0)
    opened = open_dataset(tmp_path / "out")
    assert opened.validation.num_tokens == opened.validation.num_windows(1) == 0


def test_damage_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "a.jsonl", [{"text": sentences(n, 3)} for n in range(50)])
    out = tmp_path / "out"
    build_data(source, out, tokenizer)
    shard = out / "train-00000.ds"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"train-00000\.ds has \d+ bytes, its manifest says"):
        open_dataset(out)
    altered = bytearray(whole)
    altered[100] ^= 1
    shard.write_bytes(altered)
    open_dataset(out)  # sizes alone do not tell
    with pytest.raises(UserError, match=r"train-00000\.ds was altered"):
        open_dataset(out, verify=True)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000\.ds is missing"):
        open_dataset(out)


def test_what_is_no_dataset_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="there is no dataset at"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    build_data(tmp_path / "a.txt", tmp_path / "out", tokenizer, validation=0)
    manifest = tmp_path / "out/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:-20])
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(tmp_path / "out")
    manifest.write_text(text.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(UserError, match="format_version 99"):
        open_dataset(tmp_path / "out")
    os.truncate(manifest, 0)
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(tmp_path / "out")


def test_description_says_sizes_shares_and_epochs(dataset: Dataset) -> None:
    tokens = dataset.train.num_tokens
    lines = describe_data([dataset.path, dataset.path], weights=[3, 1], tokens=2 * tokens)
    text = "\n".join(lines)
    assert f"{2 * tokens:,} training tokens" in lines[0]
    assert "75.0%" in text
    assert "1.50 epochs" in text
    assert "25.0%" in text
    assert "0.50 epochs" in text
    assert f"train: {tokens:,} tokens · {dataset.train.num_documents:,} documents" in text
    assert f"{dataset.train.num_bytes / tokens:.2f} bytes/token" in text
    assert "licence MIT" in text


def test_samples_show_where_documents_meet(dataset: Dataset, tokenizer: Tokenizer) -> None:
    lines = describe_data(dataset.path, samples=1, sample_tokens=40, seed=3)
    end = next(number for number, line in enumerate(lines) if line.endswith("⟨/s⟩"))
    assert lines[end + 1].startswith("⟨s⟩")
    marked = mark_specials(np.array([0, *tokenizer.encode("a </s>"), 1, 0, 2]), tokenizer)
    assert marked == "⟨s⟩a </s>⟨/s⟩\n⟨s⟩⟨pad⟩"


def test_showing_prints_the_description(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = show_data(dataset.path, samples=1)
    assert capsys.readouterr().out.splitlines() == lines
    with pytest.raises(UserError, match="2 weights for 1 datasets"):
        describe_data(dataset.path, weights=[1, 2])
