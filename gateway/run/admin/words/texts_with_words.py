"""Texts of a memory that have some words, each with the part around the words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType, field

from gateway.run.admin.page_paths import make_text_href
from gateway.run.admin.records.memory_records import BlockRecord, SourceRecord, get_source_kind, read_speaker
from gateway.run.admin.words.hidden_texts import AROUND_CHARS
from storage.operator_records import ExchangeRef
from storage.records import MUTED, Agent, Message
from storage.search.text_words import cut_around_words, has_words_anywhere
from storage.sql.store import Store

# The milliseconds for which the index may be read for a page with another subject, which only names such texts.
SHORT_DEADLINE_MS = 250.0
# The most texts that such a page shows.
SHOWN_TEXTS = 5


class TextWithWords(SourceRecord, frozen=True, kw_only=True):
    """A text that has the words. `text`: the part of it around them."""

    # The fact is not mentioned in replies; not set: the text is no such fact.
    muted: bool | UnsetType = UNSET
    # The time until which the fact was true; not set: the text is no fact that has ended.
    until: float | UnsetType = UNSET
    # True: an undo ended the fact, which was a correction; not set: the text is no such fact.
    taken_back: bool | UnsetType = UNSET
    # In a list of texts that still have the words of a text before its correction: a distinctive word of the corrected
    # text that this text has as well, so that it may be right; not set: it has none.
    corrected_word: str | UnsetType = field(default=UNSET, name="kept_word")


class BlockWithWords(Struct, frozen=True):
    """A block that has the words. text: the part of it around them."""

    label: str
    text: str


class FoundBlocks(NamedTuple):
    """The blocks that queries find. A query finds the blocks that have all of its words."""

    # The queries that find a block.
    queries: tuple[str, ...]
    # The blocks, each with the part around the words of the first query that finds it.
    blocks: tuple[BlockWithWords, ...]


async def make_text_records(
    store: Store, agent: Agent, messages: Sequence[Message], query: str
) -> tuple[TextWithWords, ...]:
    """Returns texts that have some words of a query."""
    exchanges = sorted({message.exchange_row for message in messages if message.kind == "message"})
    pages = store.memory_pages
    refs = await pages.load_exchange_refs(agent.id, exchanges) if exchanges else {}
    # In a thread, since a long text takes some milliseconds.
    return await asyncio.to_thread(
        lambda: tuple(
            make_text_record(agent.uid, message, refs.get(message.exchange_row), query)
            for message in messages
        )
    )


async def search_blocks(blocks: Sequence[BlockRecord], queries: Sequence[str]) -> FoundBlocks:
    """Returns those of some blocks that any of the queries finds, wherever in a block its words are."""
    # In a thread, since a long text takes some milliseconds.
    return await asyncio.to_thread(_search_blocks, blocks, queries)


def _search_blocks(blocks: Sequence[BlockRecord], queries: Sequence[str]) -> FoundBlocks:
    finding_queries: dict[str, None] = {}
    found_blocks: dict[str, BlockWithWords] = {}
    for query in queries:
        for block in blocks:
            if has_words_anywhere(block.value, query):
                finding_queries[query] = None
                if block.label not in found_blocks:
                    part = cut_around_words(block.value, query, AROUND_CHARS)
                    found_blocks[block.label] = BlockWithWords(block.label, part)
    return FoundBlocks(tuple(finding_queries), tuple(found_blocks.values()))


def make_text_record(uid: str, message: Message, ref: ExchangeRef | None, query: str) -> TextWithWords:
    """Returns the record of a text that has some words of a query.

    ref: the reference of the message's exchange; None: the text is no message, or its exchange is unknown.
    """
    text = cut_around_words(message.text, query, AROUND_CHARS)
    return TextWithWords(
        get_source_kind(message),
        message.seq,
        text,
        message.at,
        href=make_text_href(uid, message, ref),
        speaker=read_speaker(message),
        muted=message.kind == MUTED or UNSET,
    )
