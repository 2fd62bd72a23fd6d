"""Scaling laws by name or from a file: the loss that N parameters reach after D tokens.

L(N, D) = E + A/N^α + B/D^β (Hoffmann et al., arXiv 2203.15556, eq. 2). The shipped laws are in
laws.yaml, each with its constants, units, source and the runs behind it; a file of the same keys is
a law too (`llamita law fit` writes one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamita.errors import UserError, did_you_mean
from llamita.planning.quantities import tokens as short
from llamita.recipes.yaml_reading import parse_yaml

if TYPE_CHECKING:
    from llamita.architecture.counts import Counts

LossUnit = Literal["nats per token", "nats per byte", "bits per byte"]
Range = tuple[float, float]
Sample = tuple[float, float, float, float, float]
CONSTANTS = ("E", "A", "alpha", "B", "beta")

DEFAULT_LAW = "beyond-chinchilla"
REPEATED_DATA = 15.387756
"""R*_D of Muennighoff et al. (arXiv 2305.16264): epochs beyond the first after which repeated
tokens have given 1 - 1/e of all that repeating can give."""


@dataclass(frozen=True)
class Repetition:
    """How fast repeated tokens, and parameters in excess of the unique data, lose their worth."""

    data: float
    parameters: float | None = None


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A/(N/parameters_unit)^alpha + B/(D/tokens_unit)^beta.

    errors: one standard error of a constant. intervals: 95% intervals from a bootstrap.
    samples: its fits, (E, A, alpha, B, beta) in the law's units: constants hang together, so that
    intervals of anything but a single one come from these.
    fitted_*: the range of the runs behind the fit, None where the source gives none.
    """

    name: str
    E: float
    A: float
    alpha: float
    B: float
    beta: float
    loss: LossUnit
    counts: Counts
    source: str
    note: str = ""
    parameters_unit: float = 1.0
    tokens_unit: float = 1.0
    repetition: Repetition | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Range] = field(default_factory=dict)
    fitted_parameters: Range | None = None
    fitted_tokens: Range | None = None
    fitted_ratio: Range | None = None
    data: str | None = None
    """Whose text the loss is of, for a law fitted on runs of one's own."""
    samples: tuple[Sample, ...] = field(default=(), repr=False)

    def parameters_term(self, parameters: float) -> float:
        """A/N^α: what the loss would fall by if the model were infinitely large."""
        return float(self.A * (parameters / self.parameters_unit) ** -self.alpha)

    def tokens_term(self, tokens: float) -> float:
        """B/D^β: what the loss would fall by after infinitely many tokens."""
        return float(self.B * (tokens / self.tokens_unit) ** -self.beta)

    def at(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """The loss of N parameters after D tokens, drawn from `unique` ones if that is given.

        Repeated tokens count as `effective_tokens`; a law that knows of parameters in excess counts
        those as `effective_parameters`.
        """
        if unique is not None:
            parameters = self.effective_parameters(parameters, min(tokens, unique))
            tokens = self.effective_tokens(tokens, unique)
        return self.E + self.parameters_term(parameters) + self.tokens_term(tokens)

    def parameters_for(self, loss: float, tokens: float, unique: float | None = None) -> float:
        """N that reaches `loss` after D tokens; infinite where none does."""
        seen = tokens if unique is None else self.effective_tokens(tokens, unique)
        rest = loss - self.E - self.tokens_term(seen)
        if rest <= 0:
            return math.inf
        needed = self.parameters_unit * (self.A / rest) ** (1 / self.alpha)
        return needed if unique is None else self._parameters_worth(needed, min(tokens, unique))

    def tokens_for(self, loss: float, parameters: float, unique: float | None = None) -> float:
        """D after which N parameters reach `loss`; infinite where they never do."""
        if unique is not None and self.repetition is not None and self.repetition.parameters:
            return self._tokens_by_bisection(loss, parameters, unique)
        rest = loss - self.E - self.parameters_term(parameters)
        if rest <= 0:
            return math.inf
        needed = self.tokens_unit * (self.B / rest) ** (1 / self.beta)
        return needed if unique is None else self._tokens_worth(needed, unique)

    def optimal_tokens(self, parameters: float) -> float:
        """D on the compute-optimal path: where αA/N^α = βB/D^β, so that 6ND is least for L."""
        share = self.alpha * self.parameters_term(parameters) / (self.beta * self.B)
        return float(self.tokens_unit * share ** (-1 / self.beta))

    def optimal_parameters(self, tokens: float) -> float:
        """N on the compute-optimal path of D."""
        share = self.beta * self.tokens_term(tokens) / (self.alpha * self.A)
        return float(self.parameters_unit * share ** (-1 / self.alpha))

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) of least loss with 6·N·D = flops (Hoffmann et al., eq. 4)."""
        product = flops / 6 / (self.parameters_unit * self.tokens_unit)
        both = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = scale * product ** (self.beta / both)
        return parameters * self.parameters_unit, product / parameters * self.tokens_unit

    # -- repetition ---------------------------------------------------------------------------

    @property
    def knows_repetition(self) -> bool:
        return self.repetition is not None

    @property
    def _repeated_data(self) -> float:
        return REPEATED_DATA if self.repetition is None else self.repetition.data

    def effective_tokens(self, tokens: float, unique: float) -> float:
        """D' = U + U·R*·(1 - e^(-R/R*)), R = D/U - 1: what D tokens of U unique ones are worth
        (Muennighoff et al., arXiv 2305.16264, eq. 5).

        R* belongs to that paper's law; in another law this is an approximation.
        """
        return _worth(tokens, unique, self._repeated_data)

    def worth_at(self, epochs: float) -> float:
        """dD'/dD = e^(-R/R*): what the last token read is worth beside a fresh one."""
        return math.exp(-max(0.0, epochs - 1) / self._repeated_data)

    def epochs_at_worth(self, worth: float) -> float:
        """The inverse of `worth_at`."""
        return 1 - self._repeated_data * math.log(worth)

    def most_effective_tokens(self, unique: float) -> float:
        """What U unique tokens are worth when they are repeated for ever."""
        return unique * (1 + self._repeated_data)

    def effective_parameters(self, parameters: float, unique: float) -> float:
        """N' (the same paper, eq. 7): parameters beyond what `unique` tokens call for count less.

        A law that does not know of this counts them in full.
        """
        star = self.repetition.parameters if self.repetition else None
        if star is None:
            return parameters
        return _worth(parameters, self.optimal_parameters(unique), star)

    def _parameters_worth(self, effective: float, unique: float) -> float:
        star = self.repetition.parameters if self.repetition else None
        if star is None:
            return effective
        return _needed(effective, self.optimal_parameters(unique), star)

    def _tokens_worth(self, effective: float, unique: float) -> float:
        return _needed(effective, unique, self._repeated_data)

    def _tokens_by_bisection(self, loss: float, parameters: float, unique: float) -> float:
        """Where N' depends on D too, by halving ln D: the loss falls with D."""
        low, high = math.log(unique) - 60, math.log(unique) + 10
        if self.at(parameters, math.exp(high), unique) > loss:
            return math.inf
        for _ in range(100):
            middle = (low + high) / 2
            if self.at(parameters, math.exp(middle), unique) > loss:
                low = middle
            else:
                high = middle
        return math.exp(high)

    # -- uncertainty --------------------------------------------------------------------------

    def sampled_laws(self) -> list[Law]:
        """A law for each of the samples, with no samples of its own."""
        return [
            replace(self, E=e, A=a, alpha=alpha, B=b, beta=beta, samples=(), intervals={})
            for e, a, alpha, b, beta in self.samples
        ]

    def interval_of(self, function: Callable[[Law], float], level: float = 0.95) -> Range | None:
        """Where what a function says of the law lies, by the percentiles of what it says of the
        samples; None for a law that has none."""
        if not self.samples:
            return None
        values = sorted(function(law) for law in self.sampled_laws())
        return _quantile(values, (1 - level) / 2), _quantile(values, (1 + level) / 2)

    def interval(self, parameters: float, tokens: float, level: float = 0.95) -> Range | None:
        """Of the law's loss at (N, D). A single run scatters about that besides."""
        return self.interval_of(lambda law: law.at(parameters, tokens), level)

    # -- validity -----------------------------------------------------------------------------

    def beyond_its_runs(self, parameters: float, tokens: float) -> list[str]:
        """How far a point lies outside the runs that the law was fitted on, in sentences."""
        checks = (
            ("parameters", parameters, self.fitted_parameters),
            ("tokens", tokens, self.fitted_tokens),
            ("tokens per parameter", tokens / parameters, self.fitted_ratio),
        )
        return [
            f"{self.name} is extrapolated: {_amount(value)} {what} are "
            + (
                f"{_times(value / fitted[1])} times the most"
                if value > fitted[1]
                else f"1/{_times(fitted[0] / value)} of the fewest"
            )
            + f" of the runs behind it ({_amount(fitted[0])} to {_amount(fitted[1])})"
            for what, value, fitted in checks
            if fitted is not None and not fitted[0] <= value * (1 + 1e-9) <= fitted[1] * (1 + 2e-9)
        ]

    def refuse_below_irreducible(self, loss: float, what: str) -> None:
        """Raises:
        UserError: no model of any size reaches `loss` under this law.
        """
        if not loss > self.E:
            raise UserError(
                f"{what} {loss:g} lies below what any model reaches: {self.name}'s irreducible "
                f"loss is E = {self.E:g} {self.loss}; ask for more than that"
            )


