"""The trial of a sentence on a memory: what would be recalled for it now, in the tables of a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.hits import hit_records
from gateway.run.admin.page_records import HitRecord, LeftOutRecord
from gateway.run.memory.sources import entry_rows
from gateway.run.memory.trial import TrialRecall
from storage.errors import TooSlow
from storage.recall_record import entry_of
from storage.records import Agent, Message
from storage.sql.store import Store

# How long a program's search may take: as long as that of a model's tool call (gateway/run/tools/memory.py).
SEARCH_MS = 1000.0
# Hits on a page of the list of all hits.
PAGE = 50
# The hits that are shown as left out of the note, at most.
_MOST_LEFT_OUT = 20
# More than a search returns, so that all are counted.
_ALL = 100


class SearchPage(Struct, frozen=True):
    """The outcome of a trial: what would be recalled for a sentence."""

    query: str
    # The note, byte for byte; None: nothing would be recalled.
    note: str | None
    chosen: tuple[HitRecord, ...]
    left_out: tuple[LeftOutRecord, ...]
    # A page of all hits, best first.
    found: tuple[HitRecord, ...]
    # `after` of the next page of `found`.
    next: str | None


class FindRequest(Struct, frozen=True):
    """A search for texts."""

    query: str
    limit: int
    # Of `Message.source`.
    kinds: Collection[str]
    # Seconds since the epoch; the second is not included.
    since: float = -inf
    until: float = inf

    def takes(self, found: Message) -> bool:
        """Returns whether a hit is asked for."""
        return found.source in self.kinds and self.since <= found.at < self.until


class FoundTexts(Struct, frozen=True):
    """The hits of a search, best first, with the public names of their conversations by the rows of exchanges."""

    hits: Sequence[Message] = ()
    conversations: Mapping[int, str] = {}
    # Not all of memory has answered in time.
    is_late: bool = False


class SearchOperation(Struct, frozen=True):
    """Tries sentences on memories. Nothing is written."""

    store: Store
    trial: TrialRecall

    async def find(self, agent: Agent, wanted: FindRequest) -> FoundTexts:
        """Returns texts of a memory that answer a question. Raises: StoreError."""
        store, embed_query = self.store, self.trial.embed_query
        try:
            vector = None if embed_query is None else await embed_query(agent.id, wanted.query, SEARCH_MS)
            hits = await store.recall.search(
                agent,
                wanted.query,
                limit=wanted.limit,
                takes=wanted.takes,
                deadline_ms=SEARCH_MS,
                vector=vector,
            )
        except TooSlow:
            return FoundTexts(is_late=True)
        rows = sorted({m.exchange for m in hits if m.source == "message"})
        places = await store.memory_pages.places(agent.id, rows)
        return FoundTexts(hits, {row: place.conversation for row, place in places.items()})

    async def search(
        self, project: str | None, uid: str, query: str, *, after: str | None = None, limit: int = PAGE
    ) -> SearchPage:
        """Returns what would be recalled.

        project: of the caller; None: of any.
        after: `next` of the page before.

        Raises: UnknownId: there is no such memory; BadRequest: `after` cannot be read; StoreError.
        """
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 10):
            raise BadRequest(
                "after is what the page before gave as `next`, and cannot be read.", param="after"
            )
        agent = await self.store.agents.by_uid(uid)
        if agent is None or project not in (None, agent.scope.project):
            raise UnknownId("There is no such memory.")
        if not query.strip():
            return SearchPage(query, None, (), (), (), None)
        result = await self.trial.recall(agent, query, _ALL)
        sought = result.sought
        rows, _ = entry_rows(sought, _ALL)
        entries = [
            entry_of(row, has_scores=not sought.is_selection, has_meaning=sought.trace.has_meaning)
            for row in rows
        ]
        chosen, others = [e for e in entries if not e.reason], [e for e in entries if e.reason]
        hits = await hit_records(self.store, agent.id, uid, [*chosen, *others[:_MOST_LEFT_OUT]])
        # What is too weak for any note is no hit, and stands among what was left out alone.
        weak = {seq for seq, _ in sought.weak}
        found = [replace(e, reason="") for e in entries if e.seq not in weak]
        start = int(after or 0)
        end = start + limit
        return SearchPage(
            query=query,
            note=result.note.strip() or None,
            chosen=tuple(hit for hit in hits if not isinstance(hit, LeftOutRecord)),
            left_out=tuple(hit for hit in hits if isinstance(hit, LeftOutRecord)),
            found=tuple(await hit_records(self.store, agent.id, uid, found[start:end])),
            next=str(end) if len(found) > end else None,
        )
