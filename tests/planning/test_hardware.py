"""Hardware against data sheets' arithmetic (units × clock), papers' costs, and bad input."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import psutil
import pytest
import yaml

from llamita.errors import UserError
from llamita.planning import this_cpu
from llamita.planning.economics import Engine
from llamita.planning.hardware import (
    PRECISIONS,
    Catalogue,
    Device,
    Hardware,
    load_hardware,
    parse_price,
)
from llamita.recipes.yaml_reading import parse_yaml

TEXT = resources.files("llamita.planning").joinpath("hardware.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shipped() -> Catalogue:
    return load_hardware()


def own(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_hardware([path])


def usd_per_flop(hardware: Hardware, precision: str, mfu: float = 1.0) -> float:
    found = Engine(hardware, precision, mfu).usd_per_flop
    assert found is not None
    return found


# ---- the figures that come with llamita


def test_dollars_per_flop_of_beyond_chinchilla(shipped: Catalogue) -> None:
    """arXiv 2401.00448: price / (3600 · peak) at its prices and peaks."""
    train = usd_per_flop(shipped.find("a100-80"), "bfloat16")
    serve = usd_per_flop(shipped.find("a100-40"), "int8")
    # Ratios, because approx takes any two numbers for equal that differ by less than 1e-12.
    assert train / 1.33547e-18 == pytest.approx(1, rel=1e-5)
    assert serve / 4.89672e-19 == pytest.approx(1, rel=1e-5)
    assert usd_per_flop(shipped.find("8xa100-80"), "bfloat16") / train == pytest.approx(1)
    assert usd_per_flop(shipped.find("a100-80"), "bfloat16", 0.5) / train == pytest.approx(2)
    assert shipped.find("h100").usd_per_hour == 2.0
    assert shipped.find("h100").peak_flops("bfloat16") == 989e12
    assert shipped.find("h100").peak_flops("float8") == 1978e12


def test_tinyllamas_bill(shipped: Catalogue) -> None:
    """3e12 tokens at 24,000 a second on each of 16 GPUs are 90.4 days: about $140,000."""
    found = shipped.with_prices({"p4d": 32.77}).find("2xp4d.24xlarge")
    assert (found.num_devices, found.device.name, found.num_nodes) == (16, "a100-40", 2)
    assert found.usd_per_hour == pytest.approx(2 * 32.77)
    hours = 3e12 / (24_000 * found.num_devices) / 3600
    assert hours / 24 == pytest.approx(90.4, rel=1e-3)
    assert found.usd_per_hour is not None
    assert found.usd_per_hour * hours == pytest.approx(142e3, rel=0.01)


@pytest.mark.parametrize(
    ("name", "cores", "clock", "tensor_cores", "flops_a_clock", "tensor_clock"),
    [
        # A core does 2 FLOP a clock. A tensor core, dense and with float32 accumulation: 512 on
        # A100, 1024 on H100, 256 on Ada's data-centre cards, 128 on GeForce, whose rate is halved.
        ("a100-40", 6912, 1.410e9, 432, 512, 1.410e9),
        ("a100-80", 6912, 1.410e9, 432, 512, 1.410e9),
        ("h100", 16896, 1.980e9, 528, 1024, 1.830e9),
        ("l4", 7424, 2.040e9, 232, 256, 2.040e9),
        ("l40s", 18176, 2.520e9, 568, 256, 2.520e9),
        ("rtx-3090", 10496, 1.695e9, 328, 128, 1.695e9),
        ("rtx-4090", 16384, 2.520e9, 512, 128, 2.520e9),
        ("rtx-5090", 21760, 2.407e9, 680, 128, 2.407e9),
    ],
)
def test_peaks_are_units_times_clock(
    shipped: Catalogue,
    name: str,
    cores: int,
    clock: float,
    tensor_cores: int,
    flops_a_clock: int,
    tensor_clock: float,
) -> None:
    device = shipped.devices[name]
    assert device.peak("float32") == pytest.approx(2 * cores * clock, rel=0.005)
    tensor = tensor_cores * flops_a_clock * tensor_clock
    assert device.peak("bfloat16") == pytest.approx(tensor, rel=0.02)


@pytest.mark.parametrize(
    ("name", "precision", "sparse"),
    [
        ("a100-80", "bfloat16", 624e12),
        ("a100-80", "int8", 1248e12),
        ("h100", "bfloat16", 1979e12),
        ("h100", "float8", 3958e12),
        ("h200", "int8", 3958e12),
        ("b200", "bfloat16", 36e15 / 8),
        ("b200", "float8", 72e15 / 8),
        ("l4", "bfloat16", 242e12),
        ("l4", "float8", 485e12),
        ("l40s", "bfloat16", 733e12),
        ("l40s", "float8", 1466e12),
        ("rtx-3090", "bfloat16", 142e12),
        ("rtx-4090", "bfloat16", 330.4e12),
        ("rtx-5090", "bfloat16", 419e12),
    ],
)
def test_no_sparse_figure(shipped: Catalogue, name: str, precision: str, sparse: float) -> None:
    """Data sheets print twice the dense rate, with sparsity."""
    assert shipped.devices[name].peak(precision) == pytest.approx(sparse / 2, rel=0.02)


def test_ratios_of_precisions(shipped: Catalogue) -> None:
    for name in ("h100", "h200", "b200", "l4", "l40s", "rtx-4090", "rtx-5090"):
        device = shipped.devices[name]
        assert device.peak("float8") == pytest.approx(2 * device.peak("bfloat16"), rel=0.03)
    for device in shipped.devices.values():
        if "bfloat16" in device.peak_flops:
            assert device.peak("float16") == device.peak("bfloat16")
    h100, h200 = shipped.devices["h100"], shipped.devices["h200"]
    assert h100.peak_flops == h200.peak_flops
    assert h200.memory_bytes == 141 * 10**9


def test_everything_has_a_source_and_a_date(shipped: Catalogue) -> None:
    for item in (*shipped.devices.values(), *shipped.nodes.values()):
        for price in item.prices:
            assert price.usd_per_hour > 0
            assert price.date >= "2024"
            assert shipped.addresses[f"{price.source}, {price.date}"].startswith("https://")
    for device in shipped.devices.values():
        assert device.date >= "2020"
        assert shipped.addresses[f"{device.source}, {device.date}"].startswith("https://")
    assert set(shipped.nodes["p4d.24xlarge"].prices[0].date) <= set("0123456789-")
    named = {"a100-40", "a100-80", "h100", "h200", "b200", "l4", "l40s", "m1", "m4-max"}
    assert named | {"rtx-3090", "rtx-4090", "rtx-5090"} <= set(shipped.devices)


def test_a_node_costs_about_what_its_devices_do(shipped: Catalogue) -> None:
    """Within five times, so that a device's and a node's price are not confused."""
    for node in shipped.nodes.values():
        each = [price.usd_per_hour for price in shipped.devices[node.device].prices]
        for price in node.prices:
            assert min(each) / 5 < price.usd_per_hour / node.num_devices < max(each) * 5


def test_both_yaml_readers_read_the_file_alike() -> None:
    assert yaml.load(TEXT, Loader=yaml.CSafeLoader) == parse_yaml(TEXT, "hardware.yaml")


def test_loading_is_fast_and_light() -> None:
    load_hardware()
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        load_hardware()
        best = min(best, time.process_time() - start)
    assert best < 0.03
    code = (
        "import sys; from llamita.planning.hardware import load_hardware; load_hardware(); "
        "sys.exit(len({'numpy', 'torch', 'scipy', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- finding


@pytest.mark.parametrize(
    ("text", "device", "count"),
    [
        ("h100", "h100", 1),
        ("H100", "h100", 1),
        ("8xa100-80", "a100-80", 8),
        ("8×H100", "h100", 8),
        ("8 x h100", "h100", 8),
        ("16XH200", "h200", 16),
        ("a100-80GB", "a100-80", 1),
        ("4090", "rtx-4090", 1),
        ("2xRTX 4090", "rtx-4090", 2),
        ("rtx_5090", "rtx-5090", 1),
        ("p4d", "a100-40", 8),
        ("3xp5.48xlarge", "h100", 24),
        ("2xlambda-8xh100", "h100", 16),
        ("m1", "m1", 1),
    ],
)
def test_find(shipped: Catalogue, text: str, device: str, count: int) -> None:
    found = shipped.find(text)
    assert (found.device.name, found.num_devices) == (device, count)
    assert shipped.name_of(text) == (found.node.name if found.node else device)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a100", "a100-40, a100-80"),
        ("8xa100", "a100-40, a100-80"),
        ("rtx", "rtx-3090, rtx-4090, rtx-5090"),
        ("h10", "Did you mean 'h100'"),
        ("hopper", "a100-40, a100-80, h100"),
        ("0xh100", "no number of devices; write 8xh100"),
        ("-2xh100", "no number of devices"),
        ("1.5xh100", "no number of devices"),
        ("", "no name"),
        ("8x", "no name"),
        ("4xcpu", "taken whole; write cpu"),
        ("0gflops", "above 0"),
        ("-5tflops", "no such device"),
    ],
)
def test_find_refuses(shipped: Catalogue, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        shipped.find(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("427gflops", 427e9), ("1.2tflops", 1.2e12), ("1.2 TFLOP/s", 1.2e12), ("2pflops", 2e15)],
)
def test_a_rate_in_place_of_a_name(shipped: Catalogue, text: str, rate: float) -> None:
    found = shipped.find(text)
    assert all(found.peak_flops(p) == pytest.approx(rate) for p in PRECISIONS)
    assert (found.price, found.memory_bytes, found.watts) == (None, None, None)
    assert shipped.find(f"4x{text}").peak_flops("bfloat16") == pytest.approx(4 * rate)


def test_totals(shipped: Catalogue) -> None:
    found = shipped.find("8xh100")
    assert found.memory_bytes == 640 * 10**9
    assert found.watts == 5600
    assert found.usd_per_hour == 16.0
    assert found.peak_flops("bfloat16") == 8 * 989e12
    assert found.label == "8 × h100"
    assert shipped.find("2xp5").label == "2 × p5.48xlarge (16 × h100)"


def test_missing_figures_are_said(shipped: Catalogue) -> None:
    with pytest.raises(UserError, match="no figure for float8; it has bfloat16, float16, int8"):
        shipped.find("a100-80").peak_flops("float8")
    with pytest.raises(UserError, match="publishes no peak"):
        shipped.find("m4-max").peak_flops("bfloat16")
    assert shipped.find("m1").usd_per_hour is None


# ---- prices


def test_prices_of_ones_own(shipped: Catalogue) -> None:
    given = shipped.with_prices({"A100-80": 1.40, "p4d": 20.0, "cpu": 0.05, "1.2tflops": 3.0})
    assert given.find("2xa100-80gb").usd_per_hour == 2.8
    assert given.find("2xp4d.24xlarge").usd_per_hour == 40.0
    assert given.find("cpu").usd_per_hour == 0.05
    assert given.find("2x1.2tflops").usd_per_hour == 6.0
    assert given.find("h100").usd_per_hour == 2.0
    assert shipped.find("a100-80").usd_per_hour == 1.5
    assert given.with_prices({"h100": 0}).find("a100-80").usd_per_hour == 1.4
    price = given.find("a100-80").price
    assert price is not None
    assert "--price" in price.source


@pytest.mark.parametrize(
    ("name", "usd", "said"),
    [
        ("a100", 1.0, "which one"),
        ("h101", 1.0, "Did you mean 'h100'"),
        ("8xh100", 1.0, "a price is of one; write h100="),
        ("h100", -1.0, "0 or more"),
        ("h100", float("nan"), "0 or more"),
    ],
)
def test_prices_refused(shipped: Catalogue, name: str, usd: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        shipped.with_prices({name: usd})


@pytest.mark.parametrize(
    ("text", "name", "usd"),
    [
        ("a100-80=1.40usd/h", "a100-80", 1.4),
        ("h100=2USD/hour", "h100", 2.0),
        ("h100 = $2.5/h", "h100", 2.5),
        ("h100=2$/hr", "h100", 2.0),
        ("p4d.24xlarge=0.01usd/s", "p4d.24xlarge", 36.0),
        ("p4d=0.5usd/min", "p4d", 30.0),
        ("p4d=48 usd/day", "p4d", 2.0),
        ("cpu=0usd/h", "cpu", 0.0),
        ("x=.5usd/h", "x", 0.5),
    ],
)
def test_parse_price(text: str, name: str, usd: float) -> None:
    assert parse_price(text) == (name, pytest.approx(usd))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h100", "write NAME=1.40usd/h"),
        ("=1usd/h", "write NAME"),
        ("h100=", "'nothing' is no price"),
        ("h100=usd/h", "no price"),
        ("h100=-1usd/h", "0 or more"),
        ("h100=1.4", "for how long"),
        ("h100=1.4usd", "for how long"),
        ("h100=1.4/h", "says dollars"),
        ("h100=1.4eur/h", "US dollars"),
        ("h100=€1.4/h", "no price"),
        ("h100=900usd/month", "no fixed number of hours"),
        ("h100=nanusd/h", "no price"),
        ("h100=1,5usd/h", "no price"),
    ],
)
def test_parse_price_refuses(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_price(text)
    assert said in str(error.value)


# ---- energy


def test_energy(shipped: Catalogue) -> None:
    """8 boards of 700 W draw 5.6 kW; electricity alone is a price where there is no rent."""
    rented = Engine(shipped.find("8xh100"), "bfloat16", 0.5, usd_per_kwh=0.30)
    assert rented.usd_per_hour == pytest.approx(8 * 2.0 + 5.6 * 0.30)
    own_machine = Engine(shipped.find("2xm1").with_watts(30), "float32", 0.5, usd_per_kwh=0.30)
    assert own_machine.usd_per_hour == pytest.approx(0.06 * 0.30)
    with pytest.raises(UserError, match="above 0"):
        shipped.find("h100").with_watts(0)


# ---- files of one's own


def test_own_file_overrides_key_by_key(tmp_path: Path, shipped: Catalogue) -> None:
    text = """
