"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, so that a run fails for what was changed and not by chance;
# `make test-all` looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of texts, tokenizers and published facts that lies beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder ../shared beside the repository with the shared test data")
    return SHARED


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small datasets of one tokenizer, `prose` and `code`."""
    from tests.training.helpers import build_tiny_data

    return build_tiny_data(tmp_path_factory.mktemp("tiny-data"))
