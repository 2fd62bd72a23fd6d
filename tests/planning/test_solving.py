"""Answers as a whole: what stands beside the recommendation, and what is said of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llamita.planning.answer import Answer
from llamita.planning.asking import Asked, question_of
from llamita.planning.laws import Law, find_law
from llamita.planning.rule_answer import rule_answer
from llamita.planning.solving import solve


def answered(law: str = "beyond-chinchilla", **flags: Any) -> Answer:
    found = find_law(law)
    assert isinstance(found, Law)
    return solve(question_of(Asked(**flags), found, None)[0])


def test_what_a_chosen_size_costs_extra() -> None:
    """Section 3: a 70B costs 1.3% more than the best of its quality when it serves 2T tokens."""
    answer = answered(quality="70B", serve_tokens="2e12", size="70B")
    chosen = next(option for option in answer.options if option.label == "the chosen 70B")
    assert chosen.extra == pytest.approx(0.0133, rel=1e-2)
    assert answer.recommended.extra == 0
    assert all(option.extra > 0 for option in answer.options[1:] if option.extra is not None)


def test_all_options_reach_the_loss() -> None:
    law = find_law("beyond-chinchilla")
    assert isinstance(law, Law)
    answer = answered(quality="7B", requests="1e9", size="5B")
    labels = [option.label for option in answer.options]
    assert labels == [
        "cheapest",
        "the chosen 5B",
        "compute-optimal",
        "half the size",
        "twice the size",
        "20 tokens a parameter",
    ]
    for option in answer.options:
        reached = law.at(option.parameters, option.tokens)
        assert reached == pytest.approx(law.at(7e9, law.optimal_tokens(7e9)), abs=1e-9)
    assert answer.options[-1].tokens_per_parameter == pytest.approx(20)
    assert answer.options[2].parameters == pytest.approx(7e9, rel=1e-9)


def test_all_options_spend_the_budget() -> None:
    answer = answered(budget="20000usd", hardware="8xh100", requests="1e8", size="2B")
    for option in answer.options:
        assert option.total_usd == pytest.approx(20000, rel=1e-9)
        assert option.loss is not None
        assert answer.recommended.loss is not None
        assert option.loss >= answer.recommended.loss


def test_the_day_on_which_serving_has_cost_more() -> None:
    """10B tokens a day overtake 3T tokens of training after 300 days, and, a third of the FLOPs
    each, its cost after 900."""
    answer = answered(size="1.1B", tokens="3T", serve_tokens="10B/day", lifetime="1000d")
    chosen = answer.options[1]
    assert chosen.tokens == pytest.approx(3e12)
    assert chosen.serving_flops / chosen.training_flops == pytest.approx(1000 / 900)
    settled = answered(loss=2.0, serve_tokens="10B/day", lifetime="3y", max_size="8B")
    days = settled.recommended.tokens / 10e9
    assert any(f"after {days:,.0f} days" in fact for fact in settled.facts)
    # 6·N·D over 2·N·10B a day
    day = -(-3 * settled.recommended.tokens // 10e9)
    assert any(f"on day {day:,.0f}" in fact for fact in settled.facts)


def test_tokens_served_overtake_tokens_trained_on() -> None:
    """The article's count: 3T tokens of training are 300 days of 10B tokens served a day."""
    question = question_of(
        Asked(size="1.1B", tokens="3T", serve_tokens="10B/day", lifetime="3y", max_size="1.1B"),
        find_law("beyond-chinchilla"),  # type: ignore[arg-type]
        None,
    )[0]
    answer = solve(question)
    assert answer.recommended.tokens == pytest.approx(3e12, rel=1e-6)
    assert any("after 300 days" in fact for fact in answer.facts)


def test_sensitivity() -> None:
    answer = answered(quality="13B", requests="1e10", hardware="a100-80", unique_tokens="2T")
    changes = {change.what: change for change in answer.changes}
    assert set(changes) == {
        "demand 10 times higher",
        "a tenth of the demand",
        "training MFU half",
        "decode MFU half",
        "half the text",
        "the law epoch",
    }
    best = answer.recommended.parameters
    assert changes["demand 10 times higher"].parameters < best
    assert changes["a tenth of the demand"].parameters > best
    # dearer training wants a larger model, dearer serving a smaller one
    assert changes["training MFU half"].parameters > best > changes["decode MFU half"].parameters
    for change in changes.values():
        assert change.regret is None or change.regret >= 0
    # another law is asked for the same quality, not for the same number
    assert changes["the law epoch"].loss != answer.recommended.loss


