"""The reference model: its table against Transformers, live, shared between processes, kept."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamita.architecture.lora import Lora
from llamita.errors import UserError
from llamita.model.adapters import add_adapters
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from llamita.model.initialization import learning_rate_multipliers
from llamita.recipes.schema import AdamW, Guard, Preference
from llamita.training.guards import StepGuard
from llamita.training.objective import build_objective
from llamita.training.optimizer import build_optimizer
from llamita.training.parallelism import World
from llamita.training.reference import (
    AnswerTable,
    Fingerprint,
    LiveReference,
    TableReference,
    answer_table,
    reference_tables,
    say_progress,
)
from llamita.training.step import TrainingStep
from tests.model.shapes import transformers_model
from tests.training.helpers import no_file_beyond
from tests.training.pairs import PairStream, answer_log_prob, ours, random_pairs

CPU = torch.device("cpu")
LAYOUT = ((0, 1), (2, 3, 4), (6,))  # pair 5 was left out
LORA = Lora(rank=4, alpha=8.0, dropout=0.5, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def stream() -> Any:
    return PairStream(random_pairs(7), LAYOUT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return ours(transformers_model("llama-untied"), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """The base with an adapter that has learned something, in training mode."""
    model = ours(transformers_model("llama-untied"), tmp_path_factory.mktemp("adapted"))
    add_adapters(model, LORA, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model.train()


def table(model: Decoder, stream: Any, rows: int = 2, **changes: Any) -> AnswerTable:
    return answer_table(model, stream, sequence_length=48, rows=rows, **changes)


# -- computing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_table_is_transformers(rows: int, base: Decoder, stream: Any) -> None:
    """Each answer alone behind its prompt, whatever shares its row, and however the last pass is
    filled up."""
    theirs = transformers_model("llama-untied")
    found = table(base, stream, rows)
    for number, pair in enumerate(stream.pairs):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            placed = any(number in row for row in LAYOUT)
            wanted = answer_log_prob(theirs, pair.prompt, answer) if placed else 0.0
            place = 2 * number + side
            assert float(found.log_probs[place]) == pytest.approx(wanted, abs=1e-4)
            assert found.num_tokens[place] == (len(answer) if placed else 0)


def test_some_rows(base: Decoder, stream: Any) -> None:
    whole, found = table(base, stream), table(base, stream, indices=np.array([2, 0]))
    placed = found.num_tokens.view(-1, 2)[:, 0] > 0
    assert placed.tolist() == [number in (0, 1, 6) for number in range(7)]
    torch.testing.assert_close(
        found.log_probs.view(-1, 2)[placed], whole.log_probs.view(-1, 2)[placed]
    )


@dataclass(frozen=True)
class OneOf(World):
    """One process of several, whose sums the test adds up."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("size", [2, 5])
def test_processes_share_the_rows(size: int, base: Decoder, stream: Any) -> None:
    whole = table(base, stream)
    parts = [table(base, stream, 1, world=OneOf(rank, size)) for rank in range(size)]
    for field in range(2):
        torch.testing.assert_close(sum(part[field] for part in parts), whole[field])


def test_progress_ends_with_all(base: Decoder, stream: Any) -> None:
    told: list[tuple[int, int, float]] = []
    table(base, stream, progress=lambda *values: told.append(values))
    assert [entry[:2] for entry in told] == [(2, 3), (3, 3)]
    assert told[0][2] > 0 == told[1][2]


def test_progress_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    lines: list[str] = []
    progress = say_progress(lines.append, "reference")
    for done in range(1, 7):
        now[0] += 4
        progress(100 * done, 600, 4.0 * (6 - done))
    assert lines == ["reference: 300 of 600 rows, 12s to go"]


def test_no_dropout_in_a_table(adapted: Decoder, stream: Any) -> None:
    first, second = table(adapted, stream), table(adapted, stream)
    assert torch.equal(first.log_probs, second.log_probs)
    assert adapted.training


def test_numbers_that_are_none_are_refused(stream: Any, tmp_path: Path) -> None:
    model = ours(transformers_model("llama-untied"), tmp_path)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        table(model, stream)


# -- asking -------------------------------------------------------------------------------------


def test_live_and_table_agree(base: Decoder, adapted: Decoder, stream: Any) -> None:
    batch = stream.batch()
    live = LiveReference().log_probs(adapted, batch)
    kept = TableReference([table(base, stream)], CPU).log_probs(adapted, batch)
    assert live.shape == kept.shape == (3, 6)
    torch.testing.assert_close(live, kept, rtol=1e-5, atol=1e-5)
    assert not live.requires_grad
    assert not torch.allclose(live, table(adapted, stream).log_probs[batch.examples], atol=0.1)


def test_gradients_reach_the_adapter_alone(adapted: Decoder, stream: Any) -> None:
    adapted.zero_grad()
    objective = build_objective(Preference(), LiveReference())
    objective.loss_sum(adapted, stream.batch()).loss.backward()
    learned = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert learned
    assert all("lora_" in name for name in learned)


def test_sources_have_tables_of_their_own(base: Decoder, stream: Any) -> None:
    """Example numbers begin anew in each source."""
    one = AnswerTable(torch.arange(4.0), torch.ones(4))
    reference = TableReference([one, table(base, stream)], CPU)
    batch = replace(stream.batch(), sources=np.array([1, 0, 1]))
    assert batch.examples is not None
    batch.examples[1] = torch.tensor([2, 3, -1, -1, -1, -1])
    found = reference.log_probs(base, batch)
    alone = TableReference([table(base, stream)], CPU).log_probs(base, stream.batch())
    assert found[1].tolist() == [2, 3, 0, 0, 0, 0]
    assert torch.equal(found[[0, 2]], alone[[0, 2]])


