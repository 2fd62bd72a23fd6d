"""Reading hardware.yaml and files of its form: every key checked, every figure with its source."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from llamita.errors import UserError, did_you_mean
from llamita.planning.hardware import (
    PRECISIONS,
    Catalogue,
    Device,
    Node,
    Price,
    canonical_name,
    reserved_name,
)
from llamita.recipes.yaml_reading import parse_yaml

_FIGURES = ("memory_gb", "peak_flops", "bandwidth", "watts")
_SOURCED = ("source", "date")
_KEYS = {
    "sources": ("title", "address", "via", "date"),
    "devices": ("label", "aliases", "note", "prices", *_FIGURES, *_SOURCED),
    "nodes": ("label", "aliases", "note", "prices", "device", "num_devices"),
}
_PRICE_KEYS = ("usd_per_hour", "note", *_SOURCED)
_DATE = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?")

Sections = dict[str, dict[str, dict[str, Any]]]


def read_catalogue(extra: Sequence[Path]) -> Catalogue:
    """See `llamita.planning.hardware.load_hardware`."""
    sections = _sections(_shipped(), "hardware.yaml")
    catalogue = _catalogue(sections)
    for path in extra:
        _override(sections, _own(path), str(path))
        try:
            catalogue = _catalogue(sections)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return catalogue


def _catalogue(sections: Sections) -> Catalogue:
    sources = {key: _source(entry, key) for key, entry in sections["sources"].items()}
    devices = {name: _device(name, entry, sources) for name, entry in sections["devices"].items()}
    nodes = {
        name: _node(name, entry, sources, devices) for name, entry in sections["nodes"].items()
    }
    _check_names(devices, nodes)
    addresses = {
        f"{title}, {date}": address for title, address, date in sources.values() if address
    }
    return Catalogue(devices, nodes, addresses)


def _shipped() -> Any:
    file = resources.files("llamita.planning").joinpath("hardware.yaml")
    text = file.read_text(encoding="utf-8")
    # libyaml reads it in a tenth of the time (6 against 60 ms); the file keeps to the numbers that
    # both readers take for numbers (3.12e+14), and a test compares what they make of it.
    if yaml.__with_libyaml__:
        return yaml.load(text, Loader=yaml.CSafeLoader)
    return parse_yaml(text, "hardware.yaml")


def _own(path: Path) -> Sections:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"hardware file {path} cannot be read: {error}") from error
    return _sections(parse_yaml(text, str(path)), str(path))


def _sections(data: Any, where: str) -> Sections:
    """Sections, entries and keys that there are, names in small letters."""
    _check_keys(data, tuple(_KEYS), where)
    sections: Sections = {section: {} for section in _KEYS}
    for section, entries in data.items():
        if not isinstance(entries, dict):
            raise UserError(f"{where}: {section}: write entries by name below it")
        for name, entry in entries.items():
            at = f"{where}: {section}.{name}"
            _check_keys(entry, _KEYS[section], at)
            sections[section][canonical_name(str(name))] = dict(entry)
            _check_keys(entry.get("peak_flops", {}), PRECISIONS, f"{at}.peak_flops")
    return sections


def _check_keys(data: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{where}: write keys below it ({', '.join(known)}), not {data!r}")
    for key in data:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise UserError(
                f"{where}: there is no key {str(key)!r}.{hint} Keys here: {', '.join(known)}"
            )


def _override(sections: Sections, own: Sections, where: str) -> None:
    """Put a user's entries over those there are; where no source is given, it is that file."""
    for section, entries in own.items():
        for name, entry in entries.items():
            for price in _list(entry.get("prices"), f"{where}: {section}.{name}.prices"):
                if isinstance(price, dict):
                    price.setdefault("source", where)
                    price.setdefault("date", "")
            before = sections[section].get(name, {})
            if section == "devices" and "source" not in entry:
                changed = [key for key in _FIGURES if key in entry]
                if not before:
                    entry |= {"source": where, "date": entry.get("date", "")}
                elif changed:
                    title = _source_of(before, sections)
                    entry["source"] = f"{title}; {', '.join(changed)} from {where}"
                    entry.setdefault("date", "")
            if "peak_flops" in before and "peak_flops" in entry:
                entry["peak_flops"] = {**before["peak_flops"], **entry["peak_flops"]}
            sections[section][name] = {**before, **entry}


def _source_of(entry: Mapping[str, Any], sections: Sections) -> str:
    written = str(entry.get("source", ""))
    return str(sections["sources"].get(written, {}).get("title", written))


