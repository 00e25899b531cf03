"""Lists the texts that remain of a memory after a forgetting: replies that repeat erased texts, facts and mentions."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from heapq import nlargest
from itertools import islice
from typing import Literal, NamedTuple
from urllib.parse import quote

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.core.roles import RESULT_ROLES
from gateway.core.words import join_letters
from gateway.run.admin.memory.exchange_messages import make_message_records, shorten
from gateway.run.admin.memory.fact_views import FactPage
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_by_uid import load_other_memories
from gateway.run.admin.page_paths import make_message_href, page_path
from gateway.run.admin.records.memory_records import MessageRecord, get_source_kind
from storage.errors import StoreTimeout
from storage.listing import LAST_NUMBER
from storage.operator_records import FoundMemory
from storage.recall_record import read_note_seqs
from storage.records import Exchange, Fact, Message
from storage.search.text_words import has_words, list_written_words
from storage.sql.store import Store

# The number of the newest true facts that are compared with the erased texts.
_MAX_COMPARED_FACTS = 200
# The most facts that are listed.
_MAX_FACTS = 5
# The most characters that are shown of a text before it is forgotten.
SHOWN_CHARS = 300
# The most characters of a text in the query for its repetitions.
_QUERY_CHARS = 120
# The number of the newest recalls that are searched for replies that were made with an erased text.
_MAX_RECALLS = 100
# The most replies that are listed.
_MAX_REPLIES = 5
# The most numbers of messages that a record lists.
_MAX_NUMBERS = 5
# The most texts of which quotations are looked for. A client's first list may have hundreds of texts.
_MAX_QUOTED_TEXTS = 8
# The number of a text's first words by which its quotations are searched.
_QUOTED_WORDS = 8
# The most found messages that are compared with the text.
_MAX_COMPARED = 20
# Quotations of a text with fewer letters are not looked for: a reply may have it by chance.
_MIN_QUOTED_LETTERS = 12
# The milliseconds of one search for quotations. A longer search is stopped, and the list says so. Not measured: an
# operator waits for the searches of all texts.
_SEARCH_DEADLINE_MS = 50.0
_STOPPED_SEARCH = "There may be replies that quote it: the search for them took too long, and was stopped."

# "source": a message from which a fact came. "turn": the reply or the question of a message. "rest": several messages
# that came with a message, in one request and its reply. "reply": a reply of another turn. "replacement": a fact that a
# fact replaced, or that replaced it. "fact": any other fact. "block": a block. "conversation": the rest of a message's
# conversation. "memory": the memory of the same user in another profile. "remark": no single text.
RemainingKind = Literal[
    "source", "turn", "rest", "reply", "replacement", "fact", "block", "conversation", "memory", "remark"
]


class RemainingRecord(Struct, frozen=True):
    """A text or a fact that remains."""

    # What remains, as the page says it.
    text: str
    # The page that shows it, relative to /ui/; None: no page does.
    href: str | None = None
    # What it is.
    kind: RemainingKind = "remark"
    # For a reply: its number.
    message: int | UnsetType = UNSET
    # For a message or a fact: the beginning of its text; for several messages that of one of them.
    quote: str | UnsetType = UNSET
    # For messages: whether they have the words for which texts are forgotten. Not set if there are none, and for a fact
    # without them.
    has_words: bool | UnsetType = UNSET


class _QuotableText(NamedTuple):
    """An erased text that a reply may quote."""

    # The number of its message or fact.
    seq: int
    text: str
    # The letters of the text, joined.
    letters: str


class _Quotations(NamedTuple):
    """The replies that quote erased texts."""

    # The exchanges of the replies, the newest first.
    rows: Sequence[int]
    # True: a search was stopped, so that there may be more such replies.
    is_incomplete: bool


class RemainingTexts:
    """Lists the texts of one memory that stay after a forgetting."""

    def __init__(self, store: Store, views: MemoryViews, memory: FoundMemory, words: str) -> None:
        """Reads nothing yet.

        words: the words for which one text after another is forgotten, as a query; "": they are not known.
        """
        self._store = store
        self._views = views
        self._memory = memory
        self._words = words

    async def list_for_memory(self) -> list[RemainingRecord]:
        """Returns the records that stay if the whole memory goes."""
        other_memories = await load_other_memories(self._store, self._memory.scope)
        stays = [
            RemainingRecord(
                f"What the profile {each.scope.profile!r} remembers of the same user.",
                page_path("m", each.uid),
                kind="memory",
            )
            for each in other_memories
        ]
        if any(block.is_shared for block in await self._store.memory_pages.list_blocks(self._memory.id)):
            stays.append(RemainingRecord("What is shared with others, without what came from here."))
        stays.append(RemainingRecord("The record that it was forgotten: the memory’s number and no words."))
        if self._memory.paused_at is not None:
            stays.append(
                RemainingRecord("That the memory is paused, and its name: nothing new is remembered.")
            )
        return stays

    async def list_for_fact(self, page: FactPage) -> list[RemainingRecord]:
        """Returns the texts that stay if a fact goes: its sources, the facts before and after it, other messages."""
        stays = [
            RemainingRecord(
                f"Message {source.seq}, which it came from. It is not learned again from there:",
                source.href,
                kind="source",
                quote=shorten(source.text, SHOWN_CHARS),
            )
            for source in page.fact.sources
            if source.text is not None
        ]
        stays += await self._list_replies_made_with({page.fact.seq: page.fact.text})
        replaced_facts = await self._views.facts.list_replaced(
            self._memory.scope.project, self._memory.uid, page
        )
        facts = [(f"Fact {fact.seq}, which it replaced.", fact) for fact in replaced_facts]
        if page.after is not None:
            relation = "is true instead" if page.after.until is None else "replaced it"
            facts.append((f"Fact {page.after.seq}, which {relation}.", page.after))
        stays += [
            RemainingRecord(text, page_path("m", self._memory.uid, "f", fact.seq), kind="replacement")
            for text, fact in facts
        ]
        return [*stays, self.make_other_mentions(page.fact.text)]

    async def list_for_message(
        self,
        exchange: Exchange,
        conversation_uid: str,
        seq: int,
        texts: Mapping[int, str],
        rest: Sequence[MessageRecord],
    ) -> list[RemainingRecord]:
        """Returns the texts that stay if one message of an exchange goes, or the whole exchange.

        seq: the number of the message, or of any message of the exchange that goes.
        texts: the texts that go, by the numbers of their messages.
        rest: the messages of the exchange that stay and have a text.
        """
        stays = []
        if rest:
            stays.append(
                self._make_rest_of_exchange(exchange, conversation_uid, seq, texts.get(seq, ""), rest)
            )
        stays += await self._list_replies_made_with(texts, own_exchange=exchange.id)
        href = make_message_href(self._memory.uid, conversation_uid, exchange, exchange.seq)
        stays.append(RemainingRecord("The rest of the conversation.", href, kind="conversation"))
        stays.append(self.make_other_mentions(next(iter(texts.values()), None)))
        return stays

    async def list_for_texts(self, texts: Sequence[Message], first_text: str) -> list[RemainingRecord]:
        """Returns the texts that stay if several messages, facts and passages go. first_text: the first of these.

        Replies that quote the texts are not looked for: they have the same words, by which the texts were found.
        """
        going_rows = {text.exchange_row for text in texts if text.role == "assistant"}
        noted_rows = await self._find_made_with({text.seq for text in texts})
        stays = await self._list_replies(
            [row for row in noted_rows if row not in going_rows], quoting_rows=()
        )
        if any(get_source_kind(text) == "message" for text in texts):
            stays.append(
                RemainingRecord("The rest of their conversations, also what answers these messages.")
            )
        return [*stays, self.make_other_mentions(self._words or first_text)]

    async def list_facts(self, going_seqs: Collection[int], texts: Sequence[str]) -> list[RemainingRecord]:
        """Returns true facts that stay, the likeliest mentions first.

        Facts with the sought words come first, then facts that share most words with the forgotten texts, then the
        newest.

        going_seqs: the numbers of the facts that go.
        texts: the texts that go.
        """
        facts = await self._store.facts.list_page(self._memory.id, limit=_MAX_COMPARED_FACTS)
        # In a thread, since hundreds of texts take some milliseconds.
        chosen_facts = await asyncio.to_thread(
            self._choose_facts, [fact for fact in facts if fact.seq not in going_seqs], texts
        )
        return [
            RemainingRecord(
                f"Fact {fact.seq}:",
                page_path("m", self._memory.uid, "f", fact.seq),
                kind="fact",
                quote=shorten(fact.text, SHOWN_CHARS),
                has_words=self._has_words(fact.text) or UNSET,
            )
            for fact in chosen_facts
        ]

    def _choose_facts(self, facts: Sequence[Fact], texts: Sequence[str]) -> list[Fact]:
        going_words = {word.casefold() for text in texts for word in list_written_words(text)}

        def measure_nearness(fact: Fact) -> tuple[bool, int, int]:
            words = map(str.casefold, list_written_words(fact.text))
            return self._has_words(fact.text), len(going_words.intersection(words)), fact.seq

        return nlargest(_MAX_FACTS, facts, key=measure_nearness)

    def _has_words(self, text: str) -> bool:
        return bool(self._words) and has_words(text, self._words)

    def make_other_mentions(self, text: str | None) -> RemainingRecord:
        """Returns the remark that other messages may mention the forgotten text, with the page that finds them.

        text: the text that the page looks for; None: no text yet.
        """
        remark = "Whatever says it elsewhere, or in other words."
        search_page = page_path("m", self._memory.uid, "search")
        query = " ".join((text or "").split())[:_QUERY_CHARS]
        return RemainingRecord(remark, f"{search_page}?q={quote(query, safe='')}" if query else search_page)

    def _make_rest_of_exchange(
        self,
        exchange: Exchange,
        conversation_uid: str,
        seq: int,
        going_text: str,
        rest: Sequence[MessageRecord],
    ) -> RemainingRecord:
        """Returns the record of the other messages of an exchange, with a link to forget or to see them.

        seq: the number of the message that goes.
        going_text: the text of the message that goes.
        rest: the messages that stay.
        """
        # The last message with the words stands for all of them.
        with_words = [record for record in rest if self._has_words(record.text or "")]
        shown_message = (with_words or rest)[-1]
        is_reply = len(rest) == 1 and shown_message.role == "assistant"
        remaining = self._with_quote(_make_record_of_rest(rest), shown_message)
        forget_page = page_path("m", self._memory.uid, "forget")
        # Messages with the words are not offered together with messages without them, which may be right.
        if len(with_words) == (len(rest) if self._has_words(going_text) else 0):
            href = f"{forget_page}?exchange={seq}"
        elif with_words:
            href = f"{forget_page}?message={shown_message.seq}"
        else:
            href = make_message_href(self._memory.uid, conversation_uid, exchange, shown_message.seq)
        return replace(remaining, href=href, message=shown_message.seq if is_reply else UNSET)

    async def _list_replies_made_with(
        self, texts: Mapping[int, str], own_exchange: int | None = None
    ) -> list[RemainingRecord]:
        """Returns the newest replies that quote a text, or that were made with a text in their note.

        texts: the texts that go, by the numbers of their messages or facts.
        own_exchange: the exchange of the texts; its reply is not listed.
        """
        quotations = await self._search_quotations(texts)
        quoting_rows = [row for row in quotations.rows if row != own_exchange]
        noted_rows = [row for row in await self._find_made_with(texts) if row != own_exchange]
        replies = await self._list_replies(noted_rows, quoting_rows)
        if quotations.is_incomplete:
            replies.append(RemainingRecord(_STOPPED_SEARCH))
        return replies

    async def _find_made_with(self, seqs: Collection[int]) -> list[int]:
        """Returns the newest exchanges that had a message or fact in their note. seqs: the numbers of these."""
        since = self._views.retention.since
        recalls = await self._store.recalls.list_page(
            self._memory.id, since, before=LAST_NUMBER, limit=_MAX_RECALLS
        )
        wanted_seqs = frozenset(seqs)
        return [
            each.exchange_row for each in recalls if not wanted_seqs.isdisjoint(read_note_seqs(each.data))
        ]

    async def _search_quotations(self, texts: Mapping[int, str]) -> _Quotations:
        """Returns the replies that quote a text letter by letter. Searches only for the last `_MAX_QUOTED_TEXTS`.

        texts: the texts by the numbers of their messages or facts; only later replies can quote them.
        """
        agent = await self._store.agents.find_by_id(self._memory.id)
        if agent is None:
            return _Quotations([], is_incomplete=False)
        row_by_reply: dict[int, int] = {}
        is_incomplete = False
        newest_first = (
            _QuotableText(seq, text, join_letters(text)) for seq, text in reversed([*texts.items()])
        )
        quotable_texts = (each for each in newest_first if len(each.letters) >= _MIN_QUOTED_LETTERS)
        for seq, text, letters in islice(quotable_texts, _MAX_QUOTED_TEXTS):
            query = " ".join(list_written_words(text)[:_QUOTED_WORDS])
            try:
                hits = await self._store.recall.find_containing(
                    agent, query, limit=_MAX_COMPARED, deadline_ms=_SEARCH_DEADLINE_MS
                )
            except StoreTimeout:
                is_incomplete = True
                continue
            # In a thread, since a long text takes some milliseconds.
            replies = await asyncio.to_thread(
                _filter_replies, [each for each in hits.messages if each.seq > seq], letters
            )
            row_by_reply.update((reply.seq, reply.exchange_row) for reply in replies)
        return _Quotations([row_by_reply[seq] for seq in sorted(row_by_reply, reverse=True)], is_incomplete)

    async def _list_replies(
        self, noted_rows: Sequence[int], quoting_rows: Sequence[int]
    ) -> list[RemainingRecord]:
        """Returns the replies of exchanges, at most `_MAX_REPLIES`: first those that quote a text.

        noted_rows: the exchanges that had a text in their note.
        quoting_rows: the exchanges with a reply that quotes a text.
        """
        rows = [*dict.fromkeys([*quoting_rows, *noted_rows])][:_MAX_REPLIES]
        exchanges = await self._store.memory_pages.load_sources(self._memory.id, rows)
        replies: list[RemainingRecord] = []
        for row in rows:
            source = exchanges.get(row)
            records = [] if source is None else make_message_records(source.exchange, None)
            replies_with_text = (
                record for record in reversed(records) if record.role == "assistant" and record.text
            )
            reply = next(replies_with_text, None)
            if source is not None and reply is not None:
                href = make_message_href(
                    self._memory.uid, source.conversation_uid, source.exchange, reply.seq
                )
                relations = []
                if row in noted_rows:
                    relations.append("was made with it")
                if row in quoting_rows:
                    relations.append("quotes it")
                text = f"A reply that {' and '.join(relations)}: message {reply.seq}."
                replies.append(self._with_quote(RemainingRecord(text, href, kind="reply"), reply))
        return replies

    def _with_quote(self, record: RemainingRecord, message: MessageRecord) -> RemainingRecord:
        """Returns the record of a message with its number and the beginning of its text."""
        text = message.text or ""
        return replace(
            record,
            message=message.seq,
            quote=shorten(" ".join(text.split()), SHOWN_CHARS),
            has_words=has_words(text, self._words) if self._words else UNSET,
        )


def _make_record_of_rest(rest: Sequence[MessageRecord]) -> RemainingRecord:
    """Returns the record of the other messages of an exchange, with their numbers unless there are many of them."""
    if len(rest) == 1:
        [record] = rest
        if record.role == "assistant":
            name = "Its reply"
        else:
            name = "What a tool returned for it" if record.role in RESULT_ROLES else "Its question"
        return RemainingRecord(f"{name}: message {record.seq}.", kind="turn")
    if len(rest) > _MAX_NUMBERS:
        return RemainingRecord(f"What came with it: {len(rest)} messages.", kind="rest")
    numbers = ", ".join(str(record.seq) for record in rest)
    return RemainingRecord(f"What came with it: messages {numbers}.", kind="rest")


def _filter_replies(messages: Sequence[Message], letters: str) -> list[Message]:
    """Returns the messages that are replies and have these letters in a row."""
    return [
        message
        for message in messages
        if message.role == "assistant" and letters in join_letters(message.text)
    ]
