"""From a spec to its runs, and what a spec cannot ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamita.architecture.presets import PRESETS
from llamita.errors import UserError
from llamita.windtunnel.points import Points, load_base, make_points
from llamita.windtunnel.sizes import make_sizes
from llamita.windtunnel.spec import (
    DepthSizes,
    PaperSizes,
    Shape,
    Spread,
    ThinSizes,
    WidthSizes,
    load_spec,
    spec_file,
)
from tests.training.helpers import BATCH
from tests.windtunnel.helpers import RATES, points_of, write_spec


def law(**changes: Any) -> dict[str, Any]:
    return {"kind": "law", "tokens_per_parameter": [5, 10, 20], "decay_share": 0.2, **changes}


# -- sizes ----------------------------------------------------------------------------------------


def test_the_papers_sizes_are_the_papers() -> None:
    # N in billions, MiniCPM (2404.06395), facts/minicpm.md.
    names = ["9m", "30m", "70m", "0.1b", "0.17b", "0.2b", "0.5b"]
    sizes = make_sizes(PaperSizes(names=tuple(names)))
    published = [0.009, 0.036, 0.066, 0.109, 0.166, 0.241, 0.499]
    assert [round(size.parameters / 1e9, 3) for size in sizes] == published


def test_width_alone_changes() -> None:
    sizes = make_sizes(WidthSizes(hidden_sizes=[64, 128], layers=3, head_dim=32))
    assert [size.keys["num_attention_heads"] for size in sizes] == [2, 4]
    assert {size.keys["num_hidden_layers"] for size in sizes} == {3}
    assert [size.keys["intermediate_size"] for size in sizes] == [160, 320]


def test_depth_alone_changes() -> None:
    sizes = make_sizes(DepthSizes(hidden_size=64, layers=[2, 4]))
    assert {size.hidden_size for size in sizes} == {64}
    assert [size.layers for size in sizes] == [2, 4]


def test_deep_and_thin_has_about_as_many_parameters_as_shallow_and_wide() -> None:
    sizes = make_sizes(ThinSizes(parameters=20_000_000, layers=[2, 4, 8, 16], head_dim=16))
    widths = [size.hidden_size for size in sizes]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 4
    for size in sizes:
        assert size.parameters == pytest.approx(20_000_000, rel=0.1)


def test_multipliers_follow_the_size_under_minicpm_alone() -> None:
    size = make_sizes(WidthSizes(hidden_sizes=[128], layers=4))[0]
    scaled, plain = size.model(None, "minicpm"), size.model(None, "llama")
    assert scaled["logits_scaling"] == 0.5  # 128 / 256
    assert scaled["residual_multiplier"] == 0.7  # 1.4 / √4
    assert scaled["embedding_multiplier"] == 12
    assert {plain[key] for key in plain if "multiplier" in key or "scaling" in key} == {1.0}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (WidthSizes(hidden_sizes=[100], head_dim=32), "write 96 or 128"),
        (WidthSizes(hidden_sizes=[64, 64]), "two are called 64x4"),
        (PaperSizes(names=("9n",)), "Did you mean '9m'"),
        ([Shape(hidden_size=96, num_hidden_layers=2, num_attention_heads=5)], "not a multiple"),
        ([Shape(hidden_size=15, num_hidden_layers=2, num_attention_heads=5)], "odd"),
        (
            [
                Shape(
                    hidden_size=96,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=3,
                )
            ],
            "num_key_value_heads",
        ),
        (ThinSizes(parameters=1000, layers=[64]), "come near"),
    ],
)
def test_sizes_that_cannot_be_built(sizes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_sizes(sizes)


# -- axes -----------------------------------------------------------------------------------------


def test_a_spread_is_even_in_logarithms() -> None:
    assert Spread(low=0.001, high=0.1, points=3).values() == [0.001, 0.01, 0.1]
    assert Spread(low=1, high=5, points=3, scale="linear").values() == [1, 3, 5]


def test_a_grid_is_every_combination(tiny_data: Path, tmp_path: Path) -> None:
    axes = {"optimizer.learning_rate": [0.001, 0.01], "optimizer.weight_decay": [0.0, 0.1, 0.2]}
    found = points_of(tmp_path, tiny_data, {"s": RATES | {"axes": axes}}, seeds=[0, 1]).points
    assert len(found) == 3 * 2 * 2 * 3  # sizes, seeds, rates, decays
    assert len({point.key for point in found}) == len(found)
    point = next(p for p in found if p.values["optimizer.weight_decay"] == 0.2)
    assert point.recipe.optimizer.weight_decay == 0.2
    assert point.recipe.seed == point.seed


def test_warm_up_stable_and_decay_are_the_shares_asked_for(tiny_data: Path, tmp_path: Path) -> None:
    sweep = RATES | {"tokens_per_parameter": 10, "warmup_share": 0.1, "decay_share": 0.25}
    point = points_of(tmp_path, tiny_data, {"s": sweep}).points[-1]
    steps = round(10 * point.size.parameters / BATCH)
    schedule = point.recipe.stages[0].schedule
    assert point.recipe.stages[0].tokens == point.num_tokens == steps * BATCH
    assert schedule.kind == "wsd"
    assert schedule.warmup_tokens == round(0.1 * steps) * BATCH
    assert schedule.decay_tokens == round(0.25 * steps) * BATCH


def test_an_experiments_own_keys_are_axes_too(tiny_data: Path, tmp_path: Path) -> None:
    axes = {"decay_share": [0.1, 0.3], "tokens_per_parameter": [10, 20]}
    found = points_of(tmp_path, tiny_data, {"s": RATES | {"axes": axes}}).points
    assert len({p.num_tokens for p in found if p.size.hidden_size == 16}) == 2
    assert len({p.key for p in found}) == 12


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"optimizer.learning_rat": [1, 2]}, "learning_rate"),
        ({"optimizer.learning_rate": [0.01, 0.01]}, "the same run"),
        ({"batch_tokens": [100, 128]}, "not a multiple of sequence_length"),
        ({"runtime.threads": [1, 2]}, "nothing that a run computes"),
        ({"checkpoints.keep_last": [1, 2]}, "nothing that a run computes"),
        ({"stages.0.tokens": [1e6, 2e6]}, "makes its own stages"),
        ({"optimizer.learning_rate": {"low": 0.1, "high": 0.01}}, "not below"),
        ({"optimizer.learning_rate": {"low": 0, "high": 0.01}}, "begins above 0"),
        ({"optimizer.momentum": [0.1, 0.2]}, "momentum"),
    ],
)
def test_axes_that_cannot_be(
    tiny_data: Path, tmp_path: Path, axes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        points_of(tmp_path, tiny_data, {"s": RATES | {"axes": axes}})


def test_an_axis_without_effect_under_a_search_is_refused_too(
    tiny_data: Path, tmp_path: Path
) -> None:
    search = RATES | {"axes": {"optimizer.momentum": [0.1]}, "search": {"kind": "tpe"}}
    with pytest.raises(UserError, match="momentum"):
        points_of(tmp_path, tiny_data, {"s": search})


# -- trunks and branches --------------------------------------------------------------------------


def test_branches_go_on_from_one_trunk_at_the_right_steps(tiny_data: Path, tmp_path: Path) -> None:
    found = points_of(tmp_path, tiny_data, {"l": law()})
    small = [point for point in found.points if point.size.hidden_size == 32]
    trunk, *branches = small
    assert trunk.trunk is None
    ends = []
    for stage in trunk.recipe.stages:
        ends.append(stage.tokens // BATCH + (ends[-1] if ends else 0))
    assert [branch.trunk for branch in branches] == [trunk.key] * 3
    assert [branch.start_step for branch in branches] == ends
    for branch, ratio in zip(branches, (5, 10, 20), strict=True):
        steps = round(ratio * trunk.size.parameters / BATCH)
        decay = branch.recipe.stages[0]
        assert branch.num_tokens == steps * BATCH
        assert branch.start_step + decay.tokens // BATCH == steps
        assert decay.tokens == round(0.2 * steps) * BATCH
        placed = branch.placed(tmp_path)
        assert placed.start_from == str(
            tmp_path / "points" / trunk.key / f"step-{branch.start_step}"
        )


def test_branches_cost_what_is_linear_in_their_number(tiny_data: Path, tmp_path: Path) -> None:
    ratios = [10, 20, 30, 40, 50, 60]
    found = points_of(tmp_path, tiny_data, {"l": law(tokens_per_parameter=ratios, decay_share=0.1)})
    size = found.points[-1].size
    own = sum(
        stage.tokens
        for point in found.points
        if point.size == size
        for stage in point.recipe.stages
    )
    # 0.9·60 stable and 0.1·(10 + … + 60) decaying, against 10 + … + 60 for runs of their own.
    assert own / size.parameters == pytest.approx(54 + 21, rel=0.02)


def test_what_two_experiments_mean_is_made_once(tiny_data: Path, tmp_path: Path) -> None:
    first = RATES | {"axes": {"optimizer.learning_rate": [0.001, 0.01]}}
    second = RATES | {"axes": {"optimizer.learning_rate": [0.01, 0.1]}}
    found = points_of(tmp_path, tiny_data, {"a": first, "b": second})
    assert len(found.points) == 3 * 3
    assert set(found.groups["a"]) & set(found.groups["b"])
    assert all(len(keys) == 6 for keys in found.groups.values())


def test_decays_are_every_share_form_and_mixture(tiny_data: Path, tmp_path: Path) -> None:
    decay = {
        "kind": "decay",
        "sizes": ["32x1"],
        "shares": [0.5, 0.25],
        "forms": ["linear", {"form": "exponential", "half_life_tokens": 512}],
        "mixtures": {"same": None, "code": {"code": 1.0}},
    }
    trunk, *branches = points_of(tmp_path, tiny_data, {"d": decay}).points
    assert len(branches) == 2 * 2 * 2
    ends = {branch.num_tokens for branch in branches}
    assert len(ends) == 1  # all are as long, whatever their share
    stops = {stage.tokens // BATCH for stage in trunk.recipe.stages[:1]}
    stops.add(sum(stage.tokens for stage in trunk.recipe.stages) // BATCH)
    assert {branch.start_step for branch in branches} == stops
    coded = [b for b in branches if b.values["decay.mixture"] == "code"]
    assert all(set(branch.recipe.datasets) == {"code"} for branch in coded)


# -- keys -----------------------------------------------------------------------------------------


def keys(points: Points) -> list[str]:
    return [point.key for point in points.points]


def test_keys_follow_from_what_is_computed(tiny_data: Path, tmp_path: Path) -> None:
    here = keys(points_of(tmp_path / "a", tiny_data, {"s": RATES, "l": law()}))
    there = keys(points_of(tmp_path / "b", tiny_data, {"s": RATES, "l": law()}))
    assert here == there
    longer = keys(points_of(tmp_path / "c", tiny_data, {"s": RATES, "l": law(decay_share=0.5)}))
    assert set(here) & set(longer) == set(keys(points_of(tmp_path / "d", tiny_data, {"s": RATES})))


def test_a_key_does_not_follow_from_how_a_run_is_computed(tiny_data: Path, tmp_path: Path) -> None:
    plain = points_of(tmp_path / "a", tiny_data, {"s": RATES})
    threads = points_of(tmp_path / "b", tiny_data, {"s": RATES}, overrides={"runtime.threads": 3})
    assert keys(plain) == keys(threads)
    assert threads.points[0].recipe.runtime.threads == 3


# -- the spec itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [1]}, "seeds"),
        ({"seeds": [1, 1]}, "stands twice"),
        ({"sizes": {"rule": "widht", "hidden_sizes": [16]}}, "width"),
        ({"base": "nowhere.yaml"}, "no such file"),
        ({"experiments": {}}, "at least 1"),
        ({"experiments": {"x": {"kind": "sweep"}}}, "axes: is missing"),
        ({"experiments": {"x": {"kind": "sweeps"}}}, "sweep"),
        ({"experiments": {"x": RATES | {"sizes": ["32x2"]}}}, "there is no '32x2'"),
        ({"experiments": {"x": RATES | {"tokens_per_paramter": 3}}}, "tokens_per_parameter"),
    ],
)
def test_specs_that_cannot_be(
    tiny_data: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        points_of(tmp_path, tiny_data, **({"experiments": {"s": RATES}} | changes))


def test_a_base_that_goes_on_from_weights_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    path = write_spec(tmp_path, tiny_data, {"s": RATES})
    base = tmp_path / "base.yaml"
    base.write_text(base.read_text().replace('"name"', '"start_from": "x", "name"', 1), "utf-8")
    with pytest.raises(UserError, match="from the very beginning"):
        load_base(load_spec(path), tmp_path)


def test_a_spec_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("a: [", "utf-8")
    with pytest.raises(UserError, match=r"spec\.yaml"):
        load_spec(tmp_path / "spec.yaml")
    (tmp_path / "spec.yaml").write_text("- a\n", "utf-8")
    with pytest.raises(UserError, match="mapping of keys, not list"):
        load_spec(tmp_path / "spec.yaml")


def test_presets_of_the_paper_are_there() -> None:
    assert {"minicpm-9m", "minicpm-30m", "minicpm-70m"} <= set(PRESETS)


@pytest.mark.parametrize("name", ["two-hours", "decay", "paper"])
def test_shipped_specs_are_good_ones(name: str) -> None:
    """Their data need not be there: a plan counts with what the base declares."""
    spec = load_spec(spec_file(name))
    assert spec.name == name
    assert make_points(spec, load_base(spec, Path())).points


def test_a_spec_by_a_wrong_name() -> None:
    with pytest.raises(UserError, match="Did you mean 'two-hours'"):
        spec_file("two-hour")


def test_sizes_may_all_read_as_many_tokens(tiny_data: Path, tmp_path: Path) -> None:
    found = points_of(tmp_path, tiny_data, {"s": RATES | {"tokens": 1280}}).points
    assert {point.num_tokens for point in found} == {1280}
