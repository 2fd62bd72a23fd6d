"""Building datasets: what is written, when it is reused, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.data import atomic, shard_writer
from llamita.data.build import Progress, build_data
from llamita.data.manifest import Manifest, building_directory
from llamita.data.shards import open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences, write_records


def files_of(directory: Path, skip: tuple[str, ...] = ("sources.json",)) -> dict[str, bytes]:
    found = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in found
        if file.name not in skip
    }


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def documents_of(out: Path, split: str, tokenizer: Tokenizer) -> list[str]:
    stream = getattr(open_dataset(out), split)
    found = [stream.document(number).tolist() for number in range(stream.num_documents)]
    return [tokenizer.decode([token for token in ids if token not in (0, 1)]) for ids in found]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    entries = [{"text": sentences(seed, 1 + seed % 7), "id": seed} for seed in range(400)]
    return write_records(tmp_path / "records.jsonl", entries)


def test_layout_is_datatroves(records: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Read back with numpy alone, as datatrove and nanotron define the files."""
    out = tmp_path / "out"
    build_data(records, out, tokenizer, validation=0)
    tokens = np.fromfile(out / "train-00000.ds", dtype="<u2")
    ends = np.fromfile(out / "train-00000.ds.index", dtype="<u8").astype(int)
    sizes = np.fromfile(out / "train-00000.ds.bytes", dtype="<u8")
    name, count, words = (out / "train-00000.ds.metadata").read_text().split("\n")
    assert name == f"{tokenizer.fingerprint}|2"
    assert int(count) == len(tokens) == ends[-1]
    assert words.endswith("T")
    texts = [json.loads(line)["text"] for line in records.read_text().splitlines()]
    assert len(ends) == len(texts)
    for start, end, size, text in zip([0, *ends], ends, sizes, texts, strict=False):
        assert tokens[start:end].tolist() == [0, *tokenizer.encode(text), 1]
        assert size == len(text.encode())


def test_large_vocabularies_take_four_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.to_json())
    content["added_tokens"] += [
        content["added_tokens"][2] | {"id": number, "content": f"<{number}>"}
        for number in range(300, 65_537)
    ]
    large = Tokenizer(json.dumps(content), bos_id=0, eos_id=65_536)
    (tmp_path / "a.txt").write_text("some text")
    manifest = build_data(tmp_path / "a.txt", tmp_path / "out", large, validation=0)
    assert manifest.token_bytes == 4
    tokens = np.fromfile(tmp_path / "out/train-00000.ds", dtype="<u4")
    assert tokens.tolist() == [0, *large.encode("some text"), 65_536]


def test_the_number_of_workers_changes_no_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    entries = [{"text": sentences(seed % 900, 60)} for seed in range(1000)]
    write_records(folder / "a.jsonl", entries)
    (folder / "b.txt").write_text(sentences(7, 30_000))
    found = []
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}" / "out"
        build_data(folder, out, tokenizer, num_workers=workers, shard_tokens=300_000)
        found.append(files_of(out))
    assert len([name for name in found[0] if name.endswith(".ds")]) >= 4
    assert found[0] == found[1] == found[2]


def test_documents_never_straddle_shards(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    one = build_data(records, tmp_path / "one", tokenizer)
    many = build_data(records, tmp_path / "many", tokenizer, shard_tokens=2000)
    assert len(one.splits["train"].shards) == 1
    assert len(many.splits["train"].shards) > 5
    for shard in many.splits["train"].shards[:-1]:
        assert shard.tokens >= 2000
    first, second = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "many")
    for number in range(first.train.num_documents):
        assert np.array_equal(first.train.document(number), second.train.document(number))
        assert first.train.document_bytes(number) == second.train.document_bytes(number)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_bos_and_eos_go_where_asked(
    tmp_path: Path, tokenizer: Tokenizer, bos: bool, eos: bool
) -> None:
    (tmp_path / "a.txt").write_text("a </s> b")
    build_data(tmp_path / "a.txt", tmp_path / "out", tokenizer, validation=0, bos=bos, eos=eos)
    expected = [0] * bos + tokenizer.encode("a </s> b") + [1] * eos
    assert open_dataset(tmp_path / "out").train.document(0).tolist() == expected


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("text")
    without = Tokenizer(tokenizer.to_json(), bos_id=0)
    with pytest.raises(UserError, match="no EOS token; build with --no-eos"):
        build_data(tmp_path / "a.txt", tmp_path / "out", without)
    build_data(tmp_path / "a.txt", tmp_path / "out", without, eos=False, validation=0)


