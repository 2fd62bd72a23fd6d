"""What a plan's figures are drawn on: matplotlib canvases, as PNG and SVG files and inside a page.

Colours are those of report.css. Inside a page each becomes the CSS variable of its name, so that a
figure follows the page's theme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.errors import UserError
from llamita.planning.quantities import tokens as short
from llamita.reporting.plot_style import COLOURS, GRID, INK, PAPER, SOFT, STYLE, WARN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKS = ("o", "s", "D", "^", "v", "P", "X")
_VARIABLES = {INK: "ink", SOFT: "soft", PAPER: "paper", GRID: "grid", WARN: "warn"}
_VARIABLES |= {colour: f"c{number}" for number, colour in enumerate(COLOURS)}
INCHES = (4.5, 3.45)
"""Of one panel. As wide as half a page, so that ten points are read as such, and not too wide for a
phone."""
_DPI = 220
_STYLE: dict[Any, Any] = {
    **STYLE,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
}
# Without any of these no block of metadata is written: no date, and no outside address.
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class PlanFigure:
    """One figure, in words and as what draws it.

    key: its files' name. caption: what is to be seen. description: its numbers, for those who do
    not see it. panels: each draws one axes, with a title of its own if there are several, and
    `panel_descriptions` if each stands alone where a page is narrow.
    """

    key: str
    title: str
    caption: str
    description: str
    panels: tuple[Callable[[Axes], None], ...]
    panel_titles: tuple[str, ...] = ()
    inches: tuple[float, float] = INCHES
    panel_descriptions: tuple[str, ...] = ()


def single_panels(figure: PlanFigure) -> list[PlanFigure]:
    """A figure of several panels as a figure of each."""
    if len(figure.panels) == 1:
        return [figure]
    said = figure.panel_descriptions or (figure.description,) * len(figure.panels)
    return [
        PlanFigure(
            f"{figure.key}-panel-{number}",
            f"{figure.title}: {title}",
            figure.caption,
            description,
            (draw,),
            inches=figure.inches,
        )
        for number, (draw, title, description) in enumerate(
            zip(figure.panels, figure.panel_titles, said, strict=True)
        )
    ]


def build_canvas(figure: PlanFigure, *, titled: bool = True) -> Canvas:
    """Its panels side by side. Nothing of matplotlib's global state is used or changed."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num = len(figure.panels)
    inches = (figure.inches[0] * num, figure.inches[1])
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=inches, layout=layout)
        titles = figure.panel_titles or (figure.title,)
        for number, (draw, title) in enumerate(zip(figure.panels, titles, strict=True)):
            panel = canvas.add_subplot(1, num, number + 1)
            draw(panel)
            if titled:
                panel.set_title(title)
    return canvas


def save_figures(figures: Sequence[PlanFigure], folder: Path) -> list[Path]:
    """Each as `KEY.png` and `KEY.svg`; returns their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    import matplotlib

    paths = []
    for figure in figures:
        canvas = build_canvas(figure)
        for suffix in ("png", "svg"):
            path = folder / f"{figure.key}.{suffix}"
            metadata = {"Software": None} if suffix == "png" else _NO_METADATA
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with matplotlib.rc_context(_STYLE):
                    canvas.savefig(path, dpi=_DPI, metadata=metadata)
            except OSError as error:
                raise UserError(f"could not write {path}: {error.strerror or error}") from error
            paths.append(path)
    return paths


def inline_svg(figure: PlanFigure) -> str:
    """An <svg> for a page: no size, no title drawn, ids that begin with the figure's key."""
    import matplotlib

    canvas = build_canvas(figure, titled=False)
    written = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        canvas.savefig(written, format="svg", facecolor="none", metadata=_NO_METADATA)
    drawn = written.getvalue()
    opened = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', drawn)
    assert opened is not None
    body = drawn[opened.end() : drawn.rindex("</svg>")]
    # Its <style> would apply to the whole page; plan.css has that rule for figures alone.
    body = re.sub(r"<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    # Between tags stand words and numbers, which are what they are.
    body = re.sub(r"<[^>]*>", lambda found: _own_tag(found.group(), figure.key), body)
    names = (f"{figure.key}-title", f"{figure.key}-description")
    return (
        f'<svg class="drawn" viewBox="{opened.group(1)}" role="img" '
        f'aria-labelledby="{names[0]} {names[1]}">'
        f'<title id="{names[0]}">{escape(figure.title)}</title>'
        f'<desc id="{names[1]}">{escape(figure.description)}</desc>{body}</svg>'
    )


def _own_tag(tag: str, key: str) -> str:
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda found: _themed(found.group()), tag)
    # Hundredths of a point are enough, and half as many bytes.
    tag = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}", tag)
    return _own_ids(tag.replace("xlink:href", "href"), key)


