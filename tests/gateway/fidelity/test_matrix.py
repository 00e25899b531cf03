"""Every cell of the fidelity matrix (`scripts/bench fidelity`) is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.fidelity.matrix import CHECKS, WAYS, WINDOWS, Way, cancel_times, open_way
from tests.rows import each_row


@pytest.fixture(params=WAYS, scope="module")
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    with open_way(request.param, folder) as made:
        yield made


@each_row("check", CHECKS)
def test_each_check_holds_in_each_way(way: Way, check: str) -> None:
    way.upstream.forget_replies()
    cell = CHECKS[check](way)
    assert cell.is_right, f"{way.name}: {check}: {cell.text}"


def test_a_cancel_reaches_the_upstream_in_every_window(way: Way) -> None:
    """How long it takes is for the bench to say; here it has to arrive at all."""
    way.upstream.forget_replies()
    assert [name for name, times in cancel_times(way, 1).items() if len(times) == 1] == list(WINDOWS)
