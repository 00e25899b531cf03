"""The messages of a request that stay off the record, since they repeat messages that are forgotten or off the record.

This is rule 12 of docs/conversations.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence

from gateway.core.conversation.canonical import is_result, is_user, is_user_or_text
from gateway.core.conversation.exchange import ends_off_record, is_same_input, is_tombstone, lacks_reply
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import Query
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, has_result_role
from storage.records import REPLY, Atom, Exchange, ExchangeState, make_message_key


def repeats_off_record(
    tree: Tree,
    query: Query,
    exchange: Exchange,
    messages: Sequence[WireMessage],
    match_point: Exchange | None,
    rivals: Iterable[Exchange],
    *,
    follows_head: bool,
) -> bool:
    """Returns whether a turn that was off the record is asked again, goes on, or gets results of its tools."""
    repeats = any(
        ends_off_record(other)
        for other in rivals
        if is_asked_again(query, other, exchange, follows_head=follows_head)
    )
    if repeats or match_point is None or any(map(is_user, exchange.inputs)):
        return repeats
    if query.ignores_forgotten:
        # If all calls are still there, their results join the conversation, although messages after the calls were
        # forgotten, or the question.
        if not lacks_reply(match_point) or not any(map(is_result, exchange.inputs)):
            return False
        replied_exchanges = [each for each in tree.list_path(match_point) if not lacks_reply(each)]
        # An answered call is not that of the result: some upstreams give the calls of each reply the same ids.
        answered_rows = {each.parent for each in replied_exchanges if any(map(is_result, each.inputs))}
        open_exchanges = [each for each in replied_exchanges if each.id not in answered_rows]
        results = filter(has_result_role, messages)
        return not all(tree.find_called_rows(open_exchanges, [each]) for each in results)
    return ends_off_record(match_point)


def is_asked_again(query: Query, other: Exchange, exchange: Exchange, *, follows_head: bool) -> bool:
    """Returns whether a request repeats another at its position, so that both are on or off the record together.

    If the client sends new messages alone, a request off the record does not count, since each request decides for
    itself. A request off the record that began later, to ask about the same message, does not count either. A request
    for a stored response repeats no forgotten one: an application that has deleted a response may ask for it anew.
    """
    if not is_same_input(other, exchange):
        return False
    if other.state is ExchangeState.OFF:
        return not follows_head and other.begun <= exchange.begun
    return not query.makes_response


def has_lost_reply(query: Query, exchange: Exchange) -> bool:
    """Returns whether the reply of an exchange is off the record, or forgotten so that the list may repeat it."""
    if exchange.state is ExchangeState.OFF:
        return True
    return lacks_reply(exchange) and not query.ignores_forgotten


def find_recorded_indices(exchange: Exchange, rivals: Iterable[Exchange]) -> set[int]:
    """Returns the indices of messages, without the last one, that another request at this position has stored."""
    indices: set[int] = set()
    for other in rivals:
        count = len(other.inputs)
        is_beginning = count < len(exchange.inputs) and other.inputs == exchange.inputs[:count]
        if is_beginning and not is_tombstone(other):
            indices.update(i for i in range(count) if i not in other.redactions)
    return indices


def find_redactions(
    tree: Tree,
    query: Query,
    exchange: Exchange,
    messages: Sequence[WireMessage],
    pending_count: int,
    rivals: Iterable[Exchange],
) -> frozenset[int]:
    """Returns the indices of the messages of an exchange that must not be stored.

    Such a message equals a message that is forgotten or off the record, or answers such a message. The last message is
    never among them: it is new, and `Plan.is_off_record` decides of the whole turn whether the turn is on the record.
    The first `pending_count` messages are on the record, and so are messages that a rival has stored.

    If a rival is off the record or forgotten, the assistant's words before the first message of a user may be what was
    heard of its reply, of which no words are known. In append mode `find_head` decides of such words.
    """
    forgotten_hashes: Container[bytes] = frozenset()
    if query.ignores_forgotten:
        tombstone_atoms = _list_off_record_atoms(tree, exchange.begun)
    else:
        tombstone_atoms = _list_tombstone_atoms(tree, exchange.begun)
        forgotten_hashes = tree.forgotten_hashes
    if not tombstone_atoms and not forgotten_hashes:
        return frozenset()
    recorded_indices = find_recorded_indices(exchange, rivals)
    lost_replies = (
        other for other in rivals if has_lost_reply(query, other) and other.begun < exchange.begun
    )
    may_repeat_lost_reply = query.kind is ConversationKind.CLIENT and any(lost_replies)
    first_words = itertools.takewhile(
        lambda i: messages[i].get("role") == "assistant", range(pending_count, len(messages))
    )
    heard_indices = set(first_words) - recorded_indices if may_repeat_lost_reply else set[int]()
    unrecorded_indices = {
        i
        for i, atoms in enumerate(exchange.inputs[:-1])
        if i >= pending_count
        and (
            (i not in recorded_indices and atoms in tombstone_atoms)
            or make_message_key(atoms) in forgotten_hashes
        )
    }
    return frozenset(redact_with_answers(unrecorded_indices | heard_indices, messages[:-1]))


def redact_with_answers(unrecorded_indices: Container[int], messages: Sequence[WireMessage]) -> set[int]:
    """Returns the indices of messages that must not be stored and of their answers, up to the user's next message.

    unrecorded_indices: the indices of the messages that must not be stored.
    """
    redactions: set[int] = set()
    for i, message in enumerate(messages):
        if i in unrecorded_indices or (i - 1 in redactions and message.get("role") != "user"):
            redactions.add(i)
    return redactions


def _list_off_record_atoms(tree: Tree, begun_at: float) -> set[tuple[Atom, ...]]:
    """Returns the atoms of the messages that were off the record before a request began."""
    off_atoms = _list_tombstone_atoms((each for each in tree if each.state is ExchangeState.OFF), begun_at)
    # A turn off the record is redacted in part if another part of it was stored before.
    redacted_atoms = _list_tombstone_atoms((each for each in tree if not is_tombstone(each)), begun_at)
    return off_atoms | {
        atoms for atoms in redacted_atoms if make_message_key(atoms) not in tree.forgotten_hashes
    }


def _list_tombstone_atoms(exchanges: Iterable[Exchange], begun_at: float) -> set[tuple[Atom, ...]]:
    """Returns the atoms of the messages that were forgotten, or off the record before a request began."""
    message_atoms = (
        atoms
        for exchange in exchanges
        if (exchange.redactions or is_tombstone(exchange))
        and not (exchange.state is ExchangeState.OFF and exchange.begun > begun_at)
        for i, atoms in (*enumerate(exchange.inputs), (REPLY, exchange.reply or ()))
        if is_tombstone(exchange) or i in exchange.redactions
    )
    return {atoms for atoms in message_atoms if is_user_or_text(atoms)}