def _themed(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour


def _own_ids(tag: str, key: str) -> str:
    """Ids, and what points to them, so that none is another figure's."""
    tag = re.sub(r' id="([^"]*)"', rf' id="{key}-\1"', tag)
    return re.sub(r'(url\(|href=")#', rf"\1#{key}-", tag)


# -- marks ----------------------------------------------------------------------------------------


def look(number: int) -> tuple[str, str, Any]:
    """The colour, mark and dash of a figure's curves by number, none twice among the first 28."""
    colour = COLOURS[number % len(COLOURS)]
    return colour, MARKS[number % len(MARKS)], DASHES[number // len(COLOURS) % len(DASHES)]


def bars(
    panel: Axes,
    x: float,
    y: float,
    ends: tuple[float, float],
    colour: str,
    *,
    across: bool = False,
) -> None:
    """An interval through a point, upright or across, with caps."""
    around = x if across else y
    sides = [[max(0.0, around - ends[0])], [max(0.0, ends[1] - around)]]
    panel.errorbar(
        [x],
        [y],
        xerr=sides if across else None,
        yerr=None if across else sides,
        fmt="none",
        color=colour,
        elinewidth=1.3,
        capsize=3,
        zorder=4,
    )


def legend_below(panel: Axes, columns: int) -> None:
    """Under the axis' name, where it hides nothing."""
    if not panel.get_legend_handles_labels()[1]:
        return
    panel.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, -0.17),
        ncols=columns,
        borderpad=0,
        columnspacing=1.2,
        handlelength=1.6,
    )


# -- axes -----------------------------------------------------------------------------------------


def numbered_axis(panel: Axes, name: str, values: Sequence[float]) -> None:
    """A logarithmic axis that says just these values."""
    from matplotlib.ticker import NullLocator

    getattr(panel, f"set_{name}scale")("log")
    axis = getattr(panel, f"{name}axis")
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(list(values), [f"{value:,.10g}" for value in values])
    room = (max(values) / min(values)) ** 0.07 if max(values) > min(values) else 1.5
    getattr(panel, f"set_{name}lim")(min(values) / room, max(values) * room)


def log_axis(
    panel: Axes, name: str, write: Callable[[float], str], low: float, high: float
) -> None:
    """A logarithmic axis from `low` to `high` with round numbers, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(panel, f"set_{name}scale")("log")
    getattr(panel, f"set_{name}lim")(low, high)
    decades = math.log10(high / low)
    subs: tuple[float, ...] = (1.0,)
    if decades < 1.3:
        subs = (1.0, 2.0, 3.0, 5.0)
    elif decades < 2.6:
        subs = (1.0, 3.0)
    axis = getattr(panel, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def flops_text(value: float) -> str:
    """`3.00·10²²`: three figures."""
    factor, _, power = f"{value:.2e}".partition("e")
    return f"{factor}·10{_raised(int(power))}"


def round_flops_text(value: float) -> str:
    """`3·10²²`, `10²²`: a round number."""
    factor, _, power = f"{value:.2e}".partition("e")
    shown = f"{float(factor):g}·" if float(factor) != 1 else ""
    return f"{shown}10{_raised(int(power))}"


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def round_text(value: float) -> str:
    """`7B`, `1.5T`: a round number without trailing noughts."""
    found = short(value)
    number, suffix = (found[:-1], found[-1]) if found[-1].isalpha() else (found, "")
    return (f"{float(number):g}" if "." in number else number) + suffix


def total_text(value: float, in_money: bool) -> str:
    """`$1.38M` or `3.00·10²²`: three figures."""
    if not in_money:
        return flops_text(value)
    return f"${short(value)}" if value >= 100 else f"${value:.2f}"


def round_total_text(value: float, in_money: bool) -> str:
    """`$1.5M` or `3·10²²`: a round number."""
    if not in_money:
        return round_flops_text(value)
    return f"${round_text(value)}" if value >= 10 else f"${value:.3g}"
