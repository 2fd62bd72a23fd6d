"""`plan`: which model, on how many tokens, on which hardware, for how much, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.planning.answer import Answer, Candidate
from llamita.planning.asking import Asked, Text, device_memory, engine_of, hardware_of, question_of
from llamita.planning.candidates import Experts, candidates, ceiling, parse_experts
from llamita.planning.command import command_of
from llamita.planning.laws import DEFAULT_LAW, Law, Rule, find_law
from llamita.planning.optimum import Point
from llamita.planning.quantities import tokens as short
from llamita.planning.rule_answer import rule_answer
from llamita.planning.solving import solve

if TYPE_CHECKING:
    from llamita.architecture.shapes import Family

_HARDWARES_FLAGS = ("hardware", "price", "power_price", "watts", "hardware_file")
_RECIPES_FLAGS = ("recipe", "overrides", "precision", "mfu", "figures", *_HARDWARES_FLAGS)
DEFAULT_FAMILY = "tinyllama"
DEFAULT_CONTEXT = 2048
DEFAULT_WEIGHTS = "bfloat16"


def plan(
    recipe: str | Path | None = None,
    *,
    check: str | Path | None = None,
    overrides: Sequence[str] = (),
    budget: str | None = None,
    loss: Text | None = None,
    quality: str | None = None,
    size: Text | None = None,
    tokens: Text | None = None,
    requests: Text | None = None,
    request: str | None = None,
    serve_tokens: Text | None = None,
    serve_words: Text | None = None,
    lifetime: str | None = None,
    tokens_per_word: float | None = None,
    hardware: str | None = None,
    serve_hardware: str | None = None,
    precision: str | None = None,
    serve_precision: str | None = None,
    mfu: float | None = None,
    prefill_mfu: float | None = None,
    decode_mfu: float | None = None,
    price: Sequence[str] = (),
    power_price: str | None = None,
    watts: float | None = None,
    hardware_file: Sequence[str | Path] = (),
    unique_tokens: Text | None = None,
    max_epochs: float | None = None,
    deadline: str | None = None,
    max_size: Text | None = None,
    fits: str | None = None,
    weights: str | None = None,
    context: int | None = None,
    law: str | Path | None = None,
    family: str | None = None,
    vocab_size: int | None = None,
    experts: str | None = None,
    write_recipe: str | Path | None = None,
    html: str | Path | None = None,
    figures: str | Path | None = None,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> Any:
    """Plan a model before anything is spent.

    What is asked follows from what is given: `budget` (the best model for it), `loss` or `quality`
    (the cheapest model of it), `size` and `tokens` (what they reach and what they cost beside the
    cheapest of the same loss), a `recipe` (its memory and time), or a run to `check` against the
    plan that was written into it. Amounts carry their units: `5000usd`, `14d`, `10B/day`.

    Args:
        budget: dollars, FLOPs, GPU-hours or time on `hardware`.
        quality: `13B` as good as that size trained compute-optimally, `13B@1T` after so many
            tokens, `tinyllama-1.1b@3T` the same of a preset.
        requests, serve_tokens, serve_words: what is served in all, or a rate over a `lifetime`.
        request: tokens read + written of one, as `70+215`, or in words.
        hardware, serve_hardware: `8xa100-80`, a node, `cpu` (measured now) or a rate.
        mfu, prefill_mfu, decode_mfu: shares of the peak at `precision` and `serve_precision`.
        price: `NAME=1.40usd/h` over the shipped one.
        unique_tokens: text that there is; beyond it, it repeats, up to `max_epochs`.
        fits: a device that must hold the model with its `weights` in that format (bfloat16, q8_0,
            q4_0, …) and `context` tokens.
        law: a law's name, or its file.
        family, vocab_size, experts: which shapes are proposed.
        write_recipe: a file for the recipe of the first shape.
        html, figures: a page; a folder for the figures.
        as_json: say one JSON object in place of lines.

    Returns:
        An `Answer`, a `RecipeAnswer` or a `Check`, each with `as_json()`.

    Raises:
        UserError: anything the user can put right.
    """
    given = dict(locals())  # the flags by name: what is not asked for is None or empty
    del given["say"]
    _require_what_draws(given)
    asked = Asked(**{field.name: given[field.name] for field in fields(Asked)})
    if check is not None:
        _refuse_others(given, "--check", ("check", *_HARDWARES_FLAGS))
        answer: Any = _check(asked, check)
    elif recipe is not None:
        _refuse_others(given, "a recipe", _RECIPES_FLAGS)
        from llamita.planning.recipe_answer import answer_recipe

        answer = answer_recipe(recipe, overrides, engine_of(asked))
    else:
        answer = _of_question(given, asked)
    written = _draw(given, answer)
    lines = [json.dumps(answer.as_json(), indent=1)] if as_json else [*answer.lines(), *written]
    for line in lines:
        say(line)
    return answer


def _require_what_draws(given: Mapping[str, Any]) -> None:
    """Before anything is worked out or written."""
    for name, what in (("html", "the page's figures are"), ("figures", "figures are")):
        if given[name]:
            from llamita.reporting.plot_style import require_matplotlib

            require_matplotlib(what, f"--{name}")


def _draw(given: Mapping[str, Any], answer: Any) -> list[str]:
    """Figures and page, where they are asked for; what was written, a line each."""
    paths = []
    if given["figures"] or given["html"]:
        from llamita.reporting.plan_memory import memory_figures

        memory = memory_figures(answer)
        if given["figures"]:
            from llamita.reporting.plan_plots import write_plan_figures

            paths += write_plan_figures(answer, Path(given["figures"]), memory)
        if given["html"]:
            from llamita.reporting.plan_page import write_plan_page

            command, page = command_of(given), Path(given["html"])
            paths.append(write_plan_page(answer, page, command=command, figures=memory))
    return [f"written: {path}" for path in paths]


def _of_question(given: Mapping[str, Any], asked: Asked) -> Answer:
    law = find_law(given["law"] or DEFAULT_LAW)
    if given["overrides"]:
        raise UserError("--set changes a recipe's keys, and no recipe is named; leave it out")
    if isinstance(law, Rule):
        return _by_rule_of_thumb(given, asked, law)
    family = _family(given)
    experts = None if given["experts"] is None else parse_experts(given["experts"])
    if experts is not None and given["write_recipe"]:
        raise UserError(
            "--write-recipe writes no mixture of experts: llamita does not train them yet; leave "
            "--experts or --write-recipe out"
        )
    question, assumptions = question_of(asked, law, _ceiling(given, asked, law, family, experts))
    answer = solve(question)
    answer = _with_candidates(given, answer, family, experts)
    answer = replace(answer, assumptions=(*_conventions(law, experts), *assumptions))
    if given["write_recipe"]:
        answer = _write_recipe(answer, Path(given["write_recipe"]))
    return answer


def _conventions(law: Law, experts: Experts | None) -> list[str]:
    counted = "" if law.counts == "total" else ", of parameters without embeddings"
    lines = [
        f"the law {law.name}: L = {law.E:g} + {law.A:g}/N^{law.alpha:g} + {law.B:g}/D^{law.beta:g} "
        f"{law.loss}{_units(law)}{counted} ({law.source})",
        "a token takes 6·N FLOPs to train on and 2·N to read or write",
    ]
    if experts is not None:
        lines.append(
            "a mixture of experts is taken for as good as a dense model of its active parameters: "
            "no law for mixtures is shipped, and they tend to be better"
        )
    return lines


def _units(law: Law) -> str:
    if law.parameters_unit == law.tokens_unit == 1:
        return ""
    return f", N in {short(law.parameters_unit)}, D in {short(law.tokens_unit)}"


def _family(given: Mapping[str, Any]) -> Family:
    from llamita.architecture.shapes import find_family

    return find_family(given["family"] or DEFAULT_FAMILY)


def _ceiling(
    given: Mapping[str, Any], asked: Asked, law: Law, family: Family, experts: Experts | None
) -> tuple[float, str] | None:
    if asked.fits is None:
        return None
    context = DEFAULT_CONTEXT if asked.context is None else asked.context
    if context < 1:
        raise UserError(f"--context {context}: a context has at least one token, as in 4096")
    name, memory = device_memory(asked.fits, asked.hardware_file)
    return ceiling(
        name,
        memory,
        family,
        counts=law.counts,
        weights=asked.weights or DEFAULT_WEIGHTS,
        context=context,
        vocab_size=given["vocab_size"],
        experts=experts,
    )


def _with_candidates(
    given: Mapping[str, Any], answer: Answer, family: Family, experts: Experts | None
) -> Answer:
    """The shapes near N. Where none was asked for, that there is none is a fact and no error."""
    vocab_size = given["vocab_size"]
    if vocab_size is not None and vocab_size < 1:
        raise UserError(f"--vocab-size {vocab_size}: a vocabulary has at least one token")
    assert answer.question is not None
    best = answer.recommended
    assert best.loss is not None
    point = Point(best.parameters, best.tokens, best.loss)
    named = [name for name in ("family", "vocab_size", "experts", "write_recipe") if given[name]]
    try:
        found = candidates(answer.question, point, family, vocab_size=vocab_size, experts=experts)
    except UserError as error:
        if named:
            raise
        return replace(answer, facts=(*answer.facts, str(error)))
    return replace(answer, candidates=found, warnings=(*answer.warnings, *_too_slow(answer, found)))


def _too_slow(answer: Answer, found: tuple[Candidate, ...]) -> list[str]:
    """A deadline is reckoned by 6·N·D, what a shape computes is more."""
    assert answer.question is not None
    allowed, flops = answer.question.limits.training_flops, found[0].training_flops
    if flops <= allowed * (1 + 1e-6):
        return []
    return [
        f"by its own arithmetic the first shape takes {flops / allowed:.3g} times the training "
        f"that {answer.question.limits.because('training_flops')} allows; ask for a shorter "
        "deadline to leave room, or train on shorter sequences"
    ]


def _by_rule_of_thumb(given: Mapping[str, Any], asked: Asked, rule: Rule) -> Answer:
    """N and D alone: such a rule knows no loss, so there is nothing to weigh serving against."""
    allowed = ("law", "budget", "size", "tokens", "hardware", "mfu", "precision", "price")
    _refuse_others(given, f"--law {rule.name}, which says nothing of loss", allowed)
    law = find_law(DEFAULT_LAW)
    assert isinstance(law, Law)
    question, assumptions = question_of(asked, law, None)
    answer = rule_answer(question, rule, tokens_given=asked.tokens is not None)
    return replace(answer, assumptions=(*answer.assumptions, *assumptions))


def _write_recipe(answer: Answer, path: Path) -> Answer:
    """The first candidate as a recipe."""
    from llamita.planning.recipe_writing import recipe_for, write_recipe
    from llamita.recipes.schema import Predicted

    question, shape = answer.question, answer.candidates[0]
    assert question is not None
    law = question.law
    predicted = Predicted(
        law=law.name,
        loss=round(shape.loss, 5),
        loss_unit=law.loss,
        interval=law.interval(shape.parameters, shape.tokens),
        comparable=law.data is not None,
        tokens=round(shape.tokens),
        parameters=shape.parameters,
    )
    draft = recipe_for(
        shape.config,
        shape.parametrization,
        shape.tokens,
        name=path.stem,
        unique_tokens=question.unique,
        law=law,
        predicted=predicted,
    )
    write_recipe(draft.recipe, path, [answer.words, *draft.comments])
    return replace(answer, facts=(*answer.facts, f"{path}: try llamita train {path} --dry-run"))


def _check(asked: Asked, run: str | Path) -> Any:
    from llamita.planning.check import check_run

    hardware, usd_per_kwh = hardware_of(asked)
    return check_run(run, hardware=hardware, usd_per_kwh=usd_per_kwh)


def _refuse_others(given: Mapping[str, Any], what: str, allowed: tuple[str, ...]) -> None:
    idle = [
        name
        for name, value in given.items()
        if value not in (None, (), [], False) and name not in (*allowed, "as_json")
    ]
    if idle:
        others = {"overrides": "--set", "recipe": "a recipe"}
        flags = ", ".join(others.get(name, f"--{name.replace('_', '-')}") for name in idle)
        raise UserError(f"{flags}: no effect beside {what}; leave out one or the other")
