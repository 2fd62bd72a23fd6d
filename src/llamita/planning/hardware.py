"""Hardware by name: what it computes, holds, draws and costs, each figure with source and date.

The shipped figures are in hardware.yaml; a user's file of the same form overrides them key by key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamita.errors import UserError, did_you_mean
from llamita.planning.quantities import gigabytes, metric

PRECISIONS = ("bfloat16", "float16", "float8", "int8", "float32")
THIS_CPU = "this-cpu"

_COUNTED = re.compile(r"(?P<count>[-+]?[0-9][0-9.,]*)\s*[x×]\s*(?P<name>.*)")
_RATE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)-?(?P<prefix>[gtp])flops?(?:/s)?")
_RATE_UNITS = {"g": 1e9, "t": 1e12, "p": 1e15}


@dataclass(frozen=True)
class Price:
    """US dollars an hour for one device or one node, whichever it hangs on.

    date: of the source, or of the day it was read; "" where a user's file gives none.
    """

    usd_per_hour: float
    source: str
    date: str = ""
    note: str = ""


@dataclass(frozen=True)
class Device:
    """One accelerator, or a machine's CPU as a whole.

    peak_flops: dense operations a second by precision. bandwidth: of the memory, bytes a second.
    watts: the board's limit. None or absent: the source gives no figure. The first price is the
    default. mfu: the share of the peak that was reached, where it was measured.
    """

    name: str
    label: str
    source: str
    date: str = ""
    memory_bytes: int | None = None
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    watts: float | None = None
    note: str = ""
    aliases: tuple[str, ...] = ()
    prices: tuple[Price, ...] = ()
    mfu: float | None = None
    is_cpu: bool = False

    def peak(self, precision: str) -> float:
        """FLOP/s (int8: OP/s) of one device.

        Raises:
            UserError: there is no figure for this precision.
        """
        if precision in self.peak_flops:
            return self.peak_flops[precision]
        if not self.peak_flops:
            raise UserError(
                f"{self.name}: its maker publishes no peak FLOP/s; measure it and give the rate in "
                f"place of the name, as in 4.1tflops"
            )
        raise UserError(
            f"{self.name} has no figure for {precision}; it has {', '.join(self.peak_flops)}"
        )


@dataclass(frozen=True)
class Node:
    """A machine that is rented as a whole; `prices` are the whole node's."""

    name: str
    label: str
    device: str
    num_devices: int
    note: str = ""
    aliases: tuple[str, ...] = ()
    prices: tuple[Price, ...] = ()


@dataclass(frozen=True)
class Hardware:
    """What one runs on: devices of one kind. `price` is a node's where there is one."""

    device: Device
    num_devices: int
    price: Price | None = None
    node: Node | None = None

    @property
    def num_nodes(self) -> int | None:
        return None if self.node is None else self.num_devices // self.node.num_devices

    @property
    def label(self) -> str:
        """`8 × h100`, `2 × p4d.24xlarge (16 × a100-40)`."""
        devices = f"{self.num_devices} × {self.device.name}"
        return devices if self.node is None else f"{self.num_nodes} × {self.node.name} ({devices})"

    @property
    def memory_bytes(self) -> int | None:
        """Of all devices together."""
        each = self.device.memory_bytes
        return None if each is None else each * self.num_devices

    @property
    def watts(self) -> float | None:
        """Of all devices together, at their boards' limit."""
        each = self.device.watts
        return None if each is None else each * self.num_devices

    @property
    def usd_per_hour(self) -> float | None:
        if self.price is None:
            return None
        return self.price.usd_per_hour * (self.num_nodes or self.num_devices)

    def peak_flops(self, precision: str) -> float:
        """FLOP/s (int8: OP/s) of all devices together.

        Raises:
            UserError: there is no figure for this precision.
        """
        return self.device.peak(precision) * self.num_devices

    def with_watts(self, watts: float) -> Hardware:
        """The same, each device drawing `watts`."""
        if not 0 < watts < float("inf"):
            raise UserError(f"--watts {watts:g}: a device's power is above 0, as in --watts 350")
        return replace(self, device=replace(self.device, watts=watts))

    def describe(self) -> list[str]:
        """What it is, and where its figures and its price are from."""
        lines = [f"{self.label}: {self.device.label}", *_figures(self.device, self.num_devices)]
        if self.usd_per_hour is not None and self.price is not None:
            lines.append(f"${self.usd_per_hour:.2f}/h: {_price_line(self.price)}")
        return lines


