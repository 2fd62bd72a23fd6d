"""The residuals of a fit as a picture. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamita.errors import UserError
from llamita.planning.fitting import FittedLaw
from llamita.planning.quantities import tokens as short
from llamita.reporting.plot_style import SOFT, STYLE, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def check_plot(path: Path) -> None:
    """
    Raises:
        UserError: matplotlib is not installed, or the file's name says neither PNG nor SVG.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {path}: write a name that ends in .png or .svg")
    if not path.parent.is_dir():
        raise UserError(f"--plot {path}: there is no directory {path.parent}; make it first")
    require_matplotlib("plots are", "--plot")


def write_residual_plot(fitted: FittedLaw, path: Path) -> None:
    """Residuals against parameters and against tokens, each coloured by the other. A trend in one
    of them is what the law does not describe.

    Raises:
        UserError: as `check_plot`, or the file cannot be written.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = fitted.observations.rows
    sizes, tokens = [row.parameters for row in rows], [row.tokens for row in rows]
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(10.0, 4.4), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.12))
        left, right = canvas.subplots(1, 2, sharey=True)
        _panel(left, fitted, ("parameters", sizes), ("tokens", tokens))
        _panel(right, fitted, ("tokens", tokens), ("parameters", sizes))
        left.set_ylabel("observed above the law, %")
        canvas.suptitle(
            f"{fitted.law.name}: residuals of {len(rows)} observations, "
            f"RMS {fitted.rms:.2%} of the loss (the band)",
            x=0.012, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
        try:
            canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"could not write {path}: {error.strerror or error}") from error


def _panel(
    panel: Axes, fitted: FittedLaw, x: tuple[str, list[float]], colour: tuple[str, list[float]]
) -> None:
    from matplotlib.colors import LogNorm

    residuals = [100 * value for value in fitted.residuals]
    band = 100 * fitted.rms
    panel.axhspan(-band, band, color="#e7eef3", zorder=0, linewidth=0)
    panel.axhline(0, color=SOFT, linewidth=1, zorder=1)
    points = panel.scatter(
        x[1], residuals, c=colour[1], norm=LogNorm(min(colour[1]), max(colour[1])),
        cmap="viridis", s=26, edgecolors="white", linewidths=0.4, zorder=2,
    )  # fmt: skip
    panel.set_xscale("log")
    panel.set_xlabel(x[0])
    _counts(panel.xaxis, x[1])
    bar = panel.figure.colorbar(points, ax=panel, pad=0.02)
    bar.ax.set_title(colour[0], fontsize=9)
    _counts(bar.ax.yaxis, colour[1])
    bar.outline.set_visible(False)


def _counts(axis: Axis, values: list[float]) -> None:
    """A logarithmic axis' ticks: every decade, or 1, 2 and 5 of each where there are few."""
    from matplotlib.ticker import LogLocator

    few = max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(lambda value, _: short(value))
    axis.set_minor_formatter("")
