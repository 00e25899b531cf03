"""The keys under which the exchanges that may matter to a request are looked up: hashes that an index answers."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.conversation import match
from gateway.core.conversation.canonical import Listing
from gateway.core.conversation.match import Query
from gateway.core.conversation.plan import Plan
from storage.commands import MOST_QUESTIONS, Probes

# Turns back in which our replies are looked for; further back the hash of the path finds them.
PROBED_TURNS = 8


# Exchanges at the end of a conversation that are loaded at first, besides as many as a list has replies; more only
# where those are not enough.
RECENT = 64


def full_probes(
    query: Query, key: str | None, *, recent: int | None = None, low: int | None = None
) -> Probes:
    """Returns everything under which the exchanges that may matter to a list can be found.

    recent, low: as in `Probes`.
    """
    listing = query.listing
    since = query.now - query.idle_s
    maybe_tombs = [b"".join(atoms) for atoms in listing.atoms[:-1] if atoms and atoms[0][:1] in b"ua"]
    if key is not None:
        return Probes(key, since=since, maybe_tombs=maybe_tombs, recent=recent, low=low)
    asked: dict[bytes, None] = {}
    for i in _questions(listing):
        asked[b"".join(listing.atoms[i])] = None
        if len(asked) == MOST_QUESTIONS:
            break
    marks = [listing.path_answered] if listing.answered else []
    marks += [b"".join(atoms) for atoms in listing.atoms[:-30:-1]]
    replies = match.spans_of(listing, PROBED_TURNS) if listing.answered else []
    return Probes(None, replies, list(asked), marks, since, maybe_tombs, recent, low)


def _questions(listing: Listing) -> Iterator[int]:
    """Yields what each reply answered, the last one first: the message before it, and the user's if that is another."""
    user = len(listing)
    for i in range(len(listing) - 1, 0, -1):
        if listing.role(i) != "assistant" or listing.role(i - 1) == "assistant":
            continue
        yield i - 1
        if user >= i:
            user = next((k for k in range(i - 1, -1, -1) if listing.role(k) == "user"), -1)
        if 0 <= user < i - 1:
            yield user


def plain_probes(plan: Plan, key: str | None) -> Probes:
    """Returns enough to find a plain turn's conversation again, if it moved before the turn is written."""
    match_point = plan.match.match_point
    replies = [match_point.reply_key] if match_point is not None and match_point.reply_key else []
    inputs = [b"".join(match_point.inputs[-1])] if match_point is not None and match_point.inputs else []
    since, low = (
        plan.query.now - plan.query.idle_s,
        None if match_point is None else max(0, match_point.depth - RECENT),
    )
    return Probes(key, replies, inputs, since=since, low=low)