# -- keeping ------------------------------------------------------------------------------------

HERE = Fingerprint(weights="w", data="d", sequence_length=48, dtype="float32")
TABLES = {"pairs": AnswerTable(torch.tensor([-1.5, -2.25]), torch.tensor([3.0, 4.0]))}


class Kept:
    """Asks for tables at a path, and counts how often they are computed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run" / "reference" / "align.safetensors"
        self.lines: list[str] = []
        self.computed = 0

    def compute(self) -> Mapping[str, AnswerTable]:
        self.computed += 1
        return TABLES

    def __call__(self, fingerprint: Fingerprint = HERE) -> dict[str, AnswerTable]:
        return reference_tables(
            self.path, fingerprint, self.compute, world=World(), say=self.lines.append
        )


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    (tmp_path / "run").mkdir()
    return Kept(tmp_path)


def test_tables_are_computed_once(kept: Kept) -> None:
    for fingerprint in (HERE, HERE, replace(HERE, weights=None)):
        found = kept(fingerprint)
        assert found.keys() == TABLES.keys()
        for ours_, wanted in zip(found["pairs"], TABLES["pairs"], strict=True):
            assert torch.equal(ours_, wanted)
    assert kept.computed == 1
    assert not kept.lines
    assert [file.name for file in kept.path.parent.iterdir()] == ["align.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights", "x"), ("data", "x"), ("sequence_length", 64), ("dtype", "bfloat16")],
)
def test_tables_of_something_else_are_computed_again(kept: Kept, field: str, value: Any) -> None:
    kept()
    other = replace(HERE, **{field: value})
    kept(other)
    assert kept.computed == 2
    assert len(kept.lines) == 1
    assert field in kept.lines[0]
    kept(other)
    assert kept.computed == 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _replace(path: Path) -> None:
    path.write_text("no tensors")


@pytest.mark.parametrize("damage", [_cut, _alter, _replace])
def test_damage_is_found(kept: Kept, damage: Callable[[Path], None]) -> None:
    kept()
    damage(kept.path)
    kept()
    assert kept.computed == 2
    assert len(kept.lines) == 1
    damage(kept.path)
    with pytest.raises(UserError, match="began with"):
        kept(replace(HERE, weights=None))


def test_in_a_stages_middle_there_is_nothing_to_compute_from(kept: Kept) -> None:
    with pytest.raises(UserError, match=r"there is no .*align\.safetensors"):
        kept(replace(HERE, weights=None))
    assert kept.computed == 0


def test_a_full_disk(kept: Kept) -> None:
    with no_file_beyond(100), pytest.raises(UserError, match="could not write"):
        kept()
    assert not list(kept.path.parent.iterdir())


# -- several processes --------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from pathlib import Path
from llamita.training.parallelism import World
from tests.training.test_reference import step_by_pairs

world = World.join(torch.device("cpu"))
torch.set_num_threads(1)
found = step_by_pairs(Path(sys.argv[1]), world)
if world.is_main:
    torch.save(found, sys.argv[2])
world.leave()
"""


def step_by_pairs(base: Path, world: World) -> dict[str, Any]:
    """Tables and a step of preferences, live and precomputed, by this process's share."""
    stream: Any = PairStream(random_pairs(7), (*LAYOUT, (5,)))
    model = load_model(base)
    add_adapters(model, replace(LORA, dropout=0.0), seed=0)
    world.shard(model)
    before = reference_tables(
        base.parent / f"reference-{world.size}" / "s.safetensors",
        HERE,
        lambda: {"pairs": table(model, stream, 1, world=world)},
        world=world,
        say=lambda line: None,
    )["pairs"]
    found: dict[str, Any] = {"table": before.log_probs}
    references = {"live": LiveReference(), "kept": TableReference([before], CPU)}
    step = TrainingStep(
        model,
        build_optimizer(
            model, AdamW(learning_rate=1e-3), learning_rate_multipliers(model, "llama")
        ),
        StepGuard(Guard(), CPU),
        device=CPU,
        clip_grad_norm=None,
        world=world,
    )
    for name, reference in references.items():
        objective = build_objective(Preference(), reference)
        results = [step(objective, stream.batch(), 1, 1e-2) for _ in range(3)]
        found[name] = [{"loss": r.loss, "norm": r.grad_norm, **r.metrics} for r in results]
    return found


@pytest.mark.slow
def test_two_processes_do_as_one(tmp_path: Path) -> None:
    transformers_model("llama-untied").save_pretrained(tmp_path / "base")
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    address = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = [str(tmp_path / name) for name in ("script.py", "base", "found")]
    subprocess.run(
        [*command, *address, *arguments],
        env={**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"},
        check=True,
        timeout=240,
    )
    found = torch.load(tmp_path / "found")
    alone = step_by_pairs(tmp_path / "base", World())
    torch.testing.assert_close(found["table"], alone["table"], rtol=1e-5, atol=1e-5)
    for name in ("live", "kept"):
        for two, one in zip(found[name], alone[name], strict=True):
            values = {key: float(value) for key, value in two.items()}
            wanted = {key: float(value) for key, value in one.items()}
            assert values == pytest.approx(wanted, rel=1e-3, abs=1e-4)
