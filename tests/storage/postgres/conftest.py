"""What is PostgreSQL's own: round trips, connections and their faults, several processes at once, its schema.

Sessions outlast a test. A test that changes what a new session is given, or that ends sessions, asks for
`own_sessions`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.two.proxy import Proxy
from tests.postgres import empty_database
from tests.storage.conftest import PostgresServer


@pytest.fixture
def database(postgres: str) -> PostgresServer:
    return PostgresServer(empty_database(postgres))


@pytest.fixture
def proxy(database: PostgresServer) -> Iterator[Proxy]:
    """Between the store and the server: open a store at its `url`."""
    with Proxy(database.url) as proxy:
        yield proxy
