"""A gateway that keeps memories between turns sends the bytes of one that reads them again for each turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.memory.random_users import RandomUsers
from tests.gateway.sdk import agent, remember


# With these seeds each kind of step occurs: appended and regenerated turns, agents, edits, both kinds of forgetting.
@pytest.mark.parametrize("seed", [1, 3])
def test_caches_change_no_request(upstream: StrictUpstream, tmp_path: Path, seed: int) -> None:
    sent = []
    for is_cold in (False, True):
        folder = tmp_path / f"cold-{is_cold}"
        folder.mkdir()
        with remember(upstream, folder, agent()) as world:
            sent.append(RandomUsers([world], seed, is_cold=is_cold).run())
    warm, cold = sent
    assert warm == cold
    assert sum(b"<memory " in body for body in warm) > 5