devices:
  H100:
    watts: 500
    peak_flops: {bfloat16: 800e12}
    prices: [{usd_per_hour: 1.1}]
"""
    found = own(tmp_path, text).find("8xh100")
    assert found.watts == 4000
    assert found.device.peak("bfloat16") == 8e14
    assert found.device.peak("float8") == 1978e12
    assert found.memory_bytes == 640 * 10**9
    assert found.usd_per_hour == pytest.approx(8.8)
    source = found.device.source
    assert source.startswith(shipped.devices["h100"].source)
    assert "peak_flops, watts from" in source
    assert found.price is not None
    assert "mine.yaml" in found.price.source
    assert own(tmp_path, "devices: {h100: {note: mine}}").devices["h100"].source == (
        shipped.devices["h100"].source
    )


def test_own_device_and_node(tmp_path: Path) -> None:
    text = """
sources:
  bill: {title: "our bill", date: 2026-10-31}
devices:
  Our Card:
    label: a card of our own
    aliases: [oc]
    memory_gb: 16
    peak_flops: {float16: 50e12}
    prices:
      - {usd_per_hour: 0.2, source: bill, note: power and rent}
      - {usd_per_hour: 0.3, source: a friend, date: 2026}
nodes:
  closet: {device: our card, num_devices: 4, prices: [{usd_per_hour: 0.7}]}
  bare: {device: h100, num_devices: 2}
