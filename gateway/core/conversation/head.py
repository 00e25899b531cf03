"""Finds the stored path that a list of new messages continues in append mode.

It is the path that was touched last. Messages of cancelled sends come between the path and the list. The list may begin
with a report of how much of a reply was heard (rule 13 of docs/conversations.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from msgspec import Struct

from gateway.core.conversation.cancelled_sends import collect_cancelled_sends, list_input_messages
from gateway.core.conversation.canonical import MessageHasher, has_calls
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import Match, Query
from gateway.core.conversation.off_record import has_lost_reply
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, has_result_role, read_text
from gateway.core.roles import RESULT_ROLES
from gateway.core.words import (
    MIN_HEARD_LETTERS,
    is_beginning,
    is_grown_transcript,
    join_heard_letters,
    join_letters,
)
from storage.records import Exchange, ExchangeState

# The most messages at the beginning of a list that may report what was heard of a reply. Not measured: the search tries
# each number of messages up to this one.
_MAX_REPORT_MESSAGES = 8


class _ReportedReply(Enum):
    """The kinds of stored replies that the beginning of a list can report."""

    # The reply of the last cancelled send.
    CUT = auto()
    # A reply that is among the pending messages.
    PENDING = auto()
    # The reply of the conversation's head.
    HEAD = auto()
    # The reply of the turn before the head: the user did not hear the head's reply.
    ABOVE = auto()
    # The reply of a cancelled send that the head joined to its own: the user did not hear the head's reply.
    JOINED = auto()
    # Possibly a reply off the record, or a forgotten one: its words are not stored, so they cannot be compared.
    OFF = auto()


class _Report(Struct, frozen=True):
    """The assistant's messages at the beginning of a list, as a report of how much of a reply was heard."""

    # The reply that is reported; None: the list begins with no report.
    reply: _ReportedReply | None
    # The number of messages of the list that are only the report, and so are not new. The application's own text, or a
    # second reply, may follow these messages.
    count: int

    @property
    def is_of_path(self) -> bool:
        """True if the reply is on the path, and takes the form in which it was heard."""
        return self.reply in (_ReportedReply.HEAD, _ReportedReply.ABOVE)

    @property
    def is_resent(self) -> bool:
        """True if the report repeats a message that is sent again before the new messages."""
        return self.reply in (_ReportedReply.PENDING, _ReportedReply.JOINED)

    @property
    def leaves_head_unheard(self) -> bool:
        """True if the user did not hear the head's reply."""
        return self.reply in (_ReportedReply.ABOVE, _ReportedReply.JOINED)


# The value for a list that begins with no report.
_NO_REPORT = _Report(None, 0)


class PathHead(Struct, frozen=True):
    """The end of the stored path from which a list of new messages goes on, in append mode."""

    # The last exchange of the path; None: the conversation is new.
    exchange: Exchange | None
    # The messages between the path and the list: of cancelled sends, or of a turn that is asked once more.
    pending: Sequence[WireMessage]
    # The index of the first new message of the list.
    new_start: int = 0
    # The number of messages at the beginning of the list that repeat the last reply as the user heard it.
    heard_count: int = 0
    # The number of messages at the beginning of the list that repeat a reply among `pending`.
    resent_count: int = 0


def find_head(tree: Tree, query: Query, match: Match) -> PathHead | None:
    """Returns the head from which a list goes on in append mode.

    Returns None if the list repeats stored messages, so that it has to be matched as any other list.
    """
    head = _find_last_touched(tree)
    if _is_own_text(tree, query.listing, match, head) or _is_new_item(tree, query, match):
        match = Match()
    return None if match.first > 0 else _HeadSearch(tree, query, match, head).run()


def _is_own_text(tree: Tree, listing: HashedList, match: Match, head: Exchange | None) -> bool:
    """Returns whether a list matches only by the application's own text, such as a greeting, that an old reply has too.

    This is so if no user message comes before the text, and the conversation went on after the old reply.
    """
    match_point = match.match_point
    if match_point is None or match_point is head or has_calls(match_point.reply):
        return False
    return match.last < _count_first_replies(listing) and tree.is_continued(match_point)


