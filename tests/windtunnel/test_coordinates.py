"""The coordinate check: real models of MiniCPM's parametrisation keep what muP promises, others do
not; exponents against planted ones; what is looked at against Transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamita.architecture.config import minicpm_multipliers
from llamita.architecture.presets import Parametrization
from llamita.data.batch import Batch
from llamita.data.build import build_data
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from llamita.model.initialization import initialize
from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import Recipe
from llamita.training import devices
from llamita.training.guards import Diverged
from llamita.windtunnel import coordinates
from llamita.windtunnel.coordinate_check import TOLERANCE, fit_power
from llamita.windtunnel.coordinates import activations, check_coordinates, measure_coordinates
from llamita.windtunnel.findings import CoordinateCheck
from tests.data.corpus import small_tokenizer, write_records
from tests.model.shapes import random_tokens, transformers_model
from tests.training.helpers import cheap_matmul_rate, stage, tiny_recipe, trained, weights

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (64, 128, 256)
SEEDS = (0, 1)
STEPS = (1, 2, 4)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and afterwards as many as before; no products are timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)
    yield
    torch.set_num_threads(threads)


# -- real models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def licence_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English that people wrote and that stays as it is: the licence, a paragraph a document."""
    folder = tmp_path_factory.mktemp("licence")
    paragraphs = (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n")
    records = [{"text": " ".join(paragraph.split())} for paragraph in paragraphs]
    source = write_records(folder / "licence.jsonl", records)
    build_data([source], folder / "data", small_tokenizer(), validation=0.05, num_workers=0)
    return folder / "data"


def _recipe(
    data: Path, width: int, parametrization: Parametrization, rate: float, seed: int
) -> Recipe:
    """Two layers of heads of 32, 8 rows of 64 tokens."""
    model: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": width * 5 // 2,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 32,
        "tie_word_embeddings": True,
    }
    if parametrization == "minicpm":
        model |= minicpm_multipliers(width, 2)
    values = {
        "name": f"{parametrization}-{width}",
        "model": model,
        "parametrization": parametrization,
        "seed": seed,
        "sequence_length": 64,
        "batch_tokens": 512,
        "optimizer": {"learning_rate": rate},
        "datasets": {"licence": {"path": str(data), "max_epochs": 100}},
        "stages": [{"name": "all", "tokens": 512 * max(STEPS), "mixture": {"licence": 1.0}}],
        "runtime": {"device": "cpu", "threads": 1, "micro_batch_size": 8},
    }
    return check_recipe(values, "coordinates")


def _check(data: Path, parametrization: Parametrization, rate: float) -> CoordinateCheck:
    measured = {
        width: [
            measure_coordinates(_recipe(data, width, parametrization, rate, seed), steps=STEPS)
            for seed in SEEDS
        ]
        for width in WIDTHS
    }
    return check_coordinates(parametrization, measured)


def _exponents(check: CoordinateCheck, kind: str, step: int) -> dict[str, float]:
    return {
        each.what: each.exponent
        for each in check.coordinates
        if each.kind == kind and each.step == step
    }


def test_minicpms_parametrisation_passes(licence_data: Path) -> None:
    check = _check(licence_data, "minicpm", 0.01)
    assert check.passed, check.verdict
    assert check.growing == ()
    assert check.verdict.startswith("passes: nothing grows with width (largest exponent")
    # Of muP's theory: all is of the size of 1 when it starts, but the logits, sums of independent
    # terms of that size divided by width.
    start = _exponents(check, "activation", 0)
    assert start.pop("logits") == pytest.approx(-0.5, abs=0.05)
    assert all(abs(exponent) < 0.1 for exponent in start.values()), start


def test_the_standard_parametrisation_fails(licence_data: Path) -> None:
    check = _check(licence_data, "llama", 0.003)
    assert not check.passed
    assert check.verdict.startswith("fails: ")
    assert any(line.startswith("logits (update) as width^") for line in check.growing)
    # A product with a matrix that starts at 0.02 is a sum of independent terms: width^0.5 for the
    # logits; for the MLP's output that and, as silu(g)·u is about g·u/2 of small g, twice that.
    start = _exponents(check, "activation", 0)
    assert start["logits"] == pytest.approx(0.5, abs=0.05)
    assert start["MLP of the last block"] == pytest.approx(1.5, abs=0.15)
    # Adam moves all terms of a sum together.
    assert _exponents(check, "update", 1)["logits"] > 0.8


