"""Trials of recall, which show the texts that a query would recall from a memory."""

from __future__ import annotations

import asyncio

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.run.admin.list_page import parse_cursor
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.records.request_records import HitRecord, LeftOutRecord
from gateway.run.admin.requests.hits import load_hit_records
from gateway.run.memory.recall_rows import make_hit_rows
from gateway.run.memory.trial import TrialRunner
from storage.recall_record import unpack_entry
from storage.sql.store import Store

# Hits on a page of the list of all hits.
_PAGE_HITS = 50
# The most hits that are shown as left out of the note.
_MAX_SHOWN_LEFT_OUT = 20
# The most hits outside of the note that a trial records: more than recall finds, so the list of all hits is whole.
_MAX_LEFT_OUT = 100


class TrialRecord(Struct, frozen=True):
    """The outcome of a trial: what would be recalled for a query."""

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


class RecallTrials(Struct, frozen=True):
    """Tries the recall of a text. Nothing is written."""

    store: Store
    runner: TrialRunner

    @property
    def has_embedder(self) -> bool:
        """True if texts are searched by meaning as well."""
        return self.runner.embed_query is not None

    async def try_recall(
        self, project: str | None, uid: str, query: str, *, after: str | None = None, limit: int = _PAGE_HITS
    ) -> TrialRecord:
        """Returns what would be recalled for a query that opens a conversation now.

        project: the only project that the caller sees; None: all projects.
        after: `next` of the page before.

        Raises: UnknownId: there is no such memory; BadRequest: `after` cannot be read; StoreError.
        """
        start = parse_cursor(after, 0)
        agent = await get_agent(self.store, project, uid)
        if not query.strip():
            return TrialRecord(query, note=None, chosen=(), left_out=(), found=(), next=None)
        result = await self.runner.try_sentence(agent, query, _MAX_LEFT_OUT)
        # Turns get the event loop before the records are made, as in `TrialRunner`.
        await asyncio.sleep(0)
        search = result.record
        rows = make_hit_rows(search, _MAX_LEFT_OUT).rows
        entries = [
            unpack_entry(row, has_scores=not search.is_selection, has_meaning=search.trace.has_meaning)
            for row in rows
        ]
        chosen_entries = [entry for entry in entries if not entry.reason]
        rejected_entries = [entry for entry in entries if entry.reason][:_MAX_SHOWN_LEFT_OUT]
        # The list of all hits has neither reasons nor hits that are too weak for a note.
        weak_seqs = {seq for seq, _ in search.weak_hits}
        found_entries = [replace(entry, reason="") for entry in entries if entry.seq not in weak_seqs]
        end = start + limit
        # One look-up for all three lists, since each takes three reads. Without a reason, the hits found are `chosen`.
        hits = await load_hit_records(
            self.store, agent.id, uid, [*chosen_entries, *rejected_entries, *found_entries[start:end]]
        )
        chosen_count = len(chosen_entries)
        return TrialRecord(
            query=query,
            note=result.note.strip() or None,
            chosen=hits.chosen[:chosen_count],
            left_out=hits.left_out,
            found=hits.chosen[chosen_count:],
            next=str(end) if len(found_entries) > end else None,
        )
