"""A PostgreSQL database of the test's own, empty.

Its sessions outlast a test. A test that changes what a new session is given, or that ends sessions, asks for
`own_sessions`.
"""

from __future__ import annotations

import pytest

from tests.postgres import empty_database


@pytest.fixture
def url(postgres: str) -> str:
    return empty_database(postgres).url
