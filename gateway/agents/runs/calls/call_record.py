"""The record of calls that leave the gateway: each is noted before it is made, so that none is made twice.

It lies with the run that made the step, with the results that wait for others of the step. A call that was noted and
has no result was perhaps made and perhaps not: the model gets a note of that, and decides.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

import orjson
from msgspec import Struct

from gateway.agents.runs.calls.pauses import is_permission, result_of
from gateway.core.conversation.listed import called_tools
from gateway.core.turn.calls import INTERRUPTED
from gateway.core.turn.commands import RunTool
from gateway.core.turn.guide import ToolResult
from gateway.run.tools.toolbox import ToolAnswer, failed
from storage.errors import StoreError
from storage.records import Exchange, RunStep
from storage.sql.store import Store

_PLACES = 1000  # the numbers of a step's texts
_RESULTS = 500  # from here on: of calls that have been made
_log = logging.getLogger("mnemogate")


def call_number(step: Exchange, call_id: str) -> int:
    """Returns the number of a call of a step among the texts of its run."""
    return step.seq * _PLACES + min([*called_tools(step)].index(call_id), _RESULTS - 1)


def is_of_step(step: Exchange, number: int) -> bool:
    """Returns whether a text of a run is an answer to a call of this step. Older runs counted their answers from 0."""
    low = step.seq * _PLACES
    return low <= number < low + _RESULTS or number < _RESULTS


class CallRecord(Struct, frozen=True):
    """The record of the calls of one step."""

    store: Store
    # agent, run: rows; the run is the one that made the step.
    agent: int
    run: int
    step: Exchange

    async def once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Returns the answer to a call, which is made unless it was noted before. Raises: StoreError: not noted."""
        runs, number = self.store.runs, call_number(self.step, call.call_id)
        if not await runs.add_text(self.agent, self.run, "call", number, orjson.dumps({"id": call.call_id})):
            kept = await runs.texts(self.agent, self.run, "result", after=number + _RESULTS - 1, limit=1)
            if kept and kept[0].seq == number + _RESULTS:
                return ToolAnswer(**orjson.loads(kept[0].data))
            return failed(INTERRUPTED)
        answer = await perform()
        try:
            await runs.add_text(self.agent, self.run, "result", number + _RESULTS, answer.dump())
        except StoreError as error:
            _log.warning(
                "The result of a tool call could not be stored, and is lost if the gateway ends now: %s",
                error.message,
            )
        return answer


async def still_waiting(store: Store, step: RunStep, e: Exchange) -> dict[str, str]:
    """Returns the calls of a step that wait for an answer: id -> "client" or "approval".

    e: the step's exchange. Raises: StoreError.
    """
    texts = await store.runs.texts(step.agent, step.run, "result")
    answered = {orjson.loads(text.data).get("tool_call_id") for text in texts if is_of_step(e, text.seq)}
    return {id: kind for id, kind in step.waiting.items() if id not in answered}


async def results_left(store: Store, step: RunStep, e: Exchange, but: Collection[str]) -> list[ToolResult]:
    """Returns what is known of the calls of a step after which its run stopped.

    e: its exchange.
    but: these calls.

    A call of which nothing is known was not made. Raises: StoreError.
    """
    texts, run, after = store.runs.texts, (step.agent, step.run), e.seq * _PLACES - 1
    kept = {text.seq: orjson.loads(text.data) for text in await texts(*run, "result", after=after)}
    noted = {text.seq for text in await texts(*run, "call", after=after)}
    found = []
    for id in called_tools(e):
        number = call_number(e, id)
        answer, outcome = kept.get(number), kept.get(number + _RESULTS)
        if id in but:
            continue
        if answer is not None and not is_permission(answer):
            found.append(result_of(answer))
        elif outcome is not None:
            found.append(ToolResult(id, **outcome))
        elif number in noted:
            found.append(ToolResult(id, INTERRUPTED, "error"))
    return found
