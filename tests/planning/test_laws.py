"""Laws against published numbers, against mathematics, and as files that may be wrong."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from llamita.errors import UserError
from llamita.planning.law_files import law_text, write_law
from llamita.planning.law_verbs import show_laws
from llamita.planning.laws import (
    DEFAULT_LAW,
    Law,
    Repetition,
    Rule,
    find_law,
    shipped_laws,
)

LAWS = [name for name, law in shipped_laws().items() if isinstance(law, Law)]
NAMES = [
    "beyond-chinchilla",
    "chinchilla",
    "chinchilla-rounded",
    "epoch",
    "beyond-chinchilla-100",
    "beyond-chinchilla-250",
    "beyond-chinchilla-500",
    "beyond-chinchilla-all",
    "minicpm-average",
    "minicpm-code",
    "minicpm-english",
    "minicpm-chinese",
    "minicpm-ultratext",
    "minicpm-yayi",
    "data-constrained",
    "20-tokens-per-parameter",
]


def law(name: str) -> Law:
    found = find_law(name)
    assert isinstance(found, Law)
    return found


# -- published numbers ----------------------------------------------------------------------------


def test_losses_of_the_default_law() -> None:
    # Sardana et al., arXiv 2401.00448: 70B and 13B after a trillion tokens.
    assert law(DEFAULT_LAW).at(70e9, 1e12) == pytest.approx(1.94727279, abs=1e-7)
    assert law(DEFAULT_LAW).at(13e9, 1e12) == pytest.approx(2.01744642, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "flops", "parameters", "tokens"),
    [
        ("beyond-chinchilla", 1e24, 5.368e10, 3.105e12),
        ("chinchilla-rounded", 1e24, 4.130e10, 4.036e12),
        ("epoch", 1e24, 9.586e10, 1.739e12),
        ("epoch", 5.76e23, 7.225e10, 1.329e12),
    ],
)
def test_compute_optimum(name: str, flops: float, parameters: float, tokens: float) -> None:
    found = law(name).compute_optimal(flops)
    assert found == (pytest.approx(parameters, rel=1e-3), pytest.approx(tokens, rel=1e-3))


def test_loss_at_the_compute_optimum() -> None:
    found = law("beyond-chinchilla")
    assert found.at(*found.compute_optimal(1e24)) == pytest.approx(1.910615, rel=1e-3)
    assert found.optimal_tokens(70e9) == pytest.approx(4.255e12, rel=1e-3)
    assert found.at(70e9, found.optimal_tokens(70e9)) == pytest.approx(1.8917925, rel=1e-3)


def test_minicpm_wants_many_tokens_per_parameter() -> None:
    parameters, tokens = law("minicpm-average").compute_optimal(1e21)
    assert tokens / parameters == pytest.approx(183.9, rel=1e-3)
    assert tokens / parameters == pytest.approx(191.87, rel=0.05)  # as the paper prints it


@pytest.mark.parametrize(
    ("epochs", "worth"), [(1, 1.0), (2, 1.9682), (4, 3.7257), (16, 10.5825), (1e6, 16.3878)]
)
def test_worth_of_repeated_tokens(epochs: float, worth: float) -> None:
    found = law("data-constrained")
    assert found.effective_tokens(epochs * 1e9, 1e9) / 1e9 == pytest.approx(worth, abs=1e-4)


def test_what_tinyllamas_three_trillion_tokens_were_worth() -> None:
    found = law("data-constrained").effective_tokens(3e12, 950e9)
    assert found == pytest.approx(2.8627e12, rel=1e-4)


def test_parameters_that_unique_tokens_call_for() -> None:
    # Muennighoff et al., arXiv 2305.16264: U_N = 0.051·U_D.
    for unique in (1e8, 1e11):
        ratio = law("data-constrained").optimal_parameters(unique) / unique
        assert ratio == pytest.approx(0.0509865, abs=1e-6)


def test_the_rule_of_thumb() -> None:
    rule = find_law("20-tokens-per-parameter")
    assert isinstance(rule, Rule)
    assert rule.optimal_tokens(70e9) == 1.4e12
    assert rule.optimal_parameters(1.4e12) == 70e9
    parameters, tokens = rule.compute_optimal(1e21)
    assert 6 * parameters * tokens == pytest.approx(1e21)
    assert tokens / parameters == pytest.approx(20)


# -- mathematics ----------------------------------------------------------------------------------


def test_the_shipped_laws_bear_their_names() -> None:
    assert list(shipped_laws()) == NAMES
    assert NAMES[0] == DEFAULT_LAW
    assert all(found.name == name for name, found in shipped_laws().items())


@pytest.mark.parametrize("name", LAWS)
def test_inverses_give_back_what_the_law_took(name: str) -> None:
    found = law(name)
    for parameters in (2e7, 7e8, 3e10):
        for tokens in (3e8, 5e10, 2e12):
            loss = found.at(parameters, tokens)
            assert found.parameters_for(loss, tokens) == pytest.approx(parameters, rel=1e-8)
            assert found.tokens_for(loss, parameters) == pytest.approx(tokens, rel=1e-8)


@pytest.mark.parametrize("name", ["beyond-chinchilla", "minicpm-code", "data-constrained"])
def test_inverses_where_tokens_repeat(name: str) -> None:
    found = law(name)
    for parameters, tokens in ((2e8, 3e9), (2e8, 3e10), (3e9, 5e10)):
        loss = found.at(parameters, tokens, unique=1e10)
        assert found.parameters_for(loss, tokens, 1e10) == pytest.approx(parameters, rel=1e-6)
        assert found.tokens_for(loss, parameters, 1e10) == pytest.approx(tokens, rel=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_what_no_model_reaches_takes_infinitely_much(name: str) -> None:
    found = law(name)
    below = 1 - 1e-12
    assert found.parameters_for((found.E + found.tokens_term(1e9)) * below, 1e9) == math.inf
    assert found.tokens_for((found.E + found.parameters_term(1e9)) * below, 1e9) == math.inf
    with pytest.raises(UserError, match="irreducible"):
        found.refuse_below_irreducible(found.E, "a loss of")
    found.refuse_below_irreducible(found.E + 1e-6, "a loss of")


@pytest.mark.parametrize("name", LAWS)
def test_the_optimum_is_where_a_search_finds_it(name: str) -> None:
    found, flops = law(name), 3e21

    def loss(x: float) -> float:
        return found.at(math.exp(x), flops / 6 / math.exp(x))

    best = minimize_scalar(loss, bracket=(15, 23, 30), options={"xtol": 1e-10})
    parameters, tokens = found.compute_optimal(flops)
    assert parameters == pytest.approx(math.exp(best.x), rel=1e-4)
    assert 6 * parameters * tokens == pytest.approx(flops)
    assert found.optimal_tokens(parameters) == pytest.approx(tokens)
    assert found.optimal_parameters(tokens) == pytest.approx(parameters)


def test_units_of_parameters_and_tokens() -> None:
    found = law("minicpm-average")
    assert found.at(1e9, 1e9) == pytest.approx(0.31 + 0.0715 + 0.300)
    assert found.at(2e9, 1e9) == pytest.approx(0.31 + 0.0715 * 2**-0.29 + 0.300)


def test_repeated_tokens_count_less_and_unique_ones_in_full() -> None:
    found = law("data-constrained")
    assert found.effective_tokens(5e8, 1e9) == 5e8
    assert found.most_effective_tokens(1e9) == pytest.approx(16.387756e9)
    for epochs in (1.0, 2.0, 7.0):
        step = 1e3
        slope = (
            found.effective_tokens(epochs * 1e9 + step, 1e9)
            - found.effective_tokens(epochs * 1e9, 1e9)
        ) / step
        assert found.worth_at(epochs) == pytest.approx(slope, rel=1e-4)
        assert found.epochs_at_worth(found.worth_at(epochs)) == pytest.approx(epochs)


def test_parameters_in_excess_count_less_only_where_the_law_knows_of_it() -> None:
    knows, does_not = law("data-constrained"), law("epoch")
    assert knows.knows_repetition
    assert not does_not.knows_repetition
    called_for = knows.optimal_parameters(1e9)
    star = 5.309743  # arXiv 2305.16264, R*_N
    worth = called_for * (1 + star * (1 - math.exp(-1 / star)))
    assert knows.effective_parameters(2 * called_for, 1e9) == pytest.approx(worth)
    assert knows.effective_parameters(called_for / 2, 1e9) == pytest.approx(called_for / 2)
    assert does_not.effective_parameters(1e12, 1e9) == 1e12


# -- how far the runs reach -----------------------------------------------------------------------


def test_points_beyond_the_runs_are_told() -> None:
    found = law("beyond-chinchilla")
    assert found.beyond_its_runs(16e9, 500e9) == []
    assert found.beyond_its_runs(160e9, 500e9) == [
        "beyond-chinchilla is extrapolated: 160B parameters are 10 times the most of the runs "
        "behind it (70M to 16B)"
    ]
    assert found.beyond_its_runs(1e9, 1e9) == [
        "beyond-chinchilla is extrapolated: 1B tokens are 1/5 of the fewest of the runs behind it "
        "(5B to 500B)"
    ]
    assert (
        "500 tokens per parameter are 5 times"
        in law("beyond-chinchilla-100").beyond_its_runs(1e9, 500e9)[0]
    )
    assert replace(found, fitted_parameters=None, fitted_tokens=None).beyond_its_runs(1, 1) == []


# -- uncertainty ----------------------------------------------------------------------------------


def sampled(count: int = 101) -> Law:
    """A law whose samples differ in E alone, by 0 to 1."""
    found = law("epoch")
    samples = [
        (1 + n / (count - 1), found.A, found.alpha, found.B, found.beta) for n in range(count)
    ]
    return replace(found, samples=tuple(reversed(samples)))


def test_intervals_are_percentiles_of_the_samples() -> None:
    found = sampled()
    low, high = np.quantile([each.at(1e9, 2e10) for each in found.sampled_laws()], [0.05, 0.95])
    interval = found.interval(1e9, 2e10, level=0.9)
    assert interval == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))
    irreducible = found.interval_of(lambda each: each.E, level=0.5)
    assert irreducible == (pytest.approx(1.25), pytest.approx(1.75))
    assert all(not each.samples and not each.intervals for each in found.sampled_laws())


def test_a_law_without_samples_has_no_intervals() -> None:
    assert law("epoch").interval(1e9, 2e10) is None


# -- files ----------------------------------------------------------------------------------------

GOOD = """\
E: 1.5
A: 300
alpha: 0.3
B: 4e2
beta: 0.25
loss: nats per token
counts: total
source: mine
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_a_law(tmp_path: Path) -> None:
    found = find_law(written(tmp_path, GOOD))
    assert found == Law("mine", 1.5, 300, 0.3, 400, 0.25, "nats per token", "total", "mine")
    named = find_law(written(tmp_path, GOOD + "name: other\n"))
    assert named.name == "other"
    rule = find_law(written(tmp_path, "{tokens_per_parameter: 30, counts: total, source: me}"))
    assert rule == Rule("mine", 30, "total", "me")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 0.3", "alpa: 0.3", r"no key 'alpa'.*alpha"),
        ("beta: 0.25\n", "", "beta is missing"),
        ("source: mine\n", "", "source is missing"),
        ("A: 300", "A: many", "A is 'many', not a number"),
        ("A: 300", "A: -300", "A is -300: it must be above 0"),
        ("E: 1.5", "E: -1", "E is -1: it must be at least 0"),
        ("E: 1.5", "E: .nan", "E is nan, not a number"),
        ("E: 1.5", "E: true", "E is True, not a number"),
        ("nats per token", "nats", "loss is 'nats'; write nats per token or"),
        ("counts: total", "counts: all", "counts is 'all'; write total or non-embedding"),
        ("source: mine", "source: [mine]", "source is .*write a text"),
        ("source: mine", "source: a\nfitted_tokens: 3", "fitted_tokens is 3; write two numbers"),
        ("source: mine", "source: a\nfitted_tokens: [3, 2]", "3 lies above 2"),
        ("source: mine", "source: a\nintervals: 3", "intervals is 3; write a mapping"),
        ("source: mine", "source: a\nintervals: {gamma: [1, 2]}", "there is no key 'gamma'"),
        ("source: mine", "source: a\nerrors: [3]", r"errors is \[3\]; write a mapping"),
        ("source: mine", "source: a\nerrors: {E: x}", "errors.E is 'x', not a number"),
        ("source: mine", "source: a\nrepetition: 15", "repetition is 15; write a mapping"),
        ("source: mine", "source: a\nrepetition: {date: 15}", "there is no key 'date'"),
        ("source: mine", "source: a\nrepetition: {parameters: 5}", "data is missing"),
        ("source: mine", "source: a\nsamples: [1, 2]", "write a block of text"),
        ("source: mine", "source: a\nsamples: 1 2 3 4", "'1 2 3 4' is not five numbers"),
        ("source: mine", "source: a\nsamples: 0 2 3 4 0", "beta is 0: it must be above 0"),
        ("E: 1.5", "E: 1.5\nE: 1.6", "given twice"),
        (GOOD, "[1, 2]", "a law is a mapping of keys, not list"),
        (GOOD, "{", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        find_law(path)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="chinchila") as caught:
        find_law("chinchila")
    assert "chinchilla" in str(caught.value)


