"""The records of a search's hits: with the scores that the search gave them, and with their present texts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import asdict, replace

from gateway.run.admin.page_paths import make_fact_href, make_text_href
from gateway.run.admin.records.memory_records import SourceKind, get_source_kind
from gateway.run.admin.records.request_records import HitRecord, LeftOutRecord
from storage.operator_records import ExchangeRef
from storage.recall_record import RecalledEntry
from storage.records import Fact, Message
from storage.sql.store import Store


class HitRecords(NamedTuple):
    """The records of a search's hits, each list in the order of the entries."""

    # Those without a reason to stay out of the note.
    chosen: tuple[HitRecord, ...]
    left_out: tuple[LeftOutRecord, ...]


async def load_hit_records(
    store: Store, agent_row: int, uid: str, entries: Sequence[RecalledEntry]
) -> HitRecords:
    """Returns the records of hits.

    agent_row: the row of the memory.
    uid: the public id of the memory.
    """
    seqs = dict.fromkeys(entry.seq for entry in entries if not entry.is_forgotten)
    messages = await store.recall.load(agent_row, [*seqs])
    exchange_rows = {message.exchange_row for message in messages.values() if message.exchange_row}
    refs = await store.memory_pages.load_exchange_refs(agent_row, sorted(exchange_rows))
    # A fact that was corrected or superseded since the search is not found by searches any more.
    ended_facts = {
        seq: fact
        for seq in seqs
        if seq not in messages and (fact := await store.facts.find(agent_row, seq)) is not None
    }
    # In a thread, since a hundred hits take some milliseconds.
    hits = await asyncio.to_thread(
        lambda: [
            _make_hit_record(
                uid,
                entry,
                None if entry.is_forgotten else messages.get(entry.seq),
                None if entry.is_forgotten else ended_facts.get(entry.seq),
                refs,
            )
            for entry in entries
        ]
    )
    return HitRecords(
        chosen=tuple(hit for hit in hits if not isinstance(hit, LeftOutRecord)),
        left_out=tuple(hit for hit in hits if isinstance(hit, LeftOutRecord)),
    )


def _make_hit_record(
    uid: str,
    entry: RecalledEntry,
    message: Message | None,
    ended_fact: Fact | None,
    refs: Mapping[int, ExchangeRef],
) -> HitRecord | LeftOutRecord:
    """Returns the record of a hit.

    message: the found message or fact; None: no search finds it now.
    ended_fact: the found fact, if it is no longer true.
    refs: the references of the messages' exchanges, by the rows of the exchanges.
    """
    hit = HitRecord(
        kind=_get_hit_kind(entry, message),
        seq=entry.seq,
        text=None,
        at=None,
        forgotten=entry.is_forgotten,
        href=None,
        rank=entry.rank,
        score=entry.score,
        words=entry.words,
        meaning=entry.meaning,
        tokens=entry.tokens,
    )
    if message is not None:
        href = make_text_href(uid, message, refs.get(message.exchange_row))
        hit = replace(hit, text=message.text, at=message.at, href=href)
    elif ended_fact is not None:
        hit = replace(
            hit,
            kind="fact",
            text=ended_fact.text,
            at=ended_fact.valid_from,
            href=make_fact_href(uid, ended_fact.seq),
            until=ended_fact.ended_at or UNSET,
            taken_back=ended_fact.taken_back or UNSET,
        )
    return LeftOutRecord(**asdict(hit), reason=entry.reason) if entry.reason else hit


def _get_hit_kind(entry: RecalledEntry, message: Message | None) -> SourceKind:
    """Returns the kind of a hit."""
    if message is not None:
        return get_source_kind(message)
    return "message" if entry.kind == "any" else entry.kind
