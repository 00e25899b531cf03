"""The evidence that a stored reply is the one that a list has, and not another with the same words."""

from __future__ import annotations

from gateway.core.applications import IN_PLACE
from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import text_of, without_space
from storage.records import Exchange

# A reply with so many characters is not expected to occur elsewhere word for word.
LONG_REPLY = 32


def has_question_within(tree: Tree, exchange: Exchange, listing: HashedList, first: int) -> bool:
    """Returns whether a list has a further question between the one that an exchange answered and its reply.

    Several questions are answered at once over one history (a chatbot, LiveKit, Pipecat), so a reply may come after the
    next question. If the list went on from that reply, this question would never be stored.

    first: the index of the reply's first message in the list.
    """
    parent = tree.parent(exchange)
    atoms = listing.atoms
    for i in range(first - 1, -1, -1):
        if atoms[i : i + 1] == [*exchange.inputs[-1:]]:
            return any(map(is_user, atoms[i + 1 : first]))
        if parent is not None and atoms[i] == parent.reply:
            break
    return False


def has_akin_question(tree: Tree, exchange: Exchange, listing: HashedList, index: int) -> bool:
    """Returns whether a message of the list and an exchange's question are the same but for a template around one.

    Any two results of tools are akin, because clients prune them. A text that an application puts in place of what it
    has left out (the summary of a compaction) is akin to any question.

    index: of the message in the list.
    """
    if listing.role(index) != "user":
        return bool(exchange.inputs) and not is_user(exchange.inputs[-1])
    text = text_of(listing.messages[index])
    if (in_place := IN_PLACE.match(text)) and not text[in_place.end() :].strip():
        return True
    stored = tree.question(exchange)
    listed = without_space(listing.text(index))
    return bool(stored and listed) and (stored in listed or listed in stored)
