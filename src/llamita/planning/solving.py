"""From a question to its answer: the recommended model, alternatives, sensitivity, facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from llamita.errors import UserError
from llamita.planning.amounts import DAY
from llamita.planning.answer import Answer, Change, Epochs, Option, Question
from llamita.planning.economics import Economics
from llamita.planning.laws import Law, find_law
from llamita.planning.optimum import (
    Limits,
    Point,
    Spending,
    best_within,
    break_even,
    cheapest,
    trained_to,
)
from llamita.planning.quantities import tokens as short

OTHER_LAWS = ("beyond-chinchilla", "epoch")
_ALIKE = 0.05
"""Sizes closer than this, in ln N, are not worth comparing."""
_EPOCHS = (1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0)


def solve(question: Question) -> Answer:
    """The answer to a question under its law.

    Raises:
        UserError: nothing within the limits answers it.
    """
    recommended = settle(question)
    first = option(
        question, "best for the budget" if question.loss is None else "cheapest", recommended
    )
    others = [
        option(question, label, point) for label, point in _alternatives(question, recommended)
    ]
    options = [first, *(_beside(first, other) for other in others)]
    warnings = _warnings(question, [first, *others])
    return Answer(
        question,
        question.words,
        question.law,
        (replace(first, extra=0.0), *options[1:]),
        facts=tuple(_facts(question, recommended)),
        changes=tuple(_changes(question, recommended)),
        repeats=repeats(question, recommended),
        warnings=tuple(warnings),
    )


def settle(question: Question) -> Point:
    """The recommended point."""
    law, unique, limits = question.law, question.unique, question.limits
    if question.loss is not None:
        spending = spending_of(question)
        return cheapest(law, question.loss, spending, unique=unique, limits=limits)
    assert question.budget is not None
    return best_within(law, question.budget, spending_of(question), unique=unique, limits=limits)


def spending_of(question: Question) -> Spending:
    """What is minimised, or held to the budget."""
    demand = question.demand if question.budget_for_all else None
    in_flops = question.budget is not None and not question.budget_in_money
    return question.economics.spending(demand, flops=in_flops)


def option(question: Question, label: str, point: Point) -> Option:
    """A point with all that it costs."""
    economics, demand = question.economics, question.demand
    flops = economics.spending(demand, flops=True)
    usd = economics.spending(demand) if economics.in_money else None
    return Option(
        label,
        point.parameters,
        point.tokens,
        point.loss,
        flops.of_training(point),
        flops.of_serving(point),
        usd.of_training(point) if usd else None,
        usd.of_serving(point) if usd else None,
        economics.training_seconds(point),
        point.tokens / question.unique if question.unique is not None else None,
        beyond_limits=", ".join(question.limits.broken_by(point)),
    )


def _beside(first: Option, other: Option) -> Option:
    return replace(other, extra=other.total / first.total - 1)


# -- what stands beside it ------------------------------------------------------------------------


def _alternatives(question: Question, best: Point) -> Iterator[tuple[str, Point]]:
    """Other points of the same loss, or of the same budget."""
    law = question.law
    if question.chosen is not None:
        yield f"the chosen {short(question.chosen)}", of_size(question, question.chosen)
    if question.demand is not None and question.budget_for_all:
        yield "compute-optimal", along(question, law.optimal_tokens)
    for label, factor in (("half the size", 0.5), ("twice the size", 2.0)):
        size = best.parameters * factor
        try:
            point = of_size(question, size)
        except UserError:
            continue  # it never reaches the loss, or cannot be paid for: no alternative
        yield label, point
    yield "20 tokens a parameter", along(question, lambda parameters: 20 * parameters)


def of_size(question: Question, parameters: float, *, flops_ratio: float = 1.0) -> Point:
    """A model of this size trained to the question's loss, or for as long as its budget pays.

    Args:
        flops_ratio: of a training token, over 6·N.

    Raises:
        UserError: it never reaches the loss, or serving it alone takes more than the budget.
    """
    law, unique = question.law, question.unique
    if question.loss is not None:
        return trained_to(law, question.loss, parameters, unique=unique)
    assert question.budget is not None
    spending = spending_of(question)
    training = spending.training * flops_ratio
    tokens = (question.budget / parameters - spending.serving) / training
    if tokens <= 0:
        raise UserError(
            f"serving {short(parameters)} parameters alone costs more than the budget; "
            "raise it, or choose a smaller model"
        )
    return Point(parameters, tokens, law.at(parameters, tokens, unique))


def along(question: Question, tokens_of: Callable[[float], float]) -> Point:
    """Where a path D(N) meets the question's loss or budget, by halving ln N."""
    law, spending = question.law, spending_of(question)

    def point(x: float) -> Point:
        parameters = math.exp(x)
        tokens = tokens_of(parameters)
        return Point(parameters, tokens, law.at(parameters, tokens, question.unique))

    def too_large(each: Point) -> bool:
        if question.loss is not None:
            return each.loss < question.loss
        assert question.budget is not None
        return spending.of(each) > question.budget

    low, high = 0.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if too_large(point(middle)) else (middle, high)
    return point(high)


