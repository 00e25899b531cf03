"""The evidence that a stored reply is the one that a list has, and not another with the same words."""

from __future__ import annotations

from gateway.core.applications import IN_PLACE
from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import without_space
from storage.records import Exchange

# The fewest characters of a long reply, white space aside: it is not expected to occur elsewhere word for word.
LONG_REPLY_CHARS = 32


def has_question_within(tree: Tree, exchange: Exchange, listing: HashedList, reply_start: int) -> bool:
    """Returns whether a list has another question between the question of an exchange and its reply.

    Several questions are answered at once over one history (a chatbot, LiveKit, Pipecat), so a reply may come after the
    next question. A match there would leave the later question unstored.

    reply_start: the index of the reply's first message in the list.
    """
    parent = tree.find_parent(exchange)
    question = exchange.inputs[-1] if exchange.inputs else None
    atoms = listing.atoms
    for i in range(reply_start - 1, -1, -1):
        if atoms[i] == question:
            return any(map(is_user, atoms[i + 1 : reply_start]))
        # The question comes after the reply of the exchange before.
        if parent is not None and atoms[i] == parent.reply:
            break
    return False


def has_same_question(tree: Tree, exchange: Exchange, listing: HashedList, question_index: int) -> bool:
    """Returns whether one of two questions, of the list and of an exchange, is the other with a template around it.

    Any two results of tools count as the same, because clients prune them. A text that an application puts in place of
    omitted messages (the summary of a compaction) counts as any question.

    question_index: the index of the question in the list.
    """
    if listing.read_role(question_index) != "user":
        return bool(exchange.inputs) and not is_user(exchange.inputs[-1])
    text = listing.read_text(question_index)
    if (replacement := IN_PLACE.match(text)) and not text[replacement.end() :].strip():
        return True
    stored_question = tree.read_question(exchange)
    client_question = without_space(text)
    if not stored_question or not client_question:
        return False
    return stored_question in client_question or client_question in stored_question
