"""A PostgreSQL database of the test's own, empty.

Its sessions outlast a test. A test that changes what a new session is given, or that ends sessions, asks for
`own_sessions`.
"""

from __future__ import annotations

import pytest

from storage.postgres.postgres_limits import PostgresLimits
from tests.patience import PATIENCE_S
from tests.postgres import empty_database


class PatientConnections(PostgresLimits, frozen=True):
    """PostgreSQL's limits, with waits for a connection that no busy machine reaches."""

    acquire_timeout_s: float = PATIENCE_S
    connect_timeout_s: float = PATIENCE_S
    slow_wait_s: float = PATIENCE_S


@pytest.fixture(autouse=True)
def wait_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets gateways of the test's process wait for a connection: else their replies may be without memory."""
    monkeypatch.setattr("storage.postgres.database.PostgresLimits", PatientConnections)


@pytest.fixture
def url(postgres: str) -> str:
    return empty_database(postgres).url
