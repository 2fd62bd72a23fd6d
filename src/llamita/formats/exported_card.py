"""Model cards of directories that imports and exports write: what is known there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llamita.architecture.lora import lora_parameters
from llamita.data.tokenizer import load_tokenizer
from llamita.formats.card_facts import Adapter, Base, CardFacts, hub_model, plain_name
from llamita.formats.model_card import README, Model, render_card
from llamita.formats.writing import read_origin
from llamita.model.adapter_directory import is_adapter, read_adapter
from llamita.model.records import PROVENANCE, read_config, read_json

_BLOCK = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_export_card(directory: Path, source: Path, origin: dict[str, Any]) -> None:
    """README.md of an export, in a directory that has its config, weights and tokenizer already.

    Args:
        source: the directory that is exported: a model, or an adapter that was folded in.
        origin: what `origin.json` is to say; the card's facts are added to it, so that an export of
            the export knows them too.
    """
    named = str(origin["model"])
    facts = _facts_of(source, named)
    if is_adapter(source):
        facts = _folded(facts, source, directory)
    note = f"Written by {origin['written_by']}, in {origin['dtype']}."
    facts = facts.model_copy(update={"notes": (*facts.notes, note)})
    origin["card"] = facts.model_dump(mode="json")
    _write(directory, facts, str(origin["dtype"]))


def write_import_card(directory: Path, origin: Mapping[str, Any]) -> None:
    """README.md of an import, of what `origin.json` is to say."""
    _write(directory, _of_gguf(origin), str(origin["dtype"]))


def _write(directory: Path, facts: CardFacts, dtype: str) -> None:
    model = Model(read_config(directory), load_tokenizer(directory), dtype)
    (directory / README).write_text(render_card(facts, model), encoding="utf-8")


def _facts_of(source: Path, named: str) -> CardFacts:
    """As a run, an export or an import recorded them; else what a card of elsewhere states."""
    record = source / "training" / PROVENANCE
    kept = read_json(record).get("card") if record.is_file() else None
    origin = read_origin(source) or {}
    kept = kept or origin.get("card")
    if kept is not None:
        return CardFacts.model_validate(kept)
    if origin.get("format") == "gguf":
        return _of_gguf(origin)
    return CardFacts(name=plain_name(named), notes=_copied(named), **_stated(source / README))


def _copied(named: str) -> tuple[str, ...]:
    hub = hub_model(named)
    return () if hub is None else (f"A copy of {hub} of the Hugging Face hub.",)


def _stated(readme: Path) -> dict[str, Any]:
    """Licence and languages that a card says in its metadata; nothing where they are not plain."""
    if not readme.is_file():
        return {}
    found = _BLOCK.match(readme.read_text(encoding="utf-8", errors="replace"))
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:  # metadata of elsewhere that cannot be read say nothing
        return {}
    if not isinstance(values, dict):
        return {}
    keys = ("license", "license_name", "license_link")
    texts = {key: values[key] for key in keys if isinstance(values.get(key), str)}
    if texts.get("license") == "other" and len(texts) < len(keys):
        texts = {}
    spoken = values.get("language")
    languages = [spoken] if isinstance(spoken, str) else spoken
    if isinstance(languages, list) and all(isinstance(code, str) for code in languages):
        return {**texts, "languages": languages}
    return texts


def _folded(facts: CardFacts, source: Path, directory: Path) -> CardFacts:
    """Of an adapter that has become part of the weights in `directory`."""
    lora, recorded = read_adapter(source)
    adapter = facts.adapter or Adapter(
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        learns=lora_parameters(read_config(directory), lora),
        quantization=lora.quantization,
    )
    base = facts.base or Base(
        name=plain_name(recorded.path), relation="adapter", hub=hub_model(recorded.path)
    )
    return facts.model_copy(
        update={
            "adapter": adapter,
            "base": base.model_copy(update={"fingerprint": recorded.fingerprint}),
            "folded": True,
        }
    )


def _of_gguf(origin: Mapping[str, Any]) -> CardFacts:
    """Name and licence as the file states them, and what became of its numbers."""
    types = ", ".join(f"{count} {name}" for name, count in origin["tensor_types"].items())
    note = (
        f"Read from the GGUF file {origin['file']} ({origin['architecture']}; tensors: {types}), "
        f"dequantised and stored in {origin['dtype']}."
    )
    notes, licence = [note], origin.get("general.license")
    stated = licence.lower() if isinstance(licence, str) else ""
    if stated == "other" or (stated and not _LICENCE.fullmatch(stated)):
        notes.append(f"Of its licence the file says: {licence}")
        stated = ""
    name = origin.get("general.name") or plain_name(str(origin["file"]))
    return CardFacts(name=str(name), license=stated or None, notes=tuple(notes))
