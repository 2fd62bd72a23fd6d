"""Running averages against their closed form, means of checkpoints, and what `final/` becomes."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llamita.architecture.memory import training_memory
from llamita.errors import UserError
from llamita.inference.scoring import Score, held_out, score_text
from llamita.model.huggingface import load_model
from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import ExponentialAverage
from llamita.reporting.events import read_events
from llamita.training.averaging import RunningAverage, mean_of_checkpoints
from llamita.training.checkpoint import step_directories
from llamita.training.preparation import prepare
from tests.training.helpers import (
    BATCH,
    DECAY,
    STABLE,
    assert_same_checkpoint,
    assert_same_tensors,
    kill_after_step,
    losses,
    optimizer_tensors,
    stage,
    state,
    tiny_recipe,
    tiny_values,
    train_in_process,
    trained,
    weights,
)
from tests.training.test_optimizer import SMALL, built
from tests.training.test_run import poison

EMA: dict[str, Any] = {"kind": "ema", "half_life_tokens": 3 * BATCH}
LAST: dict[str, Any] = {"kind": "last", "checkpoints": 3}
NO, YES = torch.tensor(False), torch.tensor(True)


def moved(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Give the model other weights, as a step would; returns a copy of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_average_is_the_normalised_sum_of_halving_weights() -> None:
    """Σ 2^(−tokens since / half-life) w / Σ 2^(…), whatever each step's tokens, from step 1 on."""
    model = built(SMALL)
    average = RunningAverage(model, ExponentialAverage(half_life_tokens=1000))
    assert average.is_empty
    taken: list[tuple[int, dict[str, Tensor]]] = []
    tokens = 0
    for step, size in enumerate((100, 100, 700, 50, 2000, 300)):
        seen = moved(model, step)
        average.update(NO, size)
        tokens += size
        taken.append((tokens, seen))
        shares = [0.5 ** ((tokens - at) / 1000) for at, _ in taken]
        # A step's own share is that of all its tokens: the mass they had not lost.
        sizes = [at - (taken[i - 1][0] if i else 0) for i, (at, _) in enumerate(taken)]
        shares = [s * (1 - 0.5 ** (n / 1000)) for s, n in zip(shares, sizes, strict=True)]
        for name, found in average.averages.items():
            wanted = sum(
                s * w[name].double() for s, (_, w) in zip(shares, taken, strict=True)
            ) / sum(shares)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_first_step_is_the_average_and_not_the_initial_weights() -> None:
    model = built(SMALL)
    average = RunningAverage(model, ExponentialAverage(half_life_tokens=10**9))
    first = moved(model, 0)
    average.update(NO, 10)
    assert_same_tensors(average.averages, first)


@pytest.mark.parametrize("taken", [0, 3])
def test_a_skipped_step_adds_nothing(taken: int) -> None:
    model = built(SMALL)
    average = RunningAverage(model, ExponentialAverage(half_life_tokens=1000))
    for step in range(taken):
        moved(model, step)
        average.update(NO, 100)
    before = {name: t.clone() for name, t in average.state().items()}
    average.update(YES, 100)
    assert_same_tensors(average.state(), before)
    assert average.is_empty == (taken == 0)


def test_weights_change_places_and_come_back_to_the_bit() -> None:
    model = built(SMALL)
    average = RunningAverage(model, ExponentialAverage(half_life_tokens=1000))
    for step in range(3):
        own = moved(model, step)
        average.update(NO, 400)
    mean = {name: t.clone() for name, t in average.averages.items()}
    seen = {}

    def interrupted() -> None:
        with average.in_place():
            seen.update({n: p.detach().clone() for n, p in model.named_parameters()})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert_same_tensors(seen, mean)
    assert_same_tensors({n: p.detach() for n, p in model.named_parameters()}, own)
    assert_same_tensors(average.averages, mean)


