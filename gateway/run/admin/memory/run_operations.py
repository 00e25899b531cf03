"""Runs of agents as the page shows them: their steps, with the calls of tools and the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import asdict

from gateway.core import ids
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.wire_message import read_named_call, read_result_id, read_text
from gateway.core.turn.stop_reason import STOP_MESSAGES
from gateway.errors import UnknownId
from gateway.run.admin.list_page import PAGE_LIMIT, ListPage, make_next_cursor, parse_cursor
from gateway.run.admin.memory.exchange_messages import TOOL_CHARS, shorten
from gateway.run.admin.memory_by_uid import get_memory
from storage.errors import NotFound
from storage.listing import LAST_NUMBER, Page, RunEntry, RunFilter, StepEntry
from storage.operator_records import FoundMemory
from storage.records import REPLY, Agent, Exchange
from storage.run_records import Run, RunState, WaitKind
from storage.sql.store import Store

# Runs on the page of an agent's memory.
_NEWEST_RUNS = 10
# No index has the runs by their state, so a page of the failed ones looks through this many runs at most. 50,000 took
# 20 ms over SQLite and 75 ms over PostgreSQL on a busy machine.
_WALKED_RUNS = 20_000

_CallState = Literal["answered", "waiting", "open"]


class RunSummary(Struct, frozen=True):
    """A run of an agent."""

    # The public id.
    id: str
    # The public id of its agent.
    agent: str
    # The state of the run.
    state: RunState
    # The reason why the run ended; None: the run has not ended.
    stop: str | None
    # The time at which the run was accepted.
    created: float
    # The time at which it began; None: not yet.
    begun: float | None
    # The time at which it ended; None: not yet.
    ended: float | None
    # The number of its steps.
    steps: int
    # The tokens of all steps, of prompts and replies.
    tokens: int


class ListedRun(RunSummary, frozen=True, kw_only=True):
    """A run in the list of the runs of all agents."""

    # The name of its agent; None: the agent has none, or was forgotten.
    agent_name: str | None


class StepCall(Struct, frozen=True):
    """A call of a tool in a step."""

    tool: str
    arguments: str
    # The answer of the tool; None: the tool has not answered yet, or the answer is forgotten.
    result: str | None
    state: _CallState
    # The event for which it waits; None: it does not wait.
    waiting: WaitKind | None


class StepRecord(Struct, frozen=True):
    """A step of a run: a call of the model."""

    # From 1 on, in the order of the run.
    number: int
    # The time of its beginning, in seconds since the epoch.
    begun: float
    # The time of its end, in seconds since the epoch; None: it has not ended.
    ended: float | None
    model: str
    # Tokens of the prompt.
    input: int
    # Tokens of the reply.
    output: int
    # The reason why the run ended with this step; None: the run went on.
    stop: str | None
    # The class of the error.
    error: str | None
    calls: tuple[StepCall, ...]


class RunPage(Struct, frozen=True):
    """A run with a page of its steps, in order."""

    run: RunSummary
    steps: tuple[StepRecord, ...]
    # `after` of the next page; None: this is the last one.
    next: str | None


class FoundRun(NamedTuple):
    """A run with its memory, as its screen shows it."""

    # The memory of its agent.
    memory: FoundMemory
    page: RunPage
    # The reason why the run failed, in words; None: the run did not fail, or the reason is not stored.
    failure: str | None


class RunOperations(Struct, frozen=True):
    """Reads runs."""

    store: Store
    # The runs that a page of the failed ones looks through.
    walked_runs: int = _WALKED_RUNS

    async def show(
        self, project: str | None, id: str, *, after: str | None = None, limit: int = 50
    ) -> FoundRun:
        """Returns a run with a page of its steps.

        project: the only project that the caller sees; None: all projects.
        id: the public id of the run.

        Raises: UnknownId: there is no such run; BadRequest.
        """
        last_number = parse_cursor(after, 0)
        runs = self.store.runs
        try:
            entry = await runs.get(project, ids.parse_uid("run", id) or id)
        except NotFound as error:
            raise UnknownId("There is no such run.") from error
        agent = await self.store.agents.find_by_id(entry.run.agent_row)
        if agent is None:
            raise UnknownId("There is no such run.")
        steps = [step for step in await runs.load_steps(entry.run) if step.step.number > last_number]
        page_steps = steps[:limit]
        has_more = len(steps) > limit
        # The results of a step's calls begin the exchange after it.
        next_exchanges = [step.step.exchange_row for step in steps[1 : limit + 1]]
        last_exchange = None if has_more else await runs.find_unanswered_exchange(entry.run)
        records = [
            await self._make_step_record(agent, step, next_exchange)
            for step, next_exchange in zip(
                page_steps, [*next_exchanges, last_exchange][: len(page_steps)], strict=True
            )
        ]
        next_after = str(page_steps[-1].step.number) if has_more else None
        page = RunPage(_make_run_summary(entry), tuple(records), next_after)
        memory = await get_memory(self.store, project, entry.agent_uid)
        return FoundRun(memory, page, await self._find_failure(entry.run))

    async def list_page(
        self,
        project: str | None,
        *,
        is_failed: bool = False,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
    ) -> ListPage[ListedRun]:
        """Returns a page of the runs of all agents, the newest first.

        project: the only project that the caller sees; None: all projects.
        is_failed: True if only runs that failed are listed.

        A page of a project, or of the runs that failed, looks through a bounded number of runs, so it may list fewer
        than `limit` though more follow.

        Raises: BadRequest: `after` cannot be read.
        """
        runs = self.store.runs
        before = parse_cursor(after, LAST_NUMBER)
        last_row = None
        if is_failed or project is not None:  # else each run is listed
            last_row = await runs.find_row_before(before, self.walked_runs)
        states = (RunState.FAILED,) if is_failed else tuple(RunState)
        page = Page(after=before, before=None if last_row is None else last_row - 1, limit=limit + 1)
        entries = await runs.list_runs(project, RunFilter(states=states), page)
        next_after = make_next_cursor(entries, limit, lambda entry: str(entry.run.id))
        if next_after is None and last_row is not None:
            next_after = str(last_row)
        scopes = await self.store.overview.load_scopes({entry.agent_uid for entry in entries[:limit]})
        names = {uid: scope.agent_name for uid, scope in scopes.items()}
        return ListPage(
            tuple(
                ListedRun(**asdict(_make_run_summary(entry)), agent_name=names.get(entry.agent_uid))
                for entry in entries[:limit]
            ),
            next_after,
        )

    async def list_newest(self, memory: FoundMemory, limit: int = _NEWEST_RUNS) -> tuple[RunSummary, ...]:
        """Returns the newest runs of an agent. memory: the agent's."""
        runs = await self.store.runs.list_runs(
            memory.scope.project, RunFilter(agent_row=memory.id), Page(limit=limit)
        )
        return tuple(map(_make_run_summary, runs))

    async def _find_failure(self, run: Run) -> str | None:
        """Returns the reason why a run failed, in words, or None if it did not fail or the reason is not stored."""
        if run.state is not RunState.FAILED:
            return None
        messages = await self.store.run_texts.load_error_messages([run.id])
        return messages.get(run.id) or STOP_MESSAGES.get(run.stop or "")

    async def _make_step_record(
        self, agent: Agent, entry: StepEntry, next_exchange: int | None
    ) -> StepRecord:
        """Returns a step. next_exchange: the row of the exchange with the results of its calls, if any."""
        step = entry.step
        turns = self.store.turns
        exchange = await turns.find_exchange(agent, step.exchange_row)
        answer = None if next_exchange is None else await turns.find_exchange(agent, next_exchange)
        calls = () if exchange is None else _make_step_calls(exchange, _read_results(answer), step.waiting)
        return StepRecord(
            number=step.number,
            begun=step.begun,
            ended=step.ended,
            model=entry.model,
            input=step.counts.prompt,
            output=step.counts.completion,
            stop=step.stop,
            error=step.error,
            calls=calls,
        )


