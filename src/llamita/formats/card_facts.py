"""What a model card is made of, as JSON: a run keeps it in `training/provenance.json`."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_HUB_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_SOURCE = re.compile(r"hf(?:\+stream)?:([A-Za-z0-9][\w.-]*/[\w.-]+)(?:/[\w.-]+)?(?:[@:].*)?")


class _Facts(BaseModel):
    # A card of a later version may know more: that is read over.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Origin(_Facts):
    """One thing that data were built from, by the name that the manifest keeps."""

    name: str
    records: int | None = None
    licence: str | None = None
    hub: str | None = None
    """The data set's id on the Hugging Face hub, where it came from there."""


class Source(_Facts):
    """A dataset of a run. `tokens_read` and `epochs` are of the whole run, and None where it did
    not tell (a checkpoint from the middle of a stage)."""

    name: str
    kind: str
    tokens: int
    documents: int
    fingerprint: str
    origins: tuple[Origin, ...]
    tokens_read: float | None = None
    epochs: float | None = None
    template: str | None = None
    learning_tokens: int | None = None


class Stage(_Facts):
    """`tokens` and `steps` as taken; `got` is None where the stage had not ended."""

    name: str
    objective: str
    schedule: str
    steps: int
    tokens: int
    batch_tokens: int
    sequence_length: int
    learning_rate: float
    learning_rate_at_end: float
    asked: dict[str, float]
    got: dict[str, float] | None = None


class Score(_Facts):
    """A figure on held-out data, or of a benchmark. `data` is its name, or None for all together.

    type: as a model-index calls it. low, high: the 95% interval, where there is one. of: what it
    was measured on, as "1,024 tokens, 4,096 bytes".
    """

    data: str | None
    type: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    of: str | None = None
    benchmark: bool = False


class Adapter(_Facts):
    """LoRA, as it learnt."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    learns: int
    """Parameters."""
    quantization: str | None = None


class Base(_Facts):
    """What a model was made from. `name` holds no path; `hub` is its id on the hub, if it has one.

    relation: as the hub calls it: finetune or adapter.
    """

    name: str
    relation: str
    hub: str | None = None
    fingerprint: str | None = None


class Run(_Facts):
    """How a run trained. `tokens` counts those of the runs that it went on from, too."""

    step: int
    tokens: int
    tokens_before: int
    settings: dict[str, str]
    """Label → value, in the order to show."""
    stages: tuple[Stage, ...]
    final: str
    """Which checkpoint the model is."""
    recipe: str
    """YAML, every default written out, without paths of the machine."""


class CardFacts(_Facts):
    """Everything a card says but what the model's own files say."""

    name: str
    title: str | None = None
    about: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    base: Base | None = None
    adapter: Adapter | None = None
    folded: bool = False
    """Whether the adapter has become part of the weights."""
    sources: tuple[Source, ...] = ()
    run: Run | None = None
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    """How the directory was made, where it was not by a run."""


def hub_model(name: str) -> str | None:
    """`name` where it is a model's id on the hub, and no path: a path's first part is here."""
    here = Path(name).expanduser()
    if not _HUB_MODEL.fullmatch(name) or here.exists() or here.parent.exists():
        return None
    return name


def hub_dataset(source: str) -> str | None:
    """The data set's id in a source's name (`hf:owner/name@revision:split`), if it came from there.

    Folders of this machine were recorded without their path, and so have no owner.
    """
    found = _HUB_SOURCE.fullmatch(source)
    return None if found is None else found[1]


def plain_name(model: str) -> str:
    """What to call a model that was named by a path: the last part that says anything."""
    path = Path(model)
    inside = path.name == "final" or path.name.startswith("step-")
    named = path.parent if inside and path.parent.name else path
    return named.name.removesuffix(".gguf") or model
