"""Append mode: finding where a list goes on that has new messages alone.

The path touched last comes before them, then the messages of sends that were cancelled. At the head of the list the
client may report how much of a reply was heard. Rule 13 of docs/conversations.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from msgspec import Struct

from gateway.core.conversation.canonical import RESULT_ROLES, WireMessage, has_calls, text_of
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import Match, Query
from gateway.core.conversation.tree import Tree
from gateway.core.words import heard_letters, is_beginning, is_grown_transcript, letters_of
from storage.records import Exchange, State

# The most messages at the head that may report what was heard of a reply; no measurement.
_MAX_RESENT = 8


class RepeatedReply(Enum):
    """The stored reply that the assistant's messages at the beginning of a list repeat."""

    # The reply of the last cancelled send. The messages are new, since none of that send is on the path.
    CUT = auto()
    # A reply that is among the pending messages.
    RESENT = auto()
    # The reply of the conversation's head.
    HEAD = auto()
    # The reply of the turn before the head, so the user did not hear the head's.
    ABOVE = auto()
    # The reply of a cancelled send that came with the messages of the head, so the user did not hear the head's.
    WITHIN = auto()
    # Perhaps a reply that was off the record: its words are not stored, so they cannot be compared.
    OFF = auto()


# The kinds by which it is known how much of a stored reply was heard.
HEARD = (RepeatedReply.HEAD, RepeatedReply.ABOVE)


class PathHead(Struct, frozen=True):
    """The end of the stored path from which a list of new messages goes on, in append mode."""

    # The last exchange of that path; None in a new conversation.
    exchange: Exchange | None
    # Messages of cancelled sends, or of a turn that is asked once more. They come between the path and the list.
    pending: Sequence[WireMessage]
    # How many messages at the beginning of the list are not new.
    leading: int
    # The reply that these messages repeat.
    repeated: RepeatedReply | None


def find_head(tree: Tree, query: Query, match: Match) -> PathHead | None:
    """Returns the head from which a list goes on in append mode; None where the list repeats stored messages.

    Such a list is matched instead. The head is the exchange that was touched last; its path comes before the list.
    """
    head = _touched_last(tree)
    if _is_own_text(tree, query.listing, match, head):
        match = Match()
    return None if match.first > 0 else _HeadSearch(tree, query, match, head).run()


def _is_own_text(tree: Tree, listing: HashedList, match: Match, head: Exchange | None) -> bool:
    """Returns whether a list begins with words of the application's that an old reply has too, such as a greeting.

    The conversation went on after that reply, and no user message stands before these words.
    """
    match_point = match.match_point
    if match_point is None or match_point is head or has_calls(match_point.reply):
        return False
    return match.last < _count_leading(listing) and tree.is_continued(match_point)


def _count_leading(listing: HashedList) -> int:
    """Returns how many messages of the assistant stand in front of those that are new."""
    return next((i for i in range(len(listing)) if listing.role(i) != "assistant"), 0)