# -- facts in sentences ---------------------------------------------------------------------------


def _facts(question: Question, best: Point) -> Iterator[str]:
    demand, economics = question.demand, question.economics
    yield from _what_binds(question.limits, best)
    if question.loss is None:
        yield from _worth_of_budget(question, best)
    yield from _uncertainty(question, best)
    if question.unique is not None and best.tokens > question.unique:
        yield from _price_of_scarcity(question, best)
    if demand is None:
        return
    spending = economics.spending(demand)
    training, serving = spending.of_training(best), spending.of_serving(best)
    share = training / serving
    when = ""
    if share > 1:
        when = ", which is beyond the demand"
    elif demand.seconds is not None:
        when = f", on day {math.ceil(share * demand.seconds / DAY):,}"
    yield (
        f"serving {'costs' if economics.in_money else 'computes'} {serving / training:.3g} times "
        f"as much as training; it overtakes training after {short(share * demand.tokens)} tokens"
        f"{when}"
    )
    if demand.tokens_per_day is not None:
        yield (
            f"tokens served, {short(demand.tokens_per_day)} a day, overtake tokens trained on "
            f"after {best.tokens / demand.tokens_per_day:,.0f} days"
        )
    busy = economics.serving_devices(best, demand)
    if busy is not None and economics.decode is not None:
        yield (
            f"the demand keeps {busy:,.3g} × {economics.decode.hardware.device.label} busy on "
            "average; peaks need more"
        )
    yield from _break_evens(question, best, spending)


def _what_binds(limits: Limits, best: Point) -> Iterator[str]:
    checks = (
        ("parameters", best.parameters, limits.parameters),
        ("tokens", best.tokens, limits.tokens),
        ("training_flops", best.flops, limits.training_flops),
    )
    for name, value, most in checks:
        if value >= most * (1 - 1e-6):
            yield f"held back by a limit: {limits.because(name)}"


def _worth_of_budget(question: Question, best: Point) -> Iterator[str]:
    law = question.law
    yield (
        f"a loss of {best.loss:.4f} {law.loss}: {best.loss - law.E:.4f} above {law.name}'s "
        f"irreducible {law.E:g}, {law.parameters_term(best.parameters):.4f} for want of parameters "
        "and the rest for want of tokens"
    )


def _uncertainty(question: Question, best: Point) -> Iterator[str]:
    """Of a law that was fitted here, by its bootstrap."""
    law = question.law
    loss = law.interval_of(lambda each: each.at(best.parameters, best.tokens, question.unique))
    if loss is None:
        return
    sizes = ""
    if question.loss is None:
        found = law.interval_of(lambda each: settle(replace(question, law=each)).parameters)
        assert found is not None
        sizes = f", and the best size in {short(found[0])} to {short(found[1])}"
    yield f"by the fit's bootstrap the loss lies in {loss[0]:.4f} to {loss[1]:.4f} (95%){sizes}"


def _price_of_scarcity(question: Question, best: Point) -> Iterator[str]:
    """What is lost because the text has to be read again."""
    free = settle(replace(question, unique=None))
    size = f"{short(free.parameters)} on {short(free.tokens)} tokens"
    if question.loss is None:
        yield (
            f"with as much text as wanted, the budget would reach {free.loss:.4f} ({size}): "
            f"repeating costs {best.loss - free.loss:.4f}"
        )
        return
    spending = spending_of(question)
    extra = spending.of(best) / spending.of(free) - 1
    yield f"with as much text as wanted, {size} would do: repeating costs {extra:.1%} more"


def _break_evens(question: Question, best: Point, spending: Spending) -> Iterator[str]:
    """From which demand on the smaller of two models of one loss wins."""
    demand = question.demand
    if question.loss is None or demand is None:
        return
    rivals = [("the compute-optimal one", along(question, question.law.optimal_tokens))]
    if question.chosen is not None:
        rivals.append((f"the chosen {short(question.chosen)}", of_size(question, question.chosen)))
    for name, rival in rivals:
        if abs(math.log(rival.parameters / best.parameters)) < _ALIKE:
            continue
        needed = break_even(best, rival, spending)
        if needed is None:
            continue
        small, large = sorted((best, rival), key=lambda point: point.parameters)
        served = needed / spending.serving * demand.tokens
        requests = ""
        if demand.requests is not None:
            requests = f" ({short(served / demand.tokens * demand.requests)} requests)"
        yield (
            f"beside {name}, {short(small.parameters)} trained longer wins over "
            f"{short(large.parameters)} from {short(served)} tokens served on{requests}"
        )


