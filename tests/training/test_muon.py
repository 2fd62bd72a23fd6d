"""Muon against torch's own, against the singular value decomposition, and in whole runs."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llamita.architecture.presets import Parametrization
from llamita.errors import UserError
from llamita.model.decoder import Decoder
from llamita.model.initialization import learning_rate_multipliers
from llamita.recipes import schema
from llamita.recipes.loading import check_recipe
from llamita.training import muon as muon_module
from llamita.training.muon import Muon, orthogonalize, rate_factor
from llamita.training.optimizer import (
    build_optimizer,
    is_block_matrix,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from tests.training.helpers import (
    DECAY,
    assert_same_checkpoint,
    kill_after_step,
    losses,
    optimizer_tensors,
    stage,
    tiny_recipe,
    tiny_values,
    train_in_process,
    trained,
)
from tests.training.test_optimizer import SMALL, backward, batch, built, group_of
from tests.training.test_parallelism import close, torchrun

SHAPES = ((48, 48), (16, 48), (48, 16), (96, 32))
MUON: dict[str, Any] = {"kind": "muon", "learning_rate": 1e-2}


def optimizer_of(
    model: Decoder, parametrization: Parametrization = "llama", **settings: object
) -> Muon:
    values = schema.Muon.model_validate({"learning_rate": 0.01, **settings})
    found = build_optimizer(model, values, learning_rate_multipliers(model, parametrization))
    assert isinstance(found, Muon)
    return found


def nothing_else() -> torch.optim.AdamW:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)


def parameters(seed: int = 0) -> list[nn.Parameter]:
    """Two matrices of each shape, so that stacks have more than one."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in (*SHAPES, *SHAPES)]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=generator) * 10.0**-step for s in (*SHAPES, *SHAPES)]


def run_of(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], steps: int = 4) -> None:
    for step in range(steps):
        for parameter, grad in zip(tensors, gradients(step), strict=True):
            parameter.grad = grad
        optimizer.step()


@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
@pytest.mark.parametrize(("nesterov", "weight_decay"), [(True, 0.0), (True, 0.3), (False, 0.3)])
def test_updates_are_torchs_muon(rule: str, nesterov: bool, weight_decay: float) -> None:
    ours, theirs, start = parameters(), parameters(), parameters()
    mine = Muon(
        [{"params": ours}],
        nothing_else(),
        lr=0.05,
        weight_decay=weight_decay,
        momentum=0.9,
        nesterov=nesterov,
        rule=rule,
        dtype=torch.bfloat16,
    )
    reference = torch.optim.Muon(
        theirs,
        lr=0.05,
        weight_decay=weight_decay,
        momentum=0.9,
        nesterov=nesterov,
        adjust_lr_fn=rule,
    )
    run_of(mine, ours)
    run_of(reference, theirs)
    for one, other, before in zip(ours, theirs, start, strict=True):
        moved, wanted = (one - before).detach(), (other - before).detach()
        # bfloat16 has 8 bits, and theirs rounds the norm to them as well.
        assert float((moved - wanted).norm() / wanted.norm()) < 0.02, one.shape
        buffer = mine.state[one]["momentum_buffer"]
        torch.testing.assert_close(buffer, reference.state[other]["momentum_buffer"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_newton_schulz_acts_on_singular_values_alone(shape: tuple[int, int], steps: int) -> None:
    """X = U S Vᵀ becomes U p(…p(S / ‖X‖)) Vᵀ with p(s) = as + bs³ + cs⁵."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / x.norm(dim=(-2, -1))[:, None]
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    wanted = u @ torch.diag_embed(s) @ vh
    torch.testing.assert_close(orthogonalize(x, steps), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_is_nearly_orthogonal(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    x[1] *= 1e-6
    found = orthogonalize(x.to(dtype)).float()
    values = torch.linalg.svdvals(found)
    # A square random matrix has singular values near zero, which five iterations leave small.
    lowest = values.median() if shape[0] == shape[1] else values.min()
    assert float(lowest) > 0.6
    assert float(values.max()) < 1.25
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    cosine = nn.functional.cosine_similarity(found.flatten(1), (u @ vh).flatten(1))
    assert bool((cosine > 0.95).all())


def test_zero_gradients_move_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 4)), torch.zeros(2, 8, 4))


def test_rates_by_shape() -> None:
    """The update's RMS under match_rms_adamw is 0.2 of the rate at any shape."""
    assert rate_factor(64, 16, "original") == 2.0
    assert rate_factor(16, 64, "original") == 1.0
    for rows, columns in SHAPES:
        u, _, vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
        rms = float((u @ vh).square().mean().sqrt()) * rate_factor(rows, columns, "match_rms_adamw")
        assert rms == pytest.approx(0.2, rel=1e-4)


def test_stacks_of_any_size_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = parameters(), parameters()
    for number, tensors in enumerate((together, alone)):
        if number:
            monkeypatch.setattr(muon_module, "MUON_STACK_ELEMENTS", 1)
        groups: list[dict[str, Any]] = [{"params": tensors}]
        run_of(
            Muon(groups, nothing_else(), lr=0.05, weight_decay=0.1, dtype=torch.float32), tensors
        )
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_matrices_of_blocks_are_muons_and_all_else_is_adamws() -> None:
    model = built(SMALL, "minicpm")
    optimizer = optimizer_of(
        model, "minicpm", weight_decay=0.1, learning_rate=0.01, matrix_learning_rate=0.03
    )
    groups, named = group_of(optimizer), dict(model.named_parameters())
    assert groups.keys() == named.keys()
    set_learning_rate(optimizer, 0.005)  # half of the peak
    for name, group in groups.items():
        in_block = named[name].ndim == 2 and ".layers." in name
        assert is_block_matrix(name, named[name]) == in_block
        assert (group in optimizer.matrix_groups) == in_block, name
        assert group["lr"] == pytest.approx(0.015 / 4 if in_block else 0.005), name
        decays = named[name].ndim == 2 and name != "model.embed_tokens.weight"
        assert group["weight_decay"] == (0.1 if decays else 0.0), name
    backward(model, batch(50), micro=4)
    optimizer.step()
    kinds = {key.partition(".")[0] for key in optimizer_state(optimizer) if ".mlp." in key}
    assert kinds == {"momentum_buffer"}


def test_what_adamw_keeps_moves_as_adamw_alone_would_move_it() -> None:
    ours, theirs = built(SMALL), built(SMALL)
    adamw = build_optimizer(
        theirs, schema.AdamW(learning_rate=0.01), learning_rate_multipliers(theirs, "llama")
    )
    optimizer = optimizer_of(ours)
    for step in range(3):
        backward(ours, batch(50, seed=step), micro=4)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            other.grad = mine.grad.clone()
        optimizer.step()
        adamw.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in ours.parameters())
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other) != is_block_matrix(name, mine), name


def bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy in which 0.0 and -0.0 differ."""
    return {name: t.detach().clone().view(torch.int32) for name, t in tensors.items()}


@pytest.mark.parametrize("taken", [0, 2])
def test_a_skipped_step_leaves_everything_as_it_was(taken: int) -> None:
    """Whatever is in the gradients, and to the bit; also if it is the very first."""
    model = built(SMALL)
    optimizer = optimizer_of(model, weight_decay=0.5)
    with torch.no_grad():
        dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"][0, :2] = -0.0
    optimizer.found_inf = torch.zeros(())
    for step in range(taken):
        backward(model, batch(50, seed=step), micro=4)
        optimizer.step()
        optimizer.zero_grad()
    named = dict(model.named_parameters())
    before, moments = bits({**named}), bits(optimizer_state(optimizer))
    for value in (math.nan, math.inf, 1e30):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
    assert all(torch.equal(t, before[name]) for name, t in bits({**named}).items())
    for name, moment in bits(optimizer_state(optimizer)).items():
        wanted = moments[name] if taken else torch.zeros_like(moment)
        assert torch.equal(moment, wanted), name


def test_gradients_are_divided_by_grad_scale() -> None:
    """By another number at each step, or momentum would hide it: an update has no scale."""
    scaled, plain = built(SMALL), built(SMALL)
    for model, factors in ((scaled, (8.0, 0.5, 3.0)), (plain, (1.0, 1.0, 1.0))):
        optimizer = optimizer_of(model)
        for step, factor in enumerate(factors):
            backward(model, batch(50, seed=step), micro=4)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad *= factor
            optimizer.grad_scale = torch.tensor(factor)
            optimizer.found_inf = torch.zeros(())
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_nothing_is_asked_of_the_device() -> None:
    """On tensors without values, reading one on the host is an error."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        matrices = [nn.Parameter(torch.empty(8, 4)) for _ in range(2)]
        vector = nn.Parameter(torch.empty(4))
        for parameter in (*matrices, vector):
            parameter.grad = torch.empty_like(parameter)
        optimizer = Muon(
            [{"params": matrices}],
            torch.optim.AdamW([vector], fused=True),
            lr=0.1,
            weight_decay=0.1,
        )
        optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
        for _ in range(2):
            optimizer.step()
        with pytest.raises(DataDependentOutputException):
            bool(optimizer.found_inf)


def test_state_by_name_round_trips() -> None:
    model = built(SMALL)
    optimizer = optimizer_of(model)
    for step in range(3):
        backward(model, batch(50, seed=step), micro=4)
        optimizer.step()
        optimizer.zero_grad()
    state = {name: tensor.clone() for name, tensor in optimizer_state(optimizer).items()}
    other = Decoder(SMALL)
    other.load_state_dict(model.state_dict())
    again = optimizer_of(other)
    load_optimizer_state(again, state)
    for one, model_of in ((optimizer, model), (again, other)):
        backward(model_of, batch(50, seed=9), micro=4)
        one.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    name = "momentum_buffer.model.layers.0.mlp.up_proj.weight"
    with pytest.raises(UserError, match=r"up_proj\.weight is missing"):
        load_optimizer_state(again, {k: t for k, t in state.items() if k != name})
    with pytest.raises(UserError, match=r"shape \(3, 32\), expected \(64, 32\)"):
        load_optimizer_state(again, {**state, name: state[name][:3]})


