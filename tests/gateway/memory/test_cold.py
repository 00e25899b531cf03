"""A gateway that keeps memories between turns sends the bytes of one that reads them again for each turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.memory.any_life import Life
from tests.gateway.sdk import agent, remember


# With these a life has every kind of step: appended and regenerated turns, agents, edits, both kinds of forgetting.
@pytest.mark.parametrize("seed", [1, 3])
def test_what_is_cached_between_turns_changes_nothing(
    upstream: StrictUpstream, tmp_path: Path, seed: int
) -> None:
    sent = []
    for is_cold in (False, True):
        folder = tmp_path / f"cold-{is_cold}"
        folder.mkdir()
        with remember(upstream, folder, agent()) as world:
            sent.append(Life([world], seed, is_cold=is_cold).sent())
    warm, cold = sent
    assert warm == cold
    assert sum(b"<memory " in body for body in warm) > 5