def test_minicpm_without_its_learning_rates_fails(
    licence_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Initialised as it should be, but every matrix learns at the base rate: the check sees it."""
    monkeypatch.setattr(
        coordinates,
        "learning_rate_multipliers",
        lambda model, parametrization: {name: 1.0 for name, _ in model.named_parameters()},
    )
    check = _check(licence_data, "minicpm", 0.01)
    assert not check.passed
    assert any(line.startswith("residual after") for line in check.growing), check.verdict


# -- what is looked at ----------------------------------------------------------------------------


def _batch(tokens: Tensor) -> Batch:
    return Batch(tokens, tokens, None, np.zeros(len(tokens), dtype=np.int64))


@pytest.mark.parametrize("shape", ["minicpm-shaped", "llama-untied"])
@torch.no_grad()
def test_activations_are_transformers(shape: str, tmp_path: Path) -> None:
    """By its hidden states, and hooks on its own modules."""
    theirs = transformers_model(shape)
    theirs.save_pretrained(tmp_path)
    tokens = random_tokens()
    seen: dict[str, Tensor] = {}
    last = theirs.model.layers[-1]
    last.self_attn.register_forward_hook(lambda m, i, out: seen.update(attention=out[0]))
    last.mlp.register_forward_hook(lambda m, i, out: seen.update(mlp=out))
    theirs.model.norm.register_forward_hook(lambda m, i, out: seen.update(end=i[0], norm=out))
    out = theirs(tokens, output_hidden_states=True)
    ours = activations(load_model(tmp_path), _batch(tokens))
    expected = {
        "embedding": out.hidden_states[0],
        "residual after 1/4 of the blocks": out.hidden_states[1],
        "residual after 2/4 of the blocks": out.hidden_states[2],
        "residual after 4/4 of the blocks": seen["end"],
        "attention of the last block": seen["attention"],
        "MLP of the last block": seen["mlp"],
        "final norm": seen["norm"],
        "logits": out.logits,
    }
    assert ours.keys() == expected.keys()
    for what, tensor in expected.items():
        torch.testing.assert_close(ours[what], tensor, rtol=1e-4, atol=1e-4, msg=what)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    transformers_model("minicpm-shaped").save_pretrained(tmp_path)
    model, tokens = load_model(tmp_path), random_tokens()
    with torch.no_grad():
        before = model(tokens)
    seen = activations(model, _batch(tokens))["logits"]
    with torch.no_grad():
        after = model(tokens)
    assert torch.equal(before, seen)
    assert torch.equal(before, after)
    modules = list(model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class Spy:
    """The weights at each look, and the rows looked at."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.batch: Batch

    def __call__(self, model: Decoder, batch: Batch) -> dict[str, Tensor]:
        names = {name for name, _ in model.named_parameters()}
        state = {k: v.clone() for k, v in model.state_dict().items() if k in names}
        self.states.append(state)
        self.batch = batch
        return activations(model, batch)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    watching = Spy()
    monkeypatch.setattr(coordinates, "activations", watching)
    return watching


def test_measures_what_training_does(tiny_data: Path, tmp_path: Path, spy: Spy) -> None:
    """After as many steps the weights are those that `train` ends with, to the bit; and what is
    measured is numpy's root mean square over the two models' logits."""
    recipe = tiny_recipe(
        tiny_data,
        model={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            **minicpm_multipliers(32, 2),
        },
        parametrization="minicpm",
        stages=[stage("stable", 5, {"kind": "constant"})],
        optimizer={"learning_rate": 1e-2, "clip_grad_norm": 0.5},
        checkpoints={"every_steps": None},
    )
    measured = measure_coordinates(recipe, steps=[2, 5], peak_share=1.0)
    assert list(measured) == ["0", "2", "5"]
    trained(recipe, tmp_path / "run")
    final = weights(tmp_path / "run" / "final")
    ours = spy.states[-1]
    assert final.keys() == ours.keys()
    assert [name for name in final if not torch.equal(final[name], ours[name])] == []
    model = load_model(tmp_path / "run" / "final")
    untrained = Decoder(model.config)
    initialize(untrained, "minicpm", seed=recipe.seed)
    with torch.no_grad():
        logits = [each(spy.batch.tokens).double().numpy() for each in (untrained, model)]
    found = measured["5"]["logits"]
    assert found["activation"] == pytest.approx(np.sqrt(np.mean(logits[1] ** 2)), rel=1e-9)
    change = np.sqrt(np.mean((logits[1] - logits[0]) ** 2))
    assert found["update"] == pytest.approx(change, rel=1e-6)
    start = measured["0"]["logits"]
    assert start == {"activation": pytest.approx(np.sqrt(np.mean(logits[0] ** 2)), rel=1e-9)}
    embedding = 12 * untrained.model.embed_tokens.weight.detach()[spy.batch.tokens].double().numpy()
    assert measured["0"]["embedding"]["activation"] == pytest.approx(
        np.sqrt(np.mean(embedding**2)), rel=1e-6
    )


def test_a_measurement_comes_back_from_json_as_it_was(tiny_data: Path) -> None:
    """Twice the same, and a study that reads it from its journal goes on with the same."""
    measured = measure_coordinates(tiny_recipe(tiny_data), steps=[1])
    assert json.loads(json.dumps(measured)) == measured
    assert measure_coordinates(tiny_recipe(tiny_data), steps=[1]) == measured


@pytest.mark.parametrize(
    ("layers", "ends"),
    [
        (1, {"4/4": 1}),
        (2, {"2/4": 1, "4/4": 2}),
        (4, {"1/4": 1, "2/4": 2, "3/4": 3, "4/4": 4}),
        (14, {"1/4": 4, "2/4": 7, "3/4": 11, "4/4": 14}),
    ],
)
def test_quarters_of_the_depth(layers: int, ends: dict[str, int]) -> None:
    names = {f"residual after {share} of the blocks": block for share, block in ends.items()}
    assert coordinates._quarters(layers) == names


# -- exponents ------------------------------------------------------------------------------------

Data = dict[int, list[dict[str, dict[str, dict[str, float]]]]]


def _planted(
    exponents: dict[str, float], noise: float, *, widths: tuple[int, ...] = WIDTHS, seeds: int = 2
) -> Data:
    """rms = width^p · e^(noise · normal), of updates after one step; activations stand still."""
    draw = np.random.default_rng(7)

    def one(width: int) -> dict[str, dict[str, dict[str, float]]]:
        after = {
            what: {"activation": 1.0, "update": float(width**p * np.exp(noise * draw.normal()))}
            for what, p in exponents.items()
        }
        return {"0": {what: {"activation": 1.0} for what in exponents}, "1": after}

    return {width: [one(width) for _ in range(seeds)] for width in widths}


def test_intervals_hold_a_planted_exponent_as_often_as_they_say() -> None:
    planted = {f"p{i}": (i % 41 - 20) / 10 for i in range(1000)}
    check = check_coordinates("minicpm", _planted(planted, 0.1))
    updates = [each for each in check.coordinates if each.kind == "update"]
    held = [each.interval[0] <= planted[each.what] <= each.interval[1] for each in updates]
    # 95% of 1000, give or take three binomial standard errors of 0.69%.
    assert len(held) == 1000
    assert np.mean(held) == pytest.approx(0.95, abs=0.021)
    errors = [each.exponent - planted[each.what] for each in updates]
    # Of least squares: noise / √Σ(ln width − mean)² over 3 widths × 2 seeds.
    expected = 0.1 / np.sqrt(2 * 2 * np.log(2) ** 2)
    assert np.std(errors) == pytest.approx(expected, rel=0.1)
    assert abs(np.mean(errors)) < 4 * expected / np.sqrt(1000)


def test_a_line_is_scipys() -> None:
    from scipy import stats

    draw = np.random.default_rng(0)
    rms = {width: tuple(draw.uniform(1, 2, 3)) for width in (64, 96, 128, 384)}
    x = np.log([width for width, values in rms.items() for _ in values])
    y = np.log([value for values in rms.values() for value in values])
    line = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    exponent, interval = fit_power(rms)
    assert exponent == pytest.approx(line.slope, rel=1e-12)
    assert interval == pytest.approx((line.slope - half, line.slope + half), rel=1e-12)


def test_what_grows_is_named_the_surest_first() -> None:
    check = check_coordinates("llama", _planted({"a": 0.0, "b": 0.9, "c": 0.5}, 0.001))
    assert not check.passed
    assert check.growing == (
        "b (update) as width^0.90 after 1 step",
        "c (update) as width^0.50 after 1 step",
    )
    assert check.verdict.startswith("fails: b (update) grows as width^0.90 (0.90 to 0.90) after 1")
    assert check.verdict.endswith("; of 6 things that should not, 1 more does")
    assert (check.widths, check.tolerance) == (WIDTHS, TOLERANCE)


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.0, 0.19])
def test_what_shrinks_or_hardly_grows_passes(exponent: float) -> None:
    check = check_coordinates("minicpm", _planted({"logits": exponent}, 0.001))
    assert check.passed, check.verdict
    assert check.growing == ()


