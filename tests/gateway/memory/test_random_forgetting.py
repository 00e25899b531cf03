"""One simulation of users who forget. `scripts/torture forgetting` runs more of them, and sends requests at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.memory.random_forgetting import simulate


@pytest.mark.sqlite
def test_nothing_is_stored_that_was_off_the_record_or_forgotten(tmp_path: Path) -> None:
    simulate(3, tmp_path, None, is_concurrent=False)
