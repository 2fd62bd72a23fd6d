"""The text that a run was trained on, read back from its shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamita.data.build import TOKENIZER_DIRECTORY
from llamita.data.manifest import MANIFEST_NAME, read_manifest
from llamita.data.shards import open_dataset
from llamita.data.tokenizer import Tokenizer, load_tokenizer
from llamita.errors import UserError
from llamita.model.records import PROVENANCE, STATE, read_json, step_directories
from llamita.recipes.loading import load_recipe
from llamita.recipes.schema import Recipe

_RECIPE = "recipe.yaml"
_IN_RUN = re.compile(r"final|step-\d+")
# Decoders that put tokens' bytes side by side, but for a space at the start.
_JOINING = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip"}
# Tokens decoded at a time: some 10 MB.
_TOKENS = 1 << 16

_Tokens = NDArray[np.unsignedinteger[Any]]
_Places = NDArray[np.int64]


@dataclass(frozen=True)
class TrainingText:
    """Where a model's training text lies.

    datasets: directories of `llamita data build`, those of the runs that it began with first.
    documents, text_bytes: of their training splits, with the bytes as the manifests count them (of
    conversations, those that are learnt). unknown: the models that a run began with whose own
    training text is not here.
    """

    datasets: tuple[Path, ...]
    documents: int
    text_bytes: int
    unknown: tuple[str, ...] = ()


def training_text(runs_or_data: str | Path | Sequence[str | Path]) -> TrainingText:
    """What a run, and the runs whose weights it began with, were trained on.

    Args:
        runs_or_data: a run directory, or `final` or a checkpoint in one, or a dataset of `llamita
            data build`; or several of these.

    Raises:
        UserError: neither; or the data of a run are gone, or others than it was trained on.
    """
    given = [runs_or_data] if isinstance(runs_or_data, str | Path) else runs_or_data
    datasets: dict[Path, None] = {}
    unknown: list[str] = []
    for place in map(Path, given):
        if (place / MANIFEST_NAME).is_file():
            datasets[place] = None
            continue
        run = _run_of(place)
        if run is None:
            raise UserError(
                f"{place} is neither a run with {_RECIPE} nor a dataset with {MANIFEST_NAME}: the "
                "text that a model was trained on is known of runs of llamita; name a run, or a "
                "directory made by `llamita data build`."
            )
        for each in reversed(list(_lineage(run, unknown))):
            datasets |= dict.fromkeys(_datasets(each))
    splits = [read_manifest(path).splits["train"] for path in datasets]
    return TrainingText(
        datasets=tuple(datasets),
        documents=sum(split.documents for split in splits),
        text_bytes=sum(split.text_bytes for split in splits),
        unknown=tuple(unknown),
    )


def shard_texts(where: str | Path | Sequence[str | Path] | TrainingText) -> Iterator[str]:
    """The training documents of a run or dataset in their order, as text.

    They are decoded by the tokenizer that the dataset keeps, but for spaces: special tokens become
    spaces, and one that the tokenizer puts in front of a text may stand there.

    Raises:
        UserError: as `training_text`, or shards that are missing or truncated.
    """
    text = where if isinstance(where, TrainingText) else training_text(where)
    for path in text.datasets:
        stream = open_dataset(path).train
        decode = _decoder(load_tokenizer(path / TOKENIZER_DIRECTORY))
        lengths = stream.document_lengths()
        for first, stop in _groups(lengths):
            tokens = np.concatenate([stream.document(number) for number in range(first, stop)])
            yield from decode(tokens, lengths[first:stop])


def _groups(lengths: _Places) -> Iterator[tuple[int, int]]:
    """Documents in a row, of some `_TOKENS` together."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        done = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, done + _TOKENS, side="left")) + 1
        yield first, min(stop, len(lengths))
        first = stop


def _decoder(tokenizer: Tokenizer) -> Callable[[_Tokens, _Places], Iterator[str]]:
    """From the tokens of documents in a row, and the length of each, to their texts.

    Where a text is its tokens' bytes side by side, these are copied out of a table, at nine times
    the speed of `tokenizers`.
    """
    if _joins(tokenizer.specification):
        return _ByteTable(tokenizer).texts

    def texts(tokens: _Tokens, lengths: _Places) -> Iterator[str]:
        for ids in np.split(tokens, np.cumsum(lengths)[:-1]):
            yield tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    return texts


