"""What a rule of thumb answers: N and D, and what the fitted laws say beside it."""

from __future__ import annotations

import math
from dataclasses import replace

from llamita.planning.answer import Answer, Option, Question
from llamita.planning.laws import Law, Rule, shipped_laws
from llamita.planning.optimum import Point
from llamita.planning.solving import along, option


def rule_answer(question: Question, rule: Rule, *, tokens_given: bool) -> Answer:
    """The rule's point for the question's budget or chosen size, and those of the laws of
    Hoffmann et al. and their replication, for the same budget or size.

    Args:
        question: as put to a law, which serves to count what points cost; without serving.
        tokens_given: whether it names tokens, for which a size is sought.
    """
    tokens = question.chosen_tokens if tokens_given else None

    def at(path: Rule | Law, label: str) -> Option:
        if question.budget is not None:
            point = along(question, path.optimal_tokens)
        elif tokens is not None:
            point = Point(path.optimal_parameters(tokens), tokens, math.nan)
        else:
            assert question.chosen is not None
            point = Point(question.chosen, path.optimal_tokens(question.chosen), math.nan)
        return replace(option(question, label, point), loss=None)

    others = [
        at(law, f"compute-optimal by {law.name}")
        for law in shipped_laws().values()
        if isinstance(law, Law) and law.fitted_tokens == question.law.fitted_tokens
    ]
    asked = question.words.removeprefix("The best model for ")
    if question.budget is None:
        asked = f"{tokens:.3g} tokens" if tokens else f"{question.chosen:.3g} parameters"
    return Answer(
        None,
        f"{rule.tokens_per_parameter:g} tokens a parameter: {asked}",
        rule,
        (at(rule, rule.name), *others),
        facts=(rule.note,) if rule.note else (),
        assumptions=(f"{rule.name}: {rule.source}", "a token takes 6·N FLOPs to train on"),
    )
