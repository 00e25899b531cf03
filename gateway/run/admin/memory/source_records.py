"""The records of the messages from which facts and versions of blocks came."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.memory.visibility import list_recallable_messages, list_user_messages
from gateway.run.admin.memory.exchange_messages import shorten
from gateway.run.admin.page_paths import make_message_href, make_passage_href
from gateway.run.admin.records.memory_records import SourceRecord, read_speaker
from storage.operator_records import FoundMemory, SizedMemory, SourceExchange
from storage.records import Fact, Passage, Revision
from storage.sql.store import Store

# The most exchanges from which a list shows messages for each fact or version.
LISTED_SOURCES = 2
# The most characters of a message.
_SOURCE_CHARS = 1_000
# The most characters of a passage.
_PASSAGE_CHARS = 4_000


async def list_sources(
    store: Store,
    memory: FoundMemory | SizedMemory,
    items: Sequence[Fact | Revision],
    max_exchanges: int = LISTED_SOURCES,
) -> list[tuple[SourceRecord, ...]]:
    """Returns the messages that each item came from, in the order of the items.

    max_exchanges: the most exchanges that are read for each item.
    """
    rows_by_item = [list_source_exchanges(item)[:max_exchanges] for item in items]
    exchanges = await store.memory_pages.load_sources(
        memory.id, sorted({row for rows in rows_by_item for row in rows})
    )
    records = {row: _make_message_records(memory.uid, exchange) for row, exchange in exchanges.items()}
    return [tuple(record for row in rows for record in records.get(row, ())) for rows in rows_by_item]


def list_source_exchanges(item: Fact | Revision) -> list[int]:
    """Returns the exchanges from which a fact or version came. The exchange that states it comes first."""
    stating_rows = [] if item.exchange_row is None else [item.exchange_row]
    return [*dict.fromkeys([*stating_rows, *item.sources])]


def make_passage_record(uid: str, passage: Passage) -> SourceRecord:
    """Returns the record of a passage. uid: the memory's."""
    text = shorten(passage.text, _PASSAGE_CHARS)
    return SourceRecord("passage", passage.seq, text, passage.at, href=make_passage_href(uid, passage.seq))


def _make_message_records(uid: str, source: SourceExchange) -> tuple[SourceRecord, ...]:
    """Returns the records of the user's messages in an exchange, or else of its first message that recall may find.

    An exchange without such a message has one record without a text.
    """
    exchange = source.exchange
    messages = (
        list_user_messages(exchange, source.prefix_is_shared)
        or list_recallable_messages(exchange, source.prefix_is_shared, None)[:1]
    )
    if not messages:
        return (SourceRecord("message", exchange.seq, None, exchange.begun, forgotten=True),)
    return tuple(
        SourceRecord(
            "message",
            message.seq,
            shorten(message.text, _SOURCE_CHARS),
            message.at,
            href=make_message_href(uid, source.conversation_uid, exchange, message.seq),
            speaker=read_speaker(message),
        )
        for message in messages
    )
