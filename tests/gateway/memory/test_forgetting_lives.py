"""One random life with forgetting; `scripts/torture forgetting` lives more of them, and several requests at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.memory.forgetting_lives import live


@pytest.mark.sqlite
def test_nothing_is_stored_that_was_off_the_record_or_forgotten(tmp_path: Path) -> None:
    live(3, tmp_path, None, is_concurrent=False)