@dataclass(frozen=True)
class Catalogue:
    """Devices and nodes by name. `given`: prices from the command line, which come first.

    addresses: `title, date` of a source → where it can be read.
    """

    devices: Mapping[str, Device]
    nodes: Mapping[str, Node]
    addresses: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Price] = field(default_factory=dict)

    def find(self, text: str) -> Hardware:
        """`h100`, `8xa100-80`, `2×p4d.24xlarge`, `cpu` (measured now), a rate such as `427gflops`,
        or a run's directory: what it was trained on, at the rate that it reached.

        A rate is a device that reaches it in every precision and has neither price nor memory.

        Raises:
            UserError: unknown, ambiguous, or a count that is no whole number above 0.
        """
        if _is_run(text):
            from llamita.planning.run_device import device_of_run

            device, num_devices = device_of_run(Path(text))
            return Hardware(device, num_devices, self.given.get(device.name))
        name, count = _split(text)
        if name in ("cpu", THIS_CPU):
            if count is not None:
                raise UserError(
                    f"--hardware {text}: the CPU of this machine is taken whole; write cpu"
                )
            from llamita.planning.this_cpu import measure_cpu

            return Hardware(measure_cpu(), 1, self.given.get(THIS_CPU))
        found = _rated(name) or self._lookup(name)
        if isinstance(found, Node):
            device = self.devices[found.device]
            price = self._price(found)
            return Hardware(device, (count or 1) * found.num_devices, price, found)
        return Hardware(found, count or 1, self._price(found))

    def name_of(self, text: str) -> str:
        """The name that what `find` reads goes by: `4090` and `2xRTX 4090` are `rtx-4090`.

        Raises:
            UserError: as `find`.
        """
        if _is_run(text):
            return str(Path(text))
        name, _ = _split(text)
        if name in ("cpu", THIS_CPU):
            return THIS_CPU
        return (_rated(name) or self._lookup(name)).name

    def with_prices(self, usd_per_hour: Mapping[str, float]) -> Catalogue:
        """The same with prices of the user's own: of one device, or of one node.

        Raises:
            UserError: an unknown name, a count before the name, or a price below 0.
        """
        given = dict(self.given)
        for written, price in usd_per_hour.items():
            name, count = (written, None) if _is_run(written) else _split(written)
            if count is not None:
                raise UserError(f"--price {written}: a price is of one; write {name}=1.40usd/h")
            if not 0 <= price < float("inf"):
                raise UserError(f"--price {written}={price:g}: a price is 0 or more")
            given[self.name_of(name)] = Price(float(price), "given with --price")
        return replace(self, given=given)

    def describe(self) -> list[str]:
        """All there is, a few lines each, with prices, sources and dates; addresses at the end."""
        lines: list[str] = []
        for device in self.devices.values():
            lines += [f"{_names(device)}: {device.label}"]
            lines += [f"    {line}" for line in _figures(device, 1)]
            lines += [f"    {line}" for line in self._price_lines(device)]
        for node in self.nodes.values():
            lines += [f"{_names(node)}: {node.label}, {node.num_devices} × {node.device}"]
            lines += [f"    {line}" for line in self._price_lines(node)]
        lines += ["Sources"]
        lines += [f"    {source}: {address}" for source, address in self.addresses.items()]
        return lines

    def _price(self, item: Device | Node) -> Price | None:
        return self.given.get(item.name) or next(iter(item.prices), None)

    def _price_lines(self, item: Device | Node) -> list[str]:
        own = [self.given[item.name]] if item.name in self.given else []
        prices = [*own, *item.prices]
        if not prices:
            return ["no price with a source"]
        return [f"${price.usd_per_hour:.2f}/h: {_price_line(price)}" for price in prices]

    def _lookup(self, name: str) -> Device | Node:
        items: dict[str, Device | Node] = {**self.devices, **self.nodes}
        if name in items:
            return items[name]
        for item in items.values():
            if name in item.aliases:
                return item
        family = [known for known in items if known.startswith((f"{name}-", f"{name}."))]
        if len(family) > 1:
            raise UserError(f"--hardware {name}: which one? Write one of {', '.join(family)}")
        known = [*items, *(alias for item in items.values() for alias in item.aliases)]
        raise UserError(
            f"--hardware {name}: there is no such device or node.{did_you_mean(name, known)} There "
            f"are {', '.join(items)}; cpu measures this machine, and a rate such as 1.2tflops "
            f"stands for a device that reaches it"
        )


def load_hardware(extra: Sequence[Path] = ()) -> Catalogue:
    """The shipped figures, with those of `extra` over them in order.

    Raises:
        UserError: a file that cannot be read, or an entry that makes no sense.
    """
    from llamita.planning.hardware_file import read_catalogue

    return read_catalogue(extra)


