"""The calls of an item that leave the gateway: each is made once, whatever becomes of the attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adapters.scripted import ScriptedProvider
from gateway.agents.batches.stored_replies import CallJournal, JournaledTools, StoredReplies
from gateway.core.turn.calls import INTERRUPTED
from gateway.core.turn.commands import RunTool
from gateway.core.upstream.policy import Policy, Target
from gateway.run.tools.toolbox import NOT_AVAILABLE, ToolAnswer
from gateway.run.upstream.failover import Endpoint
from storage.errors import Unavailable
from storage.records import Run
from storage.sql.agents_api.batches import Batches
from storage.sql.store import Store
from tests.storage.test_batches import accepted


class Box:
    """Tools that count their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def definitions(self) -> list[dict[str, Any]]:
        return []

    def owns(self, name: str) -> bool:
        return True

    def serial_group(self, call: RunTool) -> str | None:
        return None

    async def run(self, call: RunTool) -> ToolAnswer:
        self.calls.append(call.call_id)
        return ToolAnswer(f"done {call.call_id}")


async def item_run(store: Store) -> Run:
    """Returns the run of an item of a new batch."""
    batch = await accepted(store, 1, is_started=True)
    [item] = await store.batches.items(batch.id)
    assert item.run is not None
    return item.run


async def attempt(store: Store, run: Run, box: Box) -> JournaledTools:
    """Returns the tools of an item after its first reply, as a new attempt of its batch's job has them."""
    journal = CallJournal(store, run)
    await journal.load()
    endpoint = Endpoint("up", "up", ScriptedProvider("up"), Policy(0))
    source = StoredReplies(Target("up", "m"), endpoint, [b"{}"], taken=1)
    return JournaledTools(box, frozenset({"buy"}), journal, source, (), asyncio.Semaphore(8))


class Breaking:
    """Lets a text of this kind not be stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        real = Batches.add_text

        async def add_text(batches: Batches, agent: int, run: int, given: str, seq: int, data: bytes) -> bool:
            if given == kind:
                raise Unavailable("the database is away")
            return await real(batches, agent, run, given, seq, data)

        monkeypatch.setattr(Batches, "add_text", add_text)


async def test_a_call_that_was_made_is_not_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, box = await item_run(store), Box()
    a, b, c = (RunTool(id, "buy", {}) for id in ("a", "b", "c"))
    before = await attempt(store, run, box)
    await before.run(a)
    with monkeypatch.context() as meanwhile:
        Breaking(meanwhile, "result")  # as if the gateway had been killed
        await before.run(b)
    tools = await attempt(store, run, box)
    assert [(await tools.run(each)).content for each in (a, b, c)] == ["done a", INTERRUPTED, "done c"]
    assert box.calls == ["a", "b", "c"]
    # Another process has taken the batch over, and has begun its next call under the same number.
    assert (await before.run(RunTool("d", "buy", {}))).content == INTERRUPTED
    assert box.calls == ["a", "b", "c"]
    # The gateway's own may be made again: they are written with their results.
    assert (await tools.run(RunTool("a", "own", {}))).content == "done a"


async def test_a_call_with_other_arguments_is_another_call(store: Store) -> None:
    run, box = await item_run(store), Box()
    await (await attempt(store, run, box)).run(RunTool("call_0", "buy", {"what": "a fern"}))
    tools = await attempt(store, run, box)
    await tools.run(RunTool("call_0", "buy", {"what": "a rose"}))
    await tools.run(RunTool("call_0", "buy", {"what": "a fern"}))
    assert box.calls == ["call_0", "call_0"]


async def test_an_answer_that_cannot_be_journaled_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = await attempt(store, await item_run(store), Box())
    Breaking(monkeypatch, "result")
    answer = await tools.run(RunTool("a", "buy", {}))
    assert answer.content == "done a"
    assert [each["answer"][0] for each in tools.results] == ["done a"]


async def test_a_call_that_cannot_be_journaled_is_not_made(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box()
    tools = await attempt(store, await item_run(store), box)
    Breaking(monkeypatch, "call")
    answer = await tools.run(RunTool("a", "buy", {}))
    assert answer.content == NOT_AVAILABLE.format(name="buy")
    assert box.calls == []
    # Its round is stored with what the model was told.
    assert [each["answer"][0] for each in tools.results] == [answer.content]
