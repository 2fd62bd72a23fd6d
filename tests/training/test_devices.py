"""What a run computes on, and the reasons it gives."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.architecture.memory import training_memory
from llamita.errors import UserError
from llamita.planning.needs import default_micro_batch_size, step_memory
from llamita.planning.plan import SourceSize, TrainingPlan, make_plan
from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import Runtime
from llamita.training import devices, environment
from llamita.training.compilation import CACHE_VARIABLE, keep_compiled_code
from llamita.training.devices import choose_compute
from llamita.training.environment import settle_passes

HOUR = 1e11 * 3600


def rates(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    known = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(devices, "matmul_rate", lambda device, dtype, size=2048: known[dtype])


def choose(flops: float = HOUR, recorded: dict[str, Any] | None = None, **runtime: Any) -> Any:
    return choose_compute(Runtime(device="cpu", **runtime), flops, recorded=recorded)


@pytest.mark.parametrize(
    ("bfloat16", "wanted"), [(4e11, torch.bfloat16), (1.2e11, torch.float32), (1e9, torch.float32)]
)
def test_bfloat16_where_its_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, wanted: torch.dtype
) -> None:
    rates(monkeypatch, 1e11, bfloat16)
    compute = choose(compile="never")
    assert compute.dtype == wanted
    # The denominator of MFU is the rate of what is computed in.
    assert compute.matmul_rate == (bfloat16 if wanted == torch.bfloat16 else 1e11)
    assert any("100 GFLOP/s" in reason for reason in compute.reasons)


def test_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 1e11, 4e11)
    assert choose(dtype="float32", compile="never").dtype == torch.float32
    rates(monkeypatch, 1e11, 1e9)
    compute = choose(dtype="bfloat16", compile="never")
    assert (compute.dtype, compute.compile) == (torch.bfloat16, False)


def test_going_on_computes_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bits otherwise, though today's measurement would choose differently."""
    rates(monkeypatch, 1e11, 4e11)
    before = {"device": "cpu", "dtype": "float32", "compile": False}
    compute = choose(recorded=before)
    assert (compute.dtype, compute.compile) == (torch.float32, False)
    elsewhere = choose(recorded={**before, "device": "cuda"}, compile="never")
    assert elsewhere.dtype == torch.bfloat16


def test_compiling_must_be_earned_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_compile_obstacle", lambda device: None)
    rates(monkeypatch, 1e11, 1e9)
    short = choose(flops=1e11)
    assert not short.compile
    assert "would not repay it" in short.reasons[-1]
    assert choose(flops=HOUR).compile
    assert choose(flops=1e11, compile="always").compile


def test_compiling_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    rates(monkeypatch, 1e11, 1e9)
    compute = choose()
    assert not compute.compile
    assert "no C++ compiler" in compute.reasons[-1]
    with pytest.raises(UserError, match=r"runtime\.compile: always, but no C\+\+ compiler"):
        choose(compile="always")


