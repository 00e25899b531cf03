"""A PostgreSQL database of the test's own, empty."""

from __future__ import annotations

import pytest

from tests.postgres import empty_database


@pytest.fixture
def url(postgres: str, own_sessions: None) -> str:
    return empty_database(postgres).url
