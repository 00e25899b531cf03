"""The records of a search's hits: with the scores that the search gave them, and with their present texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from gateway.run.admin.memory_records import SourceKind
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.request_records import HitRecord, LeftOutRecord, Reason
from storage.listing import ExchangePlace
from storage.recall_record import RecalledEntry
from storage.records import MUTED, Exchange, Message
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
    records: list[HitRecord | LeftOutRecord] = []
    for entry in entries:
        message = None if entry.is_forgotten else messages.get(entry.seq)
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
        elif not entry.is_forgotten and (fact := await store.facts.find(agent_row, entry.seq)) is not None:
            # The fact was corrected or superseded since the search, so searches do not find it any more.
            until = fact.ended_at or UNSET
            href = fact_href(uid, fact.seq)
            hit = replace(hit, kind="fact", text=fact.text, at=fact.valid_from, href=href, until=until)
        records.append(
            LeftOutRecord(**asdict(hit), reason=cast(Reason, entry.reason)) if entry.reason else hit
        )
    return records


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
    """Returns who said a message, as in `SourceRecord`."""
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