def _is_new_item(tree: Tree, query: Query, match: Match) -> bool:
    """Returns whether the match is only a forgotten turn, or a text after a stored question's words, for a response.

    As in OpenAI's API, each item of a request joins its conversation, unless the list repeats a turn that is still
    there, whole or as it was heard.
    """
    match_point = match.match_point
    if match_point is None or not query.makes_response:
        return False
    if is_tombstone(match_point) or match_point.redactions:
        return True
    return match.altered is not None and not was_heard(
        tree, match_point, query.listing, match.first, match.last + 1
    )


def _count_first_replies(listing: HashedList) -> int:
    """Returns how many messages of the assistant come before the first other message of a list.

    Returns 0 for a list of the assistant's messages alone: such a list reports nothing, since no message follows.
    """
    return next((i for i in range(len(listing)) if listing.read_role(i) != "assistant"), 0)


class _HeadSearch:
    """Finds the reply that the beginning of a list reports, and the end of the path that the list continues."""

    def __init__(self, tree: Tree, query: Query, match: Match, head: Exchange | None) -> None:
        self._tree = tree
        self._query = query
        self._match = match
        self._listing = query.listing
        self._head = head
        # The exchange before the head, if the head begins with a user message; None: there is no such exchange.
        self._above = None
        if self._head is not None and not tree.is_mid_turn(self._head):
            self._above = tree.find_parent(self._head)
        # The cancelled sends at the head.
        self._sends = collect_cancelled_sends(tree, self._head)
        exchanges = (self._head, self._above, *self._sends.list_all())
        tree.contents.group(exchange for exchange in exchanges if exchange is not None)
        # The messages of cancelled sends that come before the list.
        self._pending_messages = self._list_pending_messages()

    def run(self) -> PathHead | None:
        """Returns the end of the path; None: the list neither follows the path nor repeats the pending messages."""
        last_exchange = self._head
        pending: Sequence[WireMessage] = self._pending_messages
        report = self._find_report() or _NO_REPORT
        new_messages = self._listing.messages[report.count :]
        if last_exchange is not None and (
            report.leaves_head_unheard or self._asks_again(new_messages, report)
        ):
            # The head's messages come with the next ones, as a sibling.
            pending = [*self._list_head_messages(), *pending]
            last_exchange = self._tree.find_parent(last_exchange)
        if report.is_resent:
            pending = self._with_resent_report(pending, report.count)
        repeated_count = self._count_repeated(new_messages, pending)
        if report.reply is None and not repeated_count and self._match.match_point is not None:
            return None
        if repeated_count:
            pending = self._without_repeated(pending, new_messages, repeated_count)
        return PathHead(
            last_exchange,
            pending,
            new_start=report.count,
            heard_count=report.count if report.is_of_path else 0,
            resent_count=report.count if report.is_resent else 0,
        )

    def _with_resent_report(self, pending: Sequence[WireMessage], count: int) -> list[WireMessage]:
        """Returns pending messages with the report in place of the reply that it repeats.

        count: the number of the report's messages.
        """
        index = self._find_same_report(pending, count)
        assert index is not None  # else it would be another kind of report
        return [*pending[:index], *self._listing.messages[:count], *pending[index + 1 :]]

    def _without_repeated(
        self, pending: Sequence[WireMessage], new_messages: Sequence[WireMessage], count: int
    ) -> Sequence[WireMessage]:
        """Returns pending messages without the last of them, which come once more as new messages.

        count: the number of pending messages that come once more.
        """
        pending = pending[: len(pending) - count]
        if new_messages[0].get("role") == "user":
            # If a transcript was shorter in between, it extends more than one of the pending messages.
            while pending and repeats(self._listing.hasher, new_messages[:1], pending[-1:], may_grow=True):
                pending = pending[:-1]
        return pending

    def _asks_again(self, new_messages: Sequence[WireMessage], report: _Report) -> bool:
        """Returns whether the new messages repeat the messages of the head, because its answer got lost.

        report: the report before the new messages.
        """
        head = self._head
        if head is None or not new_messages:
            return False
        if has_result_role(new_messages[0]) and not has_calls(head.reply):
            # No call waits for a result, so the head has this result already.
            earlier_messages = [*self._list_head_messages(), *self._pending_messages]
            return self._count_repeated(new_messages, earlier_messages) > len(self._pending_messages)
        is_same = self._repeats_head(new_messages)
        if report.reply is not _ReportedReply.HEAD:
            return is_same
        return is_same and self._reports(self._above, report.count)

    def _repeats_head(self, messages: Sequence[WireMessage]) -> bool:
        """Returns whether a client's library sends the last messages of the head once more."""
        if self._pending_messages or not self._query.is_retry:
            return False
        # A library sends the same words again. A longer message that begins with them is the next message.
        repeated_count = self._count_repeated(messages, self._list_head_messages(), may_grow=False)
        return repeated_count == len(messages)

    def _find_report(self) -> _Report | None:
        """Returns the report with which the list begins; None: the list reports no reply."""
        listing = self._listing
        assistant_count = _count_first_replies(listing)
        if not assistant_count:
            return None
        # The words of a reply that is not stored are not known, so all of the messages may report it.
        off_record_sibling = self._find_off_record_sibling()
        repeats_head = self._repeats_head(listing.messages)
        off_report = None if off_record_sibling is None else _Report(_ReportedReply.OFF, assistant_count)
        for count in (assistant_count, *range(min(assistant_count - 1, _MAX_REPORT_MESSAGES), 0, -1)):
            is_of_pending = self._find_same_report(self._pending_messages, count) is not None
            is_of_head = self._reports(self._head, count, min_letters=1)
            # Replies may begin alike, so the newest reply is tried first: that of the last cancelled send. But a
            # request that is sent again repeats its report of an older reply, which is pending or the head's.
            is_again = (is_of_pending or is_of_head) and self._count_repeated(
                listing.messages[count:], self._pending_messages
            )
            last_send = None if is_again else self._sends.last
            if last_send is not None and was_heard(self._tree, last_send, listing, 0, count, min_letters=1):
                # Nothing of that send is on the path, so its report is new there.
                is_newest = off_record_sibling is None or off_record_sibling.begun < last_send.begun
                return _Report(_ReportedReply.CUT, 0) if is_newest else off_report
            if is_of_pending:
                return _Report(_ReportedReply.PENDING, count)
            # A retry repeats its report as well, even if the answer that got lost begins like the reported reply.
            if repeats_head and self._is_of_joined_send(count):
                return _Report(_ReportedReply.JOINED, count)
            if is_of_head:
                return _Report(_ReportedReply.HEAD, count)
            if self._reports(self._above, count):
                return _Report(_ReportedReply.ABOVE, count)
            if self._is_of_joined_send(count):
                return _Report(_ReportedReply.JOINED, count)
        return off_report

    def _count_repeated(
        self,
        new_messages: Sequence[WireMessage],
        earlier_messages: Sequence[WireMessage],
        *,
        may_grow: bool = True,
    ) -> int:
        """Returns how many of the last earlier messages come once more at the beginning of the new messages.

        may_grow: True if the last of these messages may be a transcript that has grown.
        """
        hasher = self._listing.hasher
        for count in range(min(len(new_messages), len(earlier_messages)), 0, -1):
            if repeats(hasher, new_messages[:count], earlier_messages[-count:], may_grow=may_grow):
                return count
        return 0

    def _find_off_record_sibling(self) -> Exchange | None:
        """Returns the newest exchange of which the list may repeat a reply that is off the record or forgotten.

        The words of the reply are not known. Returns None if there is no such exchange.
        """
        if self._match.match_point is not None and self._match.match_point.state is not ExchangeState.OFF:
            return None
        tree, head = self._tree, self._head
        siblings = [exchange for exchange in tree if exchange.parent is None]
        if head is not None:
            siblings = [head, *tree.list_children(head), *tree.list_siblings(head)]
        off = (each for each in siblings if has_lost_reply(self._query, each))
        return max(off, key=lambda exchange: exchange.begun, default=None)

    def _reports(self, exchange: Exchange | None, count: int, min_letters: int = MIN_HEARD_LETTERS) -> bool:
        """Returns whether the first `count` messages of the list are the heard part of an exchange's reply.

        min_letters: the fewest letters that count as a part of a reply.
        """
        if exchange is None or not count or not exchange.reply or not self._tree.may_change(exchange):
            return False
        return was_heard(self._tree, exchange, self._listing, 0, count, min_letters=min_letters)

    def _is_of_joined_send(self, count: int) -> bool:
        """Returns whether the first `count` messages report a reply that the messages of the head report as well."""
        if not any(was_heard(self._tree, send, self._listing, 0, count) for send in self._sends.joined):
            return False
        return self._find_same_report(self._list_head_messages(), count) is not None

    def _list_head_messages(self) -> Sequence[WireMessage]:
        """Returns the input messages of the head."""
        return () if self._head is None else list_input_messages(self._tree, self._head)

    def _find_same_report(self, messages: Sequence[WireMessage], count: int) -> int | None:
        """Returns the index of the last message with the same report as the first `count` messages of the list."""
        heard_letters = join_heard_letters("".join(map(self._listing.read_text, range(count))))
        indices = (
            i
            for i, message in enumerate(messages)
            if message.get("role") == "assistant"
            and is_beginning(heard_letters, join_heard_letters(read_text(message)))
        )
        return max(indices, default=None)

    def _list_pending_messages(self) -> list[WireMessage]:
        """Returns the messages of cancelled sends that come before the messages of the list."""
        pending = self._sends.list_messages()
        listing = self._listing
        if len(listing) and all(listing.read_role(i) in RESULT_ROLES for i in range(len(listing))):
            # Results follow their calls, so messages that the user sent meanwhile wait for the next request.
            return [message for message in pending if has_result_role(message)]
        return pending