# -- what changes if ------------------------------------------------------------------------------


def _changes(question: Question, best: Point) -> Iterator[Change]:
    demand, economics = question.demand, question.economics
    if demand is not None and question.budget_for_all:
        for words, factor in (("demand 10 times higher", 10.0), ("a tenth of the demand", 0.1)):
            yield _change(words, replace(question, demand=demand.times(factor)), best)
    if economics.training is not None:
        slower = replace(economics.training, mfu=economics.training.mfu / 2)
        changed = replace(economics, training=slower)
        yield _change("training MFU half", _at_rate(question, changed), best)
    if economics.decode is not None and demand is not None and economics.in_money:
        slower = replace(economics.decode, mfu=economics.decode.mfu / 2)
        changed = replace(economics, decode=slower)
        yield _change("decode MFU half", replace(question, economics=changed), best)
    if question.unique is not None and best.tokens > question.unique / 2:
        yield _change("half the text", replace(question, unique=question.unique / 2), best)
    for name in OTHER_LAWS:
        other = find_law(name)
        if name != question.law.name and isinstance(other, Law):
            yield _under(question, other)


def _at_rate(question: Question, economics: Economics) -> Question:
    """The question on slower hardware: what is counted in time buys fewer FLOPs."""
    assert question.economics.training is not None
    assert economics.training is not None
    ratio = economics.training.flops_per_second / question.economics.training.flops_per_second
    limits = question.limits
    changed = replace(limits, training_flops=limits.training_flops * ratio)
    budget = question.budget
    if budget is not None and question.budget_in_time:
        budget *= ratio
    return replace(question, economics=economics, limits=changed, budget=budget)


def _change(words: str, question: Question, original: Point) -> Change:
    try:
        point = settle(question)
    except UserError as error:
        return Change(words, obstacle=str(error))
    found = option(question, words, point)
    return Change(
        words,
        point.parameters,
        point.tokens,
        point.loss,
        found.total,
        _regret(question, point, original),
    )


def _regret(question: Question, best: Point, original: Point) -> float | None:
    """What keeping the original size costs beyond the best; only where the loss is held."""
    if question.loss is None:
        return None
    try:
        kept = trained_to(question.law, question.loss, original.parameters, unique=question.unique)
    except UserError:
        return None
    spending = spending_of(question)
    return spending.of(kept) / spending.of(best) - 1


def _under(question: Question, law: Law) -> Change:
    """The same question put to another law; a loss only where it means the same there."""
    words = f"the law {law.name}"
    loss = question.loss
    if loss is not None and question.quality is not None:
        parameters, tokens = question.quality
        loss = law.at(parameters, tokens or law.optimal_tokens(parameters))
    elif law.loss != question.law.loss:
        return Change(
            words, obstacle=f"counts its loss in {law.loss}, {question.law.name} does not"
        )
    try:
        other = replace(question, law=law, loss=loss)
        point = settle(other)
    except UserError as error:
        return Change(words, obstacle=str(error))
    return Change(words, point.parameters, point.tokens, point.loss, option(other, "", point).total)


# -- repeated data --------------------------------------------------------------------------------


def repeats(question: Question, recommended: Point) -> tuple[Epochs, ...]:
    """What reading the unique text so and so often gives the chosen size, else the recommended;
    the epochs that it would read among them."""
    law, unique = question.law, question.unique
    if unique is None:
        return ()
    point = recommended
    if question.chosen is not None and question.chosen_tokens is not None:
        point = Point(question.chosen, question.chosen_tokens, math.nan)
    own = point.tokens / unique
    counts = sorted({*_EPOCHS, own}) if own > 1 else list(_EPOCHS)
    return tuple(
        Epochs(
            epochs,
            epochs * unique,
            law.effective_tokens(epochs * unique, unique),
            law.at(point.parameters, epochs * unique, unique),
            law.at(point.parameters, epochs * unique),
            law.worth_at(epochs),
        )
        for epochs in counts
    )


def _warnings(question: Question, options: list[Option]) -> list[str]:
    law, best = question.law, options[0]
    found = law.beyond_its_runs(best.parameters, best.tokens)
    if question.unique is not None and not law.knows_repetition and (best.epochs or 0) > 1:
        found.append(
            f"{law.name} knows nothing of repeated data: their worth is taken from Muennighoff et "
            "al. (R* = 15.39, fitted in another law), an approximation; --law data-constrained "
            "has its own"
        )
    return found
