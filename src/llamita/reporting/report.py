"""`report`: a run, or several, as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llamita.durable import replace_synced
from llamita.errors import UserError
from llamita.reporting.report_page import render
from llamita.reporting.report_records import RunRecord, read_run

_NAME = "report.html"


def report(
    runs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    png: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the report of a run, or of several overlaid, from their events and recipes.

    Args:
        runs: a run's directory, or several.
        out: the page's file; default RUN/report.html for one run, report.html here for several.
        png: a directory for the main plots as PNGs; needs matplotlib (extra `plots`).
        say: receives the path of each file written.

    Returns:
        The page's path.

    Raises:
        UserError: no such run, one without events, one named twice, no place to write to, or no
            matplotlib.
    """
    directories = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    _refuse_repetition(directories)
    page = _place(directories, Path(out) if out is not None else None)
    if png is not None:
        _check_png(Path(png))
    records = [read_run(directory) for directory in directories]
    replace_synced(page, render(records))
    say(f"report: {page}")
    if png is not None:
        for path in _write_png(records, Path(png)):
            say(f"plot: {path}")
    return page


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html, silently. Imports neither torch nor matplotlib.

    Raises:
        UserError: as `report`.
    """
    return report(run, say=lambda line: None)


def _refuse_repetition(directories: Sequence[Path]) -> None:
    if not directories:
        raise UserError("name a run's directory, such as runs/small, or several")
    seen: dict[Path, Path] = {}
    for directory in directories:
        same = seen.setdefault(directory.resolve(), directory)
        if same is not directory:
            raise UserError(f"{directory} is named twice: a run is compared with other runs")


def _place(directories: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        return directories[0] / _NAME if len(directories) == 1 else Path(_NAME)
    if out.is_dir():
        raise UserError(f"--out {out} is a directory: name a file, such as {out / _NAME}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    return out


def _check_png(folder: Path) -> None:
    """Before anything is written: is there a matplotlib, and may the folder be one?"""
    from llamita.reporting.plot_style import require_matplotlib

    require_matplotlib("PNGs are", "--png")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--png {folder} is a file: name a directory for the plots")


def _write_png(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    from llamita.reporting.plots import write_plots

    return write_plots(records, folder)