def repeats(
    hasher: MessageHasher,
    new_messages: Sequence[WireMessage],
    earlier_messages: Sequence[WireMessage],
    *,
    may_grow: bool,
) -> bool:
    """Returns whether new messages repeat as many earlier messages.

    may_grow: True if the last of these messages may be a transcript that has grown.
    """
    pairs = [*zip(new_messages, earlier_messages, strict=True)]
    # Two messages with the same words may have different pictures, or be results of different calls.
    if any(
        hasher.digest_media(new) != hasher.digest_media(earlier)
        or new.get("tool_call_id") != earlier.get("tool_call_id")
        for new, earlier in pairs
    ):
        return False
    unequal_pairs = [
        (new, earlier) for new, earlier in pairs if hasher.make_atoms(new) != hasher.make_atoms(earlier)
    ]
    if not unequal_pairs or not may_grow:
        return not unequal_pairs
    # Only the last message may have grown.
    new, earlier = unequal_pairs[0]
    is_user = new.get("role") == earlier.get("role") == "user"
    return unequal_pairs == pairs[-1:] and is_user and is_grown_transcript(read_text(new), read_text(earlier))


def _find_last_touched(tree: Tree) -> Exchange | None:
    """Returns the head of a conversation: the active exchange that was touched last.

    A turn off the record is on no path, so the next turn goes on from the exchange before it. A detached root (rule 9
    of docs/conversations.md) is the head only if there is no other path, as after turns that are all off the record.
    """
    on_record = [each for each in tree if each.state is not ExchangeState.OFF]
    newest_first = sorted(on_record, key=tree.make_recency_key, reverse=True)
    # Roots are detached in named conversations alone.
    for is_named in (True, False):
        for exchange in newest_first:
            if _is_end(tree, exchange, is_named=is_named):
                return exchange
    return None


def _is_end(tree: Tree, exchange: Exchange, *, is_named: bool) -> bool:
    """Returns whether a path may end with an exchange: no exchange went on from it, or it was asked once more since.

    A later exchange is dated before this exchange if the clock was put back in between.

    is_named: as for `Tree.is_active`.
    """
    if not tree.is_active(exchange, is_named=is_named):
        return False
    was_repeated = exchange.touched > exchange.begun
    return was_repeated or not any(
        child.state is not ExchangeState.OFF and tree.is_active(child, is_named=is_named)
        for child in tree.list_children(exchange)
    )


def was_heard(
    tree: Tree,
    exchange: Exchange,
    listing: HashedList,
    start: int,
    end: int,
    min_letters: int = MIN_HEARD_LETTERS,
) -> bool:
    """Returns whether messages of a list are the heard part of an exchange's reply.

    start: the index of the first of the messages.
    end: the index after the last one.
    min_letters: the fewest letters that count as a part of a reply.
    """
    heard_letters = join_heard_letters("".join(map(listing.read_text, range(start, end))))
    return is_beginning(
        heard_letters, join_letters(read_text(tree.contents.get(exchange).shown_reply or {})), min_letters
    )
