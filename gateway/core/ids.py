"""Public ids of the agents API, made and read in one place.

What is rare has a random uid: `agent-<uid>`, `block-<uid>`. What is frequent is named by its place in the one order of
its memory, so that no column holds it and no number is used twice: `message-<uid of the memory>-<seq>`. A message of a
hidden round is `<id of its reply>-h<n>`; a reply that was called for again after a crash is `<id>-<attempt>`, which
look-ups ignore.

    agent-0f3c…                  message-0f3c…-17
    block-77aa…                  message-0f3c…-18-h2
"""

from __future__ import annotations

import re
import uuid

from msgspec import Struct

# Kinds whose ids hold a uid. Those of archives, sources (folders) and groups hold the uid of a memory.
WITH_UID = frozenset(
    {
        "agent",
        "archive",
        "block",
        "conv",
        "file",
        "group",
        "identity",
        "job",
        "mcp_server",
        "run",
        "source",
        "tool",
    }
)
# Kinds whose ids hold a place.
WITH_PLACE = frozenset({"message", "passage", "step"})

_UID_FORM = re.compile(r"([a-z_]+)-([0-9a-f]{32})")
_DASHED_FORM = re.compile(r"([a-z_]+)-([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})")
# A number that no row has (beyond 64 bits) names nothing.
_PLACE_FORM = re.compile(r"([a-z]+)-([0-9a-f]{32})-([0-9]{1,18})(?:-h([0-9]{1,9}))?(?:-[0-9]{1,9})?")


class Place(Struct, frozen=True):
    """The place that an id names."""

    # The public name of the memory.
    uid: str
    # The number in the one order of the memory.
    seq: int
    # The number of a message within a hidden round.
    hidden: int | None = None


def new_uid() -> str:
    """Returns a random uid, which cannot be guessed: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def id_of(kind: str, uid: str) -> str:
    """Returns the id of what has a uid."""
    assert kind in WITH_UID, kind
    return f"{kind}-{uid}"


def uid_of(kind: str, id: str) -> str | None:
    """Returns the uid in an id of this kind; None: the id has another form or kind.

    A uid with the dashes of a UUID counts too, since older clients write agents' ids so.
    """
    match = _UID_FORM.fullmatch(id)
    if match is None:
        match = _DASHED_FORM.fullmatch(id)
        return "".join(match.groups()[1:]) if match is not None and match[1] == kind else None
    return match[2] if match[1] == kind else None


def id_at(kind: str, uid: str, seq: int, *, hidden: int | None = None) -> str:
    """Returns the id of what stands at a place."""
    assert kind in WITH_PLACE, kind
    return f"{kind}-{uid}-{seq}" if hidden is None else f"{kind}-{uid}-{seq}-h{hidden}"


def tried_again(id: str, attempt: int) -> str:
    """Returns the id of a reply that was called for again."""
    return f"{id}-{attempt}"


def first_try(id: str) -> str:
    """Returns the id of a message without the attempt that it names."""
    found = _PLACE_FORM.fullmatch(id)
    if found is None:
        return id
    hidden = None if found[4] is None else int(found[4])
    return id_at(found[1], found[2], int(found[3]), hidden=hidden)


def place_of(kind: str, id: str) -> Place | None:
    """Returns the place in an id of this kind; None: the id has another form or kind."""
    found = _PLACE_FORM.fullmatch(id)
    if found is None or found[1] != kind:
        return None
    return Place(found[2], int(found[3]), None if found[4] is None else int(found[4]))
