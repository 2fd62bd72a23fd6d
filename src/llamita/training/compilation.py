"""Compiled code: where it is kept between runs, how much of it a process holds, and whether it was
found."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_GRAPHS_AT_MOST, _MODELS_AT_MOST = 64, 12
_held: set[str] = set()
"""Models whose graphs this process holds, as torch itself does for the whole process."""


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


def make_room_for_graphs(model: str) -> None:
    """Call before a model is compiled.

    torch.compile keeps the graphs of everything that a process met, and where they must be whole
    refuses the ninth of one function: the fourth or fifth model of another shape, as one has
    graphs with and without gradients and of other numbers of rows. Here it refuses later than what
    12 models need, and before the thirteenth all are let go of; they come back from the disk.

    Args:
        model: what sets its graphs apart from other models'.
    """
    import torch
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _GRAPHS_AT_MOST)
    if model not in _held and len(_held) >= _MODELS_AT_MOST:
        torch.compiler.reset()
        _held.clear()
    _held.add(model)


def graphs_met() -> tuple[int, int]:
    """Graphs that this process took from the cache, and those it had to compile."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]