def test_what_noise_hides_is_no_pass() -> None:
    """Growth that few measurements cannot prove is neither a failure nor a pass."""
    check = check_coordinates("llama", _planted({"logits": 0.5}, 0.3))
    assert not check.passed
    assert check.growing == ()
    assert check.verdict.startswith("whether anything grows cannot be said: logits (update) goes")
    assert check.verdict.endswith("; measure more widths or seeds")
    more = _planted({"logits": 0.5}, 0.3, widths=(64, 128, 256, 512, 1024), seeds=12)
    assert check_coordinates("llama", more).verdict.startswith("fails: logits")


def test_initialisation_and_activations_on_the_way_are_not_judged() -> None:
    """Activations count after the last step alone: before it they are as initialisation has it."""
    measured = _planted({"logits": 0.0}, 0.001)
    for width, seeds in measured.items():
        for each in seeds:
            each["0"]["logits"]["activation"] = float(width)
    assert check_coordinates("minicpm", measured).passed
    for width, seeds in measured.items():
        for each in seeds:
            each["1"]["logits"]["activation"] = float(width)
    check = check_coordinates("minicpm", measured)
    assert check.growing == ("logits as width^1.00 after 1 step",)


# -- what cannot be judged ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "told"), [((), "none"), ((64,), "1 is there"), ((64, 128), "64, 128")]
)
def test_fewer_than_three_widths_are_refused(widths: tuple[int, ...], told: str) -> None:
    measured: Data = {**_planted({"logits": 0.0}, 0.1, widths=widths), 512: []}
    with pytest.raises(UserError, match=rf"{told}.*; measure {3 - len(widths)} more"):
        check_coordinates("minicpm", measured)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (float("nan"), "lower the learning rate"),
        (float("inf"), "lower the learning rate"),
        (0.0, "raise the learning rate"),
    ],
)
def test_what_has_no_logarithm_is_named(value: float, remedy: str) -> None:
    measured = _planted({"logits": 0.0}, 0.1)
    measured[128][1]["1"]["logits"]["update"] = value
    with pytest.raises(
        UserError, match=rf"width 128 logits \(update\) after 1 step is {value:g}.*{remedy}"
    ):
        check_coordinates("minicpm", measured)