@dataclass(frozen=True)
class Rule:
    """Tokens in proportion to parameters, and nothing said of loss."""

    name: str
    tokens_per_parameter: float
    counts: Counts
    source: str
    note: str = ""

    def optimal_tokens(self, parameters: float) -> float:
        return self.tokens_per_parameter * parameters

    def optimal_parameters(self, tokens: float) -> float:
        return tokens / self.tokens_per_parameter

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """(N, D) with 6·N·D = flops."""
        parameters = math.sqrt(flops / (6 * self.tokens_per_parameter))
        return parameters, self.tokens_per_parameter * parameters


def _amount(value: float) -> str:
    return short(value) if value >= 1000 else f"{value:.3g}"


def _times(factor: float) -> str:
    return f"{factor:.3g}" if factor < 999.5 else f"{factor:,.0f}"


def _worth(count: float, unique: float, star: float) -> float:
    if count <= unique:
        return count
    return unique + unique * star * (1 - math.exp(-(count / unique - 1) / star))


def _needed(worth: float, unique: float, star: float) -> float:
    """The inverse of `_worth`."""
    if worth <= unique:
        return worth
    left = 1 - (worth / unique - 1) / star
    return math.inf if left <= 0 else unique * (1 - star * math.log(left))


def _quantile(values: list[float], share: float) -> float:
    """Of sorted values, linear between two of them."""
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


