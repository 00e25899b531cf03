"""Puts stored replies back into a client's list with what the client has dropped: hidden rounds and provider fields."""

from __future__ import annotations

from collections.abc import Container, Mapping

from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.exchange_content import Content
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import without_private
from gateway.core.conversation.provider_fields import refill
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.composition import Composition, read_shown_blocks, without_result
from gateway.core.prompt.hidden_rounds import is_offered, restore_rounds, without_rounds
from gateway.core.prompt.omitted_messages import is_made_without_earlier_results, is_of_same_model
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, ShownBlocks, combine_shown
from storage.records import Exchange


def put_restored_replies(
    tree: Tree,
    plan: Plan,
    replies: Mapping[int, Exchange],
    offered_tools: Container[str],
    composition: Composition,
) -> None:
    """Puts the replies that are one message of the list into the composition, with their rounds and provider fields.

    replies: the stored replies by their messages' indices in the list.
    offered_tools: the names of the gateway tools in this request.

    Raises: MissingContents.
    """
    restorable: list[tuple[int, Exchange]] = []
    for i, exchange in replies.items():
        if not (exchange.has_full_reply or exchange.opaque):
            continue
        if _is_one_message(i, exchange, replies):
            restorable.append((i, exchange))
        else:
            # A reply that the client has in two messages stays so. It breaks the provider's cache once as well.
            composition.unrestored_rounds += exchange.has_full_reply and i == plan.match.last
    tree.contents.group(exchange for _, exchange in restorable)
    # The index of the message before which the results of tools are not sent again.
    first_read_index = max(
        (i for i, each in restorable if is_made_without_earlier_results(tree.contents.get(each).shown_reply)),
        default=0,
    )
    for i, exchange in restorable:
        content = tree.contents.get(exchange)
        messages = _find_restored_reply(i, exchange, content, plan, offered_tools)
        if messages is None:
            if exchange.has_full_reply:
                # A reply that came back cut is sent cut from then on. So it breaks the provider's cache once, in the
                # request that follows the reply directly. A tool that is missing breaks the cache in each request.
                is_break = i == plan.match.last or not is_offered(content, offered_tools)
                composition.unrestored_rounds += is_break
            _put_reply_without_rounds(plan.query.listing, i, content, composition)
        else:
            sends_results = i >= first_read_index
            _put_restored_reply(
                plan.query.listing, i, exchange, content, messages, composition, sends_results=sends_results
            )


def _put_reply_without_rounds(
    listing: HashedList, index: int, content: Content, composition: Composition
) -> None:
    """Puts a reply into the composition without the provider fields of its hidden rounds, if it has such fields."""
    message = listing.messages[index]
    bare_reply = without_rounds(content, message)
    if bare_reply is not message:
        composition.replacements[listing.positions[index]] = [without_private(bare_reply)]


def _put_restored_reply(
    listing: HashedList,
    index: int,
    exchange: Exchange,
    content: Content,
    messages: list[WireMessage],
    composition: Composition,
    *,
    sends_results: bool,
) -> None:
    """Puts a restored reply into the composition, in place of the reply of the list.

    messages: the hidden rounds, then the reply.
    sends_results: False: the results of tools go without their content.
    """
    position = listing.positions[index]
    sent_messages = messages if sends_results else map(without_result, messages)
    composition.replacements[position] = [*map(without_private, sent_messages)]
    if exchange.has_full_reply:
        composition.stored_rounds[position] = messages
        if listing.locate_message(count_atoms_to_end(exchange) - len(exchange.reply or ())) != index:
            composition.moves_rounds = True
    if shown_blocks := _read_shown_in_rounds(content):
        composition.shown_blocks[position] = shown_blocks


def _find_restored_reply(
    index: int, exchange: Exchange, content: Content, plan: Plan, offered_tools: Container[str]
) -> list[WireMessage] | None:
    """Returns a reply of the list with its hidden rounds, or else its provider fields; None: the reply stays."""
    listing = plan.query.listing
    message = listing.messages[index]
    is_same_model = is_of_same_model(exchange, plan)
    if exchange.has_full_reply:
        following = listing.messages[index + 1 :]
        return restore_rounds(content, message, following, offered_tools, is_same_model=is_same_model)
    if not is_same_model or listing.atoms[index] != exchange.reply:
        return None
    refilled_reply = refill(message, content.shown_reply or {})
    return None if refilled_reply is None else [refilled_reply]


def _is_one_message(index: int, exchange: Exchange, replies: Mapping[int, Exchange]) -> bool:
    """Returns whether the client has a reply in one message. replies: the replies by their messages' indices."""
    neighbours = replies.get(index - 1), replies.get(index + 1)
    return all(neighbour is None or neighbour.id != exchange.id for neighbour in neighbours)


def _read_shown_in_rounds(content: Content) -> ShownBlocks:
    """Returns the memory blocks that the hidden rounds of a reply show."""
    return combine_shown(map(read_shown_blocks, content.full_reply or ()), NOTHING_SHOWN)
