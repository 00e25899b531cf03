"""The calls of a batch item that leave the gateway: each is sent once, even if an attempt fails."""

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
    """A tool that notes its calls."""

    def __init__(self) -> None:
        # The ids of the calls.
        self.calls: list[str] = []

    async def run(self, call: RunTool) -> ToolAnswer:
        self.calls.append(call.call_id)
        return ToolAnswer(f"done {call.call_id}")

    async def answer(self, journal: CallJournal, call: RunTool) -> str:
        """Performs a call through a journal, and returns the answer."""
        return (await journal.perform_once(call, partial(self.run, call))).content


async def create_item_run(store: Store) -> Run:
    """Returns the run of an item of a new batch."""
    batch = await accepted(store, 1, is_started=True)
    [item] = await store.batch_items.list_page(batch.id)
    assert item.run is not None
    return item.run


async def open_journal(store: Store, run: Run) -> CallJournal:
    """Returns the journal of an item after its first reply, as a new attempt of the batch's job opens it."""
    texts = partial(store.batch_items.load_texts, run.agent_row, run.id)
    # A lambda, since `break_texts` may replace the method later.
    journal = CallJournal(lambda *text: store.batch_items.add_text_of_open_item(run.agent_row, run.id, *text))
    journal.stored_replies.update(await texts(RunTextKind.REPLY))
    assert journal.restore_calls(await texts(RunTextKind.CALL), await texts(RunTextKind.RESULT))
    return journal


def break_texts(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Has each write of a text of this kind fail."""
    real = BatchItems.add_text_of_open_item

    async def add_text(
        items: BatchItems, agent_row: int, run_row: int, text_kind: str, seq: int, data: bytes
    ) -> bool:
        if text_kind == kind:
            raise StoreUnavailable("the database is away")
        return await real(items, agent_row, run_row, text_kind, seq, data)

    monkeypatch.setattr(BatchItems, "add_text_of_open_item", add_text)


async def test_a_call_that_was_made_is_not_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tool = await create_item_run(store), Tool()
    a, b, c = (RunTool(id, "buy", {}) for id in ("a", "b", "c"))
    before = await open_journal(store, run)
    await tool.answer(before, a)
    with monkeypatch.context() as patch:
        break_texts(patch, "result")  # as if the gateway had been killed
        await tool.answer(before, b)
    after = await open_journal(store, run)
    assert [await tool.answer(after, each) for each in (a, b, c)] == ["done a", INTERRUPTED_RESULT, "done c"]
    assert tool.calls == ["a", "b", "c"]
    # Another process has taken over the batch, and has begun its next call with the same number.
    assert await tool.answer(before, RunTool("d", "buy", {})) == INTERRUPTED_RESULT
    assert tool.calls == ["a", "b", "c"]


async def test_a_call_with_other_arguments_is_another_call(store: Store) -> None:
    run, tool = await create_item_run(store), Tool()
    fern, rose = (RunTool("call_0", "buy", {"what": what}) for what in ("a fern", "a rose"))
    await tool.answer(await open_journal(store, run), fern)
    journal = await open_journal(store, run)
    await tool.answer(journal, rose)
    await tool.answer(journal, fern)
    assert tool.calls == ["call_0", "call_0"]


async def test_an_answer_that_cannot_be_journaled_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await open_journal(store, await create_item_run(store))
    break_texts(monkeypatch, "result")
    assert await Tool().answer(journal, RunTool("a", "buy", {})) == "done a"


async def test_a_call_that_cannot_be_journaled_is_not_made(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, journal = Tool(), await open_journal(store, await create_item_run(store))
    break_texts(monkeypatch, "call")
    with pytest.raises(StoreUnavailable):
        await tool.answer(journal, RunTool("a", "buy", {}))
    assert tool.calls == []


async def test_a_reply_is_journaled_before_the_first_of_its_calls_is_sent(store: Store) -> None:
    run, tool = await create_item_run(store), Tool()
    texts = partial(store.batch_items.load_texts, run.agent_row, run.id, RunTextKind.REPLY)
    before, rival = await open_journal(store, run), await open_journal(store, run)
    before.note_reply(0, b"first")
    rival.note_reply(0, b"another")
    assert await texts() == {}
    await asyncio.gather(*(tool.answer(before, RunTool(id, "buy", {})) for id in ("a", "b")))
    assert await texts() == {0: b"first"}
    # Another process that continues the turn has another reply, whose calls are not sent.
    assert await tool.answer(rival, RunTool("c", "buy", {})) == INTERRUPTED_RESULT
    after = await open_journal(store, run)
    after.note_reply(0, b"first")
    assert await tool.answer(after, RunTool("d", "buy", {})) == "done d"
    assert tool.calls == ["a", "b", "d"]
