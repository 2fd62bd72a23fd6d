"""The model that a preference stage must not stray from: the policy as the stage begins.

Its log-probabilities either come from a table, computed once before the first step, or from the
base with its adapter off, in every step.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from llamita import durable
from llamita.data.batch import Batch
from llamita.data.mixture import IntArray
from llamita.data.packed_stream import PackedStream
from llamita.errors import UserError
from llamita.inference.scoring import score_batch
from llamita.model.adapters import adapters_off
from llamita.model.decoder import Decoder
from llamita.model.head import IGNORE
from llamita.training.answers import answer_sums, answer_tokens
from llamita.training.parallelism import World

_TOLD_SECONDS = 10.0


class Reference(Protocol):
    def log_probs(self, model: Decoder, batch: Batch) -> Tensor:
        """log π_ref of each document of the batch, (B, D) float32, without gradient; 0 where there
        is no document."""
        ...


class LiveReference:
    """The base of `model`, its adapter switched off: right only where the adapter began as zero."""

    @torch.no_grad()
    def log_probs(self, model: Decoder, batch: Batch) -> Tensor:
        with adapters_off(model):
            return answer_sums(score_batch(model, batch).log_probs, batch)


class AnswerTable(NamedTuple):
    """Of each example of a split, by its number: log-probability of its tokens that learn, (n,)
    float32, and how many those are, (n,) float32; both 0 where packing left it out."""

    log_probs: Tensor
    num_tokens: Tensor


class TableReference:
    """Log-probabilities computed before.

    Args:
        tables: of each source's training split, in the order of `Batch.sources`.
    """

    def __init__(self, tables: Sequence[AnswerTable], device: torch.device) -> None:
        self.first = np.cumsum([0, *(len(table.log_probs) for table in tables[:-1])])
        self.table = torch.cat([table.log_probs for table in tables]).to(device)

    def log_probs(self, model: Decoder, batch: Batch) -> Tensor:
        assert batch.examples is not None
        first = torch.from_numpy(self.first[batch.sources])
        if batch.examples.is_cuda:
            first = first.pin_memory()
        places = batch.examples + first.to(batch.examples.device, non_blocking=True)[:, None]
        there = batch.examples >= 0
        return torch.where(there, self.table[torch.where(there, places, 0)], 0.0)


# -- computing a table --------------------------------------------------------------------------


@torch.no_grad()
def answer_table(
    model: Decoder,
    stream: PackedStream,
    *,
    sequence_length: int,
    rows: int,
    indices: IntArray | None = None,
    world: World | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> AnswerTable:
    """Log-probabilities that the model, as it is, gives to the examples of a split.

    Every process must call it; each computes its share of the rows, and all get the whole table.

    Args:
        rows: rows of a process's pass. The last pass is filled up, so that all have one shape.
        indices: only these rows, by number.
        progress: told rows done, rows in all, and estimated seconds to go, after each pass.

    Raises:
        UserError: a log-probability is not finite.
    """
    world = world or World()
    device = next(model.parameters()).device
    if indices is None:
        indices = np.arange(stream.num_windows(sequence_length), dtype=np.int64)
    table = torch.zeros(2, stream.num_documents)
    num_passes = -(-len(indices) // (rows * world.size))
    timer = _Timer(num_passes)
    for number in range(num_passes):
        first = (number * world.size + world.rank) * rows
        batch = _batch(stream, indices[first : first + rows], rows, sequence_length)
        assert batch.examples is not None
        there = batch.examples >= 0
        placed = batch.examples[there]
        batch = batch.to(device)
        sums = answer_sums(score_batch(model, batch).log_probs, batch).cpu()
        table[0, placed] = sums[there]
        table[1, placed] = answer_tokens(batch).cpu()[there]
        if progress is not None:
            done = min((number + 1) * world.size * rows, len(indices))
            progress(done, len(indices), timer.passed())
    world.sum(table)
    if not bool(table.isfinite().all()):
        raise UserError(
            "the model that the stage begins with gives some answers a log-probability that is "
            "not finite; it cannot be trained on them. Try runtime.dtype: float32"
        )
    return AnswerTable(table[0], table[1])


def _batch(stream: PackedStream, indices: IntArray, rows: int, sequence_length: int) -> Batch:
    """Rows by number, filled up to `rows` with rows in which there is nothing."""
    surplus = np.arange(rows) >= len(indices)
    filled = np.zeros(rows, dtype=np.int64)
    filled[: len(indices)] = indices
    found = stream.rows(filled, sequence_length)
    nothing = surplus[:, None]
    assert found.examples is not None
    return Batch.of(
        replace(
            found,
            targets=np.where(nothing, IGNORE, found.targets),
            examples=np.where(nothing, -1, found.examples),
        )
    )


class _Timer:
    """Foretells from the passes after the first, which may compile."""

    def __init__(self, num_passes: int) -> None:
        self.left, self.done = num_passes, 0
        self.began = self.warm = time.perf_counter()

    def passed(self) -> float:
        """Call it after each pass: estimated seconds to go."""
        now = time.perf_counter()
        self.left, self.done = self.left - 1, self.done + 1
        if self.done == 1:
            self.warm = now
            return (now - self.began) * self.left
        return (now - self.warm) / (self.done - 1) * self.left


def say_progress(say: Callable[[str], None], what: str) -> Callable[[int, int, float], None]:
    """A `progress` for `answer_table` that says a line every ten seconds."""
    from llamita.planning.quantities import duration

    told = time.perf_counter()

    def progress(done: int, total: int, seconds: float) -> None:
        nonlocal told
        if done < total and time.perf_counter() - told >= _TOLD_SECONDS:
            told = time.perf_counter()
            say(f"{what}: {done:,} of {total:,} rows, {duration(seconds)} to go")

    return progress


# -- keeping a table ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fingerprint:
    """What a table follows from: weights of the reference, data, row length and compute type.

    weights is None where they are gone: a stage that goes on from its middle takes the table that
    it began with.
    """

    weights: str | None
    data: str
    sequence_length: int
    dtype: str

    def differences(self, there: Fingerprint) -> list[str]:
        """In what a table's fingerprint differs from this one, in words."""
        mine, theirs = asdict(self), asdict(there)
        return [
            f"{name} {theirs[name]}, now {value}"
            for name, value in mine.items()
            if value != theirs[name] and value is not None
        ]


