"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of texts, tokenizers and published facts that lies beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder ../shared beside the repository with the shared test data")
    return SHARED
