"""A few kills while simulated users of all kinds chat; `scripts/torture two` kills for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.gateway.two.fault_injection import inject_faults


@pytest.mark.sqlite
def test_a_gateway_that_is_killed_loses_no_finished_turn(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it if the test fails
    inject_faults(tmp_path, 2, seed, max_interval_s=1.0)


def test_two_gateways_that_are_killed_lose_no_finished_turn(tmp_path: Path, url: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    inject_faults(tmp_path, 2, seed, url=url, max_interval_s=1.0)
