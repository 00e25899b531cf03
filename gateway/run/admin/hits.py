"""Hits of a search for memory as they are shown: numbers that were noted, with the texts as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from msgspec.structs import asdict

from gateway.run.admin.page_paths import page_path
from gateway.run.admin.page_records import HitRecord, LeftOutRecord, Reason, SourceKind
from storage.listing import ExchangePlace
from storage.recall_record import RecalledEntry
from storage.records import MUTED, Message
from storage.sql.store import Store


async def hit_records(
    store: Store, agent: int, uid: str, entries: Sequence[RecalledEntry]
) -> list[HitRecord | LeftOutRecord]:
    """Returns the hits in their order. agent, uid: of the memory."""
    texts = await store.recall.at(agent, [e.seq for e in entries if not e.is_forgotten])
    places = await store.memory_pages.places(
        agent, sorted({m.exchange for m in texts.values() if m.exchange})
    )
    found: list[HitRecord | LeftOutRecord] = []
    for e in entries:
        message = None if e.is_forgotten else texts.get(e.seq)
        hit = HitRecord(
            _kind(e, message),
            e.seq,
            None if message is None else message.text,
            None if message is None else message.at,
            e.is_forgotten,
            None if message is None else _href(uid, message, places.get(message.exchange)),
            e.rank,
            e.score,
            e.words,
            e.meaning,
            e.tokens,
        )
        found.append(LeftOutRecord(**asdict(hit), reason=cast(Reason, e.reason)) if e.reason else hit)
    return found


def message_href(uid: str, conversation: str, exchange: int, seq: int) -> str:
    """Returns where a message stands, relative to /ui/. exchange: the number of its exchange, the end of the branch."""
    return f"{page_path('m', uid, 'c', conversation)}?branch={exchange}#message-{seq}"


def fact_href(uid: str, seq: int) -> str:
    """Returns the page of a fact, relative to /ui/."""
    return page_path("m", uid, "f", seq)


def passage_href(uid: str, seq: int) -> str:
    """Returns where a passage stands, relative to /ui/."""
    return f"{page_path('m', uid, 'passages')}?after={seq + 1}#passage-{seq}"


def _kind(e: RecalledEntry, message: Message | None) -> SourceKind:
    if message is not None:
        return "fact" if message.source == MUTED else cast(SourceKind, message.source)
    return "message" if e.kind == "any" else cast(SourceKind, e.kind)


def _href(uid: str, message: Message, place: ExchangePlace | None) -> str | None:
    match message.source:
        case "fact" | "muted":
            return fact_href(uid, message.seq)
        case "passage":
            return passage_href(uid, message.seq)
        case _:
            return None if place is None else message_href(uid, place.conversation, place.seq, message.seq)
