"""Requests: those of this process, and why a reply was made as it was.

Why is noted with each turn that looked for memory, in numbers. The texts are read when they are asked for, so that what
was forgotten since has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import UnknownId
from gateway.run.admin.operation_arguments import Arguments, RawArguments, id_of
from gateway.run.admin.page_records import (
    ExplainedRequest,
    HitRecord,
    LeftOutRecord,
    PartTokens,
    Reason,
    RequestRecord,
    SourceKind,
    UsageRecord,
    Why,
    WindowPart,
    WindowRecord,
)
from gateway.run.request_log import LoggedRequest, RequestLog
from storage.recall_record import PARTS, REASONS, RecalledEntry, RecallRecord, unpack
from storage.records import API_PROFILE, Message, Scope
from storage.sql.store import Store

_DAY_S = 86_400.0
_LAST = 1 << 62
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
    """A page of requests, the newest first. next: `after` of the next page. in_flight: those being answered."""

    items: tuple[RequestRecord, ...]
    next: str | None
    in_flight: tuple[RequestRecord, ...] = ()


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
            record = unpack(stored.data)
            hits = await self._hits(stored.agent, stored.memory_uid, record.entries)
            notes = [note for _, note in sorted(exchange.notes.items()) if note]
            upstream, _, model = stored.model.partition("/")
            if logged is None or logged.memory_uid != stored.memory_uid:
                tries: tuple[str, ...] = (f"{upstream}:{record.status}",) if upstream else ()
            else:
                upstream, tries = logged.upstream or upstream, logged.tries
            return ExplainedRequest(
                id=id,
                at=stored.at,
                memory=stored.memory_uid,
                name=name_of(stored.scope),
                conversation=stored.conversation_uid,
                exchange=stored.seq,
                model=model,
                upstream=upstream,
                tries=tries,
                status=record.status,
                streamed=record.is_streamed,
                mode=record.mode,
                why=cast(Why, record.why),
                sentence=sentence_of(record),
                found=record.found,
                recalled_tokens=record.recalled_tokens,
                selection=record.is_selection,
                chosen=tuple(hit for hit in hits if not isinstance(hit, LeftOutRecord)),
                left_out=tuple(hit for hit in hits if isinstance(hit, LeftOutRecord)),
                note=notes[-1] if notes else None,
                window=_window(record),
                added_ms=record.added_ms,
                first_ms=record.first_ms,
                ms=record.ms,
                usage=None if record.usage is None else UsageRecord(*record.usage),
                kept_until=stored.at + self.keep_why_days * _DAY_S,
            )
        if logged is not None and self.log is not None and (suspects := self.log.suspects([logged])):
            logged = logged if suspects <= await self.store.overview.uids(suspects) else None
        if logged is None or logged.is_noted:
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
        """Returns a page of requests: of this process, or of one memory those that are noted.

        memory: the uid of one.
        after: `next` of the page before.

        Raises: UnknownId: there is no such memory; ValueError: `after` cannot be read.
        """
        before = _LAST if after is None else int(after)
        if memory is not None:
            return await self._of_memory(memory, project, before, limit)
        if self.log is None:
            return RequestPage((), None)
        found = self.log.newest(limit + 1, before=before, project=project)
        if suspects := self.log.suspects(found):
            self.log.drop(suspects - await self.store.overview.uids(suspects))
            found = self.log.newest(limit + 1, before=before, project=project)
        flying = self.log.in_flight if after is None else []
        return RequestPage(
            tuple(map(_listed, found[:limit])),
            str(found[limit - 1].number) if len(found) > limit else None,
            tuple(_listed(each) for each in flying if project is None or each.project == project),
        )

    async def _of_memory(self, memory: str, project: str | None, before: int, limit: int) -> RequestPage:
        agent = await self.store.agents.by_uid(memory)
        if agent is None or (project is not None and agent.scope.project != project):
            raise UnknownId("There is no such memory.", param="memory")
        found = await self.store.recalls.list(agent.id, self._since, before=before, limit=limit + 1)
        items = []
        for stored in found[:limit]:
            record = unpack(stored.data)
            upstream, _, model = stored.model.partition("/")
            recalled = sum(not e.reason for e in record.entries)
            items.append(
                RequestRecord(
                    stored.request or "",
                    stored.at,
                    memory,
                    name_of(stored.scope),
                    record.mode,
                    model,
                    record.status,
                    record.is_streamed,
                    record.ms,
                    record.added_ms,
                    recalled,
                    record.recalled_tokens,
                    upstream,
                )
            )
        is_more = len(found) > limit
        return RequestPage(tuple(items), str(found[limit - 1].exchange) if is_more else None)

    @property
    def _since(self) -> float:
        return self.now() - self.keep_why_days * _DAY_S

    async def _hits(
        self, agent: int, uid: str, entries: Sequence[RecalledEntry]
    ) -> Sequence[HitRecord | LeftOutRecord]:
        seqs = [e.seq for e in entries if not e.is_forgotten]
        texts = await self.store.recall.at(agent, seqs)
        found = []
        for e in entries:
            message = None if e.is_forgotten else texts.get(e.seq)
            kind = cast(SourceKind, _kind(e, message))
            hit = HitRecord(
                kind,
                e.seq,
                None if message is None else message.text,
                None if message is None else message.at,
                e.is_forgotten,
                None if message is None else _href(uid, kind, message),
                e.rank,
                e.score,
                e.words,
                e.meaning,
                e.tokens,
            )
            if e.reason:
                hit = LeftOutRecord(**asdict(hit), reason=cast(Reason, e.reason))
            found.append(hit)
        return found


def name_of(scope: Scope) -> str:
    """Returns the name of a memory: the user's, the conversation's, or the agent's id."""
    if scope.profile == API_PROFILE:
        return id_of(scope.subject)
    return scope.subject.partition(":")[2]


