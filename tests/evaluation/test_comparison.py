"""Comparisons: paired by item, said where they are not, and never more than chance allows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from llamita.errors import UserError
from llamita.evaluation.comparison import compare, compare_scores
from llamita.evaluation.comparison_text import (
    describe_comparison,
    describe_evaluation,
    mean_of,
    names_of,
)
from llamita.evaluation.intervals import paired
from llamita.evaluation.published import published_table
from llamita.evaluation.results import Evaluation, TaskScore
from tests.evaluation.test_results import evaluation, score


def answers(right: float, num: int = 200, seed: int = 1, **changes: Any) -> TaskScore:
    """So large a share of right answers, spread by chance."""
    values = [1.0] * round(right * num) + [0.0] * (num - round(right * num))
    random.Random(seed).shuffle(values)
    return score(values=tuple(values), available=num, **changes)


# -- pairs -----------------------------------------------------------------------------------------


def test_items_are_paired_by_their_ids_whatever_their_order() -> None:
    """McNemar's exact test by scipy: 3 items won, 12 lost of 40."""
    first = [1.0] * 20 + [0.0] * 20
    second = [0.0] * 12 + [1.0] * 11 + [0.0] * 17
    a = score(values=tuple(first))
    order = list(range(40))
    random.Random(3).shuffle(order)
    b = score(values=tuple(second[i] for i in order), ids=tuple(a.ids[i] for i in order))
    found = compare_scores(a, b)
    assert found.paired
    assert found.notes == ()
    assert found.difference.value == pytest.approx((11 - 20) / 40)
    assert found.difference.p == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert found.difference == paired(second, first)
    assert found.verdict == "worse"
    other = compare_scores(b, a)
    assert other.difference.value == -found.difference.value
    assert other.verdict == "better"


def test_graded_items_are_paired_too() -> None:
    """A paired t-test by scipy, where items have an F1."""
    dice = random.Random(5)
    first = tuple(dice.random() for _ in range(30))
    second = tuple(min(1.0, each + dice.gauss(0.05, 0.1)) for each in first)
    found = compare_scores(score(metric="f1", values=first), score(metric="f1", values=second))
    assert found.difference.p == pytest.approx(stats.ttest_rel(second, first).pvalue)


def test_only_the_items_of_both_are_compared() -> None:
    """Of 40 and of 15, 10 are the same."""
    a = score(values=(1.0, 0.0) * 20)
    b = score(values=(1.0,) * 15, ids=(*a.ids[5:15], "v", "w", "x", "y", "z"))
    found = compare_scores(a, b)
    assert found.paired
    assert found.difference.n == 10
    assert found.difference.value == pytest.approx(1 - 0.5)
    assert found.first.ids == a.ids[5:15]
    assert found.notes == ("on the items that both have",)


@pytest.mark.parametrize(
    ("right", "asked", "ends"),
    [((56, 48), (70, 80), (0.0524, 0.3339)), ((5, 0), (56, 29), (-0.0381, 0.1926))],
)
def test_other_items_are_two_samples(
    right: tuple[int, int], asked: tuple[int, int], ends: tuple[float, float]
) -> None:
    """Newcombe's examples (Statistics in Medicine 17:873, 1998, table II, method 10), and the
    chi-square test of two shares."""
    one, other = (
        score(values=(1.0,) * k + (0.0,) * (n - k), ids=tuple(f"{n}-{i}" for i in range(n)))
        for k, n in zip(right, asked, strict=True)
    )
    found = compare_scores(other, one)
    assert not found.paired
    assert found.notes == ("not the same items: compared as two independent samples",)
    assert (found.difference.low, found.difference.high) == pytest.approx(ends, abs=5e-5)
    counts = [[k, n - k] for k, n in zip(right, asked, strict=True)]
    assert found.difference.p == pytest.approx(stats.chi2_contingency(counts, correction=False)[1])
    assert not compare_scores(replace(other, ids=()), replace(one, ids=())).paired


def test_bits_per_byte_are_compared_on_the_same_text() -> None:
    """Less is better, and bytes must be the same bytes."""
    sizes = (100.0, 250.0, 400.0, 80.0)
    shared: dict[str, Any] = {"metric": "bits_per_byte", "weights": sizes, "chance": None}
    a = score(values=(101.0, 251.0, 405.0, 82.0), higher_is_better=False, **shared)
    b = replace(a, values=(92.0, 230.0, 376.0, 75.0))
    found = compare_scores(a, b)
    assert found.paired
    assert found.difference.value == pytest.approx((773 - 839) / 830)
    assert found.verdict == "better"
    assert compare_scores(b, a).verdict == "worse"
    longer = replace(b, weights=(101.0, *sizes[1:]))
    assert not compare_scores(a, longer).paired
    assert "not the same text" in compare_scores(a, longer).notes[0]


