"""Lists requests, and explains what a request recalled.

The sources are requests of this process in its `RequestLog`, and recalls, which are stored with each turn that searched
its memory. A recall has the numbers of its hits; their texts are read when they are shown, so that what was forgotten
since has none.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Sequence
from heapq import merge
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from gateway.core.conversation.exchange import is_tombstone
from gateway.core.dates import DAY_S
from gateway.errors import UnknownId
from gateway.run.admin.audited_parts import render_audited_part
from gateway.run.admin.hits import load_hit_records
from gateway.run.admin.list_page import make_cursor_error
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.memory_names import name_of
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.request_explanations import (
    explain_logged,
    make_window_record,
    render_sentence,
    summarize_logged,
)
from gateway.run.admin.request_records import (
    ExplainedRequest,
    LeftOutRecord,
    RequestRecord,
    UsageRecord,
)
from gateway.run.request_log import LoggedRequest, RequestLog
from storage.errors import StoreError
from storage.listing import LAST_NUMBER
from storage.recall_record import RecallRecord, pack_request_id, unpack
from storage.records import Agent, State
from storage.sql.recalls import StoredRecall
from storage.sql.store import Store

# Lines of an answer to the command line.
_PAGE_LINES = 200
_NUMBER = re.compile(rf"[0-9]{{1,18}}|{LAST_NUMBER}", re.ASCII)


class RequestPage(Struct, frozen=True):
    """A page of requests, the newest first."""

    items: tuple[RequestRecord, ...]
    # `after` of the next page.
    next: str | None
    # The requests that are being answered now.
    in_flight: tuple[RequestRecord, ...] = ()
    # The id of the process that serves; None: no process serves.
    process: int | None = None


class ForgottenRequest(Struct, frozen=True):
    """A request of the log. A part of its turn was forgotten."""

    # The uid of its memory.
    memory: str
    # The name of its memory.
    name: str
    # When the request began.
    at: float
    # The parts of the turn as the audit names them ("message 4"). At least one of them was forgotten.
    parts: frozenset[str]


class _ListedRequest(NamedTuple):
    """A request of a list, from the log or from the store."""

    record: RequestRecord
    # The number of the request in the log; None: the request is from the store.
    number: int | None = None
    # The row of its exchange; None: the request is from the log.
    exchange_row: int | None = None


class _PageEnd(NamedTuple):
    """Where a page ends in the log and in the store. The requests of the next page have lower numbers."""

    number: int = LAST_NUMBER
    exchange_row: int = LAST_NUMBER

    def after(self, page: Iterable[_ListedRequest]) -> _PageEnd:
        """Returns the end of a page that begins at this end."""
        return _PageEnd(
            min((each.number for each in page if each.number is not None), default=self.number),
            min(
                (each.exchange_row for each in page if each.exchange_row is not None),
                default=self.exchange_row,
            ),
        )


class RequestOperations(Struct, frozen=True):
    """Lists and explains requests."""

    store: Store
    # Older recalls are not shown.
    retention: RecallRetention
    # None: no process serves.
    log: RequestLog | None = None

    async def why(self, raw: RawArguments) -> dict[str, Any]:
        """Explains a request for the command line. Returns an `ExplainedRequest`."""
        explained: dict[str, Any] = msgspec.to_builtins(await self.explain(Arguments(raw).text("request")))
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
        if log is None or logged is None or await self._find_forgotten(log, [logged]):
            raise self._unknown_request()
        return await self._explain_logged(logged)

    def _unknown_request(self) -> UnknownId:
        text = f"There is no such request. Sources are kept for {count_noun(self.retention.days, 'days')}."
        return UnknownId(text, param="id")

    async def _explain_logged(self, logged: LoggedRequest) -> ExplainedRequest:
        """Explains a request without a stored recall.

        Raises: UnknownId: its reply was forgotten, or the record of its recall is gone.
        """
        agent = None if logged.memory_uid is None else await self.store.agents.find_by_uid(logged.memory_uid)
        exchange = first_recall = None
        if agent is not None and logged.exchange_row:
            exchange = await self.store.turns.find_exchange(agent, logged.exchange_row)
            if exchange is None or exchange.state is State.FORGOTTEN:
                raise UnknownId(
                    "There is nothing to show: the question and the reply were forgotten.", param="id"
                )
        if logged.has_recall_record:
            if logged.started_at < self.retention.since:
                raise self._unknown_request()
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
        return explain_logged(logged, conversation, _pause_of(logged, agent), exchange, first_recall)

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
        return ForgottenRequest(agent.uid, name_of(logged.scope), logged.started_at, frozenset(parts))

    def find_logged(self, memory: str | None, ids: Collection[str]) -> list[LoggedRequest]:
        """Returns the requests of the log with these ids that read a memory. memory: its uid; None: any memory."""
        return [] if self.log is None else [each for each in self.log.ended(memory=memory) if each.id in ids]

    def find_resent(self, requests: Iterable[RequestRecord]) -> dict[str, RequestRecord]:
        """Returns, for requests that got the stored reply of an earlier request in the log, the first such request."""
        ended = self._ended_with_turn()
        first_by_turn = {(each.memory_uid, each.exchange_row): each for each in ended}
        ids = {each.id for each in requests}
        firsts = [
            (each, first_by_turn[each.memory_uid, each.exchange_row]) for each in ended if each.id in ids
        ]
        return {each.id: _record_of_logged(first) for each, first in firsts if first is not each}

    def find_unsearched(self, requests: Iterable[RequestRecord]) -> set[str]:
        """Returns the ids of requests with memory on that did not search it, since they asked nothing new."""
        ids = {each.id for each in requests if each.mode in ("on", "strict") and not each.recalled}
        return {each.id for each in self._ended_with_turn() if each.id in ids and not each.has_recall_record}

    def list_later(self, request: str, memory: str | None) -> Sequence[RequestRecord]:
        """Returns the requests of the log that sent a request again later, the newest first. memory: its uid."""
        ended = [each for each in self._ended_with_turn() if each.memory_uid == memory]
        exchange_row = next((each.exchange_row for each in ended if each.id == request), None)
        of_same_turn = [each for each in ended if each.exchange_row == exchange_row]
        later = itertools.takewhile(lambda each: each.id != request, of_same_turn)
        return [] if exchange_row is None else [_record_of_logged(each) for each in later]

    def _ended_with_turn(self) -> Sequence[LoggedRequest]:
        """Returns the requests of the log with a known turn, the newest first."""
        return () if self.log is None else [each for each in self.log.ended() if each.exchange_row]

    async def list(
        self,
        *,
        memory: str | None = None,
        project: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> RequestPage:
        """Returns a page of requests: of the log, and for one memory also older requests from the store.

        memory: the uid of the memory that the requests have read; None: any memory.
        after: `next` of the previous page; None: the first page.

        Raises: UnknownId: there is no such memory; BadRequest: `after` cannot be read.
        """
        start = _read_page_end(after)
        agent = None
        logged: Sequence[LoggedRequest] = ()
        if memory is not None:
            agent = await get_agent(self.store, project, memory, param="memory")
            if self.log is not None:
                logged = self.log.ended(project=project, memory=memory)
        elif self.log is not None:
            logged = await self._list_logged(self.log, project)
        # Only the requests of the page become records, not all 2,000 of the log: this runs in the event loop.
        older = itertools.islice((each for each in logged if each.number < start.number), limit + 1)
        listed = [_ListedRequest(_record_of_logged(each), number=each.number) for each in older]
        if agent is not None:
            ids_in_log = {pack_request_id(each.id) for each in logged if each.has_recall_record}
            stored = await self._list_stored(agent.id, start.exchange_row, limit + 1, without=ids_in_log)
            # Merged and not sorted: the next page continues each list after a number, so the order of each has to stay.
            listed = [*merge(listed, stored, key=lambda each: each.record.at, reverse=True)]
        page = listed[:limit]
        end = start.after(page)
        in_flight: Sequence[LoggedRequest] = ()
        if self.log is not None and after is None:
            in_flight = self.log.in_flight(project=project, memory=memory)
        return RequestPage(
            items=tuple(each.record for each in page),
            next=f"{end.number}.{end.exchange_row}" if len(listed) > limit else None,
            in_flight=tuple(map(_record_of_logged, in_flight)),
            process=None if self.log is None else os.getpid(),
        )

    async def show_all(self, raw: RawArguments) -> dict[str, Any]:
        """Lists requests for the command line: {"lines", "next"}. from: the answer's `next`."""
        arguments = Arguments(raw)
        page = await self.list(
            memory=arguments.optional_text("memory"),
            project=arguments.optional_text("project"),
            after=arguments.optional_text("from"),
            limit=_PAGE_LINES,
        )
        return {"lines": msgspec.to_builtins((*page.in_flight, *page.items)), "next": page.next}

    async def _find_conversation(self, logged: LoggedRequest, agent: Agent | None) -> str | None:
        """Returns the uid of a request's conversation; None: it has no message that can be read."""
        if agent is None or logged.conversation_uid is None:
            return None
        conversation = await self.store.memory_pages.find_conversation(agent.id, logged.conversation_uid)
        return conversation.uid if conversation is not None and conversation.messages else None

    async def _list_logged(self, log: RequestLog, project: str | None) -> Sequence[LoggedRequest]:
        """Returns the requests of the log that have ended. Drops requests from the log if their memories are gone.

        While the store is down, requests of memories that may be gone are left out.
        """
        try:
            log.drop_memories(await self._find_forgotten(log, log.ended()))
        except StoreError:
            return [
                each
                for each in log.ended(project=project)
                if each.memory_uid is None or not log.is_before_forgetting(each)
            ]
        return log.ended(project=project)

    async def _find_forgotten(self, log: RequestLog, logged: Iterable[LoggedRequest]) -> set[str]:
        """Returns the uids of the requests' memories that are gone."""
        uids = {
            each.memory_uid
            for each in logged
            if each.memory_uid is not None and log.is_before_forgetting(each)
        }
        return uids - (await self.store.overview.load_scopes(uids)).keys() if uids else uids

    async def _list_stored(
        self, agent_row: int, before: int, limit: int, *, without: Collection[bytes]
    ) -> Sequence[_ListedRequest]:
        """Returns a memory's requests with a stored recall, the newest first. without: packed ids to leave out."""
        listed: list[_ListedRequest] = []
        while len(listed) < limit:
            page = await self.store.recalls.list(agent_row, self.retention.since, before=before, limit=limit)
            listed += [
                _ListedRequest(_record_of_recall(each), exchange_row=each.exchange_row)
                for each in page
                if each.packed_request not in without
            ]
            if len(page) < limit:
                break
            before = page[-1].exchange_row
        return listed[:limit]

    async def _explain_stored(
        self, id: str, stored: StoredRecall, logged: LoggedRequest | None, note: str | None
    ) -> ExplainedRequest:
        """Explains a request with a stored recall.

        id: the id of the request (a long id is stored as a hash).
        logged: the request with this id in the log.
        note: the note of its turn.
        """
        record = unpack(stored.data)
        summary = {**_summarize_recall(stored, record), "id": id}
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
            chosen=tuple(hit for hit in hits if not isinstance(hit, LeftOutRecord)),
            left_out=tuple(hit for hit in hits if isinstance(hit, LeftOutRecord)),
            note=note,
            window=make_window_record(record),
            first_ms=record.first_ms,
            usage=None if record.usage is None else UsageRecord(*record.usage),
            kept_until=stored.at + self.retention.days * DAY_S,
        )


