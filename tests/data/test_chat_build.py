"""Datasets of chats and preferences: what is written, when it is reused, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.data.chat_build import build_chats
from llamita.data.manifest import Manifest, building_directory, read_manifest
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import open_dataset
from llamita.data.show import describe_data
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from tests.data.corpus import sentences, write_records

Row = dict[str, Any]


def conversation(seed: int, turns: int = 2) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [
        {"role": roles[n % 2], "content": sentences(1000 * seed + n, 1).strip()}
        for n in range(turns)
    ]


def rows_of_chats(count: int) -> list[Row]:
    return [{"messages": conversation(seed, 2 + 2 * (seed % 3))} for seed in range(count)]


def rows_of_pairs(count: int) -> list[Row]:
    return [
        {
            "prompt": sentences(seed, 1).strip(),
            "chosen": f"good {seed}",
            "rejected": f"bad {seed}",
        }
        for seed in range(count)
    ]


def build(source: Path | list[Path], out: Path, tokenizer: Tokenizer, **options: Any) -> Manifest:
    return build_chats(source, out, tokenizer, say=lambda _: None, **options)


def train(out: Path) -> PackedStream:
    stream = open_dataset(out, verify=True).train
    assert isinstance(stream, PackedStream)
    return stream


def texts(stream: PackedStream, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(stream.document(n).tolist()) for n in range(stream.num_documents)]


def learnt(stream: PackedStream, number: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(stream.document(number)[stream.learns(number)].tolist())


def test_documents_are_what_transformers_renders(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    rows = rows_of_chats(12)
    source = write_records(tmp_path / "chats.jsonl", rows)
    manifest = build(source, tmp_path / "out", tokenizer, validation=0)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    stream = train(tmp_path / "out")
    assert stream.num_documents == len(rows)
    answers = 0
    for number, row in enumerate(rows):
        wanted = theirs.apply_chat_template(row["messages"], return_dict=False)
        assert stream.document(number).tolist() == wanted
        said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        # Zephyr's template ends a turn with EOS.
        assert learnt(stream, number, tokenizer) == "".join(f"{text}</s>" for text in said)
        assert stream.document_bytes(number) == sum(len(text.encode()) for text in said)
        answers += int(stream.learns(number).sum())
    assert (manifest.kind, manifest.counts.documents) == ("chats", 12)
    assert manifest.chats is not None
    assert manifest.chats.learning_tokens == {"train": answers, "validation": 0}


def test_layout(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(5))
    manifest = build(source, tmp_path / "out", tokenizer, validation=0)
    stem = tmp_path / "out/train-00000.ds"
    tokens = np.fromfile(stem, dtype="<u2")
    learns = np.fromfile(stem.with_name("train-00000.ds.learns"), dtype="u1")
    ends = np.fromfile(stem.with_name("train-00000.ds.index"), dtype="<u8")
    assert len(learns) == len(tokens) == ends[-1] == manifest.num_tokens
    assert set(learns.tolist()) == {0, 1}
    [shard] = manifest.splits["train"].shards
    assert sorted(record.name for record in shard.files) == sorted(
        f"train-00000.ds{ending}" for ending in ("", ".index", ".bytes", ".learns", ".metadata")
    )
    os.truncate(stem.with_name("train-00000.ds.learns"), 3)
    with pytest.raises(UserError, match=r"train-00000\.ds\.learns has 3 bytes"):
        open_dataset(tmp_path / "out")


def test_pairs_lie_in_turn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "pairs.jsonl", rows_of_pairs(8))
    manifest = build(source, tmp_path / "out", tokenizer, kind="preferences", validation=0)
    stream = train(tmp_path / "out")
    assert stream.num_documents == 16
    assert (manifest.kind, manifest.counts.documents) == ("preferences", 8)
    for pair, row in enumerate(rows_of_pairs(8)):
        assert learnt(stream, 2 * pair, tokenizer) == row["chosen"] + "</s>"
        assert learnt(stream, 2 * pair + 1, tokenizer) == row["rejected"] + "</s>"
        for side in (2 * pair, 2 * pair + 1):
            assert row["prompt"] in tokenizer.decode(stream.document(side).tolist())


def test_the_last_turn_alone_or_everything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "chats.jsonl", [{"messages": conversation(1, 4)}])
    build(source, tmp_path / "last", tokenizer, learn="last", validation=0)
    build(source, tmp_path / "all", tokenizer, learn="all", validation=0)
    last = conversation(1, 4)[-1]["content"]
    assert learnt(train(tmp_path / "last"), 0, tokenizer) == f"{last}</s>"
    assert train(tmp_path / "all").learns(0).all()
    pairs = write_records(tmp_path / "pairs.jsonl", rows_of_pairs(2))
    with pytest.raises(UserError, match="leave --learn out"):
        build(pairs, tmp_path / "pairs", tokenizer, kind="preferences", learn="all")


def test_the_same_words_are_one_example_in_any_form(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What is a duplicate, and what is held out, is decided by what was said."""
    rows = rows_of_chats(200)
    shared = [
        {"conversations": [{"from": t["role"], "value": t["content"]} for t in row["messages"]]}
        for row in rows
    ]
    first = write_records(tmp_path / "a.jsonl", rows)
    second = tmp_path / "b.json"
    second.write_text(json.dumps(shared))
    one = build(first, tmp_path / "one", tokenizer, validation=0.1)
    both = build([first, second], tmp_path / "both", tokenizer, validation=0.1)
    assert (one.counts.duplicates, both.counts.duplicates) == (0, 200)
    assert both.counts.records == 400
    assert [source.records for source in both.sources] == [200, 200]
    assert both.chats is not None
    assert len(both.chats.forms) == 2
    other = build(second, tmp_path / "other", tokenizer, validation=0.1)
    for name in ("train", "validation"):
        wanted = getattr(open_dataset(tmp_path / "one"), name)
        assert wanted.num_documents > 0
        for out in ("both", "other"):
            found = getattr(open_dataset(tmp_path / out), name)
            assert texts(found, tokenizer) == texts(wanted, tokenizer)
    assert one.fingerprint != other.fingerprint  # of other files
    kept = build([first, second], tmp_path / "kept", tokenizer, validation=0.1, dedup=False)
    assert (kept.counts.documents, kept.counts.duplicates) == (400, 0)