class _ByteTable:
    """The bytes of all tokens one behind the other; a space for special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = tokenizer.token_bytes()
        named = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        for number in (*tokenizer.special_ids, *(each for each in named if each is not None)):
            table[number] = b" "
        self._bytes = np.frombuffer(b"".join(table), dtype=np.uint8)
        self._lengths = np.array([len(token) for token in table], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths

    def texts(self, tokens: _Tokens, lengths: _Places) -> Iterator[str]:
        parts = [tokens[start : start + _TOKENS] for start in range(0, len(tokens), _TOKENS)]
        joined = b"".join(map(self._joined, parts))
        ends = np.concatenate(([0], np.cumsum(self._lengths[tokens])))[np.cumsum(lengths)]
        start = 0
        for end in ends.tolist():
            yield joined[start:end].decode(errors="replace")
            start = end

    def _joined(self, tokens: _Tokens) -> bytes:
        lengths = self._lengths[tokens]
        ends = np.cumsum(lengths)
        shifts = np.repeat(self._starts[tokens] - ends + lengths, lengths)
        return self._bytes[np.arange(len(shifts)) + shifts].tobytes()


def _joins(specification: Any) -> bool:
    decoder = specification.get("decoder") or {}
    kinds = {part.get("type") for part in decoder.get("decoders") or [decoder]}
    return kinds <= _JOINING


def _run_of(place: Path) -> Path | None:
    run = place.parent if _IN_RUN.fullmatch(place.name) else place
    return run if (run / _RECIPE).is_file() else None


def _lineage(run: Path, unknown: list[str]) -> Iterator[Path]:
    """A run, and the one that it began with, and so on. A model that no run made is `unknown`."""
    seen: set[Path] = set()
    here: Path | None = run
    while here is not None and here.resolve() not in seen:
        seen.add(here.resolve())
        yield here
        origin = load_recipe(here).start_from
        if origin is None:
            return
        found = next(filter(None, map(_run_of, _candidates(origin, here))), None)
        if found is None:
            unknown.append(origin)
        here = found


def _datasets(run: Path) -> list[Path]:
    recipe = load_recipe(run)
    recorded = _recorded(run, recipe)
    return [_dataset(run, name, recipe, recorded.get(name)) for name in recipe.datasets]


def _dataset(run: Path, name: str, recipe: Recipe, fingerprint: str | None) -> Path:
    given = recipe.datasets[name].path
    there = [path for path in _candidates(given, run) if (path / MANIFEST_NAME).is_file()]
    if not there:
        raise UserError(
            f"{run}: its dataset {name} is not at {given} any more; put it back, or name the "
            "directories with the text in place of the run."
        )
    for path in there:
        if fingerprint is None or read_manifest(path).fingerprint == fingerprint:
            return path
    raise UserError(
        f"{there[0]} is not what {run} was trained on as {name}: the run recorded the fingerprint "
        f"{str(fingerprint)[:16]}, this is {read_manifest(there[0]).fingerprint[:16]}; put that "
        "dataset back, or name the directories with the text in place of the run."
    )


def _candidates(given: str, run: Path) -> Iterator[Path]:
    """What a run's recipe may have meant by a path: from here, else from a folder above the run,
    of which one was the working directory when it was trained."""
    path = Path(given).expanduser()
    yield path
    if not path.is_absolute():
        yield from (above / path for above in run.resolve().parents)


def _recorded(run: Path, recipe: Recipe) -> dict[str, str]:
    """Fingerprints of its datasets by name, as its newest checkpoint has them."""
    steps = list(step_directories(run).values())
    records = [path / "training" / STATE for path in reversed(steps)]
    records.append(run / "final" / "training" / PROVENANCE)
    for record in records:
        if record.is_file():
            found: dict[str, str] = read_json(record)["datasets"]
            return found
    raise UserError(
        f"{run} has no whole checkpoint, so that nothing says which data {recipe.name} has read."
    )
