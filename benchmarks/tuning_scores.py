"""Scores of tuning_quality.py: conversation by conversation, with intervals.

All 95%. Means over seeds and paired differences go by Student's t; shares by Wilson's interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.packed_stream import PackedStream
from llamita.data.shards import open_dataset
from llamita.inference.sampling import Sampling
from llamita.model.decoder import Decoder
from llamita.model.huggingface import load_model
from llamita.recipes.schema import Preference
from llamita.training.preference_scoring import Interval, PreferenceScore, wilson_interval
from llamita.training.preference_scoring import compare as compare_tables
from llamita.training.reference import AnswerTable, answer_table

GREEDY = Sampling(temperature=0.0)

Values = NDArray[np.float64]


def t_interval(values: Values) -> Interval:
    """Of a mean, by Student's t; unbounded for a single value."""
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def welch_interval(first: Values, second: Values) -> Interval:
    """Of mean(first) − mean(second) of independent runs (Welch 1947, Biometrika 34:28)."""
    from scipy.stats import t

    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Interval(difference, -math.inf, math.inf)
    parts = [values.var(ddof=1) / len(values) for values in (first, second)]
    if not sum(parts):
        return Interval(difference, difference, difference)
    sizes = [
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    ]
    half = float(t.ppf(0.975, sum(parts) ** 2 / sum(sizes))) * math.sqrt(sum(parts))
    return Interval(difference, difference - half, difference + half)


def shown(interval: Interval, digits: int = 4) -> str:
    if not math.isfinite(interval.low):
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def split(source: Path, folder: Path, held_out: int, most: int) -> tuple[Path, Path]:
    """Training rows and held-out rows as two files: the rows with the smallest BLAKE2b hash of
    what they say are held out, whatever the seed, the order of the file, or `most`."""
    rows = json.loads(source.read_text("utf-8"))
    keyed = {
        blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest(): row
        for row in rows
    }
    ordered = [keyed[key] for key in sorted(keyed)]
    if len(ordered) <= held_out:
        raise SystemExit(f"{source} has {len(ordered)} rows: too few to hold out {held_out}")
    paths = folder / f"train-{source.stem}.json", folder / f"held-out-{source.stem}.json"
    for path, chosen in zip(
        paths, (ordered[held_out : held_out + most], ordered[:held_out]), strict=True
    ):
        path.write_text(json.dumps(chosen, ensure_ascii=False), "utf-8")
    return paths


@dataclass(frozen=True)
class ChatScore:
    """A model on held-out conversations, (n,) each, in the order of the file: nats and tokens that
    learn; and the UTF-8 bytes of what learns in all of them."""

    nats: Values
    tokens: Values
    num_bytes: int

    @property
    def loss(self) -> float:
        """Nats a token that learns."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum()) / math.log(2) / self.num_bytes

    @property
    def losses(self) -> Values:
        """Mean nats a token of each conversation: what is paired."""
        return self.nats / self.tokens

    def as_json(self) -> dict[str, float]:
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte}


class HeldOutExamples:
    """Held-out conversations or pairs as a dataset, all of it its `train` split, uncut.

    Args:
        rows: rows of a forward pass.
    """

    def __init__(self, source: Path, folder: Path, model: Path, kind: Any, rows: int = 1) -> None:
        from llamita.data.chat_build import build_chats

        build_chats(source, folder, model, kind=kind, validation=0.0, dedup=False, say=_silent)
        stream = open_dataset(folder).train
        assert isinstance(stream, PackedStream)
        self.stream, self.rows = stream, rows
        group = 2 if kind == "preferences" else 1
        longest = int(stream.document_lengths().max())
        self.length = 1 << (group * longest - 1).bit_length()
        """Of a row: the least power of two that cuts nothing."""

    @property
    def num_tokens(self) -> int:
        return int(self.stream.document_lengths().sum())

    def table(self, model: Decoder) -> AnswerTable:
        return answer_table(model, self.stream, sequence_length=self.length, rows=self.rows)

    def score(self, directory: Path) -> ChatScore:
        """A model, or an adapter, of ours or PEFT's, on the conversations."""
        found = self.table(load_model(directory, merge=True).eval())
        placed = found.num_tokens.numpy() > 0
        num_bytes = self.stream.learning_bytes(
            range(self.stream.num_windows(self.length)), self.length
        )
        nats, tokens = -found.log_probs.double().numpy(), found.num_tokens.double().numpy()
        return ChatScore(nats[placed], tokens[placed], num_bytes)


def compare_pairs(policy: AnswerTable, reference: AnswerTable) -> PreferenceScore:
    return compare_tables(policy, reference, Preference(kind="preference"))


@dataclass(frozen=True)
class Endings:
    """Of some answers, how many ended by themselves within the most tokens."""

    ended: int
    answers: int
    tokens: int

    @property
    def share(self) -> Interval:
        return wilson_interval(self.ended, self.answers)


def endings(
    directory: Path,
    questions: Sequence[str],
    max_tokens: int,
    sampling: Sampling = GREEDY,
) -> Endings:
    """Answer each question, greedily unless told otherwise, as `llamita chat` would on a machine
    without a GPU: by llama.cpp in Q8_0, several times as fast as in the type that was learnt in."""
    from llamita.data.chat_records import Message
    from llamita.inference.conversation import prompt_of
    from llamita.inference.engine import Request, Stream
    from llamita.inference.engines import open_engine

    ended = total = 0
    engine = open_engine(directory, engine="llama.cpp", context=2048, say=_silent)
    try:
        for question in questions:
            stream = Stream(
                engine,
                Request(
                    prompt_of(engine, [Message("user", question)]),
                    sampling,
                    max_tokens=max_tokens,
                    stop_ids=engine.end_ids,
                ),
            )
            for _ in stream:
                pass
            assert stream.finish is not None
            ended += stream.finish.reason == "stop"
            total += stream.finish.completion_tokens
    finally:
        engine.close()
    return Endings(ended, len(questions), total)


def questions(held_out: Path, most: int) -> list[str]:
    """Alpaca's questions, as `data.chat_records` puts them."""
    rows = json.loads(held_out.read_text("utf-8"))[:most]
    return [
        "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        for row in rows
    ]


def _silent(line: str) -> None:
    pass