def test_few_examples_are_divided_all_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(20))
    manifest = build(source, tmp_path / "out", tokenizer, validation=0.001)
    assert manifest.splits["validation"].documents == 2
    assert "was raised to" in manifest.notes[-1]
    alone = write_records(tmp_path / "alone.jsonl", rows_of_chats(1))
    with pytest.raises(UserError, match="1 examples cannot be divided"):
        build(alone, tmp_path / "alone", tokenizer)
    assert not (tmp_path / "alone").exists()


def test_reading_ends_with_the_bound(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(30))
    manifest = build(source, tmp_path / "out", tokenizer, validation=0, max_examples=7)
    assert (manifest.counts.documents, manifest.cut) == (7, True)
    build(source, tmp_path / "whole", tokenizer, validation=0)
    whole = texts(train(tmp_path / "whole"), tokenizer)
    assert texts(train(tmp_path / "out"), tokenizer) == whole[:7]


def test_it_is_reused_until_something_changes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(30))
    out = tmp_path / "out"

    def again(**options: Any) -> tuple[str, str]:
        said: list[str] = []
        manifest = build_chats(source, out, tokenizer, say=said.append, **options)
        return said[0], manifest.fingerprint

    said, first = again()
    assert said == f"{out} is built."
    said, same = again()
    assert "nothing changed, reused" in said
    assert same == first
    os.utime(source, ns=(1, 1))  # another time, the same bytes
    assert again() == (said, first)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    seen = {first}
    for options in (
        {"learn": "last"},
        {"template": "llama-2"},
        {"template": str(template)},
        {"validation": 0.2},
        {"dedup": False},
        {"max_examples": 29},
    ):
        said, fingerprint = again(**options)
        assert said == f"{out} is built."
        assert fingerprint not in seen
        seen.add(fingerprint)
        assert "reused" in again(**options)[0]
    write_records(source, rows_of_chats(31))
    assert again()[1] not in seen


def test_the_template_goes_with_the_data(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(30))
    build(source, tmp_path / "out", tokenizer, template="llama-2")
    kept = load_tokenizer(tmp_path / "out/tokenizer")
    assert kept.chat_template is not None
    assert "[INST]" in kept.chat_template
    assert kept.fingerprint == tokenizer.fingerprint
    # A build with the tokenizer that is kept finds the same template.
    manifest = build(source, tmp_path / "again", kept)
    assert manifest.fingerprint == read_manifest(tmp_path / "out").fingerprint


