"""What all pictures by matplotlib share: colours of report.css, style, and the demand for it."""

from __future__ import annotations

import importlib.util
from typing import Any

from llamita.errors import UserError

INK, SOFT, PAPER, GRID, WARN = "#1d2126", "#5a626c", "#fcfbf8", "#e4e0d8", "#a63a00"
COLOURS = ("#134eb2", "#cb6104", "#009265", "#5c254a", "#8c85bc", "#8300ff", "#890000")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "figure.facecolor": "white",
    "legend.frameon": False,
    "svg.hashsalt": "llamita",
    # A dollar in a name is a dollar, not mathematics.
    "text.parse_math": False,
}


def require_matplotlib(what: str, flag: str = "") -> None:
    """
    Args:
        what: what is drawn, with its verb, as `PNGs are`.
        flag: what asks for it, where one can do without.

    Raises:
        UserError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"{what} drawn by matplotlib, which is not installed; pip install 'llamita[plots]'"
            + (f", or leave {flag} out" if flag else "")
        )