# -- whole runs ---------------------------------------------------------------------------------


def test_killed_and_gone_on_to_the_bit(tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_data, optimizer=MUON)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_in_process(recipe, whole) == 0
    assert train_in_process(recipe, run, kill_after_step, 8) == -signal.SIGKILL
    assert train_in_process(recipe, run) == 0
    assert_same_checkpoint(run / "step-12", whole / "step-12")
    assert losses(run) == losses(whole)
    told = losses(whole)
    assert told[12][0] < told[1][0] - 0.5


def test_the_kind_cannot_change_in_a_run(tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_data, stages=[stage("s", 2, {"kind": "constant"})], optimizer=MUON)
    trained(recipe, tmp_path / "run")
    longer = [stage("s", 4, {"kind": "constant"})]
    changed = tiny_recipe(tiny_data, stages=longer, optimizer={"learning_rate": 1e-2})
    with pytest.raises(UserError, match=r"a changed optimizer\.kind\. Put") as refusal:
        trained(changed, tmp_path / "run")
    assert "ns_steps" not in str(refusal.value)
    slower = tiny_recipe(tiny_data, stages=longer, optimizer={**MUON, "momentum": 0.9})
    with pytest.raises(UserError, match=r"optimizer\.momentum"):
        trained(slower, tmp_path / "run")


@pytest.mark.parametrize("kinds", [("adamw", "muon"), ("muon", "adamw")])
def test_a_branch_under_another_optimizer(
    tiny_data: Path, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    """The matrices' moments begin afresh, which is said; all else goes on."""
    parent, branch = tmp_path / "parent", tmp_path / "branch"
    trained(tiny_recipe(tiny_data, optimizer={**MUON, "kind": kinds[0]}), parent)
    recipe = tiny_recipe(
        tiny_data,
        model=None,
        start_from=str(parent / "step-8"),
        optimizer={**MUON, "kind": kinds[1]},
        stages=[stage("decay", 4, DECAY)],
    )
    said: list[str] = []
    trained(recipe, branch, say=said.append)
    assert any(f"another optimizer than {kinds[1]}" in line for line in said)
    tensors = optimizer_tensors(branch / "step-12")
    matrix, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    assert float(tensors[f"step.{norm}"]) == 12
    if kinds[1] == "adamw":
        assert float(tensors[f"step.{matrix}"]) == 4
    else:
        assert f"momentum_buffer.{matrix}" in tensors
    said.clear()
    same = recipe.model_copy(update={"optimizer": schema.Muon(**{**MUON, "kind": "muon"})})
    same_parent = parent if kinds[0] == "muon" else branch
    same = same.model_copy(update={"start_from": str(same_parent / "step-12")})
    trained(same, tmp_path / "same", say=said.append)
    assert not any("another optimizer" in line for line in said)


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        ({"learning_rate": 1e-2, "ns_steps": 3}, "ns_steps: only with kind: muon"),
        ({"learning_rate": 1e-2, "kind": "adamw", "momentum": 0.9}, "momentum: only with kind"),
        ({"learning_rate": 1e-2, "kind": "moun"}, "'moun'"),
        ({**MUON, "ns_steps": 0}, r"optimizer\.ns_steps"),
        ({**MUON, "learning_rate_rule": "rms"}, "match_rms_adamw"),
        ({**MUON, "ns_step": 3}, "Did you mean 'ns_steps'"),
    ],
)
def test_settings_that_would_do_nothing(optimizer: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_recipe({**tiny_values(Path()), "optimizer": optimizer}, "tiny")


def test_recipes_that_name_no_kind_are_adamws() -> None:
    recipe = check_recipe(tiny_values(Path()), "tiny")
    assert recipe.optimizer == schema.AdamW(learning_rate=1e-2)


@pytest.mark.slow
def test_two_processes_are_one(tiny_data: Path, tmp_path: Path) -> None:
    """Matrices are gathered, shared out and orthogonalised whole."""
    recipe = tiny_recipe(
        tiny_data,
        optimizer={**MUON, "learning_rate": 3e-3},
        averaging={"kind": "ema", "half_life_tokens": 500},
    )
    alone, run = tmp_path / "alone", tmp_path / "run"
    trained(recipe, alone)
    torchrun(recipe, run)
    close(run, alone)
    mine, theirs = (optimizer_tensors(r / "step-12") for r in (run, alone))
    for name, tensor in mine.items():
        if name.startswith("average."):
            assert float((tensor - theirs[name]).abs().max()) < 2e-3, name
