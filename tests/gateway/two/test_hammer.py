"""A few kills while people of all kinds talk; `scripts/torture two` kills for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.gateway.two.hammer import hammer


@pytest.mark.sqlite
def test_one_gateway_that_is_killed_keeps_what_was_finished(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    hammer(tmp_path, 2, seed, most_s=1.0)


def test_two_gateways_of_which_either_is_killed_keep_what_was_finished(tmp_path: Path, url: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    hammer(tmp_path, 2, seed, url=url, most_s=1.0)
