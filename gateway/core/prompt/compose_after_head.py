"""Composes the list of a request that goes on from the head of a stored conversation (append mode)."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import accumulate, takewhile

from gateway.core.conversation.plan import Plan
from gateway.core.conversation.portable_message import make_portable_message
from gateway.core.conversation.tree import PathPosition, Tree
from gateway.core.conversation.wire_message import WireMessage, make_shown_reply
from gateway.core.prompt.composition import Composition, InsertedMessage
from gateway.core.prompt.hidden_rounds import restore_rounds
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.omitted_messages import is_of_same_model, list_omitted_messages, make_resent_reply
from gateway.core.prompt.result_order import SentMessage, has_calls_or_results, put_results_after_calls


def compose_after_head(
    tree: Tree, plan: Plan, offered_tools: Container[str], new_notes: Mapping[int, str]
) -> Composition:
    """Returns the composition of a list that goes on from a head.

    The messages at the end of the list that are in order already stay there. All others are inserted before them.
    The parameters are as in `compose`.

    Raises: MissingContents.
    """
    listing, match_point = plan.query.listing, plan.match.match_point
    heard_with_rounds = _find_heard_with_rounds(tree, plan, offered_tools)
    omitted = list_omitted_messages(tree, plan, offered_tools)
    messages = [
        *_list_heard_messages(plan, heard_with_rounds),
        *_list_messages_without_reply(plan, new_notes),
    ]
    # A history may have thousands of messages, and most have no calls and results.
    if has_calls_or_results(omitted) or has_calls_or_results(each.content for each in messages):
        messages = put_results_after_calls([*map(SentMessage, omitted), *messages])
        omitted = []
    had_rounds = match_point is not None and match_point.has_full_reply and plan.heard_count > 0
    composition = Composition(unrestored_rounds=int(had_rounds and heard_with_rounds is None))
    unmoved_messages = _find_unmoved_messages(messages, listing.positions)
    moved_indices = set(range(len(listing)))
    for message, index in unmoved_messages:
        assert index is not None  # only messages of the client's list stay
        if message.note:
            tokens = estimate_tokens(message.note)
            composition.put_note(listing.positions[index], message.note, tokens, message.shown_blocks)
        moved_indices.remove(index)
    moved_messages = messages[: len(messages) - len(unmoved_messages)]
    composition.inserted = [*omitted, *(message.content for message in moved_messages)]
    composition.replacements = {listing.positions[i]: [] for i in moved_indices}
    return composition


def _find_heard_with_rounds(
    tree: Tree, plan: Plan, offered_tools: Container[str]
) -> list[WireMessage] | None:
    """Returns the last reply as it was heard, with its hidden rounds, as it is sent from now on (append mode).

    Returns None if the reply has no hidden rounds, or if they cannot be restored.
    """
    match_point = plan.match.match_point
    messages = plan.query.listing.messages[: plan.heard_count]
    if match_point is None or not match_point.has_full_reply or not messages:
        return None
    reply = make_resent_reply(make_shown_reply(messages) if len(messages) > 1 else messages[0])
    is_same = is_of_same_model(match_point, plan)
    return restore_rounds(
        tree.contents.get(match_point),
        reply,
        following=None,
        offered_tools=offered_tools,
        is_same_model=is_same,
    )


def _find_unmoved_messages(
    messages: Sequence[SentMessage], positions: Sequence[int]
) -> Sequence[SentMessage]:
    """Returns the messages at the end that stay in the client's list.

    positions: the position in the request of each message of the list.
    """
    start = len(messages)
    first_index = len(positions)
    while start and (index := messages[start - 1].list_index) is not None and index < first_index:
        start -= 1
        first_index = index
    result_count = len([*takewhile(lambda each: each.role == "tool", messages[start:])])
    result_positions = positions[first_index : first_index + result_count]
    # Results directly follow their reply. The list may have a system message among them, or after a reply that moves.
    if result_positions and (first_index or result_positions[-1] - result_positions[0] >= result_count):
        start += result_count
    return messages[start:]


def _list_heard_messages(plan: Plan, with_rounds: Sequence[WireMessage] | None) -> Iterator[SentMessage]:
    """Yields the last reply as it was heard. with_rounds: the reply with its hidden rounds; None: no hidden rounds."""
    match_point, listing = plan.match.match_point, plan.query.listing
    if match_point is None or not plan.heard_count:
        return
    position = PathPosition(match_point.depth, plan.exchange.offset - len(match_point.reply or ()))
    atoms = tuple(listing.list_atoms(plan.heard_count))
    messages = listing.messages[: plan.heard_count] if with_rounds is None else with_rounds
    is_same = is_of_same_model(match_point, plan)
    for i, message in enumerate(messages if is_same else map(make_portable_message, messages)):
        yield SentMessage(InsertedMessage.of(message, atoms, position), i if with_rounds is None else None)


def _list_messages_without_reply(plan: Plan, new_notes: Mapping[int, str]) -> Iterator[SentMessage]:
    """Yields the messages without a reply: pending messages, then the list's messages after a repeated last reply."""
    listing = plan.query.listing
    exchange = plan.exchange
    pending_count = len(plan.pending)
    offsets = accumulate(map(len, exchange.inputs), initial=exchange.offset)
    inputs = [
        InsertedMessage.of(message, atoms, PathPosition(exchange.depth, offset), new_notes.get(i, ""))
        for i, (message, atoms, offset) in enumerate(
            zip(plan.messages, exchange.inputs, offsets, strict=False)
        )
    ]
    yield from map(SentMessage, inputs[:pending_count])
    start = plan.heard_count or plan.resent_count
    # The heard part of a reply that was off the record is sent, and not stored.
    unstored_indices = range(start, len(listing) - len(plan.new_indices))
    unstored_messages = [
        InsertedMessage.of(listing.messages[i], listing.atoms[i], None) for i in unstored_indices
    ]
    for i, message in enumerate([*unstored_messages, *inputs[pending_count:]], start):
        yield SentMessage(message, i)
