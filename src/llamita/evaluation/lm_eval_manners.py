"""lm-eval and what it is made of, well behaved: quiet, repeatable, and offline where told so.

Imports lm_eval: import this module where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import datasets
import huggingface_hub.constants
import lm_eval.api.task
import lm_eval.utils
import numpy as np


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither lm-eval's warnings nor its and datasets' progress bars: what they would speak of is
    checked here, or recorded with the scores. And lm-eval's templates are compiled once, and not
    for every document anew, which takes longer than all else in building requests."""
    environment = lm_eval.utils.env
    compiled = functools.lru_cache(maxsize=1024)(environment.from_string)
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with (
            _replaced(lm_eval.api.task, "tqdm", lambda items, **_: items),
            _replaced(environment, "from_string", compiled),
        ):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's seeds for tasks that draw, whatever ran before, and the caller's state after."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)  # both seeds are those of lm-eval's defaults.py
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def offline(on: bool) -> Iterator[None]:
    """Nothing is asked of the hub meanwhile. `evaluate` is imported by lm-eval when a metric wants
    it, and reads its environment then."""
    if not on:
        yield
        return
    before = os.environ.get("HF_EVALUATE_OFFLINE")
    os.environ["HF_EVALUATE_OFFLINE"] = "1"
    try:
        with contextlib.ExitStack() as stack:
            for module in (huggingface_hub.constants, datasets.config):
                stack.enter_context(_replaced(module, "HF_HUB_OFFLINE", True))
            if evaluate := sys.modules.get("evaluate.config"):
                stack.enter_context(_replaced(evaluate, "HF_EVALUATE_OFFLINE", True))
            yield
    finally:
        if before is None:
            del os.environ["HF_EVALUATE_OFFLINE"]
        else:
            os.environ["HF_EVALUATE_OFFLINE"] = before


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
