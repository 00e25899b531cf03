"""Each check of the fidelity matrix (`scripts/bench fidelity`) is right in each setup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.fidelity.matrix import CANCEL_POINTS, CHECKS, SETUPS, Setup, cancel_times, open_setup
from tests.rows import each_row


@pytest.fixture(params=SETUPS, scope="module")
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    with open_setup(request.param, folder) as opened:
        yield opened


@each_row("check", CHECKS)
def test_each_check_is_right_in_each_setup(setup: Setup, check: str) -> None:
    setup.upstream.forget_replies()
    result = CHECKS[check](setup)
    assert result.is_right, f"{setup.name}: {check}: {result.text}"


def test_a_cancel_reaches_the_upstream_at_each_point(setup: Setup) -> None:
    """`scripts/bench fidelity` measures the time that it takes."""
    setup.upstream.forget_replies()
    assert [name for name, times in cancel_times(setup, 1).items() if len(times) == 1] == list(CANCEL_POINTS)
