"""Fixtures of the training room's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llamita.training import devices
from tests.training.helpers import cheap_matmul_rate, tiny_recipe, trained


@pytest.fixture(autouse=True)
def _cheap_and_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure no matrix products; one thread, and afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(devices, "matmul_rate", cheap_matmul_rate)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe trained without interruption: 8 stable steps and 4 of decay."""
    out = tmp_path_factory.mktemp("reference") / "run"
    threads = torch.get_num_threads()
    trained(tiny_recipe(tiny_data), out)
    torch.set_num_threads(threads)
    return out