def test_measurements_that_do_not_belong_together_are_refused() -> None:
    steps = _planted({"logits": 0.0}, 0.1)
    steps[128][1]["2"] = steps[128][1]["1"]
    with pytest.raises(UserError, match="width 128 are of steps 0, 1, 2 and others of 0, 1;"):
        check_coordinates("minicpm", steps)
    depths = _planted({"logits": 0.0, "residual after 1/4 of the blocks": 0.0}, 0.1)
    del depths[256][0]["1"]["residual after 1/4 of the blocks"]
    with pytest.raises(UserError, match=r"width 256 .*1/4 of the blocks.* vary the width alone"):
        check_coordinates("minicpm", depths)


def test_a_model_that_is_not_new_is_refused(tiny_data: Path) -> None:
    recipe = tiny_recipe(tiny_data).model_copy(update={"start_from": "runs/other"})
    with pytest.raises(UserError, match="leave out start_from and adapter"):
        measure_coordinates(recipe, steps=[1])


def test_preferences_are_refused(tiny_data: Path) -> None:
    stages = [stage("pairs", 5, {"kind": "constant"}, objective={"kind": "preference"})]
    with pytest.raises(UserError, match="stage pairs learns preferences"):
        measure_coordinates(tiny_recipe(tiny_data, stages=stages), steps=[1])


def test_a_model_that_is_lost_has_diverged(tiny_data: Path) -> None:
    recipe = tiny_recipe(tiny_data, optimizer={"learning_rate": 1e30})
    with pytest.raises(Diverged, match="not finite at step 2, "):
        measure_coordinates(recipe, steps=[4])
