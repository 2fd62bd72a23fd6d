"""Held-out examples in files of their own, put before those that are trained on."""

from __future__ import annotations

from dataclasses import replace

from llamita.data.sources import SourceFile, SourceList
from llamita.errors import UserError


def with_held_out(sources: SourceList, held_out: SourceList) -> SourceList:
    """One list of both, held-out sources first, so that what is met twice is held out.

    A file that both name is read as held out alone.

    Raises:
        UserError: that leaves nothing to train on.
    """
    first = len(held_out.names)
    kept_back = {file.path.resolve() for file in held_out.files if isinstance(file, SourceFile)}
    files = [
        file
        for file in sources.files
        if not (isinstance(file, SourceFile) and file.path.resolve() in kept_back)
    ]
    if not files:
        raise UserError(
            f"{', '.join(sources.names)}: every file is held out too; name others to learn from, "
            "or leave --held-out away and give --validation, a share of them."
        )
    return SourceList(
        names=[*held_out.names, *sources.names],
        files=[*held_out.files, *(replace(file, source=file.source + first) for file in files)],
        ignored=[*held_out.ignored, *sources.ignored],
        datasets={
            **held_out.datasets,
            **{number + first: record for number, record in sources.datasets.items()},
        },
    )
