"""Requests: those of this process, and why a reply was made as it was.

Why is noted with each turn that looked for memory, in numbers. The texts are read when they are asked for, so that what
was forgotten since has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.find_memory import find_memory
from gateway.run.admin.hits import hit_records
from gateway.run.admin.operation_arguments import Arguments, RawArguments, id_of
from gateway.run.admin.page_records import (
    ExplainedRequest,
    LeftOutRecord,
    PartTokens,
    RequestRecord,
    UsageRecord,
    Why,
    WindowPart,
    WindowRecord,
)
from gateway.run.request_log import MOST_ENDED, LoggedRequest, RequestLog
from storage.listing import LAST_NUMBER
from storage.recall_record import PARTS, REASONS, RecallRecord, unpack
from storage.records import API_PROFILE, Scope
from storage.sql.recalls import StoredRecall
from storage.sql.store import Store

_DAY_S = 86_400.0
# Lines of an answer to the command line.
_PAGE = 200
_NUMBER = re.compile(rf"[0-9]{{1,18}}|{LAST_NUMBER}", re.ASCII)
_STAYED_OUT = {
    "no_room": "for want of room",
    "weak": "too weak",
    "shown": "in sight already",
    "repeats": "said by another one",
    "muted": "muted",
    "superseded": "out of date",
}
_NOTHING = {
    "nothing_found": "Nothing was recalled: memory has nothing that answers this.",
    "all_shown": "Nothing was recalled: what memory has is in sight already.",
    "no_room": "Nothing was recalled: there was no room in the window.",
    "late": "Nothing was recalled: the search took too long.",
    "failed": "Nothing was recalled: memory could not be searched.",
    "off": "Nothing was recalled: memory is off for this request.",
    "nobody": "Nothing was recalled: nobody was named.",
}


class RequestPage(Struct, frozen=True):
    """A page of requests, the newest first."""

    items: tuple[RequestRecord, ...]
    # `after` of the next page.
    next: str | None
    # Those being answered.
    in_flight: tuple[RequestRecord, ...] = ()
    # The process that has answered them; None: no process serves.
    process: int | None = None


class RequestOperations(Struct, frozen=True):
    """Explains requests, and lists them."""

    store: Store
    # Seconds since the epoch.
    now: Callable[[], float]
    # How long it is shown why a reply was made as it was.
    keep_why_days: float
    # None: no process serves.
    log: RequestLog | None = None

    async def why(self, raw: RawArguments) -> dict[str, Any]:
        """Explains a request, by its id. Returns `ExplainedRequest`."""
        found: dict[str, Any] = msgspec.to_builtins(await self.explain(Arguments(raw).text("request")))
        return found

    async def explain(self, id: str, project: str | None = None) -> ExplainedRequest:
        """Returns why the newest request with this id was answered as it was.

        project: None: of any.

        Raises: UnknownId: there is no such request, or it was forgotten, or is too old.
        """
        logged = None if self.log is None else self.log.find(id, project)
        for stored in await self.store.recalls.find(id, self._since, project):
            agent = await self.store.agents.load(stored.agent)
            exchange = None if agent is None else await self.store.turns.exchange(agent, stored.exchange)
            if agent is None or exchange is None:
                continue
            notes = [note for _, note in sorted(exchange.notes.items()) if note]
            return await self._explained(id, stored, logged, notes[-1] if notes else None)
        if (
            logged is not None
            and self.log is not None
            and (suspects := self.log.possibly_forgotten([logged]))
        ):
            logged = logged if suspects <= (await self.store.overview.scopes(suspects)).keys() else None
        if logged is None or logged.has_recall_record:
            raise UnknownId(
                f"There is no such request. Sources are kept for {self.keep_why_days:g} days.", param="id"
            )
        return _of_log(logged)

    async def list(
        self,
        *,
        memory: str | None = None,
        project: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> RequestPage:
        """Returns a page of requests: of this process, and of one memory also older ones that are noted.

        memory: the uid of one.
        after: `next` of the page before.

        Raises: UnknownId: there is no such memory; BadRequest: `after` cannot be read.
        """
        before, noted_before = _page_end(after)
        agent = None
        if memory is not None:
            agent = await find_memory(self.store, project, memory, param="memory")
        if self.log is not None and agent is None:
            suspects = self.log.possibly_forgotten(self.log.newest(MOST_ENDED))
            if suspects:
                self.log.drop(suspects - (await self.store.overview.scopes(suspects)).keys())
        logged = [] if self.log is None else self.log.newest(MOST_ENDED, project=project, memory=memory)
        found = [(_listed(each), each.number, 0) for each in logged if each.number < before]
        if agent is not None:
            here = {each.id for each in logged if each.has_recall_record}
            stored = await self._noted(agent.id, noted_before, limit + 1, here)
            found += [(record, 0, exchange) for record, exchange in stored]
            found.sort(key=lambda each: each[0].at, reverse=True)
        shown, is_more = found[:limit], len(found) > limit
        before = min([number for _, number, _ in shown if number], default=before)
        noted_before = min([exchange for *_, exchange in shown if exchange], default=noted_before)
        flying = [] if self.log is None or after is not None else self.log.in_flight
        return RequestPage(
            tuple(record for record, *_ in shown),
            f"{before}.{noted_before}" if is_more else None,
            tuple(
                _listed(each)
                for each in flying
                if (project is None or each.project == project)
                and (memory is None or each.memory_uid == memory)
            ),
            None if self.log is None else os.getpid(),
        )

    async def show_all(self, raw: RawArguments) -> dict[str, Any]:
        """Lists requests for the command line: {"lines", "next"}. from: the answer's `next`."""
        arguments = Arguments(raw)
        page = await self.list(
            memory=arguments.optional_text("memory"),
            project=arguments.optional_text("project"),
            after=arguments.optional_text("from"),
            limit=_PAGE,
        )
        return {"lines": msgspec.to_builtins((*page.in_flight, *page.items)), "next": page.next}

    async def _noted(
        self, agent: int, before: int, limit: int, without: Collection[str]
    ) -> Sequence[tuple[RequestRecord, int]]:
        """Returns requests that are noted with the rows of their exchanges, the newest first.

        without: the ids of those that are left out.
        """
        found: Sequence[tuple[RequestRecord, int]] = []
        while len(found) < limit:
            page = await self.store.recalls.list(agent, self._since, before=before, limit=limit)
            found = [
                *found,
                *((_of_recall(each), each.exchange) for each in page if each.request not in without),
            ]
            if len(page) < limit:
                break
            before = page[-1].exchange
        return found[:limit]

    @property
    def _since(self) -> float:
        return self.now() - self.keep_why_days * _DAY_S

    async def _explained(
        self, id: str, stored: StoredRecall, logged: LoggedRequest | None, note: str | None
    ) -> ExplainedRequest:
        """Returns a request that is noted.

        id: its own, which is stored as a hash where it is long.
        logged: what this process has of the id.
        note: of its turn.
        """
        record, summary = unpack(stored.data), {**_summary_of_recall(stored), "id": id}
        tries: tuple[str, ...] = (f"{summary['upstream']}:{record.status}",) if summary["upstream"] else ()
        if logged is not None and logged.memory_uid == stored.memory_uid:
            summary["upstream"], tries = logged.upstream or summary["upstream"], logged.tries
        hits = await hit_records(self.store, stored.agent, stored.memory_uid, record.entries)
        return ExplainedRequest(
            **summary,
            conversation=stored.conversation_uid,
            exchange=stored.seq,
            tries=tries,
            why=cast(Why, record.why),
            sentence=sentence_of(record),
            found=record.found,
            selection=record.is_selection,
            chosen=tuple(hit for hit in hits if not isinstance(hit, LeftOutRecord)),
            left_out=tuple(hit for hit in hits if isinstance(hit, LeftOutRecord)),
            note=note,
            window=_window(record),
            first_ms=record.first_ms,
            usage=None if record.usage is None else UsageRecord(*record.usage),
            kept_until=stored.at + self.keep_why_days * _DAY_S,
        )