def test_duplicates_are_dropped_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["one", "two", "one", "three", "two", "one"]
    file = write_records(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    manifest = build_data(file, tmp_path / "out", tokenizer, validation=0)
    assert manifest.counts.duplicates == 3
    assert documents_of(tmp_path / "out", "train", tokenizer) == ["one", "two", "three"]
    kept = build_data(file, tmp_path / "all", tokenizer, validation=0, dedup=False)
    assert (kept.counts.duplicates, kept.counts.documents) == (0, 6)


def test_validation_is_a_share_by_hash(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries = [{"text": f"text number {seed}"} for seed in range(5000)]
    file = write_records(tmp_path / "a.jsonl", entries)
    manifest = build_data(file, tmp_path / "out", tokenizer, validation=0.1)
    # a binomial share: five standard deviations of sqrt(0.1 * 0.9 / 5000) are 0.021
    assert abs(manifest.splits["validation"].documents / 5000 - 0.1) < 0.021
    train = set(documents_of(tmp_path / "out", "train", tokenizer))
    held_out = set(documents_of(tmp_path / "out", "validation", tokenizer))
    assert not train & held_out
    assert len(train | held_out) == 5000
    # the side does not depend on what else is there
    write_records(file, entries[:2500])
    build_data(file, tmp_path / "out", tokenizer, validation=0.1)
    assert set(documents_of(tmp_path / "out", "validation", tokenizer)) <= held_out


def test_split_by_keeps_equal_values_on_one_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries = [{"text": f"{n}", "meta": {"file": n % 60}} for n in range(600)]
    file = write_records(tmp_path / "a.jsonl", entries)
    build_data(file, tmp_path / "out", tokenizer, validation=0.3, split_by="meta.file")
    sides = {
        split: {int(text) % 60 for text in documents_of(tmp_path / "out", split, tokenizer)}
        for split in ("train", "validation")
    }
    assert not sides["train"] & sides["validation"]
    assert len(sides["train"] | sides["validation"]) == 60
    assert 8 <= len(sides["validation"]) <= 30


def test_a_small_source_still_gets_a_validation_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(sentences(number, 2))
    said: list[Progress] = []
    manifest = build_data(
        tmp_path / "*.txt", tmp_path / "out", tokenizer, validation=1e-9, progress=said.append
    )
    assert manifest.splits["validation"].documents == 2
    assert manifest.splits["train"].documents == 18
    assert manifest.settings.validation == 1e-9
    assert 0.005 < manifest.validation_fraction < 0.5
    assert "raised" in manifest.notes[0]
    assert any(report.message == manifest.notes[0] for report in said)


def test_one_document_cannot_be_divided(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("only one")
    with pytest.raises(UserError, match="--validation 0"):
        build_data(tmp_path / "a.txt", tmp_path / "out", tokenizer)
    assert names_in(tmp_path) == ["a.txt"]


def test_a_single_file_is_split_by_blocks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = sentences(11, 40_000)
    (tmp_path / "a.txt").write_text(text)
    manifest = build_data(tmp_path / "a.txt", tmp_path / "out", tokenizer, dedup=False)
    assert 900 <= manifest.counts.documents <= 1200
    assert manifest.splits["validation"].documents >= 1
    joined = documents_of(tmp_path / "out", "train", tokenizer)
    held_out = documents_of(tmp_path / "out", "validation", tokenizer)
    assert sum(map(len, joined + held_out)) == len(text)
    assert not set(joined) & set(held_out)


def test_unchanged_input_is_reused_and_changed_input_rebuilt(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "out"
    said: list[str] = []

    def build(**settings: Any) -> Manifest:
        said.clear()
        return build_data(
            records, out, tokenizer, progress=lambda report: said.append(report.message), **settings
        )

    first = build()
    inode = (out / "train-00000.ds").stat().st_ino
    assert build() == first
    assert "reused" in said[-1]
    os.utime(records, ns=(1, 1))  # another time, the same contents
    assert build() == first
    assert "reused" in said[-1]
    assert (out / "train-00000.ds").stat().st_ino == inode
    assert build(licence="MIT").sources[0].licence == "MIT"
    assert open_dataset(out).manifest.sources[0].licence == "MIT"
    assert build(name="mine").name == open_dataset(out).manifest.name == "mine"
    assert (out / "train-00000.ds").stat().st_ino == inode
    text = records.read_text()
    records.write_text(text.replace("model", "nodel", 1))  # the same size
    second = build()
    assert "built" in said[-1]
    assert second.fingerprint != first.fingerprint
    assert build(bos=False).fingerprint != second.fingerprint
    assert "built" in said[-1]
    write_records(tmp_path / "records2.jsonl", [{"text": "more"}])
    both = build_data([records, tmp_path / "records2.jsonl"], out, tokenizer)
    assert both.counts.documents == second.counts.documents + 1


def test_a_reused_dataset_keeps_up_with_the_chat_template(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "out"
    build_data(records, out, tokenizer)
    assert load_tokenizer(out / "tokenizer").chat_template is None
    chat = Tokenizer(tokenizer.to_json(), bos_id=0, eos_id=1, pad_id=2, chat_template="{{ x }}")
    said: list[Progress] = []
    build_data(records, out, chat, progress=said.append)
    assert "reused" in said[-1].message
    assert load_tokenizer(out / "tokenizer").chat_template == "{{ x }}"
    assert load_tokenizer(out / "tokenizer").fingerprint == tokenizer.fingerprint


def test_a_place_that_cannot_be_written_is_named(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        build_data(records, tmp_path / "file" / "out", tokenizer)


def test_fingerprint_knows_no_place_or_time(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    moved = tmp_path / "elsewhere" / records.name
    moved.parent.mkdir()
    moved.write_bytes(records.read_bytes())
    os.utime(moved, ns=(1, 1))
    first = build_data(records, tmp_path / "one/data", tokenizer)
    second = build_data(moved, tmp_path / "two/data", tokenizer)
    assert first == second
    assert str(tmp_path) not in (tmp_path / "one/data/manifest.json").read_text()


def test_an_altered_dataset_is_rebuilt(records: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "out"
    first = build_data(records, out, tokenizer)
    whole = files_of(out)
    os.truncate(out / "train-00000.ds", 100)
    assert build_data(records, out, tokenizer) == first
    assert files_of(out) == whole


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


def children_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


BUILD = """
import sys
from llamita.data.build import build_data
from llamita.data.tokenizer import load_tokenizer
build_data(sys.argv[1], sys.argv[2], load_tokenizer(sys.argv[3]), num_workers=1,
           progress=lambda report: print(report.documents, flush=True))
"""


def test_a_killed_build_is_refused_and_replaced(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries = [{"text": sentences(seed, 300)} for seed in range(600)]
    source = write_records(tmp_path / "a.jsonl", entries)
    tokenizer.save(tmp_path / "tok")
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source), str(out), str(tmp_path / "tok")],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()  # the first block is written
    with pytest.raises(UserError, match="another process is writing"):
        build_data(source, out, tokenizer)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert building_directory(out).is_dir()
    with pytest.raises(UserError, match="was interrupted"):
        open_dataset(out)
    manifest = build_data(source, out, tokenizer)
    assert manifest.counts.documents == 600
    assert not building_directory(out).exists()
    assert names_in(tmp_path) == ["a.jsonl", "out", "tok"]


@needs_proc
def test_workers_end_with_a_killed_parent(tmp_path: Path, tokenizer: Tokenizer) -> None:
    entries = [{"text": sentences(seed, 300)} for seed in range(600)]
    source = write_records(tmp_path / "a.jsonl", entries)
    tokenizer.save(tmp_path / "tok")
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source), str(tmp_path / "out"), str(tmp_path / "tok")],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    workers = children_of(child.pid)
    assert workers
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(worker) for worker in workers)


@needs_proc
def test_a_killed_worker_is_an_error_and_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    entries = [{"text": sentences(seed, 300)} for seed in range(600)]
    source = write_records(tmp_path / "a.jsonl", entries)
    before = set(children_of(os.getpid()))

    def kill(report: Progress) -> None:
        for worker in set(children_of(os.getpid())) - before:
            os.kill(int(worker), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="worker process ended with status -9"):
        build_data(source, tmp_path / "out", tokenizer, num_workers=2, progress=kill)
    assert names_in(tmp_path) == ["a.jsonl"]
    assert set(children_of(os.getpid())) <= before


def _alive(process: str) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_interrupted_rebuild_leaves_the_old_dataset(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "out"
    build_data(records, out, tokenizer)
    whole = files_of(out)

    def stop(report: Progress) -> None:
        raise KeyboardInterrupt

    records.write_text(records.read_text() + '{"text": "more"}\n')
    with pytest.raises(KeyboardInterrupt):
        build_data(records, out, tokenizer, progress=stop)
    assert files_of(out) == whole
    assert names_in(tmp_path) == ["out", "records.jsonl"]


def test_a_full_disk_leaves_nothing(
    records: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer._HashedFile, "write", full)
    with pytest.raises(UserError, match="no room on the disk"):
        build_data(records, tmp_path / "out", tokenizer)
    assert names_in(tmp_path) == ["records.jsonl"]


def test_a_limit_on_file_sizes_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A real failing write: the process may write files of 64 kB at most."""
    source = tmp_path / "a.txt"
    source.write_text(sentences(1, 9000))
    tokenizer.save(tmp_path / "tok")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
    ) + BUILD.replace("num_workers=1", "num_workers=0")
    found = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out"), str(tmp_path / "tok")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UserError: no room on the disk" in found.stderr
    assert names_in(tmp_path) == ["a.txt", "tok"]


def test_too_many_bad_records_are_refused_with_the_first_ones(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    lines = [json.dumps({"text": f"text {n}"}) for n in range(500)]
    lines[3] = '{"text": '
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    manifest = build_data(file, tmp_path / "out", tokenizer)
    assert (manifest.counts.bad, manifest.counts.documents) == (1, 499)
    assert manifest.first_bad[0].startswith("a.jsonl:4: malformed JSON")
    for place in range(100, 120):
        lines[place] = '{"body": "x"}'
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"21 of 500 records are bad(.|\n)*a\.jsonl:4: malformed"):
        build_data(file, tmp_path / "other", tokenizer)
    assert build_data(file, tmp_path / "out", tokenizer, max_bad_fraction=0.1).counts.bad == 21


def test_a_wrong_text_field_names_those_that_are_there(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=r"no field 'content' \(fields here: 'text', 'id'\)"):
        build_data(records, tmp_path / "out", tokenizer, text_field="content")


def test_a_mostly_bad_source_is_refused_on_the_way(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("nonsense\n" * 2_000_000)
    said: list[Progress] = []
    with pytest.raises(UserError, match="records are bad"):
        build_data(file, tmp_path / "out", tokenizer, num_workers=0, progress=said.append)
    assert not said


def test_sources_without_text_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match="hold no document"):
        build_data(tmp_path / "a.txt", tmp_path / "out", tokenizer)
    file = write_records(tmp_path / "a.jsonl", [{"text": "x", "n": 1}] * 3)
    with pytest.raises(UserError, match="3 did not satisfy `where`"):
        build_data(file, tmp_path / "out", tokenizer, where="n > 1")


def test_another_directory_is_not_overwritten(
    records: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a dataset"):
        build_data(records, tmp_path / "out", tokenizer)
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1.0}, "validation is a fraction"),
        ({"shard_tokens": 0}, "shard_tokens"),
        ({"block_bytes": 1}, "block_bytes"),
        ({"max_bad_fraction": 2}, "max_bad_fraction"),
        ({"num_workers": -1}, "num_workers"),
        ({"where": "text ="}, "where"),
    ],
)
def test_wrong_settings_are_refused(
    records: Path, tmp_path: Path, tokenizer: Tokenizer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_data(records, tmp_path / "out", tokenizer, **settings)


def test_a_stale_lock_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").touch()
    with atomic.exclusive(tmp_path / "out", "dataset"):
        pass
    assert not (tmp_path / ".out.lock").exists()


def test_workers_import_no_torch(tmp_path: Path) -> None:
    code = "import sys, llamita.data.workers, llamita.data.build; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "False"


MEMORY = """
import sys, threading, time
from pathlib import Path
from llamita.data.build import build_data
from llamita.data.tokenizer import load_tokenizer

def resident():
    children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children")
    total = 0
    for process in ["self", *children.read_text().split()]:
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        total += sum(int(l.split()[1]) for l in status.splitlines() if l.startswith("VmRSS"))
    return total >> 10

peak, done = [], threading.Event()
def watch():
    while not done.wait(0.05):
        peak.append(resident())

tokenizer = load_tokenizer(sys.argv[3])
threading.Thread(target=watch).start()
build_data(sys.argv[1], sys.argv[2], tokenizer, num_workers=2)
done.set()
print(max(peak))
"""


@needs_proc
@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Forty times the text takes no more memory than the cap that a small build stays under: the
    resident set of the process and its workers together, in MiB, sampled every 50 ms."""
    tokenizer.save(tmp_path / "tok")

    def peak(name: str, megabytes: int) -> int:
        source = tmp_path / f"{name}.jsonl.gz"
        texts = [sentences(seed, 2500) for seed in range(10)]
        with gzip.open(source, "wt", compresslevel=1) as stream:
            number = written = 0
            while written < megabytes << 20:
                # each document is new: duplicates would not be written
                text = f"{number} {texts[number % 10]}"
                stream.write(json.dumps({"text": text}) + "\n")
                number, written = number + 1, written + len(text)
        command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / name)]
        found = subprocess.run(
            [*command, str(tmp_path / "tok")], capture_output=True, text=True, check=True
        )
        assert open_dataset(tmp_path / name).manifest.counts.documents == number
        return int(found.stdout)

    small = peak("small", 10)
    large = peak("large", 400)
    assert large - small < 40, (small, large)
