"""One server for all tests that need nothing particular."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.serving_fakes import FakeEngine, Running, running_server


@pytest.fixture(scope="session")
def served() -> Iterator[Running]:
    """`Hello, wörld!` to everything, without keys."""
    with running_server(FakeEngine()) as running:
        yield running
