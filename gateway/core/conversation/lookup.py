"""The keys under which the exchanges that may matter to a request are looked up: hashes that an index answers."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from gateway.core.conversation.canonical import is_user_or_text
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import Query
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.turn_replies import make_reply_keys
from storage.commands import MAX_QUESTIONS, Probes
from storage.records import make_message_key

# The number of last turns in which replies are looked up. Older replies are found by the hash of the path.
_PROBED_TURNS = 8
# The number of exchanges at the end of a conversation that are loaded at first, besides as many as a list has replies.
# More are loaded if these are not enough.
RECENT_EXCHANGES = 64
# The number of a list's last messages that are looked up in the index of marks. The store takes 32 keys, and one of
# them is the hash of the list's path: up to 31 messages fit.
_MARKED_MESSAGES = 29


def make_probes_for_list(
    query: Query,
    conversation_key: str | None,
    *,
    max_exchanges: int | None = None,
    min_depth: int | None = None,
    loaded_depth: int | None = None,
    loads_contents: bool = False,
) -> Probes:
    """Returns all keys under which the exchanges that may matter to a list can be found.

    conversation_key: the client's conversation id; None: the client gives no id. With an id only that conversation
        matters, so no other key is needed.
    max_exchanges, min_depth, loaded_depth, loads_contents: the limits of the read, as in `Probes`.
    """
    listing = query.listing
    probes = Probes(
        conversation_key,
        since=query.now - query.idle_s,
        maybe_forgotten=[make_message_key(atoms) for atoms in listing.atoms[:-1] if is_user_or_text(atoms)],
        max_exchanges=max_exchanges,
        min_depth=min_depth,
        loaded_depth=loaded_depth,
        loads_contents=loads_contents,
    )
    if conversation_key is not None:
        return probes
    # An exchange is marked by the hash of a path that it begins, or by a message that is off the record.
    marks = [listing.answered_path_hash] if listing.answered_count else []
    marks += [make_message_key(atoms) for atoms in reversed(listing.atoms[-_MARKED_MESSAGES:])]
    return replace(
        probes,
        replies=make_reply_keys(listing, _PROBED_TURNS) if listing.answered_count else [],
        questions=_list_question_keys(listing),
        marks=marks,
    )


def make_probes_for_plain_turn(plan: Plan, conversation_key: str | None) -> Probes:
    """Returns the keys to find a plain turn's conversation again, if it moved before the turn is written."""
    since = plan.query.now - plan.query.idle_s
    match_point = plan.match.match_point
    if match_point is None:
        return Probes(conversation_key, since=since)
    return Probes(
        conversation_key,
        replies=[match_point.reply_key] if match_point.reply_key else [],
        questions=[make_message_key(match_point.inputs[-1])] if match_point.inputs else [],
        since=since,
        min_depth=max(0, match_point.depth - RECENT_EXCHANGES),
    )


def _list_question_keys(listing: HashedList) -> list[bytes]:
    """Returns the keys of the last questions in a list, the last one first, each once."""
    keys: dict[bytes, None] = {}
    for i in _find_question_indices(listing):
        keys[make_message_key(listing.atoms[i])] = None
        if len(keys) == MAX_QUESTIONS:
            break
    return list(keys)


def _find_question_indices(listing: HashedList) -> Iterator[int]:
    """Yields the index of the message before each reply, and of the user's last before it; last replies first."""
    # The index of the user's last message before `i`; None: no user message is left.
    user_index: int | None = len(listing)
    for i in range(len(listing) - 1, 0, -1):
        if listing.read_role(i) != "assistant" or listing.read_role(i - 1) == "assistant":
            continue
        yield i - 1
        if user_index is not None and user_index >= i:
            user_index = next((k for k in range(i - 1, -1, -1) if listing.read_role(k) == "user"), None)
        if user_index is not None and user_index < i - 1:
            yield user_index