def _source(entry: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    """Title, address, date."""
    where = f"sources.{key}"
    address = _text(entry, "address", where)
    via = _text(entry, "via", where)
    if via:
        address = f"{address}, written down at {via}"
    title = _text(entry, "title", where)
    if not title:
        raise UserError(f"{where}: a source has a title")
    return title, address, _date(entry, where)


def _sourced(
    entry: Mapping[str, Any], sources: Mapping[str, tuple[str, str, str]], where: str
) -> tuple[str, str]:
    """Title and date of an entry's source: the name of one of `sources`, or words."""
    written = _text(entry, "source", where)
    if not written:
        raise UserError(f"{where}: there is no source; what has none is left out")
    date = _date(entry, where)
    if written in sources:
        title, _, read = sources[written]
        return title, date or read
    if "date" not in entry:
        raise UserError(
            f"{where}: source {written!r} is none of {', '.join(sources)} and has no date."
            f"{did_you_mean(written, sources)} Give a date: 2026-11-24"
        )
    return written, date


def _device(
    name: str, entry: Mapping[str, Any], sources: Mapping[str, tuple[str, str, str]]
) -> Device:
    where = f"devices.{name}"
    source, date = _sourced(entry, sources, where)
    memory = _number(entry, "memory_gb", where)
    peaks = entry.get("peak_flops", {})
    return Device(
        name=name,
        label=_text(entry, "label", where) or name,
        source=source,
        date=date,
        memory_bytes=None if memory is None else round(memory * 1e9),
        peak_flops={
            precision: rate
            for precision in PRECISIONS
            if (rate := _number(peaks, precision, f"{where}.peak_flops")) is not None
        },
        bandwidth=_number(entry, "bandwidth", where),
        watts=_number(entry, "watts", where),
        note=_text(entry, "note", where),
        aliases=_aliases(entry, where),
        prices=_prices(entry, sources, where),
    )


def _node(
    name: str,
    entry: Mapping[str, Any],
    sources: Mapping[str, tuple[str, str, str]],
    devices: Mapping[str, Device],
) -> Node:
    where = f"nodes.{name}"
    device = canonical_name(_text(entry, "device", where))
    if device not in devices:
        raise UserError(
            f"{where}: device {device!r} is none of {', '.join(devices)}."
            f"{did_you_mean(device, devices)}"
        )
    count = entry.get("num_devices")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{where}: num_devices is a whole number above 0, not {count!r}")
    return Node(
        name=name,
        label=_text(entry, "label", where) or name,
        device=device,
        num_devices=count,
        note=_text(entry, "note", where),
        aliases=_aliases(entry, where),
        prices=_prices(entry, sources, where),
    )


def _prices(
    entry: Mapping[str, Any], sources: Mapping[str, tuple[str, str, str]], where: str
) -> tuple[Price, ...]:
    prices = []
    for index, price in enumerate(_list(entry.get("prices"), f"{where}.prices")):
        at = f"{where}.prices.{index}"
        _check_keys(price, _PRICE_KEYS, at)
        usd = _number(price, "usd_per_hour", at, lowest=0.0)
        if usd is None:
            raise UserError(f"{at}: there is no usd_per_hour")
        source, date = _sourced(price, sources, at)
        prices.append(Price(usd, source, date, _text(price, "note", at)))
    return tuple(prices)


def _number(
    entry: Mapping[str, Any], key: str, where: str, lowest: float | None = None
) -> float | None:
    """A number above 0, or from `lowest` on."""
    value = entry.get(key)
    if value is None:
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (value <= 0 if lowest is None else value < lowest):
        least = "above 0" if lowest is None else f"of {lowest:g} or more"
        raise UserError(f"{where}.{key}: write a number {least}, not {value!r}")
    return float(value)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise UserError(f"{where}.{key}: write words, not {value!r}")
    return value


def _date(entry: Mapping[str, Any], where: str) -> str:
    """YAML makes a date of 2026-11-24, words of 2026-11 and a number of 2026."""
    value = str(entry.get("date", ""))
    if value and not _DATE.fullmatch(value):
        raise UserError(f"{where}.date: write 2026-11-24, 2026-11 or 2026, not {value!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where}: write a list, not {value!r}")
    return value


def _aliases(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    aliases = _list(entry.get("aliases"), f"{where}.aliases")
    return tuple(canonical_name(str(alias)) for alias in aliases)


def _check_names(devices: Mapping[str, Device], nodes: Mapping[str, Node]) -> None:
    """Every name and alias means one thing."""
    meaning: dict[str, str] = {}
    for items in (devices, nodes):
        for item in items.values():
            for name in (item.name, *item.aliases):
                if reserved_name(name):
                    raise UserError(
                        f"{name!r} can be no name: it is read as the CPU, a rate or a "
                        f"number of devices; write another"
                    )
                if name in meaning:
                    raise UserError(f"{name!r} is both {meaning[name]} and {item.name}; rename one")
                meaning[name] = item.name
