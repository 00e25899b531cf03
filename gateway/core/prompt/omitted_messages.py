"""Lists the stored messages of a path that the client's list leaves out, as they go upstream."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from gateway.core.conversation.canonical import is_result, is_user
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.exchange_content import Content
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.portable_message import make_portable_message
from gateway.core.conversation.private import read_private, without_private
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import WireMessage, has_result_role
from gateway.core.prompt.composition import InsertedMessage, without_result
from gateway.core.prompt.hidden_rounds import restore_rounds, without_rounds
from storage.records import Exchange


def list_omitted_messages(tree: Tree, plan: Plan, offered_tools: Container[str]) -> list[InsertedMessage]:
    """Returns the messages of the path that the client's list leaves out, as they go upstream."""
    elements = _list_sendable(plan.omitted, plan.query.listing, _find_called_rows(tree, plan))
    tree.contents.group(element.exchange for element in elements)
    omitted: list[InsertedMessage] = []
    stored_exchange: _StoredExchange | None = None
    for element in elements:
        if stored_exchange is None or element.exchange is not stored_exchange.exchange:
            stored_exchange = _StoredExchange.of(tree, plan, element.exchange)
            if is_made_without_earlier_results(stored_exchange.content.shown_reply):
                omitted = [replace(earlier, message=without_result(earlier.message)) for earlier in omitted]
        note = ""
        if element.message_index >= 0:
            messages = stored_exchange.list_input_messages(element.message_index)
            if is_user(element.atoms):
                note = element.exchange.notes.get(element.message_index, "")
        else:
            messages = stored_exchange.list_reply_messages(offered_tools)
        for message in messages if stored_exchange.is_same_model else map(make_portable_message, messages):
            omitted.append(InsertedMessage.of(message, element.atoms, element.position, note))
    return omitted


def is_resent(plan: Plan, exchange: Exchange) -> bool:
    """Returns whether a reply that the client's list leaves out goes upstream. It does not if its question is gone."""
    return any(each.exchange.id == exchange.id for each in _list_sendable(plan.omitted, plan.query.listing))


def is_made_without_earlier_results(reply: WireMessage | None) -> bool:
    """Returns whether a reply was made without the results before the previous reply, which its upstream refused."""
    return reply is not None and bool(read_private(reply).get("unread_earlier"))


def is_of_same_model(exchange: Exchange, plan: Plan) -> bool:
    """Returns whether the model that answers the request has made the reply of an exchange."""
    return bool(plan.query.model) and exchange.model == plan.query.model


def make_resent_reply(shown_reply: WireMessage) -> WireMessage:
    """Returns a reply as clients send it back: without private fields, and without null and empty lists.

    Such fields are `refusal` and `annotations`.
    """
    return {
        name: value
        for name, value in without_private(shown_reply).items()
        if name in ("role", "content") or value not in (None, [])
    }


class _StoredExchange(NamedTuple):
    """A stored exchange with messages that go upstream."""

    # The exchange as the tree has it.
    exchange: Exchange
    # The content of the exchange.
    content: Content
    # True: the model that answers the request has made the reply.
    is_same_model: bool
    # True: an upstream has refused the results of tools in the input, so they are sent without their content.
    has_refused_results: bool

    @classmethod
    def of(cls, tree: Tree, plan: Plan, exchange: Exchange) -> _StoredExchange:
        """Loads the content of an exchange. Raises: MissingContents."""
        content = tree.contents.get(exchange)
        is_unread = bool(read_private(content.shown_reply or {}).get("unread"))
        has_refused = is_unread or exchange.id in plan.refused_results
        return cls(exchange, content, is_of_same_model(exchange, plan), has_refused)

    def list_input_messages(self, message_index: int) -> list[WireMessage]:
        """Returns a list with one message of the input; []: the message is not stored."""
        if self.content.messages is None:
            return []
        message = self.content.messages[message_index]
        # The call of the result stays, and with it the edit that the model has made of a block.
        return [without_result(message) if self.has_refused_results else message]

    def list_reply_messages(self, offered_tools: Container[str]) -> list[WireMessage]:
        """Returns the reply, with its hidden rounds if they can be restored; []: there is no reply."""
        content = self.content
        if content.shown_reply is None:
            return []
        if content.is_step:
            return [*map(make_resent_reply, content.full_reply or ())]
        reply = make_resent_reply(content.shown_reply)
        with_rounds = None
        if content.full_reply:
            with_rounds = restore_rounds(
                content, reply, following=None, offered_tools=offered_tools, is_same_model=self.is_same_model
            )
        return with_rounds or [without_rounds(content, reply)]


def _find_called_rows(tree: Tree, plan: Plan) -> set[int]:
    """Returns the rows of left-out exchanges with the calls of the results with which a client's list begins.

    Only a path that has lost a message is searched. Raises: MissingContents.
    """
    if not any(map(_is_gone, plan.omitted)):
        return set()
    results = itertools.takewhile(has_result_role, plan.query.listing.messages)
    replies = [each for each in plan.omitted if each.message_index < 0 and not _is_gone(each)]
    return tree.find_called_rows([each.exchange for each in replies], results)


def _list_sendable(
    elements: Sequence[PathElement], listing: HashedList, called_rows: Container[int] = ()
) -> list[PathElement]:
    """Returns the elements that may be sent.

    An element may not be sent if it is forgotten or off the record, or if it answers such an element: chat templates
    refuse an answer without its question, two questions in a row, and a result without its call.

    called_rows: the rows of exchanges with calls of which the client's list has results.
    """
    if not any(map(_is_gone, elements)):
        return [*elements]
    groups = _group_by_question(elements)
    sendable: list[PathElement] = []
    is_continued_by_list = bool(len(listing)) and not is_user(listing.atoms[0])
    # If a message of a group is gone, the whole group is left out, unless the other messages can stand alone, or a
    # result of the list needs its call.
    for group in groups:
        present_elements = [element for element in group if not _is_gone(element)]
        gone_elements = [element for element in group if _is_gone(element)]
        lacks_questions_alone = all(is_user(element.atoms) for element in gone_elements) and is_user(
            present_elements[0].atoms if present_elements else ()
        )
        has_needed_call = any(element.exchange.id in called_rows for element in present_elements)
        if not gone_elements or lacks_questions_alone or has_needed_call:
            sendable += present_elements
        elif is_continued_by_list and group is groups[-1]:
            # The first messages of the list belong to this group, so no older message may stand right before them. But
            # the results of tools go with their calls.
            sendable = sendable + present_elements if is_result(listing.atoms[0]) else []
    return sendable


def _group_by_question(elements: Iterable[PathElement]) -> list[list[PathElement]]:
    """Returns groups of elements: in each, a user's messages and the messages that answer them."""
    groups: list[list[PathElement]] = []
    for element in elements:
        if not groups or (is_user(element.atoms) and not is_user(groups[-1][-1].atoms)):
            groups.append([])
        groups[-1].append(element)
    return groups


def _is_gone(element: PathElement) -> bool:
    """Returns whether a message is forgotten or off the record."""
    exchange = element.exchange
    return element.message_index in exchange.redactions or is_tombstone(exchange)
