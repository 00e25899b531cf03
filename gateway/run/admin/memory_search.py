"""The searches of a memory: for texts, for an MCP client; and trials, which show what a sentence would recall."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from math import inf

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.run.admin.hits import hit_records
from gateway.run.admin.list_page import read_cursor
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.request_records import HitRecord, LeftOutRecord
from gateway.run.memory.pack_recall import entry_rows
from gateway.run.memory.trial import TrialRecall
from storage.errors import TooSlow
from storage.recall_record import unpack_entry
from storage.records import Agent, Message
from storage.sql.store import Store

# How long an MCP client's search may take: as long as a search by a model's tool call (gateway/run/tools/memory.py).
SEARCH_MS = 1000.0
# Hits on a page of the list of all hits.
PAGE_HITS = 50
# The most hits that are shown as left out of the note.
_MAX_LEFT_OUT = 20
# The most hits of a trial that are not in the note: more than recall finds.
_MAX_HITS = 100


class RecallTrial(Struct, frozen=True):
    """The outcome of a trial: what would be recalled for a sentence."""

    query: str
    # The note, byte for byte; None: nothing would be recalled.
    note: str | None
    chosen: tuple[HitRecord, ...]
    left_out: tuple[LeftOutRecord, ...]
    # A page of all hits, best first.
    found: tuple[HitRecord, ...]
    # The cursor of the next page of `found`, for `after`: a decimal number of hits. None: this is the last one.
    next: str | None
    # What is known of why the request that led here chose other texts; not set: no request did, or nothing is known.
    differs: str | UnsetType = UNSET


class TextSearch(Struct, frozen=True):
    """A search for texts."""

    query: str
    limit: int
    # Values of `Message.source`.
    kinds: Collection[str]
    # Seconds since the epoch; `until` is exclusive.
    since: float = -inf
    until: float = inf

    def matches(self, hit: Message) -> bool:
        """Returns whether a hit is of the kinds and the time that are asked for."""
        return hit.source in self.kinds and self.since <= hit.at < self.until


class FoundTexts(Struct, frozen=True):
    """The hits of a search, best first."""

    hits: Sequence[Message] = ()
    # The public names of the hits' conversations, by the rows of exchanges.
    conversations: Mapping[int, str] = {}
    # The search took too long, so there are no hits.
    has_timed_out: bool = False


class SearchOperation(Struct, frozen=True):
    """Searches memories. Nothing is written."""

    store: Store
    trial: TrialRecall

    @property
    def has_embedder(self) -> bool:
        """Returns whether texts are searched by meaning as well."""
        return self.trial.embed_query is not None

    async def search(self, agent: Agent, search: TextSearch) -> FoundTexts:
        """Returns the texts of a memory that match a query. Raises: StoreError."""
        store, embed_query = self.store, self.trial.embed_query
        try:
            vector = None if embed_query is None else await embed_query([agent.id], search.query, SEARCH_MS)
            hits = await store.recall.search(
                agent,
                search.query,
                limit=search.limit,
                takes=search.matches,
                deadline_ms=SEARCH_MS,
                vector=vector,
            )
        except TooSlow:
            return FoundTexts(has_timed_out=True)
        exchange_ids = sorted({m.exchange_row for m in hits if m.source == "message"})
        places = await store.memory_pages.load_places(agent.id, exchange_ids)
        return FoundTexts(hits, {id: place.conversation_uid for id, place in places.items()})

    async def try_recall(
        self, project: str | None, uid: str, query: str, *, after: str | None = None, limit: int = PAGE_HITS
    ) -> RecallTrial:
        """Returns what would be recalled for a query that opens a conversation now.

        project: the only project that the caller sees; None: all projects.
        after: `next` of the page before.

        Raises: UnknownId: there is no such memory; BadRequest: `after` cannot be read; StoreError.
        """
        start = read_cursor(after, 0)
        agent = await get_agent(self.store, project, uid)
        if not query.strip():
            return RecallTrial(query, note=None, chosen=(), left_out=(), found=(), next=None)
        result = await self.trial.try_sentence(agent, query, _MAX_HITS)
        await asyncio.sleep(0)  # as in the trial
        search = result.record
        rows, _ = entry_rows(search, _MAX_HITS)
        entries = [
            unpack_entry(row, has_scores=not search.is_selection, has_meaning=search.trace.has_meaning)
            for row in rows
        ]
        in_note = [e for e in entries if not e.reason]
        left_out = [e for e in entries if e.reason][:_MAX_LEFT_OUT]
        # The list of all hits has neither reasons nor hits that are too weak for a note; `left_out` has both.
        weak = {seq for seq, _ in search.weak}
        all_found = [replace(e, reason="") for e in entries if e.seq not in weak]
        end = start + limit
        hits = await hit_records(self.store, agent.id, uid, [*in_note, *left_out, *all_found[start:end]])
        of_note, of_page = hits[: len(in_note) + len(left_out)], hits[len(in_note) + len(left_out) :]
        return RecallTrial(
            query=query,
            note=result.note.strip() or None,
            chosen=tuple(hit for hit in of_note if not isinstance(hit, LeftOutRecord)),
            left_out=tuple(hit for hit in of_note if isinstance(hit, LeftOutRecord)),
            found=tuple(of_page),
            next=str(end) if len(all_found) > end else None,
        )