def test_half_the_utilisation_halves_what_time_buys() -> None:
    answer = answered(budget="14d", hardware="8xa100-80")
    half = answered(budget="14d", hardware="8xa100-80", mfu=0.25)
    change = next(each for each in answer.changes if each.what == "training MFU half")
    assert change.parameters == pytest.approx(half.recommended.parameters, rel=1e-6)
    assert change.total == pytest.approx(half.recommended.total)


def test_repeats() -> None:
    """TinyLlama: 3T tokens of 950B unique ones are worth 2.86T."""
    answer = answered("data-constrained", size="1.1B", tokens="3T", unique_tokens="950B")
    own = next(each for each in answer.repeats if each.tokens == pytest.approx(3e12))
    assert own.effective_tokens == pytest.approx(2.8627e12, rel=1e-4)
    assert own.loss > own.fresh_loss
    assert own.worth == pytest.approx(2.718281828 ** -((3e12 / 950e9 - 1) / 15.387756), rel=1e-6)
    said = "\n".join(answer.lines())
    assert "worth half a fresh one after 11.7 epochs" in said  # 1 + 15.387756·ln 2
    assert "no amount of repeating makes 950B worth more than 15.6T" in said


def test_warnings_say_how_far() -> None:
    answer = answered(quality="70B")
    assert any("70B parameters are 4.38 times the most" in each for each in answer.warnings)
    repeated = answered(quality="1B", unique_tokens="5B")
    assert any("knows nothing of repeated data" in each for each in repeated.warnings)
    inside = answered(quality="1B")
    assert not inside.warnings


def test_a_law_that_cannot_answer_says_so_in_the_table() -> None:
    answer = answered(loss=1.75)  # below the replication's irreducible 1.8172
    change = next(each for each in answer.changes if each.what == "the law epoch")
    assert "irreducible loss is E = 1.8172" in change.obstacle
    assert "irreducible loss is E = 1.8172" in "\n".join(answer.lines())


def test_the_rule_of_thumb() -> None:
    """1B → 20B tokens, 70B → 1.4T; the printed constants say 27B and 4.3T."""
    rule = find_law("20-tokens-per-parameter")
    law = find_law("beyond-chinchilla")
    assert isinstance(law, Law)
    for size, tokens, fitted in (("1B", 20e9, 27.43e9), ("70B", 1.4e12, 4.255e12)):
        question = question_of(Asked(size=size), law, None)[0]
        answer = rule_answer(question, rule, tokens_given=False)  # type: ignore[arg-type]
        assert answer.recommended.tokens == pytest.approx(tokens)
        assert answer.recommended.loss is None
        beside = {option.label: option for option in answer.options}
        found = beside["compute-optimal by beyond-chinchilla"].tokens
        assert found == pytest.approx(fitted, rel=1e-3)
    question = question_of(Asked(budget="1e21flops"), law, None)[0]
    answer = rule_answer(question, rule, tokens_given=False)  # type: ignore[arg-type]
    assert answer.recommended.training_flops == pytest.approx(1e21)
    assert answer.recommended.parameters == pytest.approx((1e21 / 120) ** 0.5)
    assert "rule of thumb" in "\n".join(answer.lines())


def test_the_answer_as_json() -> None:
    answer = answered(quality="13B", requests="1e9", hardware="a100-80", unique_tokens="1T")
    values = json.loads(json.dumps(answer.as_json(), allow_nan=False))
    assert values["recommended"]["parameters"] == answer.recommended.parameters
    assert values["law"]["alpha"] == 0.336
    assert len(values["alternatives"]) == len(answer.options) - 1
    assert {each["what"] for each in values["sensitivity"]} >= {"demand 10 times higher"}


def test_lines_put_the_recommendation_first() -> None:
    lines = answered(quality="13B", serve_tokens="2e12", size="7B").lines()
    marked = [line for line in lines if line.startswith("→")]
    assert len(marked) == 1
    assert lines.index(marked[0]) == 3
    assert re.search(r"cheapest +6\.97B +1\.25T", marked[0])


def test_a_question_of_another_law_s_unit() -> None:
    """MiniCPM's law counts nats per byte: an absolute loss means nothing to the others."""
    answer = answered("minicpm-average", loss=0.6)
    obstacles = [change.obstacle for change in answer.changes]
    assert all("counts its loss in nats per token" in each for each in obstacles)
    assert answer.recommended.loss == pytest.approx(0.6)