"""
    mine = own(tmp_path, text)
    one = mine.find("oc")
    assert one.device.name == "our-card"
    assert usd_per_flop(one, "float16") * 3600 * 50e12 == pytest.approx(0.2)
    assert one.price is not None
    assert (one.price.source, one.price.date) == ("our bill", "2026-10-31")
    assert mine.find("Our_card").device.prices[1].date == "2026"
    assert mine.find("2xcloset").num_devices == 8
    assert mine.find("2xcloset").usd_per_hour == pytest.approx(1.4)
    assert mine.find("bare").usd_per_hour is None


def test_later_files_win(tmp_path: Path) -> None:
    paths = []
    for index, price in enumerate((3.0, 4.0)):
        paths.append(tmp_path / f"{index}.yaml")
        paths[-1].write_text(f"devices: {{h100: {{prices: [{{usd_per_hour: {price}}}]}}}}")
    assert load_hardware(paths).find("h100").usd_per_hour == 4.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices: [h100]", "write entries by name"),
        ("- h100", "write keys below it"),
        ("device: {}", "Did you mean 'devices'"),
        ("devices: {h100: {wats: 5}}", "Did you mean 'watts'"),
        ("devices: {h100: 5}", "write keys below it"),
        ("devices: {h100: {watts: many}}", "watts: write a number above 0"),
        ("devices: {h100: {watts: 0}}", "watts: write a number above 0"),
        ("devices: {h100: {watts: .nan}}", "watts: write a number above 0"),
        ("devices: {h100: {watts: true}}", "watts: write a number above 0"),
        ("devices: {h100: {memory_gb: -1}}", "memory_gb: write a number above 0"),
        ("devices: {h100: {peak_flops: 5e12}}", "write keys below it"),
        ("devices: {h100: {peak_flops: {bf16: 5e12}}}", "no key 'bf16'"),
        ("devices: {h100: {peak_flops: {float8: fast}}}", "write a number above 0"),
        ("devices: {h100: {prices: 2.0}}", "write a list"),
        ("devices: {h100: {prices: [2.0]}}", "write keys below it"),
        ("devices: {h100: {prices: [{usd_hour: 2.0}]}}", "Did you mean 'usd_per_hour'"),
        ("devices: {h100: {prices: [{note: cheap}]}}", "no usd_per_hour"),
        ("devices: {h100: {prices: [{usd_per_hour: -2}]}}", "0 or more"),
        ("devices: {h100: {aliases: h}}", "write a list"),
        ("devices: {h100: {aliases: [a100-80]}}", "rename one"),
        ("devices: {h100: {label: 5}}", "write words"),
        ("devices: {h100: {source: x, date: soon}}", "write 2026-11-24"),
        ("devices: {h100: {source: nvidia-h10}}", "Did you mean 'nvidia-h100'"),
        ("devices: {cpu: {watts: 5}}", "can be no name"),
        ("devices: {8xh100: {watts: 5}}", "can be no name"),
        ("devices: {5tflops: {watts: 5}}", "can be no name"),
        ("nodes: {n: {device: h10, num_devices: 2}}", "Did you mean 'h100'"),
        ("nodes: {n: {device: h100}}", "num_devices is a whole number"),
        ("nodes: {n: {device: h100, num_devices: 0}}", "num_devices is a whole number"),
        ("nodes: {n: {device: h100, num_devices: 1.5}}", "num_devices is a whole number"),
        ("nodes: {h100: {device: h100, num_devices: 1}}", "rename one"),
        ("sources: {s: {address: x}}", "has a title"),
        ("devices: {h100: {watts: 1}, h100: {watts: 2}}", "given twice"),
        ("devices: {", "not valid YAML"),
    ],
)
def test_own_file_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        own(tmp_path, text)
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "mine.yaml"))


def test_own_file_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_hardware([tmp_path / "none.yaml"])


# ---- the CPU at hand


def test_the_cpus_rate_is_flops_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by 10 ms a look: the longest product, 2 · 1024³ FLOP, took 10 ms."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(this_cpu.time, "perf_counter", lambda: next(ticks) * 0.01)
    monkeypatch.setattr(this_cpu, "_load", lambda: 0.0)
    monkeypatch.setattr(this_cpu, "_processor", lambda: ("a chip", frozenset({"avx512f"})))
    device = this_cpu.measure_cpu.__wrapped__()
    assert device.peak_flops == {"float32": pytest.approx(2 * 1024**3 / 0.01)}
    assert "a chip" in device.label
    assert device.note == ""


def test_a_slow_cpu_is_spared_the_long_product(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(this_cpu.time, "perf_counter", lambda: next(ticks) * 0.05)
    device = this_cpu.measure_cpu.__wrapped__()
    assert device.peak_flops == {"float32": pytest.approx(2 * 512**3 / 0.05)}


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", "bf16"])
def test_the_cpus_notes(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(this_cpu, "_SECONDS", 0.0)
    monkeypatch.setattr(this_cpu, "_load", lambda: 1e3)
    monkeypatch.setattr(this_cpu, "_processor", lambda: ("a chip", frozenset({"fma", flag})))
    note = this_cpu.measure_cpu.__wrapped__().note
    assert flag in note
    assert "llamita train" in note
    assert "busy (load 1000.0" in note


def test_cpu(shipped: Catalogue) -> None:
    found = shipped.find("cpu")
    assert found == shipped.find("this-cpu")
    assert shipped.name_of("CPU") == "this-cpu"
    assert found.device.name == "this-cpu"
    assert found.memory_bytes == psutil.virtual_memory().total
    assert "measured here" in found.device.source
    assert found.price is None
    assert 1e7 < found.peak_flops("float32") < 1e15
    with pytest.raises(UserError, match="no figure for bfloat16; it has float32"):
        found.peak_flops("bfloat16")


# ---- saying it


def test_describe(shipped: Catalogue) -> None:
    said = "\n".join(shipped.with_prices({"l4": 0.123}).describe())
    for item in (*shipped.devices.values(), *shipped.nodes.values()):
        assert item.label in said
        for price in item.prices:
            assert f"${price.usd_per_hour:.2f}/h: {price.source}, {price.date}" in said
    for address in shipped.addresses.values():
        assert address in said
    assert "989 TFLOP/s" in said
    assert "$0.12/h: given with --price" in said
    assert "no price with a source" in said
    one = "\n".join(shipped.find("2xp5").describe())
    assert "2 × p5.48xlarge (16 × h100)" in one
    assert "$110.08/h: AWS on demand, us-east-1, 2026-11-09" in one


def test_hardware_without_a_price_is_described() -> None:
    device = Device("x", "a device", source="nowhere")
    assert Hardware(device, 1).describe() == ["1 × x: a device", "nowhere"]
