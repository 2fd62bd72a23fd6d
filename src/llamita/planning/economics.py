"""From hardware, utilisation and prices to what a FLOP costs and how long FLOPs take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamita.planning.demand import Demand
from llamita.planning.hardware import Hardware
from llamita.planning.optimum import SERVING_FLOPS, TRAINING_FLOPS, Point, Spending

AUTHORS_MFU = (0.5, 0.5, 0.01)
"""Training, prefill and decode in Beyond Chinchilla-Optimal, section 4."""


@dataclass(frozen=True)
class Engine:
    """Hardware at a precision and a share of its peak: what runs FLOPs."""

    hardware: Hardware
    precision: str
    mfu: float
    usd_per_kwh: float | None = None

    @property
    def flops_per_second(self) -> float:
        return self.hardware.peak_flops(self.precision) * self.mfu

    @property
    def usd_per_hour(self) -> float | None:
        """Rent and electricity, as far as they are known; None where neither is."""
        price = self.hardware.usd_per_hour
        if self.usd_per_kwh is None:
            return price
        assert self.hardware.watts is not None
        return (price or 0.0) + self.hardware.watts / 1000 * self.usd_per_kwh

    @property
    def usd_per_flop(self) -> float | None:
        hourly = self.usd_per_hour
        return None if hourly is None else hourly / 3600 / self.flops_per_second

    def seconds(self, flops: float) -> float:
        return flops / self.flops_per_second


@dataclass(frozen=True)
class Economics:
    """Who trains, reads and writes. Without engines everything is counted in FLOPs."""

    training: Engine | None = None
    prefill: Engine | None = None
    decode: Engine | None = None

    @property
    def in_money(self) -> bool:
        """Whether training, and serving where it is counted, have a price."""
        return self.training is not None and self.training.usd_per_flop is not None

    def spending(self, demand: Demand | None, *, flops: bool = False) -> Spending:
        """FLOPs form (Beyond Chinchilla-Optimal, eq. 2) or, where there are prices and `flops` is
        not asked for, cost form (eq. 4)."""
        tokens_in = demand.tokens_in if demand else 0.0
        tokens_out = demand.tokens_out if demand else 0.0
        if flops or not self.in_money:
            return Spending(TRAINING_FLOPS, SERVING_FLOPS * (tokens_in + tokens_out))
        serving = 0.0
        if demand is not None:
            serving = tokens_in * _priced(self.prefill) + tokens_out * _priced(self.decode)
        return Spending(TRAINING_FLOPS * _priced(self.training), SERVING_FLOPS * serving)

    def training_seconds(self, point: Point) -> float | None:
        return None if self.training is None else self.training.seconds(point.flops)

    def serving_devices(self, point: Point, demand: Demand) -> float | None:
        """Devices that the demand keeps busy on average, None where no rate is known."""
        if self.prefill is None or self.decode is None or demand.seconds is None:
            return None
        forward = SERVING_FLOPS * point.parameters
        busy = self.prefill.seconds(forward * demand.tokens_in)
        busy += self.decode.seconds(forward * demand.tokens_out)
        return busy / demand.seconds * self.prefill.hardware.num_devices

    def at_utilisation(self, factor: float) -> Economics:
        """The same with every utilisation multiplied by `factor`."""
        engines = {
            name: replace(engine, mfu=engine.mfu * factor)
            for name in ("training", "prefill", "decode")
            if (engine := getattr(self, name)) is not None
        }
        return replace(self, **engines)


def _priced(engine: Engine | None) -> float:
    """Dollars a FLOP. All engines have a price, or none has: `asking` refuses the rest."""
    assert engine is not None
    assert engine.usd_per_flop is not None
    return engine.usd_per_flop