def test_wrong_rows_are_counted_and_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows: list[Row] = rows_of_chats(40)
    rows[3] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[7] = {"messages": [{"role": "robot", "content": "x"}]}
    rows[9] = {"messages": "none"}
    source = write_records(tmp_path / "chats.jsonl", rows)
    with pytest.raises(UserError, match=r"3 of 40 rows are wrong(.|\n)*chats\.jsonl:4: no answer"):
        build(source, tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()
    manifest = build(source, tmp_path / "out", tokenizer, max_bad_fraction=0.1)
    assert (manifest.counts.bad, manifest.counts.documents) == (3, 37)
    assert manifest.first_bad[0].startswith("chats.jsonl:4: no answer")
    assert manifest.chats is not None
    assert sum(manifest.chats.wrong.values()) == 3
    before = manifest.fingerprint
    source.write_text('{"nothing": 1}\n' * 5)
    with pytest.raises(UserError, match="no known form"):
        build(source, tmp_path / "out", tokenizer)
    assert read_manifest(tmp_path / "out").fingerprint == before


def test_what_the_template_refuses_is_a_wrong_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows: list[Row] = rows_of_chats(40)
    rows[5] = {"messages": [{"role": "tool", "content": "x"}, *conversation(5)]}
    source = write_records(tmp_path / "chats.jsonl", rows)
    manifest = build(source, tmp_path / "out", tokenizer, template="zephyr", max_bad_fraction=0.1)
    assert (manifest.counts.bad, manifest.counts.documents) == (1, 39)
    [reason] = manifest.chats.wrong if manifest.chats is not None else ()
    assert "refuses it" in reason
    assert manifest.first_bad[0].startswith("chats.jsonl:6: ")


@pytest.mark.parametrize(
    ("kind", "rows"), [("chats", rows_of_chats), ("preferences", rows_of_pairs)]
)
def test_held_out_files_are_the_validation_split(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, rows: Any
) -> None:
    every = rows(40)
    source = write_records(tmp_path / "train.jsonl", every[:30])
    kept_back = write_records(tmp_path / "test.jsonl", [*every[25:], every[30]])
    alone = write_records(tmp_path / "alone.jsonl", every[25:])
    rest = write_records(tmp_path / "rest.jsonl", every[:25])
    options = {"kind": kind, "validation": 0}
    manifest = build(source, tmp_path / "out", tokenizer, kind=kind, held_out=kept_back)
    build(alone, tmp_path / "alone", tokenizer, **options)
    build(rest, tmp_path / "rest", tokenizer, **options)
    held = open_dataset(tmp_path / "out", verify=True).validation
    assert isinstance(held, PackedStream)
    assert texts(held, tokenizer) == texts(train(tmp_path / "alone"), tokenizer)
    assert texts(train(tmp_path / "out"), tokenizer) == texts(train(tmp_path / "rest"), tokenizer)
    assert (manifest.counts.documents, manifest.counts.duplicates) == (40, 6)
    assert [(s.name, s.records) for s in manifest.sources] == [
        ("test.jsonl", 16),
        ("train.jsonl", 30),
    ]
    twice = build(source, tmp_path / "twice", tokenizer, kind=kind, held_out=alone, dedup=False)
    assert twice.counts.documents == 45


def test_a_bound_counts_what_is_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_records(tmp_path / "train.jsonl", rows_of_chats(30))
    kept_back = write_records(tmp_path / "test.jsonl", rows_of_chats(50)[30:])
    manifest = build(source, tmp_path / "out", tokenizer, held_out=[kept_back], max_examples=7)
    assert [manifest.splits[name].documents for name in ("train", "validation")] == [7, 20]
    assert manifest.cut


def test_a_held_out_file_is_no_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    write_records(folder / "a.jsonl", rows_of_chats(12))
    kept_back = write_records(folder / "b.jsonl", rows_of_chats(20)[12:])
    manifest = build(folder, tmp_path / "out", tokenizer, held_out=kept_back, dedup=False)
    assert [manifest.splits[name].documents for name in ("train", "validation")] == [12, 8]
    with pytest.raises(UserError, match="every file is held out too"):
        build(kept_back, tmp_path / "none", tokenizer, held_out=folder)
    copy = write_records(tmp_path / "copy.jsonl", rows_of_chats(20)[12:])
    with pytest.raises(UserError, match="every example of the sources is held out too"):
        build(copy, tmp_path / "none", tokenizer, held_out=kept_back)
    empty = write_records(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match="no row of --held-out is right"):
        build(copy, tmp_path / "none", tokenizer, held_out=empty)
    with pytest.raises(UserError, match="--held-out says already"):
        build(copy, tmp_path / "none", tokenizer, held_out=kept_back, validation=0.1)
    assert not (tmp_path / "none").exists()


def test_what_is_held_out_decides_whether_a_dataset_is_reused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = write_records(tmp_path / "a.jsonl", rows_of_chats(30))
    other = write_records(tmp_path / "b.jsonl", rows_of_chats(50)[30:])
    out = tmp_path / "out"

    def again(sources: Any, **options: Any) -> tuple[bool, str]:
        said: list[str] = []
        manifest = build_chats(sources, out, tokenizer, say=said.append, **options)
        return "reused" in said[0], manifest.fingerprint

    seen = set()
    for sources, options in (
        (source, {"held_out": other}),
        (other, {"held_out": source}),
        ([source, other], {"validation": 0}),
        ([other, source], {"validation": 0}),
        (source, {}),
    ):
        reused, fingerprint = again(sources, **options)
        assert not reused
        assert fingerprint not in seen
        seen.add(fingerprint)
        assert again(sources, **options) == (True, fingerprint)
    again(source, held_out=other)
    write_records(other, rows_of_chats(51)[30:])
    reused, fingerprint = again(source, held_out=other)
    assert not reused
    assert fingerprint not in seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "validation"),
        ({"max_bad_fraction": 2.0}, "max_bad_fraction"),
        ({"max_examples": 0}, "max_examples"),
        ({"template": "chatlm"}, "chatml"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, tokenizer: Tokenizer, options: dict[str, Any], message: str
) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(3))
    with pytest.raises(UserError, match=message):
        build(source, tmp_path / "out", tokenizer, **options)


