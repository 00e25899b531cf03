"""The bench on which a worker is tried, and a gateway that learns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storage.sqlite.writer import WriterLimits
from tests import stored
from tests.doubles.statements import counting
from tests.doubles.upstream import StrictUpstream
from tests.gateway.background.bench import Bench, ManualClock
from tests.gateway.background.learner import Learner, serve_learner
from tests.stored import open_store


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    if stored.server is not None:
        pytest.skip("SQLite's own: its jobs go on without a turn of the loop")
    time = ManualClock()
    statements: list[str] = []
    store = await open_store(
        tmp_path / "memory.db",
        now=lambda: time.now,
        tick=lambda: time.tick,
        limits=WriterLimits(retry_first_s=3600, idle_s=3600),
        factory=counting(statements.append),
    )
    bench = Bench(store, time, statements)
    yield bench
    await bench.stop()
    await store.close()


@pytest.fixture
def learner(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Learner]:
    with serve_learner(upstream, tmp_path) as made:
        yield made
