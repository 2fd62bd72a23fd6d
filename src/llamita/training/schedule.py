"""Learning-rate factors: schedule × position in the stage → share of the peak.

Positions are tokens, counted to the start of the step, so a factor does not depend on how
tokens are cut into steps. Warm-up counts the step itself, or the first step would learn
nothing.
"""

from __future__ import annotations

import math

from llamita.recipes.schema import WSD, Constant, Cosine, Decay, Stage


def learning_rate_factor(stage: Stage, step: int, batch_tokens: int) -> float:
    """Factor of the peak learning rate at `step` (from 0) of a stage.

    Cosine, linear and 1-sqrt agree with Transformers' `get_cosine_with_min_lr_schedule` and
    `get_wsd_schedule`; the half-life form is MiniCPM's (2404.06395 §4.2, and its code, where
    T = 5000 is a half-life).
    """
    schedule = stage.schedule
    done = step * batch_tokens
    warmup = 0 if isinstance(schedule, Decay) else schedule.warmup_tokens
    if done < warmup:
        return min(1.0, (done + batch_tokens) / warmup)
    match schedule:
        case Constant():
            return 1.0
        case Cosine():
            progress = min(1.0, (done - warmup) / max(1, stage.tokens - warmup))
            return schedule.final_fraction + (1 - schedule.final_fraction) * _half_cosine(progress)
        case WSD():
            start = stage.tokens - schedule.decay_tokens
            return (
                1.0 if done < start else decay_factor(schedule, done - start, schedule.decay_tokens)
            )
        case Decay():
            return decay_factor(schedule, done, stage.tokens)


def decay_factor(decay: WSD | Decay, done: int, length: int) -> float:
    """Factor after `done` of `length` tokens of decay."""
    if decay.half_life_tokens is not None:
        return math.exp2(-done / decay.half_life_tokens)
    progress = min(1.0, done / length)
    if decay.form == "exponential":
        return float(decay.end**progress)
    shape = {
        "linear": 1 - progress,
        "cosine": _half_cosine(progress),
        "1-sqrt": 1 - math.sqrt(progress),
    }[decay.form]
    return decay.end + (1 - decay.end) * shape


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
