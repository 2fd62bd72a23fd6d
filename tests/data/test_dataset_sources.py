"""The library `datasets` as a source: objects, streams, saved folders, names. No network."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from llamita.data import hub_datasets
from llamita.data.build import build_data
from llamita.data.manifest import Manifest, read_manifest
from llamita.data.shards import open_dataset
from llamita.data.sources import list_sources
from llamita.data.tokenizer import Tokenizer
from llamita.data.tokenizer_training import train_tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences, write_records
from tests.data.test_columns import rows, shards_of

SETTINGS: dict[str, Any] = {
    "validation": 0.1,
    "where": ("meta.lang in [en, de]", "stars >= 1"),
    "split_by": "meta.author",
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def expected(tmp_path: Path, tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    lines = write_records(tmp_path / "rows.jsonl", rows())
    build_data(lines, tmp_path / "lines", tokenizer, **{**SETTINGS, **settings})
    return shards_of(tmp_path / "lines")


def stream_of(records: list[dict[str, Any]]) -> IterableDataset:
    def generate() -> Iterator[dict[str, Any]]:
        yield from records

    return IterableDataset.from_generator(generate)


def objects() -> dict[str, Any]:
    whole = Dataset.from_list(rows())
    order = list(range(len(whole)))
    backwards = Dataset.from_list(rows()[::-1]).select(order[::-1])  # an indices mapping
    return {
        "plain": whole,
        "indices": backwards,
        "numpy": whole.with_format("numpy"),
        "torch": whole.with_format("torch"),
        "pandas": whole.with_format("pandas"),
        "columns": whole.with_format(None, columns=["id"]),
        "stream": stream_of(rows()),
        "shards": whole.to_iterable_dataset(num_shards=3),
        "stream as torch": whole.to_iterable_dataset().with_format("torch"),
    }


@pytest.mark.parametrize("kind", objects())
def test_objects_give_the_bytes_of_the_same_rows(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    manifest = build_data(objects()[kind], tmp_path / "out", tokenizer, num_workers=0, **SETTINGS)
    assert shards_of(tmp_path / "out") == expected(tmp_path, tokenizer)
    assert manifest.sources[0].records == 400
    dataset = manifest.sources[0].dataset
    assert dataset is not None
    assert dataset.kind == (
        "streaming" if isinstance(objects()[kind], IterableDataset) else "map-style"
    )


def test_all_ways_to_the_same_rows_have_one_fingerprint(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    found = {
        build_data(dataset, tmp_path / kind, tokenizer, num_workers=0, **SETTINGS).fingerprint
        for kind, dataset in objects().items()
    }
    assert len(found) == 1
    changed = rows()
    changed[4]["text"] = changed[4]["text"][::-1]  # of the same length, with the same split key
    other = Dataset.from_list(changed)
    assert build_data(other, tmp_path / "other", tokenizer, **SETTINGS).fingerprint not in found


def test_workers_and_lists_of_sources(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("a text beside")
    found = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}" / "out"
        sources = [Dataset.from_list(rows()), tmp_path / "a.txt", stream_of(rows()[:5])]
        manifest = build_data(sources, out, tokenizer, num_workers=workers)
        assert [source.records for source in manifest.sources] == [400, 1, 5]
        assert manifest.sources[1].dataset is None
        found.append({**shards_of(out), "manifest": (out / "manifest.json").read_bytes()})
    assert found[0] == found[1]


def say(dataset: Any, out: Path, tokenizer: Tokenizer, **settings: Any) -> tuple[Manifest, str]:
    said: list[str] = []
    manifest = build_data(
        dataset, out, tokenizer, progress=lambda state: said.append(state.message), **settings
    )
    return manifest, said[-1]


def test_map_style_is_reused_by_fingerprint_and_a_stream_never(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "out"
    whole = Dataset.from_list(rows())
    first, _ = say(whole, out, tokenizer)
    assert "reused" in say(Dataset.from_list(rows()), out, tokenizer)[1]
    changed = whole.map(lambda row: {"text": f"{row['text']}!"})
    second, message = say(changed, out, tokenizer)
    assert message.endswith("is built.")
    assert second.fingerprint != first.fingerprint
    assert say(stream_of(rows()), out, tokenizer)[1].endswith("is built.")
    third, message = say(stream_of(rows()), out, tokenizer)
    assert "nothing vouched for its sources: the contents are the same" in message
    assert third.fingerprint == first.fingerprint


def test_a_bound_cuts_a_stream_that_never_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def endless() -> Iterator[dict[str, str]]:
        number = 0
        while True:
            yield {"text": sentences(number, 30)}
            number += 1

    found = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}" / "out"
        stream = IterableDataset.from_generator(endless)
        manifest = build_data(
            stream, out, tokenizer, max_tokens=100_000, num_workers=workers, validation=0.1
        )
        longest = max(
            len(open_dataset(out).train.document(number))
            for number in range(open_dataset(out).train.num_documents)
        )
        assert 100_000 <= manifest.num_tokens < 100_000 + longest
        assert manifest.cut
        assert "reading ended at max_tokens 100,000" in manifest.notes[-1]
        found.append({**shards_of(out), "manifest": (out / "manifest.json").read_bytes()})
    assert found[0] == found[1]
    stream = IterableDataset.from_generator(endless)
    manifest = build_data(stream, tmp_path / "n", tokenizer, max_documents=123)
    assert manifest.counts.documents == 123
    train_tokenizer(stream, tmp_path / "tokenizer", 300, max_documents=50)


def test_a_bound_is_the_same_prefix_for_files_and_reused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The documents are the first so many of the whole; files behind the cut do not matter."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        records = [{"text": sentences(1000 * number + place, 400)} for place in range(60)]
        write_records(folder / f"{number}.jsonl", records)
    whole = build_data(folder, tmp_path / "whole", tokenizer, validation=0)
    bound = {"validation": 0, "max_documents": 100}
    for workers in (0, 2):
        out = tmp_path / f"{workers}" / "out"
        manifest, _ = say(folder, out, tokenizer, num_workers=workers, **bound)
        assert manifest.counts.documents == 100
        start = open_dataset(tmp_path / "whole").train
        cut = open_dataset(out).train
        for number in range(100):
            assert start.document(number).tolist() == cut.document(number).tolist()
    assert whole.fingerprint != manifest.fingerprint
    assert "reused" in say(folder, out, tokenizer, **bound)[1]
    write_records(folder / "3.jsonl", [{"text": "another"}])
    assert "reused" in say(folder, out, tokenizer, **bound)[1]
    write_records(folder / "1.jsonl", [{"text": "another"}])
    assert say(folder, out, tokenizer, **bound)[1].endswith("is built.")


def test_a_bound_that_was_not_reached_changes_nothing_but_the_fingerprint(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/a.txt").write_text(sentences(1, 100))
    first = build_data(tmp_path / "a", tmp_path / "out", tokenizer)
    second = build_data(tmp_path / "a", tmp_path / "bound", tokenizer, max_tokens=10**9)
    assert first.splits == second.splits
    assert not second.cut
    (tmp_path / "a/b.txt").write_text("more")
    _, message = say(tmp_path / "a", tmp_path / "bound", tokenizer, max_tokens=10**9)
    assert message.endswith("is built.")
    for bound in ("max_tokens", "max_documents"):
        with pytest.raises(UserError, match=f"{bound} must be 1 or more"):
            build_data(tmp_path / "a", tmp_path / "bound", tokenizer, **{bound: 0})


def test_bad_rows_of_streams_and_objects_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records: list[dict[str, Any]] = [{"text": sentences(n, 1)} for n in range(30)]
    records[3] = {"text": None}
    records[11] = {"body": "no text"}
    records[12] = {"text": 5}
    manifest = build_data(stream_of(records), tmp_path / "a", tokenizer)
    assert manifest.first_bad == (
        "generator:train, row 4: field 'text' must be a string, it is NoneType",
        "generator:train, row 12: no field 'text' (fields here: 'body')",
        "generator:train, row 13: field 'text' must be a string, it is int",
    )
    assert manifest.counts.records == 30
    whole = Dataset.from_list([{"text": sentences(n, 1) if n != 7 else None} for n in range(30)])
    manifest = build_data(whole, tmp_path / "b", tokenizer)
    assert manifest.first_bad == ("dataset, row 8: field 'text' must be a string, it is NoneType",)


def test_wrong_objects_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = Dataset.from_list(rows())
    cases: list[tuple[Any, str]] = [
        (DatasetDict(train=whole, test=whole), r"splits train, test; name the one.*\['train'\]"),
        (whole.with_transform(lambda batch: batch), "has a transform"),
        (whole.remove_columns("text"), r"dataset has no column 'text' \(columns: 'id', 'meta'"),
        (whole.to_iterable_dataset().remove_columns("text"), "dataset has no column 'text'"),
        ([{"text": "one"}], "an object of type dict is no source"),
        ({"train": "a.txt"}, "an object of type dict is no source"),
        (5, "an object of type int is no source"),
        (iter([]), "no sources"),
        (Dataset.from_dict({"text": []}), "the sources hold no document"),
    ]
    for dataset, message in cases:
        with pytest.raises(UserError, match=message):
            build_data(dataset, tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_callers_own_code_stays_itself(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def broken(row: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_data(stream_of(rows()).map(broken), tmp_path / "out", tokenizer)


def test_saved_folders_are_read_as_datasets(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shuffled = Dataset.from_list(rows()[::-1]).select(range(399, -1, -1))
    shuffled.info.license = "cc0-1.0"
    shuffled.info.dataset_name = "notes"
    shuffled.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    # What a cache leaves beside the files is not listed in state.json.
    (tmp_path / "saved/cache-0123.arrow").write_bytes(b"not a table")
    manifest = build_data(tmp_path / "saved", tmp_path / "out", tokenizer, **SETTINGS)
    assert shards_of(tmp_path / "out") == expected(tmp_path, tokenizer)
    source = manifest.sources[0]
    assert (source.files, source.licence, source.records) == (3, "cc0-1.0", 400)
    assert source.dataset is not None
    assert (source.dataset.kind, source.dataset.name) == ("saved", "notes")
    assert source.dataset.fingerprint == json.loads(
        (tmp_path / "saved/state.json").read_text()
    ).get("_fingerprint")
    assert read_manifest(tmp_path / "out") == manifest
    again, message = say(tmp_path / "saved", tmp_path / "out", tokenizer, **SETTINGS)
    assert "reused" in message
    assert again.sources[0].licence == "cc0-1.0"
    for pattern in ("saved/*", "saved/data-*.arrow"):
        if pattern == "saved/*":
            (tmp_path / "saved/cache-0123.arrow").unlink()
        names = [file.path.name for file in list_sources(str(tmp_path / pattern)).files]
        assert names == [f"data-0000{number}-of-00003.arrow" for number in range(3)]


def test_a_saved_dictionary_needs_a_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = Dataset.from_list(rows())
    DatasetDict(train=whole, test=whole).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(UserError, match=r"both has the splits train, test; name .*both/train"):
        build_data(tmp_path / "both", tmp_path / "out", tokenizer)
    build_data(tmp_path / "both/train", tmp_path / "out", tokenizer, **SETTINGS)
    assert shards_of(tmp_path / "out") == expected(tmp_path, tokenizer)
    DatasetDict(train=whole).save_to_disk(str(tmp_path / "one"))
    build_data(tmp_path / "one", tmp_path / "one-out", tokenizer, **SETTINGS)
    assert shards_of(tmp_path / "one-out") == expected(tmp_path, tokenizer)
    with pytest.raises(UserError, match="splits train, test"):
        build_data(f"hf:{tmp_path}/both", tmp_path / "hf", tokenizer, **SETTINGS)
    build_data(f"hf:{tmp_path}/both:train", tmp_path / "hf", tokenizer, **SETTINGS)
    assert shards_of(tmp_path / "hf") == expected(tmp_path, tokenizer)


@pytest.mark.parametrize("key", ["_indices_files", "_indices_data_files"])
def test_a_saved_choice_of_rows_is_refused(tmp_path: Path, tokenizer: Tokenizer, key: str) -> None:
    """`datasets` before 2.0 saved the whole table and which of its rows count."""
    folder = tmp_path / "saved"
    Dataset.from_list(rows()).save_to_disk(str(folder))
    state = json.loads((folder / "state.json").read_text())
    state[key] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    for source in (folder, folder / "data-00000-of-00001.arrow", f"{folder}/*.arrow"):
        with pytest.raises(UserError, match="saved with an indices mapping"):
            build_data(source, tmp_path / "out", tokenizer)


def test_damaged_saved_folders_and_caches_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "saved"
    Dataset.from_list(rows()).save_to_disk(str(folder))
    data = folder / "data-00000-of-00001.arrow"
    held = data.read_bytes()
    data.unlink()
    with pytest.raises(UserError, match=r"00001\.arrow is missing, which .*state\.json names"):
        build_data(folder, tmp_path / "out", tokenizer)
    data.write_bytes(held)
    (folder / "state.json").rename(folder / "kept")
    with pytest.raises(UserError, match="is a cache of datasets and not a saved dataset"):
        build_data(folder, tmp_path / "out", tokenizer)
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        build_data(folder, tmp_path / "out", tokenizer)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    write_records(folder / "train.jsonl", rows())
    write_records(folder / "test.jsonl", rows()[:20])
    return folder


@pytest.mark.parametrize("prefix", ["hf:", "hf+stream:"])
def test_local_folders_by_name(
    tmp_path: Path, tokenizer: Tokenizer, local: Path, prefix: str
) -> None:
    spec = f"{prefix}{local}:train"
    manifest, _ = say(spec, tmp_path / "out", tokenizer, **SETTINGS)
    assert shards_of(tmp_path / "out") == expected(tmp_path, tokenizer)
    source = manifest.sources[0]
    assert source.name == f"{prefix}notes:train"
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert str(tmp_path) not in (tmp_path / "out/sources.json").read_text()
    assert source.dataset is not None
    assert (source.dataset.name, source.dataset.split) == ("notes", "train")
    _, message = say(spec, tmp_path / "out", tokenizer, **SETTINGS)
    assert ("reused" in message) == (prefix == "hf:")
    tokenizers = train_tokenizer(spec, tmp_path / "tokenizer", 300)
    assert tokenizers.vocab_size == 300


def test_wrong_names_are_explained(
    tmp_path: Path, tokenizer: Tokenizer, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    cases = [
        (f"hf:{local}", r"has the splits train, test; name the one to read, .*:train"),
        (f"hf:{local}:dev", r"cannot be loaded: Unknown split"),
        (f"hf:{tmp_path}/nowhere:train", "there is no folder"),
        ("hf:", "names no dataset; write hf:NAME"),
        ("hf:a/b/c/d:train", "neither a folder here nor a name on the hub"),
        ("hf:nobody/nothing:train", "the hub is switched off .* not in the cache here"),
        ("hf+stream:nobody/nothing:train", "the hub is switched off"),
    ]
    for spec, message in cases:
        began = time.monotonic()
        with pytest.raises(UserError, match=message):
            build_data(spec, tmp_path / "out", tokenizer)
        assert time.monotonic() - began < 10


def test_an_unreachable_hub_is_said_within_seconds(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = unused.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(UserError, match=r"cannot be reached: .*set HF_HUB_OFFLINE=1"):
            build_data("hf:some/thing:train", tmp_path / "out", tokenizer)
    monkeypatch.setattr(hub_datasets, "_CONNECT_SECONDS", 0.2)
    given_up = threading.Event()

    def silent(*_: object, **__: object) -> None:
        given_up.wait(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer within"):
        build_data("hf:some/thing:train", tmp_path / "out", tokenizer)
    assert time.monotonic() - began < 5
    given_up.set()


class _Library:
    """Stands for `datasets` where the hub would be asked."""

    def __init__(self, there: dict[tuple[str, str | None], Any]) -> None:
        self._there = there
        self.asked: list[tuple[str, str | None]] = []

    def load_dataset(self, name: str, config: str | None, **options: Any) -> Any:
        self.asked.append((name, config))
        if (name, config) not in self._there:
            raise datasets.exceptions.DatasetNotFoundError(f"no dataset {name}")
        return self._there[name, config]


def test_two_part_names_are_an_organisation_or_a_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_datasets, "_check_reachable", lambda _: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    library = _Library({("org/name", None): 1, ("wiki", "raw"): 2, ("org/name", "part"): 3})

    def load(given: str) -> Any:
        return hub_datasets._load_named(library, hub_datasets._parse(given))

    assert load("hf:org/name:train") == 1
    assert load("hf:wiki/raw:train") == 2
    assert load("hf:org/name/part@main:train[:10%]") == 3
    with pytest.raises(UserError, match="hf:no/where:train cannot be loaded: no dataset no/where"):
        load("hf:no/where:train")


def test_a_stream_of_a_named_commit_is_reused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_datasets, "_check_reachable", lambda _: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream_of(rows()))
    for revision, reused in (("0123456789" * 4, True), ("main", False)):
        spec = f"hf+stream:org/name@{revision}:train"
        manifest, _ = say(spec, tmp_path / revision, tokenizer)
        assert manifest.sources[0].dataset is not None
        assert manifest.sources[0].dataset.revision == revision
        assert ("reused" in say(spec, tmp_path / revision, tokenizer)[1]) == reused


def test_a_stream_that_breaks_off_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> Iterator[dict[str, str]]:
        for number in range(20):
            yield {"text": sentences(number, 1)}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub_datasets, "_check_reachable", lambda _: None)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: IterableDataset.from_generator(breaks)
    )
    with pytest.raises(UserError, match="reading failed after 20 rows: reset by peer"):
        build_data("hf+stream:org/name:train", tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'llamita\[datasets\]'"):
        build_data("hf:org/name:train", tmp_path / "out", tokenizer)


def test_bounds_and_names_on_the_command_line(
    tmp_path: Path, tokenizer: Tokenizer, local: Path
) -> None:
    from typer.testing import CliRunner

    from llamita.cli import app

    tokenizer.save(tmp_path / "tokenizer")
    source = f"hf+stream:{local}:train"
    given = ["--tokenizer", str(tmp_path / "tokenizer"), "--validation", "0"]
    for option, reached in (("--max-documents", "documents"), ("--max-tokens", "tokens")):
        out = tmp_path / reached
        bound = ["--out", str(out), option, "1e2", *given]
        ran = CliRunner().invoke(app, ["data", "build", source, *bound])
        assert ran.exit_code == 0, ran.output
        assert f"reading ended at max_{reached} 100" in ran.output
        split = read_manifest(out).splits["train"]
        assert getattr(split, reached) >= 100
        assert split.documents == 100 or reached == "tokens"
    out = tmp_path / "learnt"
    bound = ["--out", str(out), "--vocab-size", "300", "--max-documents", "50"]
    ran = CliRunner().invoke(app, ["tokenizer", "train", source, *bound])
    assert ran.exit_code == 0, ran.output


def test_progress_without_an_end_shows_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from llamita.reporting import progress

    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    stream = io.StringIO()
    with progress.ProgressLine("encoding", stream) as line:
        line.update(5, 0, "3 documents")
        line.update(5, 10, "4 documents")
    first, second = stream.getvalue().splitlines()
    assert "%" not in first
    assert first.endswith("3 documents")
    assert "50%" in second
