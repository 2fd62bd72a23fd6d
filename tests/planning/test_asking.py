"""What people write, read with its units; what makes no sense, refused in plain words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.planning.amounts import parse_amount, parse_count, parse_seconds
from llamita.planning.answer import Question
from llamita.planning.asking import Asked, parse_quality, question_of
from llamita.planning.laws import Law, find_law


def asked(law: str = "beyond-chinchilla", **flags: Any) -> Question:
    found = find_law(law)
    assert isinstance(found, Law)
    return question_of(Asked(**flags), found, None)[0]


@pytest.mark.parametrize(
    ("text", "value", "unit", "rate"),
    [
        ("5000usd", 5000, "usd", False),
        ("$5k", 5000, "usd", False),
        ("1e21flops", 1e21, "flops", False),
        ("2,000 gpu-hours", 2000, "device-hours", False),
        ("14d", 14 * 86400, "seconds", False),
        ("1.5h", 5400, "seconds", False),
        ("10B/day", 10e9 / 86400, "", True),
        ("10Btokens/day", 10e9 / 86400, "tokens", True),
        ("2y", 2 * 365.25 * 86400, "seconds", False),
        ("3T", 3e12, "", False),
    ],
)
def test_amounts(text: str, value: float, unit: str, rate: bool) -> None:
    units = ("usd", "flops", "device-hours", "seconds", "tokens", "")
    found = parse_amount(text, "--flag", units, "1", rate=True)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert (found.unit, found.per_second) == (unit, rate)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5000", "a number without a unit; write 5000usd"),
        ("-5usd", "must be above 0"),
        ("0usd", "must be above 0"),
        ("5eur", "'eur' is no unit here"),
        ("much", "this is no amount"),
        ("", "this is no amount"),
        ("5usd/day", "an amount and no rate"),
        ("1e999usd", "above 0 and finite"),
    ],
)
def test_bad_amounts(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_amount(text, "--budget", ("usd",), "5000usd")


def test_plain_counts_and_times() -> None:
    assert parse_count("7B", "--size", "7B") == 7e9
    assert parse_count(7e9, "--size", "7B") == 7e9
    assert parse_seconds("36h", "--deadline") == 129600
    with pytest.raises(UserError, match="'fortnights' is no unit here"):
        parse_seconds("2fortnights", "--deadline")
    with pytest.raises(UserError, match="'d' is no unit here"):
        parse_count("7d", "--size", "7B")


def test_qualities() -> None:
    assert parse_quality("13B") == (13e9, None)
    assert parse_quality("chinchilla-13B") == (13e9, None)
    assert parse_quality("13B@1T") == (13e9, 1e12)
    assert parse_quality("tinyllama-1.1b@3T") == (1_100_048_384, 3e12)
    with pytest.raises(UserError, match="say after how many tokens"):
        parse_quality("tinyllama-1.1b")


def test_losses() -> None:
    assert asked(loss="2.1").loss == 2.1
    assert asked(loss="2.1 nats per token").loss == 2.1
    found = asked("minicpm-average", loss="0.9bits/byte").loss
    assert found == pytest.approx(0.9 * math.log(2))


def test_demands() -> None:
    demand = asked(quality="13B", requests="1.5e9").demand
    assert demand is not None
    assert (demand.tokens_in, demand.tokens_out) == (70 * 1.5e9, 215 * 1.5e9)
    demand = asked(quality="13B", serve_tokens="10B/day", lifetime="300d").demand
    assert demand is not None
    assert demand.tokens == pytest.approx(3e12)
    assert demand.tokens_per_day == pytest.approx(10e9)
    demand = asked(quality="13B", serve_words="3e11", request="300words+100words").demand
    assert demand is not None
    assert demand.tokens == pytest.approx(4e11)
    assert demand.tokens_in == pytest.approx(3e11)


def test_budgets() -> None:
    assert asked(budget="1e21flops").budget == 1e21
    question = asked(budget="100gpu-hours", hardware="8xa100-80", mfu=0.5)
    assert question.budget == pytest.approx(100 * 3600 * 312e12 * 0.5)
    question = asked(budget="2d", hardware="8xa100-80", mfu=0.25)
    assert question.budget == pytest.approx(2 * 86400 * 8 * 312e12 * 0.25)
    question = asked(budget="5000usd", hardware="8xa100-80")
    assert question.budget_in_money
    assert question.budget == 5000


def test_limits() -> None:
    question = asked(quality="1B", deadline="14d", hardware="8xa100-80", max_size="3B")
    assert question.limits.parameters == 3e9
    assert question.limits.training_flops == pytest.approx(14 * 86400 * 8 * 312e12 * 0.5)
    question = asked(quality="1B", unique_tokens="10B", max_epochs=4)
    assert question.limits.tokens == 4e10


IDLE = [
    ({}, "what is to be planned"),
    ({"budget": "1e21flops", "quality": "13B"}, "--budget and --quality are two questions"),
    ({"budget": "1e21flops", "tokens": "1T"}, "--tokens: --budget settles them already"),
    ({"budget": "5000usd"}, "dollars buy FLOPs only on hardware with a price"),
    ({"budget": "14d"}, "time buys FLOPs only on known hardware"),
    ({"quality": "1B", "deadline": "14d"}, "time buys FLOPs only on known hardware"),
    ({"quality": "1B", "mfu": 0.4}, "--mfu has no effect without --hardware"),
    ({"quality": "1B", "hardware": "h100", "mfu": 1.4}, "--mfu 1.4: a share lies above 0"),
    ({"quality": "1B", "hardware": "h100", "mfu": -0.4}, "--mfu -0.4: a share lies above 0"),
    ({"quality": "1B", "hardware": "h100", "decode_mfu": 0.1}, "--decode-mfu has no effect"),
    ({"quality": "1B", "max_epochs": 4}, "--max-epochs has no effect without --unique-tokens"),
    ({"quality": "1B", "context": 4096}, "--context has no effect without --fits"),
    ({"quality": "1B", "lifetime": "2y"}, "--lifetime says nothing without an amount"),
    ({"quality": "1B", "request": "70+215"}, "--request says nothing without an amount"),
    ({"quality": "1B", "requests": "1e6/day"}, "--requests is a rate: say for how long"),
    ({"quality": "1B", "requests": "-1e6"}, "--requests -1e6: it must be above 0"),
    ({"quality": "1B", "requests": "1e6", "serve_tokens": "1e9"}, "both say how much is served"),
    ({"quality": "1B", "requests": "1e6", "request": "70"}, "write IN.OUT"),
    ({"quality": "1B", "requests": "1e6", "tokens_per_word": 1.5}, "only on words"),
    ({"loss": -1.0}, "--loss -1.0: write a loss above 0"),
    ({"loss": float("nan")}, "--loss nan: write a loss above 0"),
    ({"loss": "0.9bits/byte"}, "how many bytes a token has depends on tokenizer and text"),
    ({"loss": "2nats/word"}, "write a loss above 0"),
    ({"quality": "1B", "hardware": "h100", "price": ["l4=1usd/h"]}, "l4 is not among"),
    ({"quality": "1B", "hardware": "h100", "watts": 500.0}, "--watts has no effect"),
    ({"quality": "1B", "hardware": "h100", "power_price": "0.3"}, "write dollars a kilowatt-hour"),
]


@pytest.mark.parametrize(("flags", "message"), IDLE)
def test_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(**flags)


def test_half_a_price() -> None:
    flags = {"quality": "1B", "requests": "1e9", "hardware": "h100"}
    with pytest.raises(UserError, match=r"has no price, the other hardware has one"):
        asked(**flags, serve_hardware="427gflops")
    question = asked(**flags, serve_hardware="427gflops", price=["427gflops=0.1usd/h"])
    assert question.economics.in_money


def test_electricity_is_added_to_the_rent() -> None:
    rented = asked(quality="1B", hardware="8xh100", price=["h100=2usd/h"])
    powered = asked(
        quality="1B", hardware="8xh100", price=["h100=2usd/h"], power_price="0.30usd/kWh"
    )
    assert rented.economics.training is not None
    assert powered.economics.training is not None
    assert rented.economics.training.usd_per_hour == pytest.approx(16)
    # eight boards of 700 W
    assert powered.economics.training.usd_per_hour == pytest.approx(16 + 5.6 * 0.30)