# -- names and files ------------------------------------------------------------------------------


def shipped_laws() -> dict[str, Law | Rule]:
    """The laws that come with llamita, the default first."""
    return {name: _read(name, values, "laws.yaml") for name, values in _shipped().items()}


def find_law(name: str | Path) -> Law | Rule:
    """A shipped law by name, or a law's file.

    Raises:
        UserError: neither; or a file that does not hold a law.
    """
    shipped = _shipped()
    if str(name) in shipped:
        return _read(str(name), shipped[str(name)], "laws.yaml")
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"law {str(name)!r}: no such file, and no law of that name (there are "
            f"{', '.join(shipped)}).{did_you_mean(str(name), shipped)}"
        )
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"law {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a law is a mapping of keys, not {type(values).__name__}")
    return _read(str(values.pop("name", path.stem)), values, str(path))


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    file = resources.files("llamita.planning").joinpath("laws.yaml")
    return dict(parse_yaml(file.read_text(encoding="utf-8"), "laws.yaml"))


_NUMBERS = ("E", "A", "alpha", "B", "beta", "parameters_unit", "tokens_unit")
_RANGES = ("fitted_parameters", "fitted_tokens", "fitted_ratio")
_CHOICES = {
    "loss": ("nats per token", "nats per byte", "bits per byte"),
    "counts": ("total", "non-embedding"),
}
_LAW_KEYS = {*_NUMBERS, *_RANGES, *_CHOICES, "source", "note", "repetition", "errors"}
_LAW_KEYS |= {"intervals", "data", "samples"}
_RULE_KEYS = {"tokens_per_parameter", "counts", "source", "note"}


