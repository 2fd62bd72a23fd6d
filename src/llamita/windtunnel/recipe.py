"""`tunnel recipe`: what a study found, as the recipe of a larger run, its loss predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import PRESETS, Parametrization
from llamita.errors import UserError, did_you_mean
from llamita.planning.amounts import parse_count
from llamita.planning.quantities import tokens as short
from llamita.planning.recipe_writing import (
    DECAY_SHARE,
    Tuning,
    recipe_for,
    tuning,
    write_recipe,
)
from llamita.recipes.loading import check_recipe
from llamita.recipes.schema import Predicted, Recipe
from llamita.windtunnel.analysis import find
from llamita.windtunnel.findings import Findings, LawStudy, Transfer
from llamita.windtunnel.points import OWN_AXES, base_parametrization, set_key
from llamita.windtunnel.sizes import SHAPE_KEYS, Size, make_sizes
from llamita.windtunnel.spec import ScalingLaw, Spec
from llamita.windtunnel.study import Study, open_study

_RATE, _BATCH = "optimizer.learning_rate", "batch_tokens"


def tunnel_recipe(study: str | Path, *, size: str, tokens: str | float, out: str | Path) -> Path:
    """Write the recipe that trains `size` with what a study found.

    Learning rate, batch and whatever else was varied are those found, where an optimum lay inside
    its grid; the rest is the base recipe's. The comments say which is which.

    Args:
        size: a preset's name, or a size of the study.
        tokens: D, as 30B; or a multiple of the parameters without embeddings, as 20N.

    Raises:
        UserError: no such study or size; the file is there already.
    """
    opened = open_study(Path(study))
    found = find(opened.points, opened.journal, {})
    parametrization = base_parametrization(opened.points.base)
    target = _target(size, opened.spec)
    amount = _tokens(tokens, target.parameters)
    recipe, comments = _recipe(opened, found, target, parametrization, amount)
    return write_recipe(recipe, out, comments)


def _target(name: str, spec: Spec) -> Size:
    sizes = {each.name: each for each in make_sizes(spec.sizes)}
    if name in sizes:
        return sizes[name]
    if name not in PRESETS:
        known = [*sizes, *PRESETS]
        raise UserError(
            f"--size {name!r}: there is no preset and no size of the study of that name."
            f"{did_you_mean(name, known)} There are {', '.join(known)}",
        )
    config = PRESETS[name].config
    return Size(name, {key: getattr(config, key) for key in SHAPE_KEYS})


def _tokens(text: str | float, parameters: int) -> float:
    if isinstance(text, str) and text[-1:] in ("N", "n"):
        return parameters * parse_count(text[:-1], "--tokens", "20N")
    return parse_count(text, "--tokens", "30B, or 20N for 20 a parameter")


def _recipe(
    study: Study,
    found: Findings,
    target: Size,
    parametrization: Parametrization,
    tokens: float,
) -> tuple[Recipe, list[str]]:
    base = study.points.base
    model = target.model(base["model"], parametrization)
    vocabulary = model.get("vocab_size", 2)
    shape = {key: value for key, value in model.items() if key in ModelConfig.model_fields}
    config = ModelConfig(**{**shape, "vocab_size": vocabulary, "max_position_embeddings": 4096})
    law = found.law
    predicted = None if law is None else _predicted(law, target, tokens)
    chosen = _tuning(study, found, config, parametrization, tokens, predicted)
    experiment = _law_experiment(study.spec)
    decays = {}
    if experiment is not None:
        decays = experiment.decay.model_dump(exclude={"kind"}, exclude_none=True)
    draft = recipe_for(
        config,
        parametrization,
        tokens,
        name=f"{study.spec.name}-{target.name}",
        shares=base["stages"][0]["mixture"],
        predicted=predicted,
        chosen=chosen,
        decay_share=DECAY_SHARE if experiment is None else experiment.decay_share,
        decay=decays or None,
    )
    data = draft.recipe.model_dump()
    comments = list(draft.comments)
    data["model"] = model
    data["parametrization"] = parametrization
    data["initializer_std"] = base["initializer_std"]
    data["optimizer"] = {**base["optimizer"], "learning_rate": data["optimizer"]["learning_rate"]}
    for name, source in base["datasets"].items():
        if name in data["datasets"]:
            data["datasets"][name] = {**data["datasets"][name], "path": source["path"]}
    for transfer in _of(found, parametrization):
        if transfer.axis in (_RATE, _BATCH) or transfer.transferred is None:
            continue
        taken = transfer.axis not in OWN_AXES and _is_float(data, transfer.axis)
        if taken:
            set_key(data, transfer.axis, float(f"{transfer.transferred:.3g}"))
        comments.append(
            f"{transfer.axis}: found: {transfer.verdict}"
            + ("" if taken else "; not taken over: set it by hand")
        )
    # What is predicted is the loss of the law's schedule; the best share goes with a run's length.
    comments += [
        f"decay: found: {each.verdict}; not taken over, set it by hand" for each in found.decays
    ]
    if law is not None:
        comments += [f"{law.fitted.law.name}: {each}" for each in law.fitted.warnings]
        comments += law.fitted.law.beyond_its_runs(target.parameters, tokens)
    return check_recipe(data, f"recipe {data['name']}"), comments


def _is_float(data: Mapping[str, Any], key: str) -> bool:
    """Whether a recipe's key holds a number of any size, or nothing yet."""
    value: Any = data
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value is None or isinstance(value, float)


def _of(found: Findings, parametrization: Parametrization) -> list[Transfer]:
    return [each for each in found.transfers if each.parametrization == parametrization]


def _tuning(
    study: Study,
    found: Findings,
    config: ModelConfig,
    parametrization: Parametrization,
    tokens: float,
    predicted: Predicted | None,
) -> Tuning:
    """Rate and batch that were found; where they were not, the base's rate and the rule's batch."""
    base = study.points.base
    rule = tuning(config, parametrization, tokens)
    rate = float(base["optimizer"]["learning_rate"])
    chosen = replace(
        rule,
        learning_rate=rate,
        rate_rule=f"{rate:g} as in the study's base recipe: no optimum was found inside a grid",
    )
    for transfer in _of(found, parametrization):
        if transfer.axis == _RATE and transfer.transferred is not None:
            chosen = replace(
                chosen, learning_rate=transfer.transferred, rate_rule=f"found: {transfer.verdict}"
            )
        if transfer.axis == _BATCH and transfer.transferred is not None:
            chosen = replace(
                chosen, batch_tokens=transfer.transferred, batch_rule=f"found: {transfer.verdict}"
            )
    if found.batch_law is not None and predicted is not None:
        batch = found.batch_law.batch(predicted.loss)
        words = (
            f"found: {found.batch_law.a:.3g} / L^{found.batch_law.b:.3g} = {short(batch)} tokens "
            f"at the predicted {predicted.loss:.4f} bits per byte"
        )
        chosen = replace(chosen, batch_tokens=batch, batch_rule=words)
    return chosen


def _predicted(study: LawStudy, target: Size, tokens: float) -> Predicted:
    law = study.fitted.law
    interval = law.interval(target.parameters, tokens)
    return Predicted(
        law=law.name,
        loss=law.at(target.parameters, tokens),
        loss_unit="bits per byte",
        interval=interval,
        comparable=True,
        tokens=int(tokens),
        parameters=target.parameters,
    )


def _law_experiment(spec: Spec) -> ScalingLaw | None:
    return next((e for e in spec.experiments.values() if isinstance(e, ScalingLaw)), None)