def test_what_was_not_asked_alike_is_said() -> None:
    records = tuple({"prompt_hash": f"p{row}"} for row in range(4))
    a = score(samples=records)
    b = replace(a, num_fewshot=5, harness="lm-evaluation-harness 0.4.9", version="2")
    assert compare_scores(a, b).notes == (
        "shots: 0 and 5",
        "task version: 1.0 and 2",
        "harness: lm-evaluation-harness 0.4.13 and lm-evaluation-harness 0.4.9",
    )
    chat = replace(a, samples=(*records[:3], {"prompt_hash": "with a template"}))
    assert compare_scores(a, chat).notes == ("the prompts were not the same",)
    assert compare_scores(a, a).notes == ()


# -- many ------------------------------------------------------------------------------------------


def models(*shares: float) -> list[Evaluation]:
    return [
        evaluation(answers(share, seed=seed), model=f"model-{seed}")
        for seed, share in enumerate(shares)
    ]


def test_no_difference_is_shown_where_the_interval_includes_none() -> None:
    near, far = compare(models(0.50, 0.52, 0.80))
    assert near.pairs[0].difference.includes_zero
    assert near.pairs[0].verdict == ""
    assert far.pairs[0].verdict == "better"
    lines = describe_comparison([near, far])
    assert lines[0] == "model-1 beside model-0:"
    assert lines[2].endswith("200  no difference shown")
    row = next(line for line in lines if line.endswith("better"))
    assert row.split()[:5] == ["hellaswag", "acc_norm", "50.00", "80.00", "+30.00"]
    assert "2 comparisons, 1 with a difference shown; chance alone would show 0.1" in lines[-2]
    assert lines[-1].startswith("1 holds")


def test_a_group_is_one_task() -> None:
    """57 subjects would be 57 chances of being lucky."""
    sides = []
    for right in (0.2, 0.6):
        subjects = [
            answers(right, 50, task=f"mmlu_{name}", metric="acc", group="mmlu") for name in "abc"
        ]
        sides.append(evaluation(*subjects, answers(0.3)))
    ((pair, alone),) = [each.pairs for each in compare(sides)]
    assert (pair.first.task, pair.difference.n) == ("mmlu", 150)
    assert pair.difference.value == pytest.approx(0.4)
    assert alone.first.task == "hellaswag"


def test_holm_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.005 ≤ 0.05/4, 0.01 ≤ 0.05/3, 0.03 > 0.05/2: two hold, though four are below 0.05."""
    names = ("a", "b", "c", "d")
    sides = [evaluation(*(answers(0.5, task=name) for name in names))] * 2
    p_values = iter((0.01, 0.04, 0.03, 0.005))
    found = paired((1.0, 0.0), (0.0, 0.0))
    monkeypatch.setattr(
        "llamita.evaluation.comparison.intervals.paired",
        lambda *_: replace(found, p=next(p_values)),
    )
    ((pairs),) = [each.pairs for each in compare(sides)]
    assert [pair.holds for pair in pairs] == [True, False, False, True]


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="two results or more"):
        compare([evaluation()])
    with pytest.raises(UserError, match="was measured on hellaswag, and no other"):
        compare([evaluation(), evaluation(score(metric="acc"))])
    other = evaluation(score(), score("piqa", "acc"))
    (found,) = compare([evaluation(), other])
    assert found.alone == ("piqa (acc)",)
    assert "  of one of them alone: piqa (acc)" in describe_comparison([found])


# -- text ------------------------------------------------------------------------------------------


def suite(**changes: Any) -> Evaluation:
    """All of TinyLlama's tasks, half of the items right."""
    columns = published_table("tinyllama").tasks
    return evaluation(
        *(answers(0.5, 100, task=each.task, metric=each.metric, **changes) for each in columns)
    )


def rows_of(lines: list[str], name: str) -> list[list[str]]:
    return [line.split() for line in lines if line.strip().startswith(name)]