BUILD = """
import sys
from llamita.data.chat_build import build_chats
build_chats(sys.argv[1], sys.argv[2], sys.argv[3],
            progress=lambda report: (print(report.documents, flush=True), sys.stdin.readline()))
"""


def test_a_killed_build_leaves_nothing_that_looks_whole(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(1500))
    tokenizer.save(tmp_path / "tok")
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source), str(out), str(tmp_path / "tok")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.readline()  # the first chunk is written; the child waits
    with pytest.raises(UserError, match="another process is writing"):
        build(source, out, tokenizer)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    assert list(building_directory(out).iterdir())
    with pytest.raises(UserError, match="interrupted"):
        open_dataset(out)
    manifest = build(source, out, tokenizer)
    assert manifest.counts.documents == 1500
    assert not building_directory(out).exists()


def test_what_is_shown_marks_what_is_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    chats = write_records(tmp_path / "chats.jsonl", rows_of_chats(30))
    pairs = write_records(tmp_path / "pairs.jsonl", rows_of_pairs(30))
    build(chats, tmp_path / "chats", tokenizer)
    manifest = build(pairs, tmp_path / "pairs", tokenizer, kind="preferences")
    lines = describe_data([tmp_path / "chats", tmp_path / "pairs"], samples=1, sample_tokens=500)
    text = "\n".join(lines)
    assert manifest.chats is not None
    share = manifest.chats.learning_tokens["train"] / manifest.splits["train"].tokens
    count = manifest.splits["train"].documents // 2
    assert f"{share:.1%} of them learnt · {count} pairs" in text
    assert "chat template zephyr; learnt: the assistant's turns" in text
    [heading] = [line for line in lines if ": chosen" in line]
    number = int(heading.split()[-2].rstrip(":"))
    stream = train(tmp_path / "pairs")
    chosen = learnt(stream, 2 * number, tokenizer).removesuffix("</s>")
    rejected = learnt(stream, 2 * number + 1, tokenizer).removesuffix("</s>")
    assert f"▸{chosen}⟨/s⟩" in text
    assert f"▸{rejected}⟨/s⟩" in text
    short = describe_data(tmp_path / "chats", samples=3, sample_tokens=12)
    assert sum("▸" in line for line in short) == 3


def test_flags_without_effect_are_errors(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from llamita.cli import app

    base = ["data", "build", "nowhere.jsonl", "--out", str(tmp_path), "--tokenizer", "tok"]
    for flags, message in (
        (["--chats", "--preferences"], "not both"),
        (["--learn", "last"], "add --chats or --preferences"),
        (["--template", "chatml"], "add --chats or --preferences"),
        (["--held-out", "b.jsonl"], "--held-out: for chats"),
        (["--preferences", "--learn", "assistant"], "the answers that are learnt"),
        (["--chats", "--learn", "most"], "assistant, last or all"),
        (["--chats", "--where", "a == b"], "--where: of text"),
        (["--chats", "--no-bos"], "--bos and --no-bos: of text"),
        (["--chats", "--max-tokens", "100"], "--max-tokens: of text"),
    ):
        found = CliRunner().invoke(app, [*base, *flags])
        assert isinstance(found.exception, UserError), flags
        assert message in str(found.exception)


def test_the_verb_builds_and_shows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from typer.testing import CliRunner

    from llamita.cli import app

    tokenizer.save(tmp_path / "tok")
    source = write_records(tmp_path / "chats.jsonl", rows_of_chats(30))
    out = str(tmp_path / "out")
    command = f"data build {source} --chats --tokenizer {tmp_path / 'tok'} --out {out}"
    options = ["--template", "zephyr", "--learn", "last", "--validation", "0.2"]
    made = CliRunner().invoke(app, [*command.split(), *options])
    assert made.exit_code == 0, made.exception
    assert "learnt: the assistant's last turn" in made.stdout
    shown = CliRunner().invoke(app, ["data", "show", out])
    assert "▸" in shown.stdout
    test = write_records(tmp_path / "test.jsonl", rows_of_chats(37)[30:])
    made = CliRunner().invoke(app, [*command.split(), "--held-out", str(test)])
    assert made.exit_code == 0, made.exception
    assert read_manifest(tmp_path / "out").splits["validation"].documents == 7
