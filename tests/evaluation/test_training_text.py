"""A run's training text is what its datasets were built of, and is found by the run's records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from llamita.data.build import build_data
from llamita.data.chat_build import build_chats
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.evaluation.contamination import contaminated, find_overlaps
from llamita.evaluation.folding import letters_of, words_of
from llamita.evaluation.training_text import shard_texts, training_text
from llamita.recipes.loading import dump_recipe
from llamita.training import devices
from tests.data.corpus import sentences, small_tokenizer, write_records
from tests.training.helpers import cheap_matmul_rate, stage, tiny_recipe, trained

QUESTIONS = {
    "flutes": "Which of seven silver flutes did the travelling glassblower hide under a frozen "
    "vineyard before the autumn fair began?",
    "ferry": "The ferry had barely left when Odile noticed that someone had swapped both compass "
    "needles with knitting needles, so she",
}
TEXTS = ["Grüße aus Łódź, 日本語 und 🎈!", "plain  spaces\n\tand tabs ", "say </s> and <s> aloud"]


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for one step on prose and code."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "matmul_rate", cheap_matmul_rate)
        trained(tiny_recipe(tiny_data, stages=[stage("one", 1, {"kind": "constant"})]), folder)
    return folder


@pytest.fixture
def branch(run: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """A run that began with the other, and read prose alone."""
    folder = shutil.copytree(run, tmp_path / "branch")
    prose = {"path": str(tiny_data / "prose"), "max_epochs": 100}
    recipe = tiny_recipe(
        tiny_data,
        model=None,
        start_from=str(run / "final"),
        datasets={"prose": prose},
        stages=[stage("more", 1, {"kind": "constant"}, mixture={"prose": 1.0})],
    )
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


def test_the_text_of_a_dataset_is_what_it_was_built_of(tmp_path: Path) -> None:
    source = write_records(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    build_data([source], tmp_path / "data", small_tokenizer(), validation=0, num_workers=0)
    assert [text.strip() for text in shard_texts(tmp_path / "data")] == [
        text.strip() for text in TEXTS
    ]


def test_a_tokenizer_like_llamas_keeps_every_letter(tmp_path: Path) -> None:
    """Bytes for what it does not know, and ▁ for spaces, one of them put in front."""
    known = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeilnopst"]
    backend = tokenizers.Tokenizer(
        models.BPE({token: number for number, token in enumerate(known)}, [], byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    source = write_records(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    tokenizer = Tokenizer(backend.to_str(), eos_id=1)
    build_data([source], tmp_path / "data", tokenizer, validation=0, bos=False, num_workers=0)
    assert [text.strip() for text in shard_texts(tmp_path / "data")] == [
        text.strip() for text in TEXTS
    ]


def test_a_tokenizer_that_marks_the_ends_of_words_decodes_itself(tmp_path: Path) -> None:
    """Its tokens joined would have its mark in the text: "</w>" has a letter."""
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(QUESTIONS.values(), trainer=trainer)
    source = write_records(tmp_path / "q.jsonl", [{"text": QUESTIONS["flutes"]}])
    tokenizer = Tokenizer(backend.to_str())
    build_data([source], tmp_path / "data", tokenizer, validation=0, bos=False, eos=False)
    (text,) = shard_texts(tmp_path / "data")
    assert words_of(text) == words_of(QUESTIONS["flutes"])


def test_items_planted_in_shards_are_found(tmp_path: Path) -> None:
    """One in records, upper case; one in a text file, which is cut into documents within it."""
    records = [{"text": sentences(number, 4)} for number in range(200)]
    records[77]["text"] += QUESTIONS["flutes"].upper().replace(" ", "\n ")
    write_records(tmp_path / "records.jsonl", records)
    lines = [sentences(number, 1) for number in range(1000, 1200)]
    lines[100] = QUESTIONS["ferry"].replace(" ", "\n")
    (tmp_path / "long.txt").write_text("\n".join(lines))
    sources = [tmp_path / "records.jsonl", tmp_path / "long.txt"]
    build_data(
        sources, tmp_path / "data", small_tokenizer(), validation=0, block_bytes=64, num_workers=0
    )
    texts = list(shard_texts(tmp_path / "data"))
    assert not any(find_overlaps(QUESTIONS, [text])["ferry"].share == 1 for text in texts)
    items = {**QUESTIONS, "absent": "Nobody ever asked " + QUESTIONS["ferry"][::-1]}
    found = find_overlaps(items, texts)
    assert contaminated(found, 1.0) == set(QUESTIONS)
    assert found["flutes"].document == 77
    assert found["absent"].covered == 0


def test_a_question_in_a_conversation_is_found(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "I do not know."},
            ]
        }
        for text in (QUESTIONS["flutes"], sentences(1, 2))
    ]
    source = write_records(tmp_path / "chats.jsonl", rows)
    build_chats([source], tmp_path / "chats", small_tokenizer(), template="zephyr", validation=0)
    texts = list(shard_texts(tmp_path / "chats"))
    assert find_overlaps(QUESTIONS, texts)["flutes"].share == 1
    assert letters_of(b"".join(text.encode() for text in texts)).count(b"idonotknow") == 2


def test_a_run_names_its_data(run: Path, tiny_data: Path) -> None:
    both = (tiny_data / "prose", tiny_data / "code")
    base = training_text(run)
    assert base.datasets == both
    assert base.unknown == ()
    assert base == training_text(run / "final")
    lines = [line for path in both for line in path.with_suffix(".jsonl").read_text().splitlines()]
    sources = [json.loads(line) for line in lines]
    texts = list(shard_texts(base))
    assert len(texts) == base.documents < len(sources)
    assert {text.strip() for text in texts} <= {source["text"].strip() for source in sources}
    around = len("  ")  # where BOS and EOS were
    assert base.text_bytes == sum(len(text.encode()) - around for text in texts)


def test_a_branch_has_read_what_it_began_with(branch: Path, tiny_data: Path) -> None:
    found = training_text(branch)
    assert set(found.datasets) == {tiny_data / "prose", tiny_data / "code"}
    again = training_text([tiny_data / "prose", branch / "final"])
    assert set(again.datasets) == set(found.datasets)
    assert len(again.datasets) == 2


def test_a_model_from_elsewhere_is_said(branch: Path, run: Path, tiny_data: Path) -> None:
    recipe = branch / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(run / "final"), "Somebody/Model"))
    found = training_text(branch)
    assert (found.datasets, found.unknown) == ((tiny_data / "prose",), ("Somebody/Model",))


def test_other_data_in_the_place_of_a_runs_are_refused(
    run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(run, tmp_path / "work/runs/base")
    recipe = moved / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tiny_data), "data"))
    with pytest.raises(UserError, match="prose is not at data/prose any more"):
        training_text(moved)
    # relative to the folder above runs/, where it was trained
    shutil.copytree(tiny_data, tmp_path / "work/data")
    assert training_text(moved).datasets[0] == tmp_path / "work/data/prose"
    shutil.rmtree(tmp_path / "work/data/prose")
    shutil.copytree(tiny_data / "code", tmp_path / "work/data/prose")
    with pytest.raises(UserError, match=r"is not what .* was trained on as prose"):
        training_text(moved)


def test_what_is_neither_run_nor_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run with recipe\.yaml nor a dataset"):
        training_text(tmp_path)