def show_hardware(
    name: str | None = None, *, hardware_file: Sequence[str | Path] = ()
) -> list[str]:
    """All devices and nodes with their figures, prices, sources and dates, in lines; or one.

    Raises:
        UserError: no such hardware, or a file of one's own that cannot be read.
    """
    catalogue = load_hardware([Path(each) for each in hardware_file])
    return catalogue.describe() if name is None else catalogue.find(name).describe()


def parse_price(text: str) -> tuple[str, float]:
    """`a100-80=1.40usd/h` → ("a100-80", 1.4); per second, minute or day is turned into an hour.

    Raises:
        UserError: no name, no number, below 0, no unit, or another currency or period.
    """
    name, equals, amount = text.rpartition("=")
    wrong = f"--price {text}: "
    example = "write NAME=1.40usd/h"
    if not equals or not name.strip():
        raise UserError(f"{wrong}{example}")
    found = re.fullmatch(
        r"(?P<sign>[-+]?)(?P<dollar>\$?)(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"
        r"(?P<currency>[a-z$€£¥]*)\s*(?:/\s*(?P<period>[a-z]+))?",
        amount.strip().lower(),
    )
    if found is None:
        raise UserError(f"{wrong}{amount.strip() or 'nothing'!r} is no price; {example}")
    if found["sign"] == "-":
        raise UserError(f"{wrong}a price is 0 or more; {example}")
    currency = found["dollar"] + found["currency"]
    if not currency or found["period"] is None:
        raise UserError(f"{wrong}a price says dollars, and for how long; {example}")
    if currency not in ("$", "usd", "$usd"):
        raise UserError(f"{wrong}prices are in US dollars; {example}")
    hours = {"s": 1 / 3600, "sec": 1 / 3600, "min": 1 / 60, "d": 24.0, "day": 24.0}
    hours |= dict.fromkeys(("h", "hr", "hour"), 1.0)
    if found["period"] not in hours:
        raise UserError(
            f"{wrong}{found['period']!r} has no fixed number of hours; {example} (a month of 30 "
            f"days has 720)"
        )
    return name.strip(), float(found["number"]) / hours[found["period"]]


def canonical_name(text: str) -> str:
    """`RTX 4090` and `rtx_4090` are `rtx-4090`."""
    return "-".join(text.casefold().replace("_", " ").split())


def reserved_name(name: str) -> bool:
    """Whether `Catalogue.find` reads this name as something else: the CPU, a rate or a count."""
    return name in ("cpu", THIS_CPU) or bool(_RATE.fullmatch(name) or _COUNTED.fullmatch(name))


def _is_run(text: str) -> bool:
    return (Path(text) / "events.jsonl").is_file()


def _split(text: str) -> tuple[str, int | None]:
    """The canonical name, and the count written before it."""
    written = text.casefold().strip()
    found = _COUNTED.fullmatch(written)
    name = canonical_name(found["name"] if found else written)
    if not name:
        raise UserError(f"--hardware {text!r}: there is no name; write h100 or 8xh100")
    if found is None:
        return name, None
    digits = found["count"].removeprefix("+")
    if not digits.isdecimal() or int(digits) == 0:
        raise UserError(
            f"--hardware {text}: {found['count']} is no number of devices; write 8x{name}"
        )
    return name, int(digits)


def _rated(name: str) -> Device | None:
    """A device that is known by its rate alone."""
    found = _RATE.fullmatch(name)
    if found is None:
        return None
    rate = float(found["number"]) * _RATE_UNITS[found["prefix"]]
    if rate == 0:
        raise UserError(f"--hardware {name}: a rate is above 0, as in 1.2tflops")
    return Device(
        name=f"{found['number']}{found['prefix']}flops",
        label=f"a device of {metric(rate, 'FLOP/s')}",
        source="the rate is given in place of a name",
        peak_flops=dict.fromkeys(PRECISIONS, rate),
    )


def _names(item: Device | Node) -> str:
    return f"{item.name} ({', '.join(item.aliases)})" if item.aliases else item.name


def _figures(device: Device, num_devices: int) -> Iterable[str]:
    parts = []
    if device.memory_bytes is not None:
        parts.append(gigabytes(device.memory_bytes * num_devices))
    if device.bandwidth is not None:
        parts.append(metric(device.bandwidth * num_devices, "B/s"))
    if device.watts is not None:
        parts.append(f"{device.watts * num_devices:g} W")
    for precision, rate in device.peak_flops.items():
        unit = "OP/s" if precision == "int8" else "FLOP/s"
        parts.append(f"{precision} {metric(rate * num_devices, unit)}")
    if parts:
        yield ", ".join(parts)
    yield _sourced(device.source, device.date, device.note)


def _price_line(price: Price) -> str:
    return _sourced(price.source, price.date, price.note)


def _sourced(source: str, date: str, note: str) -> str:
    return f"{source}{f', {date}' if date else ''}{f' ({note})' if note else ''}"
