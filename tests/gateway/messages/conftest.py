"""Closes the clients that a test has made, so that no connection is left to another test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.messages.sdk import CLIENTS


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()
