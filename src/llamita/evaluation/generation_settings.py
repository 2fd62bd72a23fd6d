"""How a task wants texts written: lm-eval's `generation_kwargs` as our sampling and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamita.errors import UserError, did_you_mean
from llamita.inference.sampling import Sampling

_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_MAX_TOKENS = 256
# What Transformers takes where neither a task nor generation_config.json says anything.
_DEFAULTS: Mapping[str, float] = {
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_KNOWN = (*_MAX_TOKENS, *_DEFAULTS, "until", "do_sample", "temperature", "num_beams")


@dataclass(frozen=True, slots=True)
class Wanted:
    """temperature: 0 takes the likeliest token. end_ids: ids that end a text, empty where nothing
    is said of them."""

    until: tuple[str, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    end_ids: tuple[int, ...]

    def sampling(self, seed: int) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
        )


def wanted_of(kwargs: Mapping[str, Any], generation: Mapping[str, Any]) -> Wanted:
    """What a task's `generation_kwargs` ask for, and generation_config.json where they do not.

    Texts are greedy unless `do_sample` or, where that is left open, a temperature above 0 says
    otherwise.

    Raises:
        UserError: a setting that does not exist here, or a value that it cannot have.
    """
    for name in kwargs:
        if name not in _KNOWN:
            raise UserError(
                f"generation_kwargs: there is no setting {name!r}.{did_you_mean(name, _KNOWN)} "
                f"Settings are {', '.join(_KNOWN)}"
            )
    if kwargs.get("num_beams") not in (None, 1):
        raise UserError("generation_kwargs: num_beams: texts are not searched in beams; give 1")
    found = {
        name: _number(name, kwargs.get(name), generation.get(name), default)
        for name, default in _DEFAULTS.items()
    }
    ends = generation.get("eos_token_id")
    limit = next((kwargs[name] for name in _MAX_TOKENS if kwargs.get(name) is not None), None)
    return Wanted(
        until=_until(kwargs.get("until")),
        max_tokens=int(_number("max_gen_toks", limit, None, _DEFAULT_MAX_TOKENS)),
        temperature=_temperature(kwargs, generation),
        top_k=int(found["top_k"]),
        top_p=found["top_p"],
        min_p=found["min_p"],
        repetition_penalty=found["repetition_penalty"],
        end_ids=tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
    )


def _temperature(kwargs: Mapping[str, Any], generation: Mapping[str, Any]) -> float:
    draws = kwargs.get("do_sample")
    asked = _number("temperature", kwargs.get("temperature"), None, 0.0)
    if draws is None:
        return asked
    if not draws:
        return 0.0
    if kwargs.get("temperature") is None:
        return _number("temperature", None, generation.get("temperature"), 1.0)
    if asked == 0:
        raise UserError(
            "generation_kwargs: do_sample is true and the temperature 0: give one above 0, or "
            "do_sample: false"
        )
    return asked


def _number(name: str, asked: Any, usual: Any, default: float) -> float:
    value = asked if asked is not None else usual if usual is not None else default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"generation_kwargs: {name} {value!r}: give a number") from None


def _until(found: Any) -> tuple[str, ...]:
    stops = [found] if isinstance(found, str) else found or []
    if not isinstance(stops, list | tuple) or not all(isinstance(each, str) for each in stops):
        raise UserError(f"generation_kwargs: until {found!r}: give a string or a list of strings")
    if "" in stops:
        raise UserError(
            f"generation_kwargs: until {found!r} has an empty string in it, which every text has "
            "at once: leave it out"
        )
    return tuple(dict.fromkeys(stops))