# -- whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"kind": "adamw"}, {"kind": "muon"}])
def test_a_run_with_an_average(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any]
) -> None:
    """Kept in checkpoints, measured, left alone by skipped steps, and made into `final/`."""
    poison(monkeypatch, {4, 6}, math.nan)
    recipe = tiny_recipe(
        tiny_data,
        optimizer={"learning_rate": 1e-2, **optimizer},
        averaging=EMA,
        stages=[stage("s", 9, STABLE)],
        checkpoints={"every_steps": 1, "keep_last": 99, "final": "average"},
    )
    run, said = tmp_path / "run", list[str]()
    result = trained(recipe, run, say=said.append)
    steps = [step for step in range(1, 10) if step not in (4, 6)]
    shares = {step: 0.5 ** ((len(steps) - number) / 3) for number, step in enumerate(steps, 1)}
    final = weights(run / "final")
    for name, found in final.items():
        wanted = sum(
            share * weights(run / f"step-{step}")[name].double() for step, share in shares.items()
        ) / sum(shares.values())
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6, msg=name)
        kept = optimizer_tensors(run / "step-9")[f"average.{name}"]
        assert torch.equal(found, kept), name
    for skipped in (4, 6):
        assert_same_tensors(
            optimizer_without_guard(run / f"step-{skipped}"),
            optimizer_without_guard(run / f"step-{skipped - 1}"),
        )
    validation = [event for event in read_events(run) if event["event"] == "validation"]
    assert "average" not in validation[0]  # nothing was averaged before the first step
    figure = validation[-1]["average"]
    assert figure != validation[-1]["bits_per_byte"]
    assert figure == pytest.approx(score_of(run / "final", tiny_data), rel=1e-6)
    assert result.bits_per_byte == figure
    assert f"done at {figure:.4f} bits per byte" in said[-1]
    assert any(f"; the average {figure:.4f})" in line for line in said)
    provenance = json.loads((run / "final" / "training" / "provenance.json").read_text())
    assert provenance["average"] == {**EMA, "steps": [9]}
    assert provenance["validation"]["average"] == figure
    said.clear()
    again = recipe.model_copy(
        update={"checkpoints": recipe.checkpoints.model_copy(update={"final": "last"})}
    )
    trained(again, run, say=said.append)
    assert_same_tensors(weights(run / "final"), weights(run / "step-9"))


def optimizer_without_guard(directory: Path) -> dict[str, Tensor]:
    tensors = optimizer_tensors(directory)
    return {name: t for name, t in tensors.items() if not name.startswith(("guard.", "rng."))}


def score_of(directory: Path, data: Path) -> float:
    recipe = tiny_recipe(data)
    model = load_model(directory)
    scores = [
        score_text(model, held_out(found.validation, 300), sequence_length=32, rows=2)
        for found in prepare(recipe).datasets.values()
    ]
    return sum(scores, Score(0.0, 0, 0)).bits_per_byte


def test_killed_and_gone_on_to_the_bit(tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_data, optimizer={"learning_rate": 1e-2}, averaging=EMA)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_in_process(recipe, whole) == 0
    assert train_in_process(recipe, run, kill_after_step, 5) == -signal.SIGKILL
    assert train_in_process(recipe, run) == 0
    assert_same_checkpoint(run / "step-12", whole / "step-12")
    assert losses(run) == losses(whole)
    names = {n for n in optimizer_tensors(run / "step-12") if n.startswith("average")}
    assert len(names) == len(weights(run / "step-12")) + 1