def _pause_of(logged: LoggedRequest, agent: Agent | None) -> float | None:
    """Returns since when the memory of a request is paused; None: the request had memory off for another reason."""
    if logged.mode != "off" or agent is None or agent.paused_at is None:
        return None
    return agent.paused_at if agent.paused_at <= logged.started_at else None


def _read_page_end(after: str | None) -> _PageEnd:
    """Reads `next` of the previous page; None: the first page is asked for. Raises: BadRequest."""
    if after is None:
        return _PageEnd()
    number, _, exchange_row = after.partition(".")
    if not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(exchange_row)):
        raise make_cursor_error()
    return _PageEnd(int(number), int(exchange_row))


def _summarize_recall(stored: StoredRecall, record: RecallRecord) -> dict[str, Any]:
    """Returns the fields of `RequestSummary` of a request with a stored recall."""
    upstream, _, model = stored.model.partition("/")
    return {
        "id": stored.request or "",
        "at": stored.at,
        "memory": stored.memory_uid,
        "name": name_of(stored.scope),
        "mode": record.mode,
        "model": model,
        "upstream": upstream,
        "status": record.status,
        "streamed": record.is_streamed,
        "ms": record.ms,
        "added_ms": record.added_ms,
        "recalled_tokens": record.recalled_tokens,
    }


def _record_of_recall(stored: StoredRecall) -> RequestRecord:
    record = unpack(stored.data, with_entries=False)
    return RequestRecord(**_summarize_recall(stored, record), recalled=record.found - sum(record.left_out))


def _record_of_logged(logged: LoggedRequest) -> RequestRecord:
    return RequestRecord(**summarize_logged(logged), recalled=logged.recalled)
