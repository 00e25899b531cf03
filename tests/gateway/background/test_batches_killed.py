"""A gateway that is killed over and over while it serves a batch: nothing is submitted twice, and no item is lost."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agents.batches.batch_world import PATH
from tests.doubles.batches import AnthropicBatchServer, BatchServer, OpenAIBatchServer
from tests.doubles.upstream import StrictUpstream
from tests.gateway.background.served_batch import ITEMS, ROUNDS, SETTINGS, answer, answer_item, ask, make
from tests.gateway.process import Process, serving
from tests.patience import PATIENCE_S

Json = dict[str, Any]
MAX_LIVES = 80


def has_ended(gateway: Process, batch: Json) -> bool:
    """Waits for the end of the batch, or of the gateway. False: the gateway was killed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if gateway.child.poll() is not None:
            return False
        try:
            found = ask(gateway, "GET", f"{PATH}/{batch['id']}")
        except (OSError, EOFError):
            continue
        counts = found["counts"]
        assert counts["total"] == sum(n for name, n in counts.items() if name != "total") == ITEMS
        if found["status"] == "completed":
            return True
        time.sleep(0.05)
    raise AssertionError(gateway.log.read_text())


def live_through(
    tmp_path: Path, settings: str, model: str, lasts: tuple[int, ...] = (1, 2, 3, 4)
) -> tuple[int, list[str], Json]:
    """Has a batch served by one process after the other. Returns how many were killed.

    lasts: after which thing that it does a process is killed, each in turn.
    """
    with serving(tmp_path, settings=settings.replace("0.05", "3600")) as gateway:
        agents, batch = make(gateway, model)
        gateway.kill()
    for life, last in enumerate(itertools.cycle(lasts)):
        assert life < MAX_LIVES
        try:
            with serving(
                tmp_path,
                settings=settings,
                module="tests.gateway.background.batch_process",
                environ={"KILL_AT": str(last)},
            ) as gateway:
                if has_ended(gateway, batch):
                    return life, agents, batch
        except AssertionError as error:
            # It was killed before it listened.
            if "did not start" not in str(error):
                raise
    raise AssertionError


def check(tmp_path: Path, settings: str, agents: list[str], batch: Json) -> None:
    """Checks that each item was done, and once."""
    with serving(tmp_path, settings=settings) as gateway:
        counts = ask(gateway, "GET", f"{PATH}/{batch['id']}")["counts"]
        assert counts["completed"] == ITEMS
        for n, agent in enumerate(agents):
            block = ask(gateway, "GET", f"/v1/agents/{agent}/core-memory/blocks/human")["value"]
            assert block.split("\n") == ["Notes:", f"Task {n} 0.", f"Task {n} 1."]
            said = ask(gateway, "GET", f"/v1/agents/{agent}/messages?order=asc")
            texts = [m["content"] for m in said if m["message_type"] == "assistant_message"]
            assert texts == [f"Task {n} is done."]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.timeout(300)
def test_killed_after_each_step_of_a_batch(kind: str, tmp_path: Path) -> None:
    server_of: type[BatchServer] = OpenAIBatchServer if kind == "openai" else AnthropicBatchServer
    key = "sk-own" if kind == "openai" else "sk-ant-own"
    with server_of(answer) as server:
        settings = SETTINGS.format(kind=kind, base_url=server.base_url, key=key, batches=kind)
        model = "far/m" if kind == "openai" else "far/claude-opus-4-6"
        lives, agents, batch = live_through(tmp_path, settings, model)
        assert lives > ROUNDS * 2
        check(tmp_path, settings, agents, batch)
        # Each cycle was one batch of all items, and no request was made twice.
        made = [custom_id for each in server.batches for custom_id in each.requests]
        assert len(server.batches) == ROUNDS
        assert len(made) == len(set(made)) == ITEMS * ROUNDS


@pytest.mark.timeout(300)
def test_killed_while_the_gateway_makes_the_calls_itself(tmp_path: Path) -> None:
    with StrictUpstream(script=answer_item) as upstream:
        settings = SETTINGS.format(kind="openai", base_url=upstream.base_url, key="none", batches="none")
        # What was under way is lost with the process, so some have to live longer.
        lives, agents, batch = live_through(tmp_path, settings, "far/m", (5, 8, 11, 14))
        assert lives > 1
        check(tmp_path, settings, agents, batch)
