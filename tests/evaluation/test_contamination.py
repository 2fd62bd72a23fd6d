"""Items planted in training text are found, whatever was done to them, and nothing else is."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamita.errors import UserError
from llamita.evaluation import text_batches
from llamita.evaluation.contamination import (
    Overlap,
    clean_score,
    contaminated,
    find_overlaps,
)
from llamita.evaluation.folding import words_of

# 40 words of which no two neighbours come twice.
LONG = (
    "The old lighthouse keeper climbed ninety-seven winding steps each evening, trimmed both "
    "wicks, polished every brass reflector until midnight; then he wrote careful notes about "
    "passing ships, strange weather, tired seabirds and whatever else seemed worth remembering."
)
SHORT = "Which planet circles Neptune's neighbour backwards?"
FILLER = "Nothing in this sentence has to do with any question that is asked anywhere. "


def planted(text: str, repeats: int = 40) -> list[str]:
    return [FILLER * repeats, f"{FILLER}{text} {FILLER}", FILLER * repeats]


def recased(text: str, dice: random.Random) -> str:
    return "".join(dice.choice((char.lower(), char.upper())) for char in text)


def respaced(text: str, dice: random.Random) -> str:
    gaps = (" ", "\n", "\t ", "  \r\n", "\u00a0", "\u2003", " \u200b")
    return re.sub(r"\s+", lambda _: dice.choice(gaps), text)


def repunctuated(text: str, dice: random.Random) -> str:
    return re.sub(r"[^\w\s]", lambda _: dice.choice(("", "*", " -- ", "\u2019", "…")), text)


def hyphenated(text: str, dice: random.Random) -> str:
    """Some words are broken at a line's end, as a PDF has them."""
    return re.sub(r"(?<=\w{3})(?=\w{3})", lambda _: dice.choice(("", "", "-\n", "\u00ad")), text)


CHANGES = (recased, respaced, repunctuated, hyphenated)


def eval_items(shared_dir: Path) -> dict[str, str]:
    """The texts of all the real items that there are: 100, 281 and 164."""
    found = {}
    for name in ("hellaswag_100", "mmlu_dev_cot", "HumanEval"):
        lines = (shared_dir / "data/evals" / f"{name}.jsonl").read_text().splitlines()
        for number, row in enumerate(map(json.loads, lines)):
            if "ctx" in row:
                text = f"{row['ctx']} {row['endings'][row['expected_index']]}"
            elif "choices" in row:
                text = " ".join(map(str, (row["question"], *row["choices"])))
            else:
                text = row["prompt"] + row["canonical_solution"]
            found[f"{name}/{number}"] = text
    return found


def corpus(shared_dir: Path, name: str) -> Iterator[str]:
    with gzip.open(shared_dir / "data/corpora" / f"{name}.jsonl.gz", "rt") as stream:
        for line in stream:
            yield json.loads(line)["text"]


def test_a_planted_item_is_found_whole_and_where() -> None:
    found = find_overlaps({"q": LONG}, planted(LONG))["q"]
    words = words_of(LONG)
    assert found == Overlap(len(words), len(words), 13, document=1, longest=" ".join(words))
    assert found.share == 1
    assert found.judged


@pytest.mark.parametrize("change", CHANGES)
def test_an_item_is_found_however_it_is_written(
    change: Callable[[str, random.Random], str],
) -> None:
    for seed in range(20):
        changed = change(LONG, random.Random(seed))
        assert find_overlaps({"q": LONG}, planted(changed))["q"].share == 1, changed


def test_an_item_is_found_where_two_documents_share_it_whatever_the_place() -> None:
    for text in (LONG, SHORT):
        for cut in range(1, len(text)):
            parts = [FILLER + text[:cut], text[cut:] + FILLER]
            assert find_overlaps({"q": text}, parts)["q"].share == 1, parts


def test_an_item_is_found_in_three_documents_in_a_row_but_not_out_of_order() -> None:
    cuts = [LONG[:80], LONG[80:150], LONG[150:]]
    assert find_overlaps({"q": LONG}, cuts)["q"].share == 1
    assert find_overlaps({"q": LONG}, cuts[::-1])["q"].share < 1
    shuffled = words_of(LONG)[::-1]
    assert find_overlaps({"q": LONG}, [" ".join(shuffled)])["q"].covered == 0


def test_twelve_words_in_a_row_are_none_and_thirteen_are() -> None:
    words = words_of(LONG)
    twelve = find_overlaps({"q": LONG}, [" ".join(words[5:17])])["q"]
    thirteen = find_overlaps({"q": LONG}, [" ".join(words[5:18])])["q"]
    assert (twelve.covered, thirteen.covered) == (0, 13)
    assert thirteen.longest.split() == words[5:18]
    assert find_overlaps({"q": LONG}, [" ".join(words[5:17])], n=8)["q"].covered == 12


