"""A strict upstream for each test that wants one, and a transport that is closed after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from adapters.transport import HttpTransport
from tests.doubles.upstream import StrictUpstream


@pytest.fixture
def upstream() -> Iterator[StrictUpstream]:
    with StrictUpstream() as running:
        yield running


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    made = HttpTransport()
    yield made
    await made.aclose()
