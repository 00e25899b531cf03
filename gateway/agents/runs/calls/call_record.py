"""The record of calls that leave the gateway. Each call is noted before it is made, so that no call is made twice.

The record is stored with the run that made the step, next to results that wait for the step's other results. A call
that was noted and has no result may have been made or not: a note says so to the model, which decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial

import orjson
from msgspec import Struct

from gateway.agents.runs.calls.pauses import is_bare_approval, list_unanswered, read_result
from gateway.core.conversation.stored_messages import map_calls_to_tool_names
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.core.turn.commands import RunTool
from gateway.core.turn.tool_result import ToolResult
from gateway.run.tools.call_journal import perform_and_store
from gateway.run.tools.toolbox import ToolAnswer
from storage.records import Agent, Exchange
from storage.run_records import RunStep, RunTextKind, WaitKind
from storage.sql.store import Store

# A step has `_NUMBERS_PER_STEP` numbers for the texts of its calls. The numbers below `_FIRST_OUTCOME` are for answers
# to calls, the others for the outcomes of calls that the gateway has made.
_NUMBERS_PER_STEP = 1000
_FIRST_OUTCOME = 500


def number_call(exchange: Exchange, call_id: str) -> int:
    """Returns the number of a call of a step's exchange among the texts of its run."""
    return exchange.seq * _NUMBERS_PER_STEP + [*map_calls_to_tool_names(exchange)].index(call_id)


class CallRecord(Struct, frozen=True):
    """The record of the calls of one step."""

    # The store with the texts of runs.
    store: Store
    # The row of the agent of the run.
    agent_row: int
    # The row of the run that made the step.
    run_row: int
    # The exchange of the step that made the calls.
    step: Exchange

    async def perform_once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Returns the stored answer to a call, or makes the call. Raises: StoreError if the call cannot be noted."""
        texts = self.store.run_texts
        rows = (self.agent_row, self.run_row)
        number = number_call(self.step, call.call_id)
        outcome_number = number + _FIRST_OUTCOME
        if not await texts.add_text(*rows, RunTextKind.CALL, number, orjson.dumps({"id": call.call_id})):
            outcomes = await texts.load_texts(*rows, RunTextKind.RESULT, after=outcome_number - 1, limit=1)
            if outcomes and outcomes[0].seq == outcome_number:
                return ToolAnswer.load(outcomes[0].data)
            return ToolAnswer.failed(INTERRUPTED_RESULT)
        store_result = partial(texts.add_text, *rows, RunTextKind.RESULT, outcome_number)
        return await perform_and_store(perform, store_result)


async def load_answers(store: Store, step: RunStep, exchange: Exchange) -> list[WireMessage]:
    """Returns the client's answers to calls of a step, as messages.

    exchange: the step's exchange.

    Raises: StoreError.
    """
    first = exchange.seq * _NUMBERS_PER_STEP
    texts = await store.run_texts.load_texts(
        step.agent_row, step.run_row, RunTextKind.RESULT, after=first - 1, limit=_FIRST_OUTCOME
    )
    return [orjson.loads(text.data) for text in texts if text.seq < first + _FIRST_OUTCOME]


async def load_waiting_calls(store: Store, step: RunStep, exchange: Exchange) -> dict[str, WaitKind]:
    """Returns the kind of each call of a step that still waits for an answer, by the ids of the calls.

    exchange: the step's exchange.

    Raises: StoreError.
    """
    answered_ids = {message["tool_call_id"] for message in await load_answers(store, step, exchange)}
    return list_unanswered(step, answered_ids)


async def is_awaiting_answers(store: Store, agent: Agent, conversation_name: str) -> bool:
    """Returns whether a call of the step with which a conversation ends waits for an answer.

    The stored step alone does not show it: if a run with all answers was broken off, no call waits any more.

    Raises: StoreError.
    """
    conversation = await store.stored_paths.find_conversation(agent, conversation_name)
    step = None if conversation is None else await store.runs.find_waiting_step(agent.id, conversation.id)
    if step is None:
        return False
    exchange = await store.turns.find_exchange(agent, step.exchange_row)
    return exchange is not None and bool(await load_waiting_calls(store, step, exchange))


async def load_results(
    store: Store, step: RunStep, exchange: Exchange, excluded_ids: Collection[str]
) -> list[ToolResult]:
    """Returns the known results of a step's calls, after the step's run has stopped.

    A call without a known result was not made.

    exchange: the step's exchange.
    excluded_ids: the ids of the calls to leave out.

    Raises: StoreError.
    """
    load_texts = partial(store.run_texts.load_texts, step.agent_row, step.run_row)
    after = exchange.seq * _NUMBERS_PER_STEP - 1
    stored = {text.seq: orjson.loads(text.data) for text in await load_texts(RunTextKind.RESULT, after=after)}
    noted_numbers = {text.seq for text in await load_texts(RunTextKind.CALL, after=after)}
    results = []
    for call_id in map_calls_to_tool_names(exchange):
        number = number_call(exchange, call_id)
        answer, outcome = stored.get(number), stored.get(number + _FIRST_OUTCOME)
        if call_id in excluded_ids:
            continue
        if answer is not None and not is_bare_approval(answer):
            results.append(read_result(answer))
        elif outcome is not None:
            results.append(ToolResult(call_id, **outcome))
        elif number in noted_numbers:
            results.append(ToolResult(call_id, INTERRUPTED_RESULT, "error"))
    return results
