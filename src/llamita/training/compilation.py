"""Compiled code: where it is kept between runs, and whether it was found there."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code() -> None:
    """Let torch.compile's cache outlast a reboot, in the user's own cache directory.

    torch's default lies in the temporary directory: gone with it, and on a shared machine in a
    place where others may write what we would load. A directory that was chosen already stays.
    """
    if CACHE_VARIABLE in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "llamita" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home to write to: torch's own default serves
    if os.access(folder, os.W_OK):
        os.environ[CACHE_VARIABLE] = str(folder)


def graphs_met() -> tuple[int, int]:
    """Graphs that this process took from the cache, and those it had to compile."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]
