"""Reads the exchanges and the last counts of stored runs, and fails a run that no step ends."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.conversation.stored_messages import list_messages
from gateway.core.turn.stop_reason import StopReason
from storage.errors import NotFound
from storage.job_records import Job
from storage.records import Agent, Exchange
from storage.run_records import Run, RunState, RunStep, TokenCounts
from storage.sql.store import Store

# The error message of a run that fails by a fault in the gateway.
INTERNAL_ERROR = "An error of the gateway's own; its log says more."


async def load_exchanges_of_run(store: Store, agent: Agent, run: Run) -> Sequence[Exchange]:
    """Returns the exchanges of a run: its steps, and the results of its last calls if the run ended with them.

    Raises: StoreError.
    """
    step_rows = [entry.step.exchange_row for entry in await store.runs.load_steps(run)]
    exchanges_or_none = [await store.turns.find_exchange(agent, row) for row in step_rows]
    exchanges = [exchange for exchange in exchanges_or_none if exchange is not None]
    row = await store.runs.find_unanswered_exchange(run)
    unanswered = None if row is None else await store.turns.find_exchange(agent, row)
    if unanswered is not None and all(listed.is_result for listed in list_messages(unanswered)[:1]):
        exchanges.append(unanswered)
    return exchanges


async def find_step(store: Store, agent: Agent, exchange: Exchange) -> RunStep | None:
    """Returns the step of an exchange; None if a chat completion made the exchange, which is then written as a whole.

    Raises: StoreError.
    """
    try:
        return (await store.runs.get_step(agent.scope.project, agent.uid, exchange.seq)).step
    except NotFound:
        return None


async def load_last_counts(store: Store, run: Run) -> TokenCounts:
    """Returns the tokens of the newest step of a run; zeros if the run has no step.

    Returns zeros for an item of a batch as well: its only step has the sum of all calls of the model.
    """
    step = None if run.batch is not None else await store.runs.find_newest_step(run.agent_row, run.id)
    return TokenCounts() if step is None else step.counts


async def fail_run(
    store: Store, run: Run, error_message: str, at: float, *, job: Job | None = None, error_status: int = 0
) -> Run:
    """Ends a run with an error, as `Runs.end_run` does. Returns the run as it is now.

    at: the time of the end, in seconds since the epoch.
    job: the job's attempt that performs the run; None: no job does.
    error_status: the HTTP status of the error; 0: the error has none.
    """
    return await store.runs.end_run(
        run.agent_row, run.id, RunState.FAILED, StopReason.ERROR, at,
        error_message=error_message, error_status=error_status, job=job,
    )  # fmt: skip
