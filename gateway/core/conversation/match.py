"""Finding the conversation: the client's list is compared with the stored trees.

A stateless client resends everything. `match_list` finds the stored exchange from which the list goes on, its match
point; the messages after the match point's reply are new. Rules are numbered as in docs/conversations.md.

Two searches follow each other: `ExactSearch` finds the last reply that came back word for word, and `AlteredSearch`
looks after it for a reply that came back in another form.

Nothing here knows of scopes or stores: the tree holds only exchanges of the agent that asks, and for a named
conversation only its own exchanges.
"""

from __future__ import annotations

from msgspec.structs import replace

from gateway.core.conversation.altered_search import AlteredSearch
from gateway.core.conversation.exact_search import ExactSearch
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import Match, Query
from gateway.core.conversation.tree import Tree
from gateway.core.subsequence import count_common_beginning


def match_list(tree: Tree, query: Query) -> Match:
    """Finds the stored reply from which the list goes on. Raises: MissingContents."""
    if query.path_length is not None and query.listing.answered_count > query.path_length:
        # The client's own assistant messages, after the response that it continues, are no stored replies.
        path = query.listing.messages[: query.path_length]
        query = replace(query, listing=HashedList(query.listing.hasher, path))
    listing, answered_count = query.listing, query.listing.answered_count
    if not answered_count or not tree.by_id:
        return Match()
    shared = _count_shared(tree, listing)
    if shared >= answered_count:
        return Match()
    at_empty_reply = _find_empty_reply(tree, listing)
    if at_empty_reply is not None:
        return at_empty_reply
    exact = ExactSearch(tree, query, shared).run()
    return AlteredSearch(tree, query, exact).run() or exact


def _count_shared(tree: Tree, listing: HashedList) -> int:
    """Returns the number of first messages that a list shares with an earlier opening; none of these is a stored reply.

    A model may greet in the very words of the application's greeting.
    """
    openings = (exchange.inputs for exchange in tree if exchange.parent is None)
    return max((count_common_beginning(inputs, listing.atoms) for inputs in openings), default=0)


def _find_empty_reply(tree: Tree, listing: HashedList) -> Match | None:
    """Returns the match at an exchange with an empty reply (no text, no calls); None: there is no such exchange.

    Its path is compared with the list, since an empty reply has no atoms to search for. This is a case of rule 2 of
    docs/conversations.md.
    """
    first = last = listing.answered_count - 1
    if listing.atoms[last]:
        return None
    exchanges = [
        exchange
        for exchange in tree
        if exchange.reply == () and exchange.path_hash == listing.answered_path_hash
    ]
    if not exchanges:
        return None
    while first and listing.read_role(first - 1) == "assistant" and not listing.atoms[first - 1]:
        first -= 1
    return Match(max(exchanges, key=lambda exchange: (exchange.begun, exchange.id)), first, last)
