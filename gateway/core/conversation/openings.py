"""Openings, the first exchanges of conversations without an id: digests that show which lists may belong to them.

By rule 6 (docs/conversations.md) a list that continues no stored exchange may repeat or extend an opening of the idle
time. Nearly always it does neither. If the cached digests prove that, no stored exchange is loaded; otherwise the rules
compare the list with the exchanges themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.words import list_transcript_words
from storage.commands import MissingContents, Opening
from storage.records import Exchange


def begins_conversation(query: Query, openings: Iterable[Opening]) -> bool:
    """Returns whether a list certainly begins a new conversation; False: it may belong to an opening.

    openings: all openings of the memory that may still be extended. Nothing of the memory may be off the record.
    """
    listing = query.listing
    if (
        listing.answered_count
        or query.is_named
        or query.kind is not ConversationKind.CLIENT
        or query.mode is not MemoryUse.ON
        or not len(listing)
    ):
        return False
    words_by_index: dict[int, list[str]] = {}
    return not any(
        opening.begun > query.now
        or (query.now - opening.at <= query.idle_s and _may_extend(listing, opening, words_by_index))
        for opening in openings
    )


def digest_opening(plan: Plan, at: float) -> Opening | None:
    """Returns the digests of a turn that opens a conversation without an id; None: the turn opens no such conversation.

    at: the time at which the turn is written, in seconds since the epoch.
    """
    if plan.match.match_point is not None or plan.query.is_named or not plan.messages:
        return None
    return _digest_exchange(plan.exchange, plan.messages[-1], at)


def digest_openings(tree: Tree) -> list[Opening]:
    """Returns the digests of those openings of a tree that nothing continues, the newest last."""
    first_exchanges = sorted(
        (exchange for exchange in tree if exchange.parent is None and not exchange.continued),
        key=lambda exchange: exchange.begun,
    )
    return [
        _digest_exchange(each, _find_last_message(tree, each), _read_end_time(each))
        for each in first_exchanges
    ]


def _digest_exchange(exchange: Exchange, last_message: WireMessage | None, at: float) -> Opening:
    """Returns the digests of an exchange.

    last_message: the last message of its input; None: the content is not loaded.
    at: the time at which the turn of the exchange ended, in seconds since the epoch.
    """
    if last_message is None:
        return Opening(at, exchange.begun, exchange.inputs, word_count=None, stem=None)
    words = list_transcript_words(read_text(last_message))
    return Opening(at, exchange.begun, exchange.inputs, len(words), _stem(words, len(words)))


def _may_extend(listing: HashedList, opening: Opening, words_by_index: dict[int, list[str]]) -> bool:
    """Returns whether a list may extend an opening, by the rules of `Tree.extends`.

    words_by_index: a cache of the words of the list's messages.
    """
    last_index = len(opening.inputs) - 1
    atoms = listing.atoms
    if not 0 <= last_index < len(atoms):
        return False
    if atoms[last_index] != opening.inputs[last_index]:
        if not (is_user(atoms[last_index]) and is_user(opening.inputs[last_index])):
            return False
        if opening.word_count is not None:
            if last_index not in words_by_index:
                words_by_index[last_index] = list_transcript_words(listing.read_text(last_index))
            words = words_by_index[last_index]
            if not 0 < opening.word_count <= len(words) or _stem(words, opening.word_count) != opening.stem:
                return False
    return tuple(atoms[:last_index]) == opening.inputs[:last_index]


def _stem(words: Sequence[str], count: int) -> int:
    """Returns a hash of the first `count` words without the last, which may be cut off and grow in a later transcript.

    If there is only one word, it is hashed.
    """
    return hash(tuple(words[: max(1, count - 1)]))


def _find_last_message(tree: Tree, exchange: Exchange) -> WireMessage | None:
    """Returns the last input message of an exchange, or None if its content is not loaded or not stored."""
    try:
        messages = tree.contents.get(exchange).messages
    except MissingContents:
        return None
    return messages[-1] if messages else None


def _read_end_time(exchange: Exchange) -> float:
    """Returns the time at which an opening ended; infinity while it is under way."""
    end = exchange.stopped if exchange.ended is None else exchange.ended
    return inf if end is None else max(end, exchange.touched)