def test_an_evaluation_says_what_is_known_and_what_is_not() -> None:
    """50 of 100: Wilson's interval is 40.4 to 59.6, and 1/2 lies in it."""
    coin = answers(0.5, 100, chance=0.5)
    coin = replace(coin, contaminated=frozenset(coin.ids[:20]), available=10042)
    lines = describe_evaluation(evaluation(coin))
    assert lines[0] == "runs/tiny/final, 2B tokens, evaluated 2026-03-01 14:05"
    assert "weights 9c0f, llamita 0.1.0, lm_eval 0.4.13, limit 4, 3 truncated contexts" in lines[1]
    (row,) = rows_of(lines, "hellaswag")
    expected = "hellaswag acc_norm 0 50.00 5.03 [40.4, 59.6] 50.00 100 of 10,042"
    assert row == [*expected.split(), "not", "above", "chance"]
    ((_, num, *rest),) = rows_of(lines, "without")
    assert num == "20"
    clean = coin.clean
    assert clean is not None
    assert f"{100 * clean.estimate.value:.2f}" in rest
    assert "  looked for in the training text: 1 tasks; found: 20 of 100 items" in lines
    assert "  drop: no data offline" in lines
    chat = evaluation(coin, settings={"chat_template": "{{ messages }}"})
    assert "chat template, 3 truncated contexts" in describe_evaluation(chat)[1]


def test_beside_the_published_table() -> None:
    """A mean of seven tasks of 5.03 each: 1.96 · 5.03 / √7 = 3.7."""
    table = published_table("tinyllama")
    lines = describe_evaluation(suite(), published=[table])
    (ours,) = rows_of(lines, "runs/tiny/final ")[-1:]
    assert ours == ["runs/tiny/final", *["50.00±9.6"] * 7, "50.00±3.7"]
    (pythia,) = rows_of(lines, "Pythia-1.4B")
    assert " ".join(pythia) == "Pythia-1.4B 52.01 33.20 57.38 28.50 54.00 63.27 70.95 51.33"
    assert any("the mean is printed as 52.99" in line for line in lines)
    few = describe_evaluation(suite(num_fewshot=10), published=[table])
    assert "  ᵃ 10 shots, there 0" in few
    assert rows_of(few, "runs/tiny/final ")[-1][1] == "50.00±9.6ᵃ"


def test_a_table_of_another_harness_is_marked_and_one_of_other_tasks_left_out() -> None:
    mmlu = evaluation(answers(0.3, task="mmlu", metric="acc", num_fewshot=5))
    tables = [published_table(name) for name in ("instructeval", "tinyllama")]
    lines = describe_evaluation(mmlu, published=tables)
    (title,) = [line for line in lines if line.startswith("beside")]
    assert "(instruct-eval, not directly comparable)" in title
    assert rows_of(lines, "runs/tiny/final ")[-1] == ["runs/tiny/final", "30.00±6.3", "–", "–", "–"]


def test_earlier_results_stand_beside() -> None:
    earlier = evaluation(answers(0.25), model="runs/old")
    lines = describe_evaluation(evaluation(answers(0.5)), earlier=[earlier])
    assert rows_of(lines, "hellaswag")[-1] == ["hellaswag", "acc_norm", "50.00±6.9", "25.00±6.0"]
    table = published_table("tinyllama")
    lines = describe_evaluation(suite(), published=[table], earlier=[earlier])
    assert rows_of(lines, "runs/old")[0] == ["runs/old", "25.00±6.0", *["–"] * 7]
    assert not any(line.startswith("beside other results") for line in lines)


def test_names_tell_models_apart() -> None:
    one, two = evaluation(tokens=10**9), evaluation(tokens=2 * 10**9)
    assert names_of([one, two]) == [
        "runs/tiny/final (1B tokens)",
        "runs/tiny/final (2B tokens)",
    ]
    later = replace(one, date="2026-03-02T09:00:00+00:00")
    assert names_of([one, later])[1] == "runs/tiny/final (2026-03-02 09:00)"
    assert names_of([one, evaluation(model="b")]) == ["runs/tiny/final", "b"]


def test_a_mean_of_tasks() -> None:
    """Of independent means a and b: the standard error is √(s_a² + s_b²) / 2."""
    a, b = answers(0.5), answers(0.2)
    found = mean_of([a, b])
    assert found.value == pytest.approx(0.35)
    expected = (a.estimate.stderr**2 + b.estimate.stderr**2) ** 0.5 / 2
    assert found.stderr == pytest.approx(expected)
