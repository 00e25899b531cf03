"""Runs read back from the store: their exchanges, and the tokens of their last step."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.conversation.stored_messages import list_messages
from storage.records import Agent, Exchange, Run, TokenCounts
from storage.sql.store import Store


async def exchanges_of(store: Store, agent: Agent, run: Run) -> Sequence[Exchange]:
    """Returns the exchanges of a run: its steps, and the results of the last calls, where it ended with these.

    Raises: StoreError.
    """
    ids = [each.step.exchange for each in await store.runs.load_steps(run)]
    exchanges = [exchange for id in ids if (exchange := await store.turns.exchange(agent, id)) is not None]
    last_exchange = await store.runs.find_unanswered_exchange(run)
    last = None if last_exchange is None else await store.turns.exchange(agent, last_exchange)
    if last is not None and all(m.message.get("role") == "tool" for m in list_messages(last)[:1]):
        exchanges.append(last)
    return exchanges


async def last_counts(store: Store, run: Run) -> TokenCounts:
    """Returns the tokens of the newest step of a run; zeros where it has none.

    A batch's item has one step, in which all its calls of the model are added up: they are zeros, too.
    """
    step = None if run.batch is not None else await store.runs.load_last_step(run.agent, run.id)
    return TokenCounts() if step is None else step.counts
