"""Every cell of the fidelity matrix (`scripts/bench fidelity`) is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.matrix import CHECKS, WAYS, Way, open_way


@pytest.fixture(params=WAYS, scope="module")
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    with open_way(request.param, folder) as made:
        yield made


@pytest.mark.parametrize("check", CHECKS)
def test_a_cell(way: Way, check: str) -> None:
    way.upstream.forget_replies()
    cell = CHECKS[check](way)
    assert cell.is_right, f"{way.name}: {check}: {cell.text}"
