"""The calls of an item that leave the gateway: each is made once, whatever becomes of the attempt."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.core.turn.commands import RunTool
from gateway.run.tools.call_journal import CallJournal
from gateway.run.tools.toolbox import ToolAnswer
from storage.errors import StoreUnavailable
from storage.run_records import Run, RunTextKind
from storage.sql.agents_api.batch_items import BatchItems
from storage.sql.store import Store
from tests.storage.test_batches import accepted


class Tool:
    """A tool that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def run(self, call: RunTool) -> ToolAnswer:
        self.calls.append(call.call_id)
        return ToolAnswer(f"done {call.call_id}")

    async def answer(self, journal: CallJournal, call: RunTool) -> str:
        return (await journal.perform_once(call, partial(self.run, call))).content


async def item_run(store: Store) -> Run:
    """Returns the run of an item of a new batch."""
    batch = await accepted(store, 1, is_started=True)
    [item] = await store.batch_items.list_page(batch.id)
    assert item.run is not None
    return item.run


async def attempt(store: Store, run: Run) -> CallJournal:
    """Returns the journal of an item after its first reply, as a new attempt of its batch's job has it."""
    texts = partial(store.batch_items.load_texts, run.agent_row, run.id)
    # Looked up with each call, since `break_texts` may replace it.
    journal = CallJournal(lambda *text: store.batch_items.add_text(run.agent_row, run.id, *text))
    journal.stored_replies.update(await texts(RunTextKind.REPLY))
    assert journal.restore_calls(await texts(RunTextKind.CALL), await texts(RunTextKind.RESULT))
    return journal


def break_texts(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Lets no text of this kind be stored."""
    real = BatchItems.add_text

    async def add_text(
        items: BatchItems, agent_row: int, run_row: int, given: str, seq: int, data: bytes
    ) -> bool:
        if given == kind:
            raise StoreUnavailable("the database is away")
        return await real(items, agent_row, run_row, given, seq, data)

    monkeypatch.setattr(BatchItems, "add_text", add_text)


async def test_a_call_that_was_made_is_not_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tool = await item_run(store), Tool()
    a, b, c = (RunTool(id, "buy", {}) for id in ("a", "b", "c"))
    before = await attempt(store, run)
    await tool.answer(before, a)
    with monkeypatch.context() as meanwhile:
        break_texts(meanwhile, "result")  # as if the gateway had been killed
        await tool.answer(before, b)
    after = await attempt(store, run)
    assert [await tool.answer(after, each) for each in (a, b, c)] == ["done a", INTERRUPTED_RESULT, "done c"]
    assert tool.calls == ["a", "b", "c"]
    # Another process has taken the batch over, and has begun its next call under the same number.
    assert await tool.answer(before, RunTool("d", "buy", {})) == INTERRUPTED_RESULT
    assert tool.calls == ["a", "b", "c"]


async def test_a_call_with_other_arguments_is_another_call(store: Store) -> None:
    run, tool = await item_run(store), Tool()
    fern, rose = (RunTool("call_0", "buy", {"what": what}) for what in ("a fern", "a rose"))
    await tool.answer(await attempt(store, run), fern)
    journal = await attempt(store, run)
    await tool.answer(journal, rose)
    await tool.answer(journal, fern)
    assert tool.calls == ["call_0", "call_0"]


async def test_an_answer_that_cannot_be_journaled_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await attempt(store, await item_run(store))
    break_texts(monkeypatch, "result")
    assert await Tool().answer(journal, RunTool("a", "buy", {})) == "done a"


async def test_a_call_that_cannot_be_journaled_is_not_made(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, journal = Tool(), await attempt(store, await item_run(store))
    break_texts(monkeypatch, "call")
    with pytest.raises(StoreUnavailable):
        await tool.answer(journal, RunTool("a", "buy", {}))
    assert tool.calls == []


async def test_a_reply_is_written_down_before_the_first_of_its_calls_is_made(store: Store) -> None:
    run, tool = await item_run(store), Tool()
    texts = partial(store.batch_items.load_texts, run.agent_row, run.id, RunTextKind.REPLY)
    before, rival = await attempt(store, run), await attempt(store, run)
    before.note_reply(0, b"first")
    rival.note_reply(0, b"another")
    assert await texts() == {}
    await asyncio.gather(*(tool.answer(before, RunTool(id, "buy", {})) for id in ("a", "b")))
    assert await texts() == {0: b"first"}
    # Another process that has gone on with the turn has another reply, whose calls are not made.
    assert await tool.answer(rival, RunTool("c", "buy", {})) == INTERRUPTED_RESULT
    after = await attempt(store, run)
    after.note_reply(0, b"first")
    assert await tool.answer(after, RunTool("d", "buy", {})) == "done d"
    assert tool.calls == ["a", "b", "d"]
