"""Sleeptime agents at work: when they read, what they read, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.agents.sleep import SleepWorld, said, sleeping


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[SleepWorld]:
    with sleeping(upstream, tmp_path) as made:
        yield made


def test_it_reads_after_so_many_turns_and_the_reply_names_the_run(world: SleepWorld) -> None:
    agent = world.primary()
    begun = [world.send(agent, f"Message {n}.") for n in range(1, 11)]
    world.slept()
    assert [bool(each) for each in begun] == [False, False, False, False, True] * 2
    runs = world.runs(agent)
    assert [run.id for run in runs] == [begun[4][0], begun[9][0]]
    assert [(run.status, run.stop_reason, run.background) for run in runs] == [
        ("completed", "tool_rule", True)
    ] * 2
    assert [said(each) for each in world.model.transcripts] == [
        [f"Message {n}." for n in range(1, 6)],
        [f"Message {n}." for n in range(6, 11)],
    ]
    assert world.block(agent).splitlines() == ["Name: Ann", *(f"Message {n}." for n in range(1, 11))]
