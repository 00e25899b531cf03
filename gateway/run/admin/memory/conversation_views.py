"""Views of conversations: a list of conversations, and a page of one conversation, of a branch or of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.run.admin.list_page import (
    PAGE_LIMIT,
    ListPage,
    format_page_end,
    make_next_cursor,
    parse_cursor,
    parse_page_end,
)
from gateway.run.admin.memory.exchange_messages import make_message_records
from gateway.run.admin.memory.message_views import find_exchange_row
from gateway.run.admin.memory_by_uid import get_memory
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.records.memory_records import MessageRecord
from storage.listing import LAST_NUMBER
from storage.operator_records import SizedConversation
from storage.records import Exchange
from storage.sql.store import Store

# The branches of a conversation with more messages are not merged: the store finds so many exchanges of one.
_MAX_MERGED = 2_000


class ConversationRecord(Struct, frozen=True):
    """A conversation."""

    # The public id.
    id: str
    # The client's own id.
    client_id: str | None
    # The time at which it began.
    begun: float
    # The time of its last turn.
    last_turn: float
    messages: int
    bytes: int


class BranchRecord(Struct, frozen=True):
    """A branch of a conversation, named by the number of its last exchange."""

    id: int
    # The number of messages of its path; forgotten ones count only before the 2,000 deepest exchanges.
    messages: int
    # The time of its last turn.
    last_turn: float
    # True: the last turn of the conversation was in this branch.
    current: bool


class ConversationPage(Struct, frozen=True):
    """A page of a branch, oldest first."""

    conversation: ConversationRecord
    # The branches of the conversation that have messages left.
    branches: tuple[BranchRecord, ...]
    # The number of the branch; None: the conversation is empty, or the page has all branches.
    branch: int | None
    # The messages of the page.
    items: tuple[MessageRecord, ...]
    # `before` of the page with earlier messages.
    next: str | None


class MergedBranches(Struct, frozen=True):
    """A page of all branches of a conversation."""

    page: ConversationPage
    # The exchanges that do not follow the one above them, by their numbers: the number of the last message of the
    # exchange that they follow, or None.
    followed: dict[int, int | None]


class LaterMessages(Struct, frozen=True):
    """The page after a page of a conversation."""

    # The argument `branch` of `ConversationViews.show` that reads this page.
    branch: int
    # The argument `before` of `ConversationViews.show` that reads this page.
    before: int | None
    # The number of the first message of this page that the previous page does not have.
    first: int


class ConversationViews(Struct, frozen=True):
    """Reads the conversations of a memory.

    The methods raise UnknownId where there is no such memory or conversation.
    """

    store: Store
    retention: RecallRetention

    async def list_page(
        self, project: str | None, uid: str, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> ListPage[ConversationRecord]:
        """Returns a page of the conversations that have messages left, the newest first."""
        memory = await get_memory(self.store, project, uid)
        before = parse_page_end(after)
        conversations = await self.store.memory_pages.list_conversations(
            memory.id, before=before, limit=limit + 1
        )
        items = tuple(map(make_conversation_record, conversations[:limit]))
        return ListPage(items, make_next_cursor(conversations, limit, lambda last: format_page_end(last.end)))

    async def show(
        self,
        project: str | None,
        uid: str,
        id: str,
        *,
        branch: int | None = None,
        before: str | None = None,
        limit: int = PAGE_LIMIT,
        max_chars: int | None = None,
    ) -> ConversationPage:
        """Returns a page of a conversation.

        branch: the number of the exchange with which the path ends; None: the branch with the last turn.
        before: `next` of the page with the later messages; None: the page with the newest messages.
        max_chars: the most characters of all items together; a page has one item at least, however long it is.
        """
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        conversation = await pages.find_conversation(memory.id, id)
        if conversation is None or not conversation.messages:
            raise _make_no_conversation_error()
        record = make_conversation_record(conversation)
        branches = await pages.list_branches(memory.id, conversation.id)
        active_branches = [each for each in branches if each.is_active]
        current_branch = next(iter(active_branches or branches), None)
        branch_records = tuple(
            BranchRecord(each.seq, each.messages, each.last_turn, each is current_branch) for each in branches
        )
        if branch is None:
            if current_branch is None:
                return ConversationPage(record, branch_records, branch=None, items=(), next=None)
            branch = current_branch.seq
        # The page ends before this message, or with the branch. A number of another conversation is refused.
        end_seq = parse_cursor(before, branch, "before")
        end_row = await find_exchange_row(self.store, memory.id, conversation.id, end_seq)
        if end_row is None:
            raise _make_no_conversation_error()
        path = await pages.load_path(memory.id, end_row, limit=limit + 2)
        newest_first = await self._list_newest_first(memory.id, path, None if before is None else end_seq)
        page_part = _cut_page(newest_first, limit, max_chars)
        has_earlier = page_part.has_more or path[-1].parent is not None
        oldest_seq = page_part.messages[-1].seq if page_part.messages else path[-1].seq
        next_page = str(oldest_seq) if has_earlier else None
        return ConversationPage(
            conversation=record,
            branches=branch_records,
            branch=branch,
            items=tuple(reversed(page_part.messages)),
            next=next_page,
        )

    async def load_branch_beginnings(
        self, project: str | None, uid: str, page: ConversationPage
    ) -> dict[int, int]:
        """Returns the number of the first message that each branch of a conversation alone has, by the branch's number.

        Empty if the conversation has one branch. A branch that is alone from very far back is left out.

        page: any page of the conversation.
        """
        if len(page.branches) < 2:
            return {}
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        conversation = await pages.find_conversation(memory.id, page.conversation.id)
        if conversation is None:
            raise _make_no_conversation_error()
        branches = await pages.list_branches(memory.id, conversation.id)
        beginnings = await pages.load_branch_beginnings(
            memory.id, conversation.id, [each.exchange_row for each in branches]
        )
        return {
            each.seq: beginnings[each.exchange_row] for each in branches if each.exchange_row in beginnings
        }

    async def merge_branches(
        self,
        project: str | None,
        uid: str,
        page: ConversationPage,
        *,
        before: str | None,
        limit: int,
        max_chars: int,
    ) -> MergedBranches | None:
        """Returns a page of all branches of a conversation, or None if it has one branch or too many messages.

        page: any page of the conversation.
        before: the value for `before` of `show`.
        limit: the value for `limit` of `show`.
        max_chars: the value for `max_chars` of `show`.
        """
        if not can_be_merged(page):
            return None
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        conversation = await pages.find_conversation(memory.id, page.conversation.id)
        if conversation is None:
            raise _make_no_conversation_error()
        end_seq = parse_cursor(before, LAST_NUMBER, "before")
        exchanges = await pages.load_merged(memory.id, conversation.id, before=end_seq, limit=limit + 2)
        newest_first = await self._list_newest_first(
            memory.id, exchanges, None if before is None else end_seq
        )
        page_part = _cut_page(newest_first, limit, max_chars)
        shown_seqs = {message.exchange for message in page_part.messages}
        not_following = [
            exchange
            for exchange, earlier in zip_longest(exchanges, exchanges[1:])
            if exchange.seq in shown_seqs and exchange.parent != (earlier and earlier.id)
        ]
        refs = await pages.load_exchange_refs(
            memory.id, sorted({exchange.parent for exchange in not_following if exchange.parent is not None})
        )
        followed = {
            exchange.seq: refs[exchange.parent].reply_seq if exchange.parent in refs else None
            for exchange in not_following
        }
        items = tuple(reversed(page_part.messages))
        next_page = None
        if page_part.has_more:
            next_page = str(items[0].seq)
        elif len(exchanges) == limit + 2:
            next_page = str(exchanges[-1].seq)
        return MergedBranches(replace(page, branch=None, items=items, next=next_page), followed)

    async def _list_newest_first(
        self, agent_row: int, path: Sequence[Exchange], before: int | None
    ) -> Iterator[MessageRecord]:
        """Returns messages of a path, the newest first, each reply with the id of its request.

        before: only messages with a lower number; None: all messages.
        """
        rows = [exchange.id for exchange in path]
        requests = await self.store.recalls.load_requests(agent_row, rows, self.retention.since)
        return (
            record
            for exchange in path
            for record in reversed(make_message_records(exchange, requests.get(exchange.id)))
            if before is None or record.seq < before
        )

    async def find_later(
        self, project: str | None, uid: str, page: ConversationPage, *, is_cut: bool, limit: int = PAGE_LIMIT
    ) -> LaterMessages | None:
        """Returns the page that follows a page of a conversation; None: the page has the last message.

        is_cut: True if the page ends before a message, maybe within an exchange.
        """
        if not page.items:
            return None
        memory = await get_memory(self.store, project, uid)
        pages = self.store.memory_pages
        last_seq = page.items[-1].seq
        rows = await pages.find_exchange_of_message(memory.id, last_seq)
        if rows is None:
            return None
        ref = (await pages.load_exchange_refs(memory.id, [rows.exchange_row])).get(rows.exchange_row)
        if ref is None or ref.conversation_uid != page.conversation.id:
            # A fork has the message of another conversation, which went on by itself.
            return None
        if is_cut and last_seq < ref.reply_seq:
            before = last_seq + 1 + limit
            return LaterMessages(ref.seq, before if before <= ref.reply_seq else None, last_seq + 1)
        next_row = await pages.find_following(memory.id, *rows, steps=1)
        end_row = await pages.find_following(memory.id, *rows, steps=max(1, limit // 2))
        refs = await pages.load_exchange_refs(
            memory.id, sorted({row for row in (next_row, end_row) if row not in (None, rows.exchange_row)})
        )
        next_ref = refs.get(next_row or 0)
        end_ref = refs.get(end_row or 0)
        if next_ref is None or end_ref is None:
            return None
        return LaterMessages(end_ref.seq, None, next_ref.seq)


def make_conversation_record(conversation: SizedConversation) -> ConversationRecord:
    """Returns a conversation as lists show it."""
    return ConversationRecord(
        id=conversation.uid,
        client_id=conversation.key,
        begun=conversation.begun,
        last_turn=conversation.last_turn,
        messages=conversation.messages,
        bytes=conversation.bytes,
    )


def can_be_merged(page: ConversationPage) -> bool:
    """Returns whether a page can have all branches of its conversation."""
    return len(page.branches) > 1 and page.conversation.messages <= _MAX_MERGED


class _PagePart(NamedTuple):
    """The messages for which a page has room."""

    messages: list[MessageRecord]
    # True: there are more messages than these.
    has_more: bool


def _cut_page(records: Iterable[MessageRecord], limit: int, max_chars: int | None) -> _PagePart:
    """Returns the first messages.

    max_chars: the most characters of all messages together; the first message is returned, however long it is.
    """
    messages: list[MessageRecord] = []
    char_count = 0
    for record in records:
        char_count += _count_chars(record)
        if len(messages) == limit or (messages and max_chars is not None and char_count > max_chars):
            return _PagePart(messages, has_more=True)
        messages.append(record)
    return _PagePart(messages, has_more=False)


def _count_chars(record: MessageRecord) -> int:
    call_chars = sum(len(call.arguments) + len(call.result) for call in record.rounds)
    return len(record.text or "") + len(record.note or "") + call_chars


def _make_no_conversation_error() -> UnknownId:
    return UnknownId("There is no such conversation.")