def _page_end(after: str | None) -> tuple[int, int]:
    """Returns the number of a request, and the row of an exchange, before which a page lies."""
    if after is None:
        return LAST_NUMBER, LAST_NUMBER
    number, _, exchange = after.partition(".")
    if not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(exchange)):
        raise BadRequest("after must be `next` of the page before.", param="after")
    return int(number), int(exchange)


def _summary_of_recall(stored: StoredRecall) -> dict[str, Any]:
    """Returns the fields of `RequestSummary` of a request that is noted."""
    record = unpack(stored.data)
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


def _summary_of_log(each: LoggedRequest) -> dict[str, Any]:
    """Returns the fields of `RequestSummary` of a request of this process."""
    return {
        "id": each.id,
        "at": each.at,
        "memory": each.memory_uid,
        "name": None if each.scope is None else name_of(each.scope),
        "mode": each.mode,
        "model": each.model,
        "upstream": each.upstream,
        "status": each.status,
        "streamed": each.is_streamed,
        "ms": each.ms,
        "added_ms": each.added_ms,
        "recalled_tokens": each.recalled_tokens,
    }


def _of_recall(stored: StoredRecall) -> RequestRecord:
    recalled = sum(not e.reason for e in unpack(stored.data).entries)
    return RequestRecord(**_summary_of_recall(stored), recalled=recalled)