@pytest.mark.parametrize("name", LAWS)
def test_a_written_law_is_read_again(name: str, tmp_path: Path) -> None:
    whole = replace(
        law(name),
        name="my law: a 'test'",
        note="two\nlines # and a hash",
        errors={"E": 0.1},
        intervals={"alpha": (0.1, 0.2), "E": (0.0, 1.5)},
        samples=((0.0, 1.5, 0.25, 3e-7, 0.125), (1.0, 2.0, 0.5, 3e20, 0.25)),
        fitted_ratio=(0.5, 2e3),
        data="held-out text of prose (1,765 bytes)",
        repetition=Repetition(15.0),
    )
    for each in (whole, replace(law(name), name="plain")):
        write_law(each, tmp_path / "law.yaml")
        assert find_law(tmp_path / "law.yaml") == each
    assert [path.name for path in tmp_path.iterdir()] == ["law.yaml"]


def test_every_field_of_a_law_reaches_its_file() -> None:
    full = replace(
        sampled(2),
        note="n",
        data="d",
        repetition=Repetition(1.0, 2.0),
        intervals={"E": (1.0, 2.0)},
        fitted_ratio=(1.0, 2.0),
    )
    text = law_text(full)
    for each in fields(Law):
        assert f"\n{each.name}: " in text, each.name


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("law.txt", "mine", "ends in .yaml; write law.yaml"),
        ("nowhere/law.yaml", "mine", "there is no directory"),
        ("law.yaml", "epoch", "a law of that name comes with llamita"),
        ("law.yaml", " mine", "without space"),
    ],
)
def test_places_where_no_law_is_written(path: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_law(replace(law("epoch"), name=name), tmp_path / path)
    assert list(tmp_path.iterdir()) == []


# -- words ----------------------------------------------------------------------------------------


def test_the_table_names_all_laws_with_their_constants() -> None:
    shown = show_laws()
    for name, found in shipped_laws().items():
        lines = [line for line in shown if line.split(" ")[0] == name]
        assert found.source in lines[-1]
        if isinstance(found, Law):
            assert [float(word) for word in lines[0].split()[1:6]] == [
                pytest.approx(getattr(found, key), rel=1e-4)
                for key in ("E", "A", "alpha", "B", "beta")
            ]
            assert found.loss in lines[0]
            assert found.counts in lines[0]


def test_all_about_a_law() -> None:
    shown = "\n".join(show_laws("epoch"))
    assert "482.01 ± 125" in shown
    assert "70M to 16B parameters, 5B to 500B tokens" in shown
    optimum = next(line for line in shown.splitlines() if line.startswith(" 1e24"))
    # The compute-optimum that the constants give (see above): 9.586e10, 1.739e12.
    assert optimum.split() == ["1e24", "95.9B", "1.74T", "18.1", "1.9597", "extrapolated"]
    assert "R* of data 15.3878, of N 5.30974" in "\n".join(show_laws("data-constrained"))
    assert " 1e24       91.3B   1.83T" in show_laws("20-tokens-per-parameter")


def test_a_law_with_samples_shows_its_intervals(tmp_path: Path) -> None:
    write_law(replace(sampled(), name="mine", data="my text"), tmp_path / "mine.yaml")
    shown = show_laws(tmp_path / "mine.yaml")
    assert "  text        my text" in shown
    assert "  bootstrap   101 fits; 95% intervals in brackets" in shown
    row = next(line for line in shown if line.startswith(" 1e21"))
    assert "2.78B [2.78B, 2.78B]" in row  # the optimum does not depend on E
    assert "[1.5133, 2.4633]" in row  # loss - E + 1.025 and 1.975


def test_showing_a_law_imports_nothing_heavy(tmp_path: Path) -> None:
    write_law(replace(sampled(), name="mine"), tmp_path / "mine.yaml")
    probe = (
        "import sys, llamita; llamita.show_laws(); llamita.show_laws(sys.argv[1]);"
        "print([m for m in ('torch', 'numpy', 'scipy', 'pydantic') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", probe, str(tmp_path / "mine.yaml")]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
