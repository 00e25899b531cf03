"""Explains the recall of a request.

The sources are requests of this process in its `RequestLog`, and recalls, which are stored with each turn that searched
its memory. A recall has the numbers of its hits; their texts are read when they are shown, so that what was forgotten
since has none.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway.core.conversation.exchange import is_tombstone
from gateway.core.dates import DAY_S
from gateway.errors import UnknownId
from gateway.run.admin.audited_parts import render_audited_part
from gateway.run.admin.memory.exchange_messages import get_last_seq
from gateway.run.admin.memory_names import get_memory_name
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.records.request_records import ExplainedRequest, UsageRecord
from gateway.run.admin.requests.hits import load_hit_records
from gateway.run.admin.requests.logged_requests import LoggedRequests, find_forgotten_memories
from gateway.run.admin.requests.request_explanations import (
    explain_logged,
    make_window_record,
    render_sentence,
)
from gateway.run.admin.requests.request_lists import RequestLists
from gateway.run.admin.requests.request_summaries import summarize_recall
from gateway.run.request_log import LoggedRequest, RequestLog
from storage.recall_record import unpack
from storage.records import Agent
from storage.sql.recalls import StoredRecall
from storage.sql.store import Store


class ForgottenRequest(Struct, frozen=True):
    """A request of the log. A part of its turn was forgotten."""

    # The uid of its memory.
    memory: str
    # The name of its memory.
    name: str
    # The time at which the request began.
    at: float
    # The parts of the turn as the audit names them ("message 4"). At least one of them was forgotten.
    parts: frozenset[str]
    # The number of the last message of its exchange; UNSET: the exchange is a question and its reply, or is gone.
    last_seq: int | UnsetType = UNSET


class RequestOperations(Struct, frozen=True):
    """Explains requests. Its fields list them."""

    store: Store
    # The time for which recalls are shown.
    retention: RecallRetention
    # The log of this process; None: the process serves no requests.
    log: RequestLog | None = None

    @property
    def lists(self) -> RequestLists:
        """The lists of requests."""
        return RequestLists(self.store, self.retention, self.log)

    @property
    def logged(self) -> LoggedRequests:
        """The requests of the log."""
        return LoggedRequests(self.log)

    async def why(self, raw: RawArguments) -> dict[str, Any]:
        """Explains a request for the command line. Returns an `ExplainedRequest`."""
        explained: dict[str, Any] = msgspec.to_builtins(
            await self.explain(Arguments(raw).read_text("request"))
        )
        return explained

    async def explain(self, id: str, project: str | None = None, user: str | None = None) -> ExplainedRequest:
        """Explains the newest request with this id.

        project: the project in which it has to be; None: any project.
        user: it has to have read the memory of this person; None: any person's.

        Raises: UnknownId: there is no such request, or it was forgotten, or is too old.
        """
        log = self.log
        logged = None if log is None else log.find(id, project, user)
        for stored in await self.store.recalls.find(id, self.retention.since, project):
            if not stored.scope.is_open_to(user):
                continue
            agent = await self.store.agents.find_by_id(stored.agent_row)
            exchange = (
                None if agent is None else await self.store.turns.find_exchange(agent, stored.exchange_row)
            )
            if exchange is not None:
                return await self._explain_stored(id, stored, logged, exchange.last_note)
        if log is None or logged is None or await find_forgotten_memories(self.store, log, [logged]):
            raise self._make_unknown_request_error()
        return await self._explain_logged(logged)

    def _make_unknown_request_error(self) -> UnknownId:
        text = f"There is no such request. Sources are kept for {count_noun(self.retention.days, 'days')}."
        return UnknownId(text, param="id")

    async def _explain_logged(self, logged: LoggedRequest) -> ExplainedRequest:
        """Explains a request without a stored recall.

        Raises: UnknownId: its reply was forgotten, or the record of its recall is gone.
        """
        agent = None if logged.memory_uid is None else await self.store.agents.find_by_uid(logged.memory_uid)
        exchange = None
        first_recall = None
        if agent is not None and logged.exchange_row:
            exchange = await self.store.turns.find_exchange(agent, logged.exchange_row)
            if exchange is None or exchange.is_forgotten:
                raise UnknownId(
                    "There is nothing to show: the question and the reply were forgotten.", param="id"
                )
        if logged.has_recall_record:
            if logged.started_at < self.retention.since:
                raise self._make_unknown_request_error()
            if exchange is None:
                cause = "forgotten, made again or not stored"
            else:
                cause = "forgotten" if exchange.redactions else "made again"
            raise UnknownId(f"What was recalled is not there any more: the reply was {cause}.", param="id")
        if exchange is not None and is_tombstone(exchange):
            exchange = None
        if agent is not None and exchange is not None and exchange.notes:
            first_recall = await self.store.recalls.find_first_of_question(
                agent.id, exchange.id, self.retention.since
            )
        conversation = await self._find_conversation(logged, agent)
        return explain_logged(logged, conversation, _find_pause(logged, agent), exchange, first_recall)

    async def find_forgotten(self, id: str, project: str | None) -> ForgottenRequest | None:
        """Returns the newest request of the log with this id, which cannot be explained.

        Returns None if the log has no such request, or if its memory is gone.

        project: the project in which it has to be; None: any project.
        """
        logged = None if self.log is None else self.log.find(id, project)
        if logged is None or logged.memory_uid is None or logged.scope is None:
            return None
        agent = await self.store.agents.find_by_uid(logged.memory_uid)
        if agent is None:
            return None
        exchange = (
            await self.store.turns.find_exchange(agent, logged.exchange_row) if logged.exchange_row else None
        )
        numbers = [] if exchange is None else range(exchange.seq, exchange.reply_seq + 1)
        parts = {render_audited_part(kind, number) for kind in ("message", "exchange") for number in numbers}
        if logged.conversation_uid is not None:
            parts.add(render_audited_part("conversation", logged.conversation_uid))
        return ForgottenRequest(
            agent.uid,
            get_memory_name(logged.scope),
            logged.started_at,
            frozenset(parts),
            UNSET if exchange is None else get_last_seq(exchange),
        )

    async def _find_conversation(self, logged: LoggedRequest, agent: Agent | None) -> str | None:
        """Returns the uid of a request's conversation, or None if no message of it can be read."""
        if agent is None or logged.conversation_uid is None:
            return None
        conversation = await self.store.memory_pages.find_conversation(agent.id, logged.conversation_uid)
        return conversation.uid if conversation is not None and conversation.messages else None

    async def _explain_stored(
        self, id: str, stored: StoredRecall, logged: LoggedRequest | None, note: str | None
    ) -> ExplainedRequest:
        """Explains a request with a stored recall.

        id: the id of the request (a long id is stored as a hash).
        logged: the request with this id in the log.
        note: the note of its turn.
        """
        record = unpack(stored.data)
        summary = {**summarize_recall(stored, record), "id": id}
        tries: tuple[str, ...] = (f"{summary['upstream']}:{record.status}",) if summary["upstream"] else ()
        if logged is not None and logged.memory_uid == stored.memory_uid:
            summary["upstream"] = logged.upstream or summary["upstream"]
            tries = logged.tries
        hits = await load_hit_records(self.store, stored.agent_row, stored.memory_uid, record.entries)
        return ExplainedRequest(
            **summary,
            conversation=stored.conversation_uid,
            exchange=stored.seq,
            tries=tries,
            why=record.outcome,
            sentence=render_sentence(record),
            found=record.found,
            selection=record.is_selection,
            chosen=hits.chosen,
            left_out=hits.left_out,
            note=note,
            window=make_window_record(record),
            first_ms=record.first_ms,
            usage=None if record.usage is None else UsageRecord(*record.usage),
            kept_until=stored.at + self.retention.days * DAY_S,
        )


def _find_pause(logged: LoggedRequest, agent: Agent | None) -> float | None:
    """Returns since when the memory of a request is paused; None: the request had memory off for another reason."""
    if logged.mode != "off" or agent is None or agent.paused_at is None:
        return None
    return agent.paused_at if agent.paused_at <= logged.started_at else None
