"""Lists of the requests of the log, and for one memory also of older requests with stored recalls."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import merge, nlargest
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from gateway.core import ids
from gateway.run.admin.list_page import PAGE_LINES, make_cursor_error
from gateway.run.admin.memory_by_uid import get_agent, load_labels
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.records.request_records import RequestRecord, RequestSummary
from gateway.run.admin.requests.logged_requests import find_forgotten_memories
from gateway.run.admin.requests.request_summaries import make_logged_record, make_recall_record
from gateway.run.request_log import LoggedRequest, RequestLog
from storage.errors import StoreError
from storage.listing import LAST_NUMBER
from storage.recall_record import pack_request_id
from storage.sql.store import Store

# failed: with a status of 500 or more. none: without a named user. unavailable: memory could not be used.
_RequestFilter = Literal["failed", "none", "unavailable"]
# slowest: those that took longest, the longest first, on one page.
RequestSelection = Literal[_RequestFilter, "slowest"]

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


class _ListedRequest(NamedTuple):
    """A request of a list, from the log or from the store."""

    record: RequestRecord
    # The number of the request in the log; None: the request is from the store.
    number: int | None = None
    # The row of the exchange with its stored recall; None: there is none, or it was not read.
    exchange_row: int | None = None


class _PageEnd(NamedTuple):
    """The end of a page in the log and in the store. The requests of the next page have lower numbers."""

    # The lowest number of a request from the log.
    number: int = LAST_NUMBER
    # The lowest row of a request with a stored recall.
    exchange_row: int = LAST_NUMBER

    def move_past(self, page: Iterable[_ListedRequest], rest: Iterable[_ListedRequest]) -> _PageEnd:
        """Returns the end of a page that begins at this end. rest: requests that follow the page.

        A request of the page may leave the log before the next page is read. Its row is passed as well, so that the
        next page does not list it from the store; but no row of the rest is passed.
        """
        numbers = [each.number for each in page if each.number is not None]
        rows = [each.exchange_row for each in page if each.exchange_row is not None]
        rest_rows = [each.exchange_row for each in rest if each.exchange_row is not None]
        return _PageEnd(
            min(numbers, default=self.number),
            max(min(rows, default=self.exchange_row), max(rest_rows, default=-1) + 1),
        )


class RequestLists(Struct, frozen=True):
    """Lists requests, the newest first."""

    store: Store
    # The time for which recalls are stored; older recalls are not listed.
    retention: RecallRetention
    # The requests of this process; None: no process serves.
    log: RequestLog | None

    async def load_agent_names(self, requests: Iterable[RequestSummary]) -> dict[str, str]:
        """Returns the names of the agents among the memories of some requests, by the memories' uids.

        Without the store there are no names: the lists of requests are shown while the database is down.
        """
        uids = {each.memory for each in requests if each.memory and ids.parse_uid("agent", each.name or "")}
        try:
            return await load_labels(self.store, uids)
        except StoreError:
            return {}

    async def read_page(
        self,
        *,
        memory: str | None = None,
        project: str | None = None,
        only: RequestSelection | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> RequestPage:
        """Returns a page of requests: of the log, and for one memory also older requests from the store.

        memory: the uid of the memory that the requests have read; None: any memory.
        only: the requests that are listed, all of them from the log; None: all requests.
        after: `next` of the previous page; None: the first page.

        Raises: UnknownId: there is no such memory; BadRequest: `after` cannot be read.
        """
        start = _read_page_end(after)
        agent = None
        logged: Sequence[LoggedRequest] = ()
        if memory is not None:
            agent = await get_agent(self.store, project, memory, param="memory")
            if self.log is not None:
                logged = self.log.list_ended(project=project, memory=memory)
        elif self.log is not None:
            logged = await self._list_logged(self.log, project)
        if only == "slowest":
            logged = nlargest(limit, logged, key=lambda each: each.ms)
        elif only is not None:
            logged = [each for each in logged if _is_selected(each, only)]
        # Only the requests of the page become records: all 2,000 of the log would take the event loop 10 ms.
        older_logged = itertools.islice((each for each in logged if each.number < start.number), limit + 1)
        listed_requests = [
            _ListedRequest(make_logged_record(each), number=each.number) for each in older_logged
        ]
        if agent is not None and only is None:
            ids_in_log = {pack_request_id(each.id) for each in logged if each.has_recall_record}
            stored, rows_in_log = await self._list_stored(
                agent.id, start.exchange_row, limit + 1, ids_in_log=ids_in_log
            )
            listed_requests = [
                each._replace(exchange_row=rows_in_log.get(pack_request_id(each.record.id)))
                for each in listed_requests
            ]
            # Merged and not sorted: the next page continues each list after a number, so the order of each has to stay.
            listed_requests = [*merge(listed_requests, stored, key=lambda each: each.record.at, reverse=True)]
        page = listed_requests[:limit]
        end = start.move_past(page, listed_requests[limit:])
        in_flight: Sequence[LoggedRequest] = ()
        if self.log is not None and after is None and only is None:
            in_flight = self.log.list_in_flight(project=project, memory=memory)
        return RequestPage(
            items=tuple(each.record for each in page),
            next=f"{end.number}.{end.exchange_row}" if len(listed_requests) > limit else None,
            in_flight=tuple(map(make_logged_record, in_flight)),
            process=None if self.log is None else os.getpid(),
        )

    async def show_all(self, raw: RawArguments) -> dict[str, Any]:
        """Lists requests for the command line: {"lines", "next"}. The argument `from` is an earlier answer's `next`."""
        arguments = Arguments(raw)
        page = await self.read_page(
            memory=arguments.read_optional_text("memory"),
            project=arguments.read_optional_text("project"),
            after=arguments.read_optional_text("from"),
            limit=PAGE_LINES,
        )
        return {"lines": msgspec.to_builtins((*page.in_flight, *page.items)), "next": page.next}

    async def _list_logged(self, log: RequestLog, project: str | None) -> Sequence[LoggedRequest]:
        """Returns the requests of the log that have ended. Drops requests from the log if their memories are gone.

        While the store is down, requests of memories that may be gone are left out.
        """
        try:
            log.drop_memories(await find_forgotten_memories(self.store, log, log.list_ended()))
        except StoreError:
            return [
                each
                for each in log.list_ended(project=project)
                if each.memory_uid is None or not log.is_before_forgetting(each)
            ]
        return log.list_ended(project=project)

    async def _list_stored(
        self, agent_row: int, before: int, limit: int, *, ids_in_log: Collection[bytes]
    ) -> tuple[Sequence[_ListedRequest], Mapping[bytes, int]]:
        """Returns a memory's requests with a stored recall, the newest first, and the rows of those in the log.

        ids_in_log: the packed ids of requests that are left out. Their rows are returned by these ids, as far as they
            were read.
        """
        listed_requests: list[_ListedRequest] = []
        rows_in_log: dict[bytes, int] = {}
        while len(listed_requests) < limit:
            page = await self.store.recalls.list_page(
                agent_row, self.retention.since, before=before, limit=limit
            )
            listed_requests += [
                _ListedRequest(make_recall_record(each), exchange_row=each.exchange_row)
                for each in page
                if each.packed_request not in ids_in_log
            ]
            for each in page:
                if each.packed_request in ids_in_log:
                    # A client may use an id for several requests. Only the newest row is surely that of the log.
                    rows_in_log.setdefault(each.packed_request, each.exchange_row)
            if len(page) < limit:
                break
            before = page[-1].exchange_row
        return listed_requests[:limit], rows_in_log


def _is_selected(request: LoggedRequest, only: _RequestFilter) -> bool:
    """Returns whether an ended request is in a selection. The overview counts requests in the same way."""
    if only == "failed":
        return request.status is not None and request.status >= 500
    return request.mode == only


def _read_page_end(after: str | None) -> _PageEnd:
    """Returns the page end that `next` of a page names. after: None: the request is for the first page.

    Raises: BadRequest.
    """
    if after is None:
        return _PageEnd()
    number, _, exchange_row = after.partition(".")
    if not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(exchange_row)):
        raise make_cursor_error()
    return _PageEnd(int(number), int(exchange_row))
