"""Where the time went: the kinds of work, and the files and events of a profiled run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llamita.errors import UserError
from llamita.reporting.events import read_events
from llamita.training.profiling import PHASES, sum_by_kind
from llamita.training.run import train
from tests.training.helpers import STABLE, stage, tiny_recipe, trained, weights


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("nvjet_tst_192x192_64x4_1x2_h_bz_coopB_NNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("aten::bmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<…>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("## Call CompiledFxGraph fyor ##", "compiled element-wise"),
        ("triton_red_fused_native_layer_norm_0", "compiled element-wise"),
        ("ncclDevKernel_AllGather_RING_LL", "communication"),
        ("aten::copy_", "copies and casts"),
        ("aten::embedding_dense_backward", "embedding"),
        ("aten::silu", "other operators"),
    ],
)
def test_kinds_of_work(operator: str, kind: str) -> None:
    assert sum_by_kind([(operator, 1.0), (operator, 0.5), ("forward", 9.0)]) == {kind: 1.5}


def test_a_profiled_run(tiny_data: Path, tmp_path: Path, reference: Path) -> None:
    told: list[str] = []
    trained(tiny_recipe(tiny_data), tmp_path / "run", say=told.append, profile=True)
    (event,) = [e for e in read_events(tmp_path / "run") if e["event"] == "profile"]
    assert event["step"] == 5
    assert sum(row["share"] for row in event["table"]) == pytest.approx(1.0, abs=0.01)
    assert {row["name"] for row in event["phases"]} == set(PHASES)
    spent = {row["name"]: row["seconds"] for row in event["phases"]}
    assert 0 < spent["forward"] < event["seconds"]
    assert 0 < spent["backward"] < event["seconds"]
    assert sum(spent.values()) <= event["seconds"]
    optimizer = [row["seconds"] for row in event["table"] if row["name"] == "optimizer"]
    # All that an update calls is the optimizer's; the phase's own Python is not.
    assert 0.3 * spent["update"] < sum(optimizer) <= spent["update"]
    with gzip.open(tmp_path / "run" / "profile" / "trace.json.gz") as file:
        trace = json.load(file)
    names = [record.get("name") for record in trace["traceEvents"]]
    assert names.count("forward") == 2 * 3  # two micro-batches in each of three steps
    table = (tmp_path / "run" / "profile" / "table.txt").read_text()
    assert "matrix products" in table
    assert "aten::mm" in table
    assert any("matrix products" in line for line in told)
    # Watching changes nothing.
    ours, theirs = weights(tmp_path / "run" / "step-12"), weights(reference / "step-12")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_run_too_short_to_profile(tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_data, stages=[stage("stable", 4, STABLE)])
    with pytest.raises(UserError, match="takes 5 steps, and this run has 4 to come"):
        trained(recipe, tmp_path / "run", profile=True)


def test_a_dry_run_has_nothing_to_profile(tiny_data: Path) -> None:
    with pytest.raises(UserError, match="--dry-run takes none"):
        train(tiny_recipe(tiny_data), dry_run=True, profile=True)


def test_memory_is_told_beside_the_plan(reference: Path) -> None:
    (event,) = [e for e in read_events(reference) if e["event"] == "memory"]
    assert event["step"] == 12
    parameters = sum(tensor.numel() for tensor in weights(reference / "step-12").values())
    assert event["estimate"]["weights"] == 4 * parameters
    assert event["estimate"]["optimizer"] == 8 * parameters
    # So small a model may fit into what this process freed before: no order between the two.
    assert event["peak_bytes"] > 0
    assert event["baseline_bytes"] > 0
