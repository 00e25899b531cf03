"""The records of a search's hits: with the scores that the search gave them, and with their present texts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from gateway.run.admin.memory_records import SourceKind
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.request_records import HitRecord, LeftOutReason, LeftOutRecord
from storage.listing import ExchangePlace
from storage.recall_record import RecalledEntry
from storage.records import MUTED, Exchange, Fact, Message
from storage.sql.store import Store

# How many messages of a long exchange are shown from a linked message on. A page of a conversation has room for them.
_SHOWN_AFTER = 3


async def hit_records(
    store: Store, agent_row: int, uid: str, entries: Sequence[RecalledEntry]
) -> list[HitRecord | LeftOutRecord]:
    """Returns the records of hits, in the order of the entries.

    agent_row, uid: the row and the public name of the memory.
    """
    seqs = dict.fromkeys(entry.seq for entry in entries if not entry.is_forgotten)
    messages = await store.recall.load(agent_row, [*seqs])
    exchanges = {message.exchange_row for message in messages.values() if message.exchange_row}
    places = await store.memory_pages.load_places(agent_row, sorted(exchanges))
    # A fact that was corrected or superseded since the search is not found by searches any more.
    ended_facts = {
        seq: fact
        for seq in seqs
        if seq not in messages and (fact := await store.facts.find(agent_row, seq)) is not None
    }
    # In a thread, since a hundred hits take some milliseconds.
    return await asyncio.to_thread(
        lambda: [
            _hit_record(
                uid,
                entry,
                None if entry.is_forgotten else messages.get(entry.seq),
                None if entry.is_forgotten else ended_facts.get(entry.seq),
                places,
            )
            for entry in entries
        ]
    )


def _hit_record(
    uid: str,
    entry: RecalledEntry,
    message: Message | None,
    ended_fact: Fact | None,
    places: Mapping[int, ExchangePlace],
) -> HitRecord | LeftOutRecord:
    """Returns the record of a hit.

    message: the text that was found; None: no search finds it now.
    ended_fact: the fact that was found and is no longer true; None: there is none.
    places: the places of messages, by the rows of their exchanges.
    """
    hit = HitRecord(
        kind=_kind(entry, message),
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
        href = text_href(uid, message, places.get(message.exchange_row))
        hit = replace(hit, text=message.text, at=message.at, href=href)
    elif ended_fact is not None:
        hit = replace(
            hit,
            kind="fact",
            text=ended_fact.text,
            at=ended_fact.valid_from,
            href=fact_href(uid, ended_fact.seq),
            until=ended_fact.ended_at or UNSET,
            taken_back=ended_fact.taken_back or UNSET,
        )
    return LeftOutRecord(**asdict(hit), reason=cast(LeftOutReason, entry.reason)) if entry.reason else hit


def message_href(uid: str, conversation_uid: str, exchange: Exchange | ExchangePlace, seq: int) -> str:
    """Returns the address of a message, relative to /ui/. The page shows the branch that ends with its exchange.

    conversation_uid: of the message's conversation.
    """
    before = seq + _SHOWN_AFTER
    end = f"&before={before}" if before <= exchange.reply_seq else ""
    return f"{page_path('m', uid, 'c', conversation_uid)}?branch={exchange.seq}{end}#message-{seq}"


def fact_href(uid: str, seq: int) -> str:
    """Returns the address of a fact, relative to /ui/."""
    return page_path("m", uid, "f", seq)


def passage_href(uid: str, seq: int) -> str:
    """Returns the address of a passage, relative to /ui/."""
    # The list has the newest first, so a page after the next number begins with this one.
    return f"{page_path('m', uid, 'passages')}?after={seq + 1}#passage-{seq}"


def _kind(entry: RecalledEntry, message: Message | None) -> SourceKind:
    """Returns the kind of a hit."""
    if message is not None:
        return kind_of(message)
    return "message" if entry.kind == "any" else cast(SourceKind, entry.kind)


def kind_of(message: Message) -> SourceKind:
    """Returns the kind under which a text is shown. A muted fact is shown as a fact."""
    return "fact" if message.source == MUTED else cast(SourceKind, message.source)


def speaker_of(message: Message) -> str | UnsetType:
    """Returns the speaker of a message, as in `SourceRecord`."""
    if kind_of(message) != "message":
        return UNSET
    return message.speaker or (UNSET if message.role == "user" else message.role)


def text_href(uid: str, message: Message, place: ExchangePlace | None) -> str | None:
    """Returns the address of a text, relative to /ui/; None: no page shows it. place: of a message's exchange."""
    match message.source:
        case "fact" | "muted":
            return fact_href(uid, message.seq)
        case "passage":
            return passage_href(uid, message.seq)
        case _:
            return None if place is None else message_href(uid, place.conversation_uid, place, message.seq)
