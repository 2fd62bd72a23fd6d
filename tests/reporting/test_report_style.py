"""The page's colours: text that can be read, and curves that anyone can tell apart."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import llamita
from llamita.reporting.plot_style import COLOURS
from llamita.reporting.report_figures import NUM_COLOURS

Floats = npt.NDArray[np.float64]

# Machado, Oliveira, Fernandes 2009, severity 1, for linear RGB.
VISION = {
    "common": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
CURVES = [f"c{number}" for number in range(NUM_COLOURS)]


def theme(name: str) -> dict[str, Floats]:
    """Variable → linear RGB."""
    style = (Path(llamita.__file__).parent / "reporting" / "report.css").read_text()
    start = style.index(":root {" if name == "light" else ':root[data-theme="dark"] {')
    block = style[start : style.index("}", start)]
    return {key: linear(value) for key, value in re.findall(r"--(\w+): (#[0-9a-f]{6})", block)}


def linear(colour: str) -> Floats:
    shares = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def contrast(one: Floats, other: Floats) -> float:
    """WCAG 2.2."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted((float(weights @ one), float(weights @ other)))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: Floats) -> Floats:
    """CIELAB under D65."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in to_xyz @ np.clip(rgb, 0, 1) / (0.9505, 1.0, 1.089)
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("name", ["light", "dark"])
def test_contrast(name: str) -> None:
    """Text at least 4.5 to 1 and lines 3 to 1 against what lies behind (WCAG 1.4.3, 1.4.11)."""
    colours = theme(name)
    for ground, key in itertools.product(("paper", "raised"), ("ink", "soft", "accent", "warn")):
        assert contrast(colours[key], colours[ground]) >= 4.5, (key, ground)
    for ground, key in itertools.product(("raised", "band0", "band1"), (*CURVES, "warn")):
        assert contrast(colours[key], colours[ground]) >= 3, (key, ground)


@pytest.mark.parametrize("name", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_curves_can_be_told_apart(name: str, vision: str) -> None:
    """CIE76 differences of 20 and more, ten times what is just noticeable."""
    colours = theme(name)
    for one, other in itertools.combinations(CURVES, 2):
        seen = [lab(VISION[vision] @ colours[key]) for key in (one, other)]
        assert np.linalg.norm(seen[0] - seen[1]) >= 20, (one, other)


def test_the_pngs_have_the_page_s_colours() -> None:
    colours = theme("light")
    assert [linear(colour).tolist() for colour in COLOURS] == [colours[c].tolist() for c in CURVES]


def test_both_ways_to_the_dark_theme_agree() -> None:
    style = (Path(llamita.__file__).parent / "reporting" / "report.css").read_text()
    system = style[style.index(':root:not([data-theme="light"]) {') :]
    chosen = style[style.index(':root[data-theme="dark"] {') :]
    wanted, found = (
        re.findall(r"(--\w+): ([^;]+);", block[: block.index("}")]) for block in (system, chosen)
    )
    assert found == wanted