def reference_tables(
    path: Path,
    fingerprint: Fingerprint,
    compute: Callable[[], Mapping[str, AnswerTable]],
    *,
    world: World,
    say: Callable[[str], None],
) -> dict[str, AnswerTable]:
    """The tables kept at `path` if they are those of `fingerprint`; else computed and kept there.

    Every process must call it; the first one reads and writes.

    Args:
        path: RUN/reference/STAGE.safetensors.
        compute: makes the tables, by name; called by all processes or by none.

    Raises:
        UserError: the tables must be computed but the weights are gone (see `Fingerprint`), or
            they cannot be written.
    """
    found: dict[str, AnswerTable] | str | None = None
    if world.is_main:
        found = _load(path, fingerprint)
    found = world.agree(found)
    if isinstance(found, dict):
        return found
    reason = f"{path} {found}" if found else f"there is no {path}"
    if fingerprint.weights is None:
        raise UserError(
            f"{reason}; the reference's log-probabilities follow from the weights that the stage "
            "began with, and this run is in its middle. Put the file back, or branch from the "
            "stage's beginning with --from"
        )
    if found:
        say(f"{reason}: the reference's log-probabilities are computed again")
    tables = dict(compute())
    if world.is_main:
        _save(path, fingerprint, tables)
    world.barrier()
    return tables


def _load(path: Path, wanted: Fingerprint) -> dict[str, AnswerTable] | str | None:
    """The tables; or why they are of no use; or None where there is no file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded = Fingerprint(**json.loads(metadata["fingerprint"]))
        digest = metadata["digest"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        return f"is damaged ({error})"
    if digest != _digest(tensors):
        return "has been altered since it was written"
    differences = wanted.differences(recorded)
    if differences:
        return f"is of something else ({'; '.join(differences)})"
    names = [name.removesuffix("/log_probs") for name in tensors if name.endswith("/log_probs")]
    return {
        name: AnswerTable(tensors[f"{name}/log_probs"], tensors[f"{name}/num_tokens"])
        for name in names
    }


def _save(path: Path, fingerprint: Fingerprint, tables: Mapping[str, AnswerTable]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        f"{name}/{field}": tensor.contiguous()
        for name, table in tables.items()
        for field, tensor in table._asdict().items()
    }
    metadata = {"fingerprint": json.dumps(asdict(fingerprint)), "digest": _digest(tensors)}
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata=metadata)
        durable.sync(temporary)
        temporary.replace(path)
        durable.sync(path.parent)
        durable.sync(path.parent.parent)
    except (OSError, SafetensorError) as error:  # safetensors tells a full disk in its own way
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"could not write {path}: {error}. Free some space and run the same command again"
        ) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
