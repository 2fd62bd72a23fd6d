"""What a preference stage needs beside its batches: the reference's log-probabilities, of the pairs
it trains on and of those held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llamita.data.mixture import IntArray
from llamita.data.packed_stream import PackedStream
from llamita.data.shards import Dataset
from llamita.model.decoder import Decoder
from llamita.planning.plan import StagePlan
from llamita.recipes.schema import Preference
from llamita.training.devices import Compute
from llamita.training.parallelism import World
from llamita.training.preference_scoring import PreferenceScore, score_preferences
from llamita.training.reference import (
    AnswerTable,
    Fingerprint,
    LiveReference,
    Reference,
    TableReference,
    answer_table,
    reference_tables,
    say_progress,
)

_HELD_OUT = "/held-out"


class StagePairs:
    """The reference of a stage, opened as it is entered or gone on with.

    Args:
        model: the policy; at the stage's first step it is the reference itself.
        weights: fingerprint of its weights if the stage is at its first step, else None.
        rows: rows of a forward pass.
        held_out_tokens: how much of each dataset's held-out pairs is scored.
    """

    def __init__(
        self,
        stage: StagePlan,
        datasets: Mapping[str, Dataset],
        model: Decoder,
        *,
        run: Path,
        weights: str | None,
        rows: int,
        held_out_tokens: int,
        compute: Compute,
        world: World,
        say: Callable[[str], None],
    ) -> None:
        settings = stage.stage.objective
        assert isinstance(settings, Preference)
        self._settings, self._model, self._world = settings, model, world
        self._length, self._rows = stage.sequence_length, rows
        read = {name: datasets[name] for name in stage.stage.mixture}
        self._held_out: dict[str, tuple[PackedStream, IntArray]] = {}
        for name, dataset in read.items():
            stream = _packed(dataset.validation)
            indices = stream.held_out_rows(self._length, held_out_tokens)
            if len(indices):
                self._held_out[name] = (stream, indices)
        live = settings.reference == "live"
        trained = {} if live else {name: _packed(dataset.train) for name, dataset in read.items()}
        progress = say_progress(say, "reference")

        def compute_tables() -> dict[str, AnswerTable]:
            say(f"stage {stage.stage.name}: the reference's log-probabilities, computed once")
            tables = {name: self._table(stream, None, progress) for name, stream in trained.items()}
            return tables | {
                name + _HELD_OUT: self._table(stream, indices, progress)
                for name, (stream, indices) in self._held_out.items()
            }

        tables = reference_tables(
            run / "reference" / f"{stage.stage.name}.safetensors",
            Fingerprint(
                weights,
                "/".join(dataset.fingerprint for dataset in read.values())
                + f", {', '.join([*trained, *self._held_out])} to {held_out_tokens} held out",
                self._length,
                str(compute.dtype),
            ),
            compute_tables,
            world=world,
            say=say,
        )
        self._tables = {name: tables[name + _HELD_OUT] for name in self._held_out}
        self.reference: Reference = LiveReference()
        if not live:
            self.reference = TableReference([tables[name] for name in trained], compute.device)

    def _table(
        self,
        stream: PackedStream,
        indices: IntArray | None,
        progress: Callable[[int, int, float], None],
    ) -> AnswerTable:
        return answer_table(
            self._model,
            stream,
            sequence_length=self._length,
            rows=self._rows,
            indices=indices,
            world=self._world,
            progress=progress,
        )

    def score(self) -> dict[str, PreferenceScore]:
        """The policy as it is on the held-out pairs of each dataset that has any."""
        return {
            name: score_preferences(
                self._model,
                stream,
                self._tables[name],
                self._settings,
                sequence_length=self._length,
                rows=self._rows,
                indices=indices,
                world=self._world,
            )
            for name, (stream, indices) in self._held_out.items()
        }


def _packed(stream: object) -> PackedStream:
    assert isinstance(stream, PackedStream), "a preference stage reads pairs"
    return stream
