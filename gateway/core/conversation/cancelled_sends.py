"""The cancelled sends at the head of a conversation in append mode.

A cancelled send is on no path. Its messages come between the path and the messages of the next send.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.core.conversation.canonical import is_result
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, has_result_role, read_result_id
from storage.records import Exchange, ExchangeState


class CancelledSends(Struct, frozen=True):
    """The cancelled sends at the head of a conversation's path."""

    # The exchanges of the conversation.
    tree: Tree
    # The last exchange of the path; None: the path is empty.
    head: Exchange | None
    # The sends after the head, oldest first.
    after_head: Sequence[Exchange]
    # The sends with messages that came again with the head.
    joined: Sequence[Exchange]
    # The exchanges of the path that may have the results of the last send.
    later_exchanges: Sequence[Exchange]

    @property
    def last(self) -> Exchange | None:
        """The last send after the head; None: there is no send."""
        return self.after_head[-1] if self.after_head else None

    def list_all(self) -> list[Exchange]:
        """Returns the exchanges of which `list_messages` and the comparison of a report need the contents."""
        return [*self.after_head, *self.joined, *self.later_exchanges]

    def list_messages(self) -> list[WireMessage]:
        """Returns the messages of the last send, which are stored and sent with the next one."""
        last_send = self.last
        if last_send is None:
            return []
        repeated_count = self._count_repeated_question(last_send)
        # A send that the upstream has refused (`superseded`) would only be refused again.
        messages = [] if last_send.superseded else list_input_messages(self.tree, last_send, repeated_count)
        if repeated_count:
            return messages
        answered_ids = {
            read_result_id(message)
            for exchange in self.later_exchanges
            for message in list_input_messages(self.tree, exchange)
            if has_result_role(message)
        }
        messages = [
            each for each in messages if not has_result_role(each) or read_result_id(each) not in answered_ids
        ]
        # If the last send has results of tools, the user may have written before it.
        user_send = next(
            (each for each in reversed(self.after_head) if not self.tree.is_mid_turn(each)), None
        )
        if user_send is None or user_send is last_send or user_send.superseded:
            return messages
        user_messages = list_input_messages(self.tree, user_send)
        return [*messages, *(each for each in user_messages if each.get("role") == "user")]

    def _count_repeated_question(self, send: Exchange) -> int:
        """Returns the number of the send's first messages that repeat the question of the head."""
        head = self.head
        if head is None or self.tree.is_mid_turn(head) or send.parent != head.parent:
            return 0
        return len(head.inputs)


def collect_cancelled_sends(tree: Tree, head: Exchange | None) -> CancelledSends:
    """Returns the cancelled sends at a head; None: the path is empty."""
    after_head = _list_sends_after(tree, head)
    return CancelledSends(
        tree,
        head,
        after_head,
        joined=_list_joined_sends(tree, head),
        later_exchanges=_list_later_exchanges(tree, head, after_head[-1]) if after_head else (),
    )


def list_input_messages(tree: Tree, exchange: Exchange, start: int = 0) -> list[WireMessage]:
    """Returns the stored input messages of an exchange from an index on, without those that were forgotten."""
    messages = tree.contents.get(exchange).messages or ()
    return [m for i, m in enumerate(messages) if i >= start and i not in exchange.redactions]


def _list_sends_after(tree: Tree, head: Exchange | None) -> list[Exchange]:
    """Returns the cancelled sends after a head, oldest first.

    Among them are siblings of the head that repeated its question, and sends of the user that came while the head's
    turn waited for results of tools.
    """
    if head is None:
        after_head = [exchange for exchange in tree if exchange.parent is None]
    else:
        after_head = [*tree.list_children(head)]
    if head is not None and not tree.is_mid_turn(head):
        question_length = len(head.inputs)
        later_siblings = (exchange for exchange in tree.list_siblings(head) if exchange.begun > head.begun)
        after_head += [each for each in later_siblings if each.inputs[:question_length] == head.inputs]
    ancestor = head
    while ancestor is not None and tree.is_mid_turn(ancestor):
        ancestor = tree.find_parent(ancestor)
        if ancestor is not None:
            after_head += [each for each in tree.list_children(ancestor) if not tree.is_mid_turn(each)]
    cancelled_sends = [
        exchange
        for exchange in after_head
        if exchange.ended is None and exchange.state in (ExchangeState.OPEN, ExchangeState.CANCELLED)
    ]
    return sorted(cancelled_sends, key=lambda exchange: (exchange.begun, exchange.id))


def _list_joined_sends(tree: Tree, head: Exchange | None) -> list[Exchange]:
    """Returns the cancelled sends with messages that came again with a head."""
    if head is None:
        return []
    return [
        each
        for each in tree.list_siblings(head)
        if each.state is ExchangeState.CANCELLED and head.inputs[: len(each.inputs)] == each.inputs
    ]


def _list_later_exchanges(tree: Tree, head: Exchange | None, last_send: Exchange) -> list[Exchange]:
    """Returns the path's exchanges after the parent of the last cancelled send; none if that has no results."""
    if not any(map(is_result, last_send.inputs)):
        return []
    later_exchanges: list[Exchange] = []
    exchange = head
    while exchange is not None and exchange.id != last_send.parent:
        later_exchanges.append(exchange)
        exchange = tree.find_parent(exchange)
    return later_exchanges