def name_of(scope: Scope) -> str:
    """Returns the name of a memory: the user's, the conversation's, or the agent's id."""
    if scope.profile == API_PROFILE:
        return id_of(scope.subject)
    return scope.subject.partition(":")[2]


def sentence_of(record: RecallRecord) -> str:
    """Returns what happened, in words."""
    chosen = record.found - sum(record.left_out)
    left = [f"{n} {_STAYED_OUT[reason]}" for reason, n in zip(REASONS[1:], record.left_out, strict=True) if n]
    if not chosen:
        found = _NOTHING.get(record.why, _NOTHING["nothing_found"])
    elif record.is_selection:
        found = f"The message names nothing to look for: {chosen} memories went in as a selection of all."
    else:
        what = "memory" if record.found == 1 else "memories"
        found = (
            f"{chosen} of {record.found} {what} found went into this reply ({record.recalled_tokens} tokens)."
        )
    if not left:
        return found
    return f"{found} {sum(record.left_out)} stayed out: {', '.join(left)}."


def _window(record: RecallRecord) -> WindowRecord:
    parts = (
        PartTokens(cast(WindowPart, part), tokens) for part, tokens in zip(PARTS, record.parts, strict=True)
    )
    return WindowRecord(tuple(parts), record.context, record.evicted)


def _listed(each: LoggedRequest) -> RequestRecord:
    return RequestRecord(**_summary_of_log(each), recalled=each.recalled)


def _of_log(each: LoggedRequest) -> ExplainedRequest:
    """Returns what is known of a request that did not look for memory."""
    whys: Mapping[str, Why] = {"none": "nobody", "off": "off", "unavailable": "failed", "read": "off"}
    why = whys.get(each.mode, "nothing_found")
    words = _NOTHING[why]
    if each.mode == "read":
        words = "Sources are not noted of a request that only reads memory."
    elif why == "nothing_found":
        words = "Memory was not looked for: the request brings no new words of a person."
    return ExplainedRequest(
        **_summary_of_log(each),
        conversation=each.conversation_uid,
        tries=each.tries,
        why=why,
        sentence=words,
        first_ms=each.first_ms,
    )
