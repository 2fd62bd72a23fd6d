"""Fixtures of the data room's tests."""

from __future__ import annotations

import pytest

from llamita.data.tokenizer import Tokenizer
from tests.data.corpus import small_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()