def test_a_short_item_is_looked_for_whole_between_words() -> None:
    def share(text: str) -> float:
        return find_overlaps({"q": SHORT}, [text])["q"].share

    assert share(f"{FILLER}({SHORT.upper()}){FILLER}") == 1
    assert share(SHORT) == 1
    assert share(SHORT.removesuffix("?") + "ness") == 0
    assert share("un" + SHORT) == 0
    assert share(SHORT.removeprefix("Which ")) == 0


def test_what_is_too_short_is_said_and_not_judged() -> None:
    items = {
        "words": "Extraordinarily incomprehensible terminologies everywhere",
        "letters": "a b c d e f g 1 2 3",
    }
    for found in find_overlaps(items, list(items.values())).values():
        assert not found.judged
        assert found.covered == 0
    assert find_overlaps(items, list(items.values()), shortest=4)["words"].share == 1
    assert find_overlaps({}, [LONG]) == {}


def test_formulas_need_letters_enough() -> None:
    """13 words of one letter each stand in any list of the alphabet."""
    item = "Let a b c d e f g h i j k l m be the first thirteen letters in order of appearance"
    assert find_overlaps({"q": item}, ["a b c d e f g h i j k l m n o p"])["q"].covered == 0
    assert find_overlaps({"q": item}, [item])["q"].share == 1


def test_chinese_has_a_word_a_character_and_accents_make_no_difference() -> None:
    item = "下列关于中国古代科举制度的说法中正确的一项是"
    found = find_overlaps(
        {"q": item}, ["题目:下列关于中国古代,科举制度的\n说法中,正确的一项是(A)"]
    )["q"]
    assert (found.words, found.share) == (len(item), 1)
    french = "Où l'élève naïf a-t-il garé sa première voiture près du café fermé hier ?"
    plain = "Ou l’eleve NAI\u0308F a-t-il gare sa premiere voiture pres du CAFE ferme hier?"
    assert find_overlaps({"q": french}, [plain])["q"].share == 1


def test_marks_and_invisible_characters_do_not_end_words() -> None:
    assert words_of("nai\u0308f SO\u00adFT_ware x\u200by") == ["naif", "soft", "ware", "xy"]


@given(st.data())
def test_n_grams_are_those_that_a_set_of_tuples_finds(data: st.DataObject) -> None:
    """Few words, so that much comes again; all of one length, so that none begins another, and no
    stretch of letters is words that begin elsewhere."""
    vocabulary = ["alpha1", "bravo2", "charl3", "delta4"]
    text = st.lists(st.sampled_from(vocabulary), max_size=30)
    n = data.draw(st.integers(4, 7))
    items = {str(i): item for i, item in enumerate(data.draw(st.lists(text, max_size=4)))}
    documents = data.draw(st.lists(text, max_size=5))
    stream = [word for document in documents for word in document]
    found = find_overlaps(
        {name: " ".join(item) for name, item in items.items()},
        [" ".join(document) for document in documents],
        n=n,
        shortest=4,
    )
    for name, item in items.items():
        size = min(n, len(item))
        there = {tuple(stream[i : i + size]) for i in range(len(stream) - size + 1)}
        covered = {
            i + k
            for i in range(len(item) - size + 1)
            for k in range(size)
            if tuple(item[i : i + size]) in there
        }
        assert found[name].covered == (len(covered) if len(item) >= 4 else 0)


