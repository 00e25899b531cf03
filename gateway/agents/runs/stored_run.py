"""Runs read back from the store: their exchanges, and the tokens of their last step."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.conversation.stored_messages import list_messages
from storage.records import Agent, Exchange
from storage.run_records import Run, TokenCounts
from storage.sql.store import Store


async def load_exchanges_of_run(store: Store, agent: Agent, run: Run) -> Sequence[Exchange]:
    """Returns the exchanges of a run: its steps, and the results of its last calls if it ended with them.

    Raises: StoreError.
    """
    ids = [entry.step.exchange_row for entry in await store.runs.load_steps(run)]
    stored = [await store.turns.find_exchange(agent, id) for id in ids]
    exchanges = [exchange for exchange in stored if exchange is not None]
    row = await store.runs.find_unanswered_exchange(run)
    unanswered = None if row is None else await store.turns.find_exchange(agent, row)
    if unanswered is not None and all(listed.is_result for listed in list_messages(unanswered)[:1]):
        exchanges.append(unanswered)
    return exchanges


async def load_last_counts(store: Store, run: Run) -> TokenCounts:
    """Returns the tokens of the newest step of a run; zeros if it has no step.

    Zeros as well for an item of a batch: its one step has the sum of all its calls of the model.
    """
    step = None if run.batch is not None else await store.runs.find_newest_step(run.agent_row, run.id)
    return TokenCounts() if step is None else step.counts
