"""What a run knows of its model, for the model card: recipe, manifests, checkpoint and events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from llamita.architecture.lora import lora_parameters
from llamita.data.manifest import Manifest
from llamita.formats.card_facts import (
    Adapter,
    Base,
    CardFacts,
    Origin,
    Run,
    Score,
    Source,
    Stage,
    hub_dataset,
    hub_model,
    plain_name,
)
from llamita.formats.card_text import plain
from llamita.model.adapter_directory import is_adapter
from llamita.model.locate import locate
from llamita.recipes.loading import dump_recipe
from llamita.recipes.schema import Recipe, Settings
from llamita.training.preparation import Preparation
from llamita.training.reports import planned

Event = Mapping[str, Any]
_CHOSEN = {
    "last": "the last checkpoint",
    "best": "the checkpoint that did best in validation",
    "average": "an average of the weights",
}


def card_facts(
    preparation: Preparation,
    run: Path,
    values: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
) -> CardFacts:
    """What README.md of `final/` tells.

    Args:
        run: the run's directory, whose events are read.
        values: the JSON state of the checkpoint that `final/` is made from.
        validation: what was measured of just these weights; None where nothing was.
    """
    recipe, card = preparation.recipe, preparation.recipe.card
    events = _events(run, values["step"])
    stages = _stages(preparation, values["step"], events)
    return CardFacts(
        name=recipe.name,
        title=card.title,
        about=card.about or plain(recipe.description) or None,
        license=card.license,
        license_name=card.license_name,
        license_link=card.license_link,
        languages=tuple(card.language),
        base=_base(preparation),
        adapter=_adapter(preparation),
        sources=_sources(preparation, stages, events),
        run=Run(
            step=values["step"],
            tokens=values["tokens"],
            tokens_before=values["tokens"] - sum(stage.tokens for stage in stages),
            settings=_settings(recipe, values, events),
            stages=stages,
            final=f"{_CHOSEN.get(recipe.checkpoints.final, 'a checkpoint chosen by name')}, "
            f"of step {values['step']:,}",
            recipe=_without_paths(recipe),
        ),
        scores=(*_scores(recipe, validation, events), *_benchmarks(recipe, values, events)),
    )


def _events(run: Path, step: int) -> Sequence[Event]:
    """What the run had told when it took `step`; nothing where the record is gone."""
    from llamita.reporting.events import read_events

    path = run / "events.jsonl"
    found = read_events(path) if path.is_file() else []
    return [event for event in found if event.get("step", 0) <= step]


def _base(preparation: Preparation) -> Base | None:
    recipe = preparation.recipe
    if recipe.start_from is None:
        return None
    named = recipe.start_from
    here = Path(named).expanduser()
    if preparation.adapted is not None and here.is_dir() and is_adapter(locate(here)):
        named = preparation.adapted.named  # an adapter that goes on belongs to its own base
    return Base(
        name=plain_name(named),
        relation="finetune" if recipe.adapter is None else "adapter",
        hub=hub_model(named),
    )


def _adapter(preparation: Preparation) -> Adapter | None:
    if preparation.adapted is None:
        return None
    lora = preparation.adapted.lora
    return Adapter(
        rank=lora.rank,
        alpha=lora.alpha,
        targets=tuple(lora.targets),
        learns=lora_parameters(preparation.config, lora),
        quantization=lora.quantization,
    )


def _stages(preparation: Preparation, step: int, events: Sequence[Event]) -> tuple[Stage, ...]:
    """Stages that the checkpoint has seen, with the shares that they told when they ended."""
    told = {event["stage"]: event["realised"] for event in events if event["event"] == "mixture"}
    stages = []
    plans = preparation.plan.stages
    for plan, facts in zip(plans, planned(preparation.plan)["stages"], strict=True):
        taken = min(facts["num_steps"], step - facts["first_step"])
        if taken <= 0:
            break
        stages.append(
            Stage(
                name=facts["name"],
                objective=_spelt(plan.stage.objective),
                schedule=_spelt(plan.stage.schedule),
                steps=taken,
                tokens=taken * facts["batch_tokens"],
                batch_tokens=facts["batch_tokens"],
                sequence_length=facts["sequence_length"],
                learning_rate=facts["learning_rate"],
                learning_rate_at_end=facts["learning_rate_at_end"],
                asked=facts["mixture"],
                got=told.get(facts["name"]),
            )
        )
    return tuple(stages)


def _spelt(settings: Settings) -> str:
    """A schedule, an objective or an optimizer in words: its kind, and what was set."""
    values = settings.model_dump(exclude_none=True)
    kind = values.pop("kind").replace("_", " ")
    shown = [
        f"{key.replace('_', ' ')} {_value(value)}"
        for key, value in values.items()
        if value not in (False, 0)
    ]
    return ", ".join([kind, *shown])


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(_value(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _sources(
    preparation: Preparation, stages: Sequence[Stage], events: Sequence[Event]
) -> tuple[Source, ...]:
    epochs: dict[str, float] = {}
    for event in events:
        if event["event"] == "mixture":
            epochs |= event["epochs"]
    found = []
    for name, dataset in preparation.datasets.items():
        seen = [stage for stage in stages if name in stage.asked]
        if not seen:
            continue
        whole = all(stage.got is not None for stage in seen)
        read = sum(stage.tokens * stage.got[name] for stage in seen if stage.got is not None)
        found.append(_source(name, dataset.manifest, read if whole else None, epochs.get(name)))
    return tuple(found)


def _source(name: str, manifest: Manifest, read: float | None, epochs: float | None) -> Source:
    train, chats = manifest.splits["train"], manifest.chats
    return Source(
        name=name,
        kind=manifest.kind,
        tokens=train.tokens,
        documents=train.documents,
        fingerprint=manifest.fingerprint,
        origins=tuple(
            Origin(
                name=source.name,
                records=source.records,
                licence=source.licence or (source.dataset.licence if source.dataset else None),
                hub=hub_dataset(source.name),
            )
            for source in manifest.sources
        ),
        tokens_read=read,
        epochs=None if read is None else epochs,
        template=None if chats is None else chats.template,
        learning_tokens=None if chats is None else chats.learning_tokens.get("train"),
    )


def _settings(recipe: Recipe, values: Mapping[str, Any], events: Sequence[Event]) -> dict[str, str]:
    """Optimizer, precision, hardware and versions, as they were recorded."""
    begun = {} if recipe.start_from is None else {"began with": plain_name(recipe.start_from)}
    found = begun | {
        "optimizer": _spelt(recipe.optimizer),
        "parametrisation": values["parametrization"],
        "seed": str(recipe.seed),
        "precision": f"activations and products in {values['dtype']}, weights that learn in "
        "float32",
        "hardware": f"{values['processes']} × {values['device']}, {values['machine']}",
    }
    versions: dict[str, dict[str, None]] = {}
    for event in events:
        if event["event"] in ("start", "resume"):
            for name, version in event["versions"].items():
                versions.setdefault(name, {})[version] = None
    if versions:
        found["versions"] = ", ".join(
            f"{name} {' and '.join(numbers)}" for name, numbers in versions.items()
        )
    return found


def _scores(
    recipe: Recipe, validation: Mapping[str, Any] | None, events: Sequence[Event]
) -> tuple[Score, ...]:
    """Of the validation that was made of these weights, with the counts that its event has."""
    if validation is None:
        return ()
    told = {
        event["event"]: event
        for event in events
        if event["event"] in ("validation", "preference") and event["step"] == validation["step"]
    }
    text, pairs = told.get("validation"), told.get("preference")
    scores: list[Score] = []
    if "bits_per_byte" in validation:
        scores += _text_scores(recipe, validation, text or {})
    for name, figures in {} if pairs is None else pairs["datasets"].items():
        of = f"{figures['pairs']:,} pairs"
        scores.append(
            Score(data=name, type="loss", name="preference loss", value=figures["loss"], of=of)
        )
        accuracy = figures["accuracy"]
        scores.append(
            Score(
                data=name,
                type="accuracy",
                name="pairs whose chosen answer gained more",
                value=accuracy["mean"],
                low=accuracy["low"],
                high=accuracy["high"],
                of=of,
            )
        )
    return tuple(scores)


def _benchmarks(recipe: Recipe, values: Mapping[str, Any], events: Sequence[Event]) -> list[Score]:
    """Of what was asked of just these weights."""
    if recipe.checkpoints.final == "average":
        return []
    asked = [e for e in events if e["event"] == "evaluation" and e["step"] == values["step"]]
    return [
        Score(
            data=score["task"],
            type=score["metric"],
            name=score["metric"],
            value=float(score["value"]),
            low=low if math.isfinite(low) else None,  # of a single document there is no interval
            high=high if math.isfinite(high) else None,
            of=f"its first {score['items']:,} items, {score['num_fewshot']}-shot",
            benchmark=True,
        )
        for event in asked[-1:]
        for score in event["scores"]
        for low, high in [(float(score["low"]), float(score["high"]))]
    ]


def _text_scores(
    recipe: Recipe, validation: Mapping[str, Any], event: Mapping[str, Any]
) -> list[Score]:
    of = f"{event['tokens']:,} tokens, {event['bytes']:,} bytes" if "tokens" in event else None

    def bits(data: str | None, value: float, of: str | None) -> Score:
        return Score(data=data, type="bits_per_byte", name="bits per byte", value=value, of=of)

    if recipe.checkpoints.final == "average":
        # Of the average only the whole was measured.
        value = validation.get("average")
        return [] if value is None else [bits(None, value, of)]
    each = validation["datasets"]
    alone = of if len(each) == 1 else None
    scores = [] if len(each) == 1 else [bits(None, validation["bits_per_byte"], of)]
    for name, value in each.items():
        scores.append(bits(name, value, alone))
        loss = event.get("loss", {}).get(name)
        if loss is not None:
            measure = "loss, nats a token"
            scores.append(Score(data=name, type="loss", name=measure, value=loss, of=alone))
    return scores


def _without_paths(recipe: Recipe) -> str:
    """The recipe as YAML. Of paths that only the machine has, and of what leads out of where the
    run was made, the last part stays."""
    changes: dict[str, Any] = {
        "datasets": {
            name: source.model_copy(update={"path": _portable(source.path)})
            for name, source in recipe.datasets.items()
        }
    }
    if recipe.start_from is not None:
        changes["start_from"] = _portable(recipe.start_from)
    if (asked := recipe.evaluation) is not None:
        places: dict[str, Any] = {"tasks": [_portable(task) for task in asked.tasks]}
        places |= {} if asked.data is None else {"data": _portable(asked.data)}
        changes["evaluation"] = asked.model_copy(update=places)
    return dump_recipe(recipe.model_copy(update=changes))


def _portable(path: str) -> str:
    given = PurePath(path)
    own = given.is_absolute() or path.startswith("~") or ".." in given.parts
    return given.name if own else path