def _read(name: str, values: Mapping[str, Any], where: str) -> Law | Rule:
    rule = "tokens_per_parameter" in values
    where = f"{where}, law {name}"
    known = _RULE_KEYS if rule else _LAW_KEYS
    for key in values:
        if key not in known:
            raise UserError(f"{where}: there is no key {key!r}.{did_you_mean(str(key), known)}")
    needed = ("tokens_per_parameter",) if rule else ("E", "A", "alpha", "B", "beta", "loss")
    for key in (*needed, "counts", "source"):
        if key not in values:
            raise UserError(f"{where}: {key} is missing")
    read: dict[str, Any] = dict(values)
    for key in (*_NUMBERS, "tokens_per_parameter"):
        if key in read:
            read[key] = _number(read[key], f"{where}: {key}", positive=key != "E")
    for key in (key for key in _RANGES if key in read):
        read[key] = _range(read[key], f"{where}: {key}")
    for key, allowed in _CHOICES.items():
        if key in read and read[key] not in allowed:
            raise UserError(f"{where}: {key} is {read[key]!r}; write {' or '.join(allowed)}")
    for key in ("source", "note", "data"):
        if not isinstance(read.get(key, ""), str):
            raise UserError(f"{where}: {key} is {read[key]!r}; write a text, in quotes")
    if rule:
        return Rule(name=name, **read)
    if "repetition" in read:
        stars = _mapping(read["repetition"], f"{where}: repetition", ("data", "parameters"))
        if "data" not in stars:
            raise UserError(f"{where}: repetition.data is missing")
        read["repetition"] = Repetition(
            **{
                key: _number(value, f"{where}: repetition.{key}", positive=True)
                for key, value in stars.items()
            }
        )
    read["errors"] = {
        key: _number(value, f"{where}: errors.{key}", positive=False)
        for key, value in _mapping(read.get("errors", {}), f"{where}: errors", CONSTANTS).items()
    }
    intervals = _mapping(read.get("intervals", {}), f"{where}: intervals", CONSTANTS)
    read["intervals"] = {
        key: _range(value, f"{where}: intervals.{key}") for key, value in intervals.items()
    }
    read["samples"] = _samples(read.get("samples", ""), f"{where}: samples")
    return Law(name=name, **read)


def _number(value: Any, where: str, *, positive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where} is {value!r}, not a number")
    if value < 0 or (positive and value == 0):
        raise UserError(f"{where} is {value:g}: it must be {'above' if positive else 'at least'} 0")
    return float(value)


def _mapping(value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; write a mapping of {', '.join(known)}")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: there is no key {key!r} (there are {', '.join(known)})")
    return value


def _samples(value: Any, where: str) -> tuple[Sample, ...]:
    """A line each: 400 lists take YAML 90 ms, their text 7."""
    if not isinstance(value, str):
        raise UserError(f"{where}: write a block of text, {' '.join(CONSTANTS)} a line")
    read = []
    for line in value.splitlines():
        try:
            e, *others = (float(word) for word in line.split())
            a, alpha, b, beta = others
        except ValueError:
            raise UserError(f"{where}: {line!r} is not five numbers") from None
        for key, each in zip(CONSTANTS, (e, a, alpha, b, beta), strict=True):
            _number(each, f"{where}: {line!r}: {key}", positive=key != "E")
        read.append((e, a, alpha, b, beta))
    return tuple(read)


def _range(value: Any, where: str) -> Range:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{where} is {value!r}; write two numbers, as in [70e6, 16e9]")
    low, high = (_number(number, where, positive=False) for number in value)
    if low > high:
        raise UserError(f"{where}: {low:g} lies above {high:g}; write the smaller one first")
    return low, high