def test_the_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the fixture: some products of 64³, between a calculator and a data centre."""
    monkeypatch.undo()
    rate = devices.matmul_rate(torch.device("cpu"), torch.float32, 64)
    assert 1e6 < rate < 1e16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other heaps do as they do")
def test_freed_memory_is_given_back_before_a_peak_is_counted() -> None:
    cpu = torch.device("cpu")
    freed = torch.ones(4 << 20)
    del freed  # 16 MB: from here on, smaller blocks come from the heap
    # Of less than a mebibyte, which `map_large_blocks` leaves in the heap too.
    blocks = [torch.ones(3 << 16) for _ in range(192)]
    filled = devices.memory_used(cpu)
    del blocks[::2]  # 96 holes of 0.8 MB between blocks that stay
    holes = devices.memory_used(cpu)
    devices.forget_peak_memory(cpu)
    assert devices.memory_used(cpu) < holes - 50_000_000
    assert holes > filled - 30_000_000
    assert len(blocks) == 96


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu0"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="cannot be used here"):
        choose_compute(Runtime(device=name), HOUR)


def plan(rows: list[int]) -> TrainingPlan:
    config = ModelConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    values = {
        "name": "p",
        "model": {},
        "sequence_length": 128,
        "batch_tokens": 128 * rows[0],
        "optimizer": {"learning_rate": 1e-3},
        "datasets": {"a": {"path": "a", "max_epochs": 1e9}},
        "stages": [
            {"name": str(n), "tokens": 1, "mixture": {"a": 1}, "batch_tokens": 128 * count}
            for n, count in enumerate(rows)
        ],
    }
    sizes = {"a": SourceSize(10**6, declared=False)}
    return make_plan(check_recipe(values, "p"), config, "llama", sizes)


@pytest.mark.parametrize(
    ("rows", "ranks", "max_tokens", "wanted"),
    [
        ([12], 1, None, 12),
        ([12], 1, 128 * 5, 4),  # the largest divisor of 12 up to 5
        ([12, 8], 1, None, 4),  # divides both stages
        ([12], 3, None, 4),
        ([7], 1, 128 * 3, 1),
        ([2], 4, None, 1),
    ],
)
def test_the_micro_batch_divides_every_step(
    rows: list[int], ranks: int, max_tokens: int | None, wanted: int
) -> None:
    found = default_micro_batch_size(plan(rows), 2**40, ranks=ranks, max_tokens=max_tokens)
    assert found == wanted


def test_the_micro_batch_fits_in_memory() -> None:
    one = plan([16])
    kinds: dict[str, Any] = {"compute_bytes": 4, "device_type": "cpu"}
    needs = {
        rows: training_memory(one.config, rows, 128, **kinds, accumulates=rows < 16).total
        for rows in (1, 2, 4, 8, 16)
    }
    for need in needs.values():
        memory = int(need / 0.8) + 1
        wanted = max(rows for rows, other in needs.items() if other <= need)
        assert default_micro_batch_size(one, memory, **kinds) == wanted
    assert default_micro_batch_size(one, 1, **kinds) == 1


def test_activations_are_recomputed_only_where_nothing_else_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = plan([16])
    compute = devices.Compute(torch.device("cpu"), torch.float32, False, 1e11, ())
    needs = {
        (rows, spared): step_memory(
            one,
            rows,
            compute_bytes=4,
            activation_checkpointing=spared,
            device_type="cpu",
            compiled=False,
        ).total
        / 0.8
        for rows in (1, 2, 4)
        for spared in (False, True)
    }
    assert needs[4, True] < needs[4, False]

    def settle(memory: float, rows: int | None = None, **runtime: Any) -> tuple[int, bool]:
        monkeypatch.setattr(environment, "free_memory", lambda device: int(memory) + 1)
        asked = one.recipe.model_copy(update={"runtime": Runtime(device="cpu", **runtime)})
        return settle_passes(replace(one, recipe=asked), rows, 1, compute)

    assert settle(needs[2, False]) == (2, False)
    assert settle(needs[1, False] - 8) == (1, True)
    assert settle(needs[4, False], rows=4) == (4, False)
    assert settle(needs[4, True], rows=4) == (4, True)
    assert settle(needs[4, True], activation_checkpointing="always") == (4, True)
    assert settle(needs[1, False] - 8, activation_checkpointing="never") == (1, False)


def test_float8_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 1e11, 4e11)
    with pytest.raises(UserError, match=r"runtime\.float8: true, but cpu has no float8"):
        choose(float8=True)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_is_forgotten_and_found_again() -> None:
    # In a process of its own: in this one the block might fit into memory that tests before freed.
    code = """
import torch
from llamita.training.devices import forget_peak_memory, peak_memory
cpu, size = torch.device("cpu"), 64 << 20
block = torch.ones(2 * size, dtype=torch.uint8)
del block
forget_peak_memory(cpu)
before = peak_memory(cpu)
block = torch.ones(size, dtype=torch.uint8)
assert size * 0.9 < peak_memory(cpu) - before < size * 1.5
del block
assert peak_memory(cpu) - before > size * 0.9
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiled_code_is_kept_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, "elsewhere")
    keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == "elsewhere"
    monkeypatch.delenv(CACHE_VARIABLE)
    keep_compiled_code()
    assert Path(os.environ[CACHE_VARIABLE]) == tmp_path / "llamita" / "compiled"
    assert Path(os.environ[CACHE_VARIABLE]).is_dir()


_HOLES = """
import sys
from llamita.training.devices import map_large_blocks, memory_used
import torch
if sys.argv[1] == "mapped":
    map_large_blocks()
cpu = torch.device("cpu")
torch.ones(7_000_000)  # 28 MB, freed: up to so much glibc would now serve from its heap
before = memory_used(cpu)
blocks = [torch.ones(800_000) for _ in range(100)]  # 3.2 MB each
kept = blocks[::10] + [blocks[-1]]  # in between, so that the heap cannot shrink
del blocks
print((memory_used(cpu) - before) / 3.2e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's heap that has holes")
@pytest.mark.parametrize("how", ["mapped", "glibc's choice"])
def test_large_blocks_leave_no_holes(how: str) -> None:
    """Of a hundred blocks eleven are kept; glibc left alone would keep what lies between too."""
    environment = {key: value for key, value in os.environ.items() if "MALLOC" not in key}
    done = subprocess.run(
        [sys.executable, "-c", _HOLES, how],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    resident = float(done.stdout)
    if how == "mapped":
        assert resident == pytest.approx(11, abs=3)
    else:
        assert resident > 50
