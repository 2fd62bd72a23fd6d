"""From what the flags of `llamita plan` say to a question in numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamita.errors import UserError
from llamita.planning.amounts import parse_amount, parse_count, parse_seconds, parse_share
from llamita.planning.answer import Question
from llamita.planning.demand import TOKENS_PER_WORD, Demand, parse_demand
from llamita.planning.economics import AUTHORS_MFU, Economics, Engine
from llamita.planning.hardware import Catalogue, Hardware, load_hardware, parse_price
from llamita.planning.laws import Law
from llamita.planning.optimum import Limits
from llamita.planning.quantities import duration
from llamita.planning.quantities import tokens as short

Text = str | float
_LOSS = re.compile(
    r"(?P<number>[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*"
    r"(?:(?P<amount>nats|bits)\s*(?:/|per)\s*(?P<per>token|byte))?"
)
_BUDGETS = "5000usd, 1e21flops, 2000gpu-hours or 14d"


@dataclass(frozen=True)
class Asked:
    """The flags as they were given, None where they were not."""

    budget: str | None = None
    loss: Text | None = None
    quality: str | None = None
    size: Text | None = None
    tokens: Text | None = None
    requests: Text | None = None
    request: str | None = None
    serve_tokens: Text | None = None
    serve_words: Text | None = None
    lifetime: str | None = None
    tokens_per_word: float | None = None
    hardware: str | None = None
    serve_hardware: str | None = None
    precision: str | None = None
    serve_precision: str | None = None
    mfu: float | None = None
    prefill_mfu: float | None = None
    decode_mfu: float | None = None
    price: Sequence[str] = ()
    power_price: str | None = None
    watts: float | None = None
    hardware_file: Sequence[str | Path] = ()
    unique_tokens: Text | None = None
    max_epochs: float | None = None
    deadline: str | None = None
    max_size: Text | None = None
    fits: str | None = None
    weights: str | None = None
    context: int | None = None


def question_of(
    asked: Asked, law: Law, ceiling: tuple[float, str] | None
) -> tuple[Question, list[str]]:
    """The question, and what it assumes, a line each.

    Args:
        ceiling: most parameters that the device to serve on holds, and its words.

    Raises:
        UserError: nothing is asked, two things are, or a flag has no effect or no sense.
    """
    _refuse_idle(asked)
    demand = _demand(asked)
    economics, assumptions = _economics(asked, demand)
    unique = _count(asked.unique_tokens, "--unique-tokens", "100B")
    limits = _limits(asked, economics, unique, ceiling)
    if demand is not None:
        # In FLOPs a token read and one written are the same: how they divide does not matter.
        weighed = economics.in_money or demand.requests is not None
        about = demand.assumptions if weighed else ()
        assumptions = [f"serving: {demand.describe()}", *about, *assumptions]
    chosen = _count(asked.size, "--size", "7B")
    base = Question("", law, economics, demand, chosen=chosen, unique=unique, limits=limits)
    if asked.budget is not None:
        return _of_budget(asked, base, assumptions), assumptions
    return _of_loss(asked, base), assumptions


def _of_budget(asked: Asked, base: Question, assumptions: list[str]) -> Question:
    economics, demand = base.economics, base.demand
    units = ("usd", "flops", "device-hours", "seconds")
    amount = parse_amount(asked.budget or "", "--budget", units, _BUDGETS)
    budget, words = amount.value, f"{asked.budget}"
    timed = amount.unit in ("device-hours", "seconds")
    if timed:
        engine = _trained_on(economics, f"--budget {asked.budget}")
        seconds = amount.value
        if amount.unit == "device-hours":
            seconds = amount.value * 3600 / engine.hardware.num_devices
        budget = seconds * engine.flops_per_second
        words += f" on {engine.hardware.label}"
    if amount.unit == "usd" and not economics.in_money:
        missing = "--hardware 8xh100"
        if economics.training is not None:
            name = economics.training.hardware.device.name
            missing = f"--price {name}=1.50usd/h, or --power-price 0.30usd/kWh"
        raise UserError(
            f"--budget {asked.budget}: dollars buy FLOPs only on hardware with a price; add "
            f"{missing}"
        )
    served = demand is not None and not timed
    if demand is not None:
        assumptions.append(
            "the budget pays for training and serving" if served else "the budget is for training"
        )
    return replace(
        base,
        words=f"The best model for {words}" + (", serving included" if served else ""),
        budget=budget,
        budget_in_money=amount.unit == "usd",
        budget_for_all=served or demand is None,
        budget_in_time=timed,
    )


def _of_loss(asked: Asked, base: Question) -> Question:
    law, demand, chosen = base.law, base.demand, base.chosen
    served = "" if demand is None else f", serving {short(demand.tokens)} tokens"
    if asked.loss is not None:
        loss = parse_loss(asked.loss, law)
        words = f"The cheapest model of a loss of {loss:.5g} {law.loss}{served}"
        return replace(base, words=words, loss=loss)
    if asked.quality is not None:
        parameters, tokens = parse_quality(asked.quality)
        name = f"a {short(parameters)}"
        name += " trained compute-optimally" if tokens is None else f" after {short(tokens)} tokens"
        loss = law.at(parameters, tokens or law.optimal_tokens(parameters))
        words = f"The cheapest model as good as {name} (loss {loss:.4f} {law.loss}){served}"
        return replace(base, words=words, loss=loss, quality=(parameters, tokens))
    seen = _count(asked.tokens, "--tokens", "300B")
    if chosen is None:
        assert seen is not None
        chosen = law.optimal_parameters(seen)
    if seen is None:
        seen = law.optimal_tokens(chosen)
    loss = law.at(chosen, seen, base.unique)
    words = (
        f"The cheapest model as good as {short(chosen)} parameters after {short(seen)} tokens "
        f"(loss {loss:.4f} {law.loss}){served}"
    )
    return replace(
        base, words=words, loss=loss, quality=(chosen, seen), chosen=chosen, chosen_tokens=seen
    )


def parse_loss(text: Text, law: Law) -> float:
    """A loss in the law's unit: `2.1`, or with a unit, as in `2.1nats/token` or `0.9bits/byte`.

    Raises:
        UserError: not above 0, or of a unit that cannot be turned into the law's.
    """
    found = _LOSS.fullmatch(str(text).strip().lower())
    value = float(found["number"]) if found else math.nan
    if found is None or not 0 < value < math.inf:
        raise UserError(
            f"--loss {text}: write a loss above 0, in {law.loss} as {law.name} counts, or with its "
            "unit, as in 2.1nats/token or 0.9bits/byte"
        )
    if found["amount"] is None:
        return value
    wanted_amount, _, wanted_per = law.loss.split()
    if found["per"] != wanted_per:
        raise UserError(
            f"--loss {text}: {law.name} counts its loss in {law.loss}, and how many bytes a token "
            f"has depends on tokenizer and text; ask for a loss a {wanted_per}, or of another --law"
        )
    nats = value * (math.log(2) if found["amount"] == "bits" else 1)
    return nats / math.log(2) if wanted_amount == "bits" else nats


def parse_quality(text: str) -> tuple[float, float | None]:
    """`13B`, `chinchilla-13B`, `13B@1T`, `tinyllama-1.1b@3T` as (N, D or None)."""
    from llamita.architecture.counts import num_parameters
    from llamita.architecture.presets import PRESETS

    name, at, seen = text.partition("@")
    tokens = parse_count(seen, "--quality", "13B@1T", "tokens") if at else None
    if name in PRESETS:
        if tokens is None:
            raise UserError(f"--quality {text}: say after how many tokens, as in {name}@1T")
        return float(num_parameters(PRESETS[name].config)), tokens
    size = name.removeprefix("chinchilla-")
    return parse_count(size, "--quality", "13B, 13B@1T or tinyllama-1.1b@3T"), tokens


def device_memory(text: str, hardware_files: Sequence[str | Path]) -> tuple[str, int]:
    """What a model must fit: a device of the catalogue, or an amount such as `16GB`.

    Raises:
        UserError: neither, or a device whose memory is not known.
    """
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*(gb|gib)", text.strip().lower())
    if found is not None:
        memory = round(float(found[1]) * (1e9 if found[2] == "gb" else 2**30))
        if memory == 0:
            raise UserError(f"--fits {text}: it must be above 0; write rtx-4090 or 16GB")
        return "a device", memory
    hardware = load_hardware([Path(each) for each in hardware_files]).find(text)
    if hardware.memory_bytes is None:
        raise UserError(
            f"--fits {text}: no memory is known of it; name a device of which it is, as rtx-4090, "
            "or the amount, as 16GB"
        )
    alone = hardware.num_devices == 1
    return hardware.device.name if alone else hardware.label, hardware.memory_bytes


# -- demand, hardware, limits ---------------------------------------------------------------------


def _demand(asked: Asked) -> Demand | None:
    demand = parse_demand(
        requests=asked.requests,
        request=asked.request,
        serve_tokens=asked.serve_tokens,
        serve_words=asked.serve_words,
        lifetime=asked.lifetime,
        tokens_per_word=_tokens_per_word(asked.tokens_per_word),
    )
    words = asked.serve_words is not None or "w" in (asked.request or "")
    if asked.tokens_per_word is not None and not words:
        raise UserError("--tokens-per-word has an effect only on words; leave it out")
    return demand


def _tokens_per_word(value: float | None) -> float:
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"--tokens-per-word {value:g}: write a number above 0, such as 1.33")
    return TOKENS_PER_WORD if value is None else value


@dataclass(frozen=True)
class _Machines:
    training: Hardware
    serving: Hardware
    usd_per_kwh: float | None


def hardware_of(asked: Asked) -> tuple[Hardware | None, float | None]:
    """What a run was trained on, and dollars a kilowatt-hour; None where they are not given."""
    _refuse_without(asked, served=False, energy=asked.hardware is not None)
    machines = _machines(asked)
    return (None, None) if machines is None else (machines.training, machines.usd_per_kwh)


def _machines(asked: Asked) -> _Machines | None:
    if asked.hardware is None:
        return None
    catalogue = load_hardware([Path(each) for each in asked.hardware_file])
    catalogue = catalogue.with_prices(dict(parse_price(each) for each in asked.price))
    training = catalogue.find(asked.hardware)
    serving = catalogue.find(asked.serve_hardware) if asked.serve_hardware else training
    _refuse_idle_prices(asked, catalogue, (training, serving))
    if asked.watts is not None:
        training = training.with_watts(asked.watts)
        serving = serving if asked.serve_hardware else training
    usd_per_kwh = None
    if asked.power_price is not None:
        usd_per_kwh = _per_kwh(asked.power_price, training, serving)
    return _Machines(training, serving, usd_per_kwh)


def engine_of(asked: Asked) -> Engine | None:
    """What trains: hardware, precision and utilisation."""
    _refuse_without(asked, served=False)
    machines = _machines(asked)
    return None if machines is None else _engine(asked, machines)


def _engine(asked: Asked, machines: _Machines) -> Engine:
    precision = asked.precision or _usual_precision(machines.training)
    reached = machines.training.device.mfu
    mfu = reached if asked.mfu is None and reached else _mfu(asked.mfu, "--mfu", 0)
    return Engine(machines.training, precision, mfu, machines.usd_per_kwh)


def _economics(asked: Asked, demand: Demand | None) -> tuple[Economics, list[str]]:
    machines = _machines(asked)
    if machines is None:
        return Economics(), []
    training = _engine(asked, machines)
    engines = [("training", training)]
    economics = Economics(training)
    if demand is not None:
        serving, kwh = machines.serving, machines.usd_per_kwh
        kind = asked.serve_precision or _usual_precision(serving)
        prefill = Engine(serving, kind, _mfu(asked.prefill_mfu, "--prefill-mfu", 1), kwh)
        decode = Engine(serving, kind, _mfu(asked.decode_mfu, "--decode-mfu", 2), kwh)
        economics = Economics(training, prefill, decode)
        engines += [("reading (prefill)", prefill), ("writing (decode)", decode)]
        _refuse_half_priced(training, decode)
    said = [_assumed(name, engine) for name, engine in engines]
    device = machines.training.device
    if device.is_cpu or device.mfu:
        said.append(f"the rate: {device.source}, {device.date}")
        said += [device.note] if device.note else []
    return economics, said


def _usual_precision(hardware: Hardware) -> str:
    """bfloat16 where its rate is known, else the first that is."""
    known = hardware.device.peak_flops
    return "bfloat16" if "bfloat16" in known or not known else next(iter(known))


def _assumed(name: str, engine: Engine) -> str:
    hourly, flop = engine.usd_per_hour, engine.usd_per_flop
    price = "no price" if hourly is None else f"${hourly:,.4g} an hour, ${flop:.3g} a FLOP"
    power = "" if engine.usd_per_kwh is None else f", electricity at ${engine.usd_per_kwh:g}/kWh"
    return (
        f"{name} on {engine.hardware.label}, {engine.precision}, at {engine.mfu:.0%} of "
        f"{engine.hardware.peak_flops(engine.precision):.4g} FLOP/s: {price}{power}"
    )


def _refuse_half_priced(training: Engine, serving: Engine) -> None:
    if (training.usd_per_hour is None) != (serving.usd_per_hour is None):
        without = training if training.usd_per_hour is None else serving
        name = without.hardware.device.name
        raise UserError(
            f"{name} has no price, the other hardware has one, and dollars cannot be weighed "
            f"against none; add --price {name}=1.50usd/h"
        )


def _refuse_idle_prices(asked: Asked, catalogue: Catalogue, used: tuple[Hardware, ...]) -> None:
    names = sorted({each.node.name if each.node else each.device.name for each in used})
    for text in asked.price:
        name = catalogue.name_of(parse_price(text)[0])
        if name not in names:
            raise UserError(
                f"--price {text}: {name} is not among the hardware in use ({', '.join(names)})"
            )


def _limits(
    asked: Asked, economics: Economics, unique: float | None, ceiling: tuple[float, str] | None
) -> Limits:
    reasons = []
    parameters = tokens = flops = math.inf
    if asked.max_size is not None:
        parameters = parse_count(asked.max_size, "--max-size", "8B")
        reasons.append(("parameters", f"--max-size {asked.max_size}"))
    if ceiling is not None and ceiling[0] < parameters:
        parameters = ceiling[0]
        reasons.insert(0, ("parameters", ceiling[1]))
    if asked.max_epochs is not None:
        if not asked.max_epochs > 0:
            raise UserError(f"--max-epochs {asked.max_epochs:g}: give a number above 0, such as 4")
        assert unique is not None
        tokens = unique * asked.max_epochs
        reasons.append(("tokens", f"--max-epochs {asked.max_epochs:g}"))
    if asked.deadline is not None:
        engine = _trained_on(economics, f"--deadline {asked.deadline}")
        seconds = parse_seconds(asked.deadline, "--deadline")
        flops = seconds * engine.flops_per_second
        reasons.append(
            ("training_flops", f"a deadline of {duration(seconds)} on {engine.hardware.label}")
        )
    return Limits(parameters, tokens, flops, tuple(reasons))


def _trained_on(economics: Economics, flag: str) -> Engine:
    if economics.training is None:
        raise UserError(f"{flag}: time buys FLOPs only on known hardware; add --hardware 8xa100-80")
    return economics.training


def _mfu(value: float | None, flag: str, number: int) -> float:
    return AUTHORS_MFU[number] if value is None else parse_share(value, flag)


def _per_kwh(text: str, *used: Hardware) -> float:
    number = text.lower().removeprefix("$").removesuffix("/kwh").removesuffix("usd")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not text.lower().endswith("/kwh") or not 0 <= value < math.inf:
        raise UserError(f"--power-price {text}: write dollars a kilowatt-hour, as in 0.30usd/kWh")
    for hardware in used:
        if hardware.watts is None:
            raise UserError(f"no power is known of {hardware.device.name}; add --watts 350")
    return value


def _count(text: Text | None, flag: str, example: str) -> float | None:
    unit = "tokens" if "tokens" in flag else ""
    return None if text is None else parse_count(text, flag, example, unit)


def _refuse_idle(asked: Asked) -> None:
    """One question at a time, and no flag that would change nothing."""
    targets = {"--budget": asked.budget, "--loss": asked.loss, "--quality": asked.quality}
    named = [flag for flag, value in targets.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} are two questions; ask one at a time")
    if not named and asked.size is None and asked.tokens is None:
        raise UserError(
            "what is to be planned? Name a recipe, or ask with --budget 5000usd, --quality 13B, "
            "--loss 2.2, --size 1B or --tokens 300B"
        )
    if named and asked.tokens is not None:
        raise UserError(f"--tokens: {named[0]} settles them already; leave one of the two out")
    served = any(
        each is not None for each in (asked.requests, asked.serve_tokens, asked.serve_words)
    )
    _refuse_without(asked, served=served)


def _refuse_without(asked: Asked, *, served: bool, energy: bool = False) -> None:
    trains, serves = asked.hardware is not None, asked.hardware is not None and served
    for flag, value, effect, need in (
        ("--precision", asked.precision, trains, "--hardware"),
        ("--mfu", asked.mfu, trains, "--hardware"),
        ("--price", asked.price or None, trains, "--hardware"),
        ("--power-price", asked.power_price, trains, "--hardware"),
        ("--watts", asked.watts, energy or asked.power_price is not None, "--power-price"),
        ("--hardware-file", asked.hardware_file or None, trains or asked.fits, "--hardware"),
        ("--serve-hardware", asked.serve_hardware, serves, "--hardware and a demand"),
        ("--serve-precision", asked.serve_precision, serves, "--hardware and a demand"),
        ("--prefill-mfu", asked.prefill_mfu, serves, "--hardware and a demand"),
        ("--decode-mfu", asked.decode_mfu, serves, "--hardware and a demand"),
        ("--max-epochs", asked.max_epochs, asked.unique_tokens is not None, "--unique-tokens"),
        ("--context", asked.context, asked.fits is not None, "--fits"),
        ("--weights", asked.weights, asked.fits is not None, "--fits"),
    ):
        if value is not None and not effect:
            raise UserError(f"{flag} has no effect without {need}; add that, or leave it out")