def _make_run_summary(entry: RunEntry) -> RunSummary:
    run = entry.run
    return RunSummary(
        id=ids.make_id("run", run.uid),
        agent=ids.make_id("agent", entry.agent_uid),
        state=run.state,
        stop=run.stop,
        created=run.created,
        begun=run.begun,
        ended=run.ended,
        steps=run.steps,
        tokens=run.counts.total,
    )


def _read_results(exchange: Exchange | None) -> dict[str, str]:
    """Returns what tools answered at the beginning of an exchange, by the ids of their calls."""
    if exchange is None or is_tombstone(exchange):
        return {}
    messages = orjson.loads(exchange.input or b"[]")
    return {
        read_result_id(message): read_text(message)
        for index, message in enumerate(messages)
        if message.get("role") == "tool" and index not in exchange.redactions
    }


def _make_step_calls(
    exchange: Exchange, results: Mapping[str, str], waiting: Mapping[str, WaitKind]
) -> tuple[StepCall, ...]:
    """Returns the calls of a step, with shortened texts.

    results: the results by the ids of their calls.
    waiting: the kinds of wait by the ids of the calls that wait.
    """
    if is_tombstone(exchange) or exchange.shown_reply is None or REPLY in exchange.redactions:
        return ()
    calls = []
    reply: dict[str, Any] = orjson.loads(exchange.shown_reply)
    for call in reply.get("tool_calls") or ():
        name, arguments = read_named_call(call)
        call_id = str(call.get("id"))
        result = results.get(call_id)
        state: _CallState = "open" if result is None else "answered"
        if call_id in waiting:
            state = "waiting"
        calls.append(
            StepCall(
                tool=name,
                arguments=shorten(str(arguments or ""), TOOL_CHARS),
                result=None if result is None else shorten(result, TOOL_CHARS),
                state=state,
                waiting=waiting.get(call_id),
            )
        )
    return tuple(calls)