def test_averaging_changes_no_weights(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    trained(tiny_recipe(tiny_data, averaging=EMA), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(reference)
    assert_same_tensors(weights(tmp_path / "run" / "step-12"), weights(reference / "step-12"))


def test_an_average_may_begin_and_end_in_a_run(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = tiny_recipe(tiny_data, stages=[stage("stable", 8, STABLE)])
    trained(first, run)
    both = [stage("stable", 8, STABLE), stage("decay", 4, DECAY)]
    checkpoints = {"every_steps": 1, "keep_last": 99}
    trained(tiny_recipe(tiny_data, stages=both, averaging=EMA, checkpoints=checkpoints), run)
    found = optimizer_tensors(run / "step-9")
    for name, tensor in weights(run / "step-9").items():  # it began with the step after 8
        assert torch.equal(found[f"average.{name}"], tensor)
    more = [*both, stage("more", 2, {"kind": "constant"})]
    trained(tiny_recipe(tiny_data, stages=more, checkpoints=checkpoints), run)
    assert not any(name.startswith("average") for name in optimizer_tensors(run / "step-14"))
    with pytest.raises(UserError, match="holds no running average"):
        trained(
            tiny_recipe(
                tiny_data,
                stages=more,
                averaging=EMA,
                checkpoints={**checkpoints, "final": "average"},
            ),
            run,
        )


def test_the_mean_of_the_last_checkpoints(tiny_data: Path, tmp_path: Path) -> None:
    """The last step and the multiples before it: not those that an interruption wrote."""
    recipe = tiny_recipe(
        tiny_data,
        averaging=LAST,
        stages=[stage("s", 11, STABLE)],
        checkpoints={"every_steps": 3, "keep_last": 1, "final": "average"},
    )
    run, said = tmp_path / "run", list[str]()
    assert train_in_process(recipe, run, kill_after_step, 7) == -signal.SIGKILL
    assert train_in_process(recipe, run, kill_after_step, 8, signal.SIGTERM) == 128 + 15
    result = trained(recipe, run, say=said.append)
    assert list(step_directories(run)) == [6, 9, 11]
    each = [weights(run / f"step-{step}") for step in (6, 9, 11)]
    final = weights(run / "final")
    for name, found in final.items():
        wanted = sum(one[name].double() for one in each) / 3
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7, msg=name)
    provenance = json.loads((run / "final" / "training" / "provenance.json").read_text())
    assert provenance["average"] == {**LAST, "steps": [6, 9, 11]}
    assert provenance["validation"] is None
    assert result.bits_per_byte is None
    assert said[-1].startswith("done: ")
    two = recipe.model_copy(
        update={"averaging": recipe.averaging.model_copy(update={"checkpoints": 2})}  # type: ignore[union-attr]
    )
    trained(two, run)
    mean = mean_of_checkpoints([run / "step-9", run / "step-11"])
    assert_same_tensors(weights(run / "final"), mean)
    four = tiny_recipe(
        tiny_data,
        averaging={**LAST, "checkpoints": 4},
        stages=[stage("s", 11, STABLE)],
        checkpoints={"every_steps": 3, "final": "average"},
    )
    with pytest.raises(UserError, match=r"asks for step-3, which .* no longer has"):
        trained(four, run)


def test_too_few_checkpoints_are_refused_before_the_run(tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_data,
        averaging={**LAST, "checkpoints": 5},
        checkpoints={"every_steps": 4, "final": "average"},
    )
    with pytest.raises(UserError, match=r"writes only 3 to average \(at steps 4, 8, 12\)"):
        trained(recipe, tmp_path / "run")
    assert not step_directories(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checkpoints": {"final": "average"}}, "nothing is averaged"),
        ({"averaging": LAST}, "only with checkpoints.final: average"),
        (
            {"averaging": LAST, "checkpoints": {"final": "average"}},
            "needs checkpoints.every_steps",
        ),
        ({"averaging": {**LAST, "checkpoints": 1}}, r"averaging\.checkpoints"),
        ({"averaging": {"kind": "ema"}}, r"averaging\.half_life_tokens: is missing"),
        ({"averaging": {**EMA, "checkpoints": 3}}, r"averaging\.checkpoints: there is no such"),
    ],
)
def test_settings_that_would_do_nothing(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_recipe({**tiny_values(Path()), **changes}, "tiny")


def test_memory_counts_what_is_kept() -> None:
    """4 bytes for each element of what checkpoints hold."""
    blocks = sum(
        p.numel() for n, p in built(SMALL).named_parameters() if p.dim() == 2 and ".layers." in n
    )
    total = sum(p.numel() for p in built(SMALL).parameters())
    plain = training_memory(SMALL, 64, 32)
    muon = training_memory(SMALL, 64, 32, muon=True, average=True)
    assert plain.optimizer == 4 * 2 * total
    assert plain.average == 0
    assert muon.optimizer == 4 * (2 * total - blocks)
    assert muon.average == 4 * total
    assert muon.total == plain.total - 4 * blocks + 4 * total


def test_state_has_the_average_by_name(tiny_data: Path, tmp_path: Path) -> None:
    trained(tiny_recipe(tiny_data, averaging=EMA), tmp_path / "run")
    assert "average" in state(tmp_path / "run" / "step-12")["validation"]