def sentence_of(record: RecallRecord) -> str:
    """Returns what happened, in words."""
    chosen = record.found - sum(record.left)
    left = [f"{n} {_STAYED_OUT[reason]}" for reason, n in zip(REASONS[1:], record.left, strict=True) if n]
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
    return f"{found} {sum(record.left)} stayed out: {', '.join(left)}."


def _window(record: RecallRecord) -> WindowRecord:
    parts = (
        PartTokens(cast(WindowPart, part), tokens) for part, tokens in zip(PARTS, record.parts, strict=True)
    )
    return WindowRecord(tuple(parts), record.context, record.evicted)


def _kind(e: RecalledEntry, message: Message | None) -> str:
    if message is not None:
        return "fact" if message.source == "muted" else message.source
    return "message" if e.kind == "any" else e.kind


def _href(uid: str, kind: SourceKind, message: Message) -> str | None:
    match kind:
        case "fact":
            return f"m/{uid}/f/{message.seq}"
        case "passage":
            return f"m/{uid}/passages"
        case _:
            return None


def _listed(each: LoggedRequest) -> RequestRecord:
    return RequestRecord(
        each.id,
        each.at,
        each.memory_uid,
        None if each.scope is None else name_of(each.scope),
        each.mode,
        each.model,
        each.status,
        each.is_streamed,
        each.ms,
        each.added_ms,
        each.recalled,
        each.recalled_tokens,
        each.upstream,
    )


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
        id=each.id,
        at=each.at,
        memory=each.memory_uid,
        name=None if each.scope is None else name_of(each.scope),
        conversation=each.conversation_uid,
        exchange=None,
        model=each.model,
        upstream=each.upstream,
        tries=each.tries,
        status=each.status,
        streamed=each.is_streamed,
        mode=each.mode,
        why=why,
        sentence=words,
        found=0,
        recalled_tokens=each.recalled_tokens,
        selection=False,
        chosen=(),
        left_out=(),
        note=None,
        window=WindowRecord((), None, 0),
        added_ms=each.added_ms,
        first_ms=each.first_ms,
        ms=each.ms,
        usage=None,
        kept_until=None,
    )