class _HeadSearch:
    """Finds what the messages at the beginning of a list repeat, and where the path ends that comes before it."""

    def __init__(self, tree: Tree, query: Query, match: Match, head: Exchange | None) -> None:
        self._tree = tree
        self._query = query
        self._match = match
        self._listing = query.listing
        self._head = head
        # The exchange before the head, if the head begins with a user message.
        self._above = None
        if self._head is not None and not tree.continues_turn(self._head):
            self._above = tree.parent(self._head)
        self._cut = self._cut_sends()
        # The cancelled sends whose messages came with those of the head.
        self._joined = self._find_joined()
        compared = (self._head, self._above, *self._cut, *self._joined)
        tree.group_for_loading(exchange for exchange in compared if exchange is not None)
        self._pending = self._pending_messages()

    def run(self) -> PathHead | None:
        head, listing, pending = self._head, self._listing, self._pending
        repeated, leading = self._repeated_reply()
        if repeated is RepeatedReply.CUT:
            leading = 0
        new = listing.messages[leading:]
        is_unheard = repeated in (RepeatedReply.ABOVE, RepeatedReply.WITHIN)
        if head is not None and (is_unheard or self._asks_again(new, repeated, leading)):
            # The head's messages come with the next ones, as a sibling.
            pending = [*self._head_messages(), *pending]
            head = self._tree.parent(head)
        if repeated is RepeatedReply.WITHIN:
            repeated = RepeatedReply.RESENT
        if repeated is RepeatedReply.RESENT:
            resent_index = self._place_resent(pending, leading)
            assert resent_index is not None  # `pending` has the reply by which `repeated` was found
            pending = [*pending[:resent_index], *listing.messages[:leading], *pending[resent_index + 1 :]]
        count = self._count_repeated(new, pending)
        pending = pending[: len(pending) - count]
        is_next = repeated is not None or count or self._match.match_point is None
        return PathHead(head, pending, leading, repeated) if is_next else None

    def _asks_again(self, new: Sequence[WireMessage], repeated: RepeatedReply | None, leading: int) -> bool:
        """Returns whether the new messages bring those of the head once more, because its answer got lost."""
        head, pending = self._head, self._pending
        if head is None or not new:
            return False
        if new[0].get("role") in RESULT_ROLES and not has_calls(head.reply):
            # No call waits for a result, so it is one that the head has.
            return self._count_repeated(new, [*self._head_messages(), *pending]) > len(pending)
        if pending or not self._query.is_retry:
            return False
        # What an SDK sends again has the very words; others that begin so are the next message.
        is_same = self._count_repeated(new, self._head_messages(), may_grow=False) == len(new)
        return is_same and (repeated is not RepeatedReply.HEAD or self._is_heard(self._above, leading))

    def _repeated_reply(self) -> tuple[RepeatedReply | None, int]:
        """Returns the reply that the head of the list repeats, and in how many messages; None: it repeats none.

        The application's own text, or a second reply, may follow it.
        """
        listing = self._listing
        leading = _count_leading(listing)
        if not leading:
            return None, 0
        is_off = self._has_off_sibling()
        for end in (leading, *range(min(leading - 1, _MAX_RESENT), 0, -1)):
            is_resent = self._place_resent(self._pending, end) is not None
            is_heads = self._is_heard(self._head, end, least=1)
            # The last reply is tried first, since replies may begin alike: of a cancelled send no reply is on the path
            # yet, and what a later send reported of one is pending. A request that is sent again repeats its report.
            is_again = (is_resent or is_heads) and self._count_repeated(listing.messages[end:], self._pending)
            if self._cut and not is_again and was_heard(self._tree, self._cut[-1], listing, 0, end, least=1):
                return (RepeatedReply.OFF, leading) if is_off else (RepeatedReply.CUT, end)
            if is_resent:
                return RepeatedReply.RESENT, end
            if is_heads:
                return RepeatedReply.HEAD, end
            if self._is_heard(self._above, end):
                return RepeatedReply.ABOVE, end
            if self._is_within_head(end):
                return RepeatedReply.WITHIN, end
        return (RepeatedReply.OFF, leading) if is_off else (None, 0)

    def _count_repeated(
        self, new: Sequence[WireMessage], before: Sequence[WireMessage], *, may_grow: bool = True
    ) -> int:
        """Returns how many of the last messages before new ones come once more at their beginning.

        may_grow: the last of them may be a transcript that went on.
        """
        counts = range(min(len(new), len(before)), 0, -1)
        return next((n for n in counts if self._repeats(new[:n], before[-n:], may_grow=may_grow)), 0)

    def _repeats(self, new: Sequence[WireMessage], before: Sequence[WireMessage], *, may_grow: bool) -> bool:
        """Returns whether messages are as many others once more; may_grow: or a transcript that went on."""
        hasher = self._listing.hasher
        pairs = [*zip(new, before, strict=True)]
        # Words alone do not distinguish another picture, or the result of another call, from the same one.
        if any(
            hasher.media_digest(a) != hasher.media_digest(b) or a.get("tool_call_id") != b.get("tool_call_id")
            for a, b in pairs
        ):
            return False
        others = [(a, b) for a, b in pairs if hasher.atoms(a) != hasher.atoms(b)]
        if not others or not may_grow:
            return not others
        (last, earlier), *_ = others
        is_user = last.get("role") == earlier.get("role") == "user"
        return others == pairs[-1:] and is_user and is_grown_transcript(text_of(last), text_of(earlier))

    def _has_off_sibling(self) -> bool:
        """Returns whether the list may repeat a reply that was off the record there, with unknown words."""
        if self._match.match_point is not None and self._match.match_point.state is not State.OFF:
            return False
        siblings = [exchange for exchange in self._tree if exchange.parent is None]
        if self._head is not None:
            siblings = [*self._tree.children(self._head), *self._tree.siblings(self._head)]
        return any(exchange.state is State.OFF for exchange in siblings)

    def _is_heard(self, exchange: Exchange | None, leading: int, least: int = 4) -> bool:
        """Returns whether the first `leading` messages of the list are what was heard of the reply of an exchange.

        least: letters, where they are not all of it.
        """
        if exchange is None or not leading or not exchange.reply or not self._tree.may_change(exchange):
            return False
        return was_heard(self._tree, exchange, self._listing, 0, leading, least)

    def _is_within_head(self, leading: int) -> bool:
        """Returns whether the first `leading` messages report a reply that the messages of the head report as well."""
        if not any(was_heard(self._tree, each, self._listing, 0, leading) for each in self._joined):
            return False
        return self._place_resent(self._head_messages(), leading) is not None

    def _head_messages(self) -> Sequence[WireMessage]:
        """Returns the input messages of the head."""
        return () if self._head is None else self._tree.content(self._head).messages or ()

    def _place_resent(self, messages: Sequence[WireMessage], leading: int) -> int | None:
        """Returns where messages report a reply that the first `leading` messages of the list report again."""
        heard = heard_letters("".join(map(self._listing.text, range(leading))))
        places = (
            i
            for i, m in enumerate(messages)
            if m.get("role") == "assistant" and is_beginning(heard, letters_of(text_of(m)))
        )
        return max(places, default=None)

    def _pending_messages(self) -> list[WireMessage]:
        """Returns the messages of cancelled sends that come before those of the list."""
        pending, listing = self._cancelled_messages(), self._listing
        if len(listing) and all(listing.role(i) in RESULT_ROLES for i in range(len(listing))):
            # Results follow their calls, so messages that the user sent meanwhile wait for the next ones.
            return [m for m in pending if m.get("role") in RESULT_ROLES]
        return pending

    def _cut_sends(self) -> list[Exchange]:
        """Returns the cancelled sends after the head, oldest first.

        A user's may have waited for results of tools. One that repeated the question of the head is its sibling.
        """
        tree, head = self._tree, self._head
        after = (
            tree.children(head)
            if head is not None
            else [exchange for exchange in tree if exchange.parent is None]
        )
        if head is not None and not tree.continues_turn(head):
            asked = len(head.inputs)
            siblings = (exchange for exchange in tree.siblings(head) if exchange.begun > head.begun)
            after += [exchange for exchange in siblings if exchange.inputs[:asked] == head.inputs]
        while head is not None and tree.continues_turn(head):
            head = tree.parent(head)
            after += (
                [exchange for exchange in tree.children(head) if not tree.continues_turn(exchange)]
                if head is not None
                else []
            )
        cut = [
            exchange
            for exchange in after
            if exchange.ended is None and exchange.state in (State.OPEN, State.CANCELLED)
        ]
        return sorted(cut, key=lambda exchange: (exchange.begun, exchange.id))

    def _find_joined(self) -> list[Exchange]:
        """Returns the cancelled sends whose messages came with those of the head."""
        head = self._head
        if head is None:
            return []
        return [
            each
            for each in self._tree.siblings(head)
            if each.state is State.CANCELLED and head.inputs[: len(each.inputs)] == each.inputs
        ]

    def _cancelled_messages(self) -> list[WireMessage]:
        """Returns the messages of the last cancelled send, which are stored and sent with the next one.

        Those that the upstream has refused would only be refused again. One that repeated the question of the head
        brings what follows that question.
        """
        tree, head = self._tree, self._head
        if not self._cut:
            return []
        last = self._cut[-1]
        pending = [] if last.superseded else tree.content(last).messages or []
        if head is not None and head.inputs and not tree.continues_turn(head) and last.parent == head.parent:
            return pending[len(head.inputs) :]
        new = next((exchange for exchange in reversed(self._cut) if not tree.continues_turn(exchange)), None)
        if new is None or new is last or new.superseded:
            return pending
        return [*pending, *(m for m in tree.content(new).messages or () if m.get("role") == "user")]


def _touched_last(tree: Tree) -> Exchange | None:
    """Returns the head of a conversation. What is off the record is on no path: the next turn goes on before it."""
    touched = tree.touched_times()
    newest_first = sorted(tree, key=lambda each: (touched[each.id], each.begun, each.id), reverse=True)
    return next(
        (e for e in newest_first if e.state is not State.OFF and tree.is_active(e, is_named=True)), None
    )


def was_heard(
    tree: Tree, exchange: Exchange, listing: HashedList, start: int, end: int, least: int = 4
) -> bool:
    """Returns whether messages are what was heard of the reply of an exchange. least: letters, as in `is_beginning`."""
    heard = heard_letters("".join(map(listing.text, range(start, end))))
    return is_beginning(heard, letters_of(text_of(tree.content(exchange).shown_reply or {})), least)