def test_batches_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole item and the short one at every place round the end of a batch."""
    whole = find_overlaps({"long": LONG, "short": SHORT}, [LONG, SHORT])
    monkeypatch.setattr(text_batches, "BATCH_LETTERS", 400)
    monkeypatch.setattr(text_batches, "_PIECE", 150)
    read: list[int] = []
    for before in range(300, 420, 3):
        text = f"{'x' * before} {LONG} {SHORT}"
        documents = ["y " * 500, text, " z" * 600]
        found = find_overlaps({"long": LONG, "short": SHORT}, documents, progress=read.append)
        assert {name: overlap.share for name, overlap in found.items()} == {"long": 1, "short": 1}
        assert found["long"].longest == whole["long"].longest
        assert found["long"].document == found["short"].document == 1
        assert sum(read) >= sum(map(len, documents))
        read.clear()


def test_the_number_of_a_document_is_right_after_many_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_batches, "BATCH_LETTERS", 1000)
    for place in (0, 7, 123, 299):
        documents = [f"{number} {FILLER}" for number in range(300)]
        documents[place] += LONG
        assert find_overlaps({"q": LONG}, documents)["q"].document == place


def test_thresholds_and_clean_scores() -> None:
    overlaps = {
        "whole": Overlap(20, 20, 13),
        "half": Overlap(30, 15, 13),
        "part": Overlap(100, 13, 13),
        "none": Overlap(20, 0, 13),
        "short": Overlap(2, 0, 0),
    }
    assert contaminated(overlaps) == {"whole", "half"}
    assert contaminated(overlaps, 0.0) == {"whole", "half", "part"}
    assert contaminated(overlaps, 1.0) == {"whole"}
    score = clean_score(list(overlaps), [1.0, 1.0, 0.0, 1.0, 0.0], overlaps)
    assert score.clean is not None
    assert score.contaminated is not None
    assert (score.all.value, score.all.n) == (0.6, 5)
    assert (score.clean.value, score.clean.n) == (pytest.approx(1 / 3), 3)
    assert (score.contaminated.value, score.contaminated.n) == (1.0, 2)
    assert score.unjudged == 1
    assert clean_score(["none"], [1.0], overlaps).contaminated is None
    assert clean_score(["whole"], [1.0], overlaps).clean is None


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="4 words in a row, in items of at least 5"):
        find_overlaps({"q": LONG}, [], n=4)
    with pytest.raises(UserError, match=r"threshold 50.* 0 to 1"):
        contaminated({}, 50)


def test_lm_evals_own_search_finds_the_same_n_grams(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Janitor splits words at spaces alone, so its view of text without punctuation is given."""
    items = {name: " ".join(words_of(text)) for name, text in eval_items(shared_dir).items()}
    dice = random.Random(7)
    documents = []
    for text in dice.sample(sorted(items.values()), 60):
        words = text.split()
        start = dice.randrange(len(words))
        documents.append(f"{FILLER}{' '.join(words[start : start + dice.randint(9, 40)])} {FILLER}")
    there = {gram for document in documents for gram in _janitor_grams(document)}
    found = find_overlaps(items, documents)
    for name, text in items.items():
        grams = _janitor_grams(text)
        expected = any(len(gram.replace(" ", "")) >= 24 and gram in there for gram in grams)
        if found[name].n == 13 and all(len(gram.replace(" ", "")) >= 24 for gram in grams):
            assert (found[name].covered > 0) == expected, name


def _janitor_grams(text: str) -> set[str]:
    from lm_eval.decontamination.janitor import Janitor  # says at import that it lacks C++

    janitor = Janitor()
    janitor.register_contaminant_python(text)
    return janitor.dirt_ngrams


def test_every_real_item_planted_in_real_text_is_found(shared_dir: Path) -> None:
    """Each re-cased, re-spaced or re-punctuated, and split somewhere across two documents."""
    items = eval_items(shared_dir)
    dice = random.Random(0)
    documents = list(corpus(shared_dir, "nat-chitchat"))[:2000]
    planted_documents: list[str] = []
    for number, text in enumerate(items.values()):
        text = CHANGES[number % len(CHANGES)](text, dice)
        cut = dice.randrange(len(text))
        around = documents[3 * number % 1900 : 3 * number % 1900 + 2]
        planted_documents += [f"{around[0]}\n{text[:cut]}", f"{text[cut:]}\n{around[1]}"]
    found = find_overlaps(items, planted_documents)
    missed = [name for name, overlap in found.items() if overlap.share < 1]
    assert len(found) == 545
    assert not missed


def test_real_text_without_the_items_holds_none(shared_dir: Path) -> None:
    found = find_overlaps(eval_items(shared_dir), corpus(shared_dir, "nat-python-doc"))
    assert contaminated(found, 0.0) == frozenset()
    assert all(overlap.judged for overlap in found.values())


STORY = (
    "a glassblower hid seven silver flutes under that frozen vineyard before our autumn fair had "
    "begun and nobody in the whole town knew where to look for it"
)


@pytest.mark.parametrize("pad", range(8))
def test_a_word_that_one_place_lacks_is_found_at_another(
    pad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a later batch, wherever the eighth letters fall: a short first or last word lies beside
    the nearest window, and not in it."""
    monkeypatch.setattr(text_batches, "BATCH_LETTERS", 256)
    words = STORY.split(" ")
    between = "0123456789 " * 60
    for most, rest in ((words[1:], words[:13]), (words[:-1], words[-13:])):
        texts = [" ".join(most), between, f"{'z' * pad} {' '.join(rest)} qq"]
        assert find_overlaps({"item": STORY}, texts)["item"].share == 1.0


@pytest.mark.parametrize("pad", range(8))
def test_a_short_item_inside_a_longer_word_and_then_by_itself(pad: int) -> None:
    """The first place is refused, for a word goes on there; the second, in one text, counts."""
    item = "under the old stone bridge tonight"
    glued = f"{'z' * pad} thunder the old stone bridge tonight"
    assert find_overlaps({"item": item}, [glued])["item"].share == 0.0
    assert find_overlaps({"item": item}, [f"{glued} and then {item} again"])["item"].share == 1.0
