"""Public ids of the agents API: made and parsed here alone.

Agents, blocks and other objects have a random uid: `agent-<uid>`. Messages, passages and steps are many; their ids have
the number that their memory gave them, so that no column stores the ids: `message-<uid of the memory>-<seq>`. A message
of a hidden round has the id `<id of its reply>-h<n>`. If the model was called again after a crash, the id of the reply
ends in `-<attempt>`, which look-ups ignore.

    agent-0f3c…                  message-0f3c…-17
    block-77aa…                  message-0f3c…-18-h2
"""

from __future__ import annotations

import re
import uuid

from msgspec import Struct

# The kinds of ids with a uid. An archive, a source (a folder) and a group have the uid of a memory.
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
# The kinds of ids with a number of a memory.
WITH_SEQ = frozenset({"message", "passage", "step"})

# The form of an id, `<kind>-<uid>`.
_UID_FORM = re.compile(r"([a-z_]+)-([0-9a-f]{32})")
# The same form with dashes in the uid, as some clients write it.
_DASHED_FORM = re.compile(r"([a-z_]+)-([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})")
# With 18 digits a number fits into 64 bits, like the numbers of rows.
_SEQ_FORM = re.compile(r"([a-z]+)-([0-9a-f]{32})-([0-9]{1,18})(?:-h([0-9]{1,9}))?(?:-[0-9]{1,9})?")


class ObjectRef(Struct, frozen=True):
    """A reference to a message, passage or step, as its id has it."""

    # The public id of the memory.
    uid: str
    # The number of the object in its memory.
    seq: int
    # The number of a message within a hidden round; None: the message is in no hidden round.
    hidden: int | None = None


def new_uid() -> str:
    """Returns a random uid, which cannot be guessed: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def make_id(kind: str, uid: str) -> str:
    """Returns the id of an object with a uid."""
    assert kind in WITH_UID, kind
    return f"{kind}-{uid}"


def parse_uid(kind: str, public_id: str) -> str | None:
    """Returns the uid in an id of this kind; None: the id has another form or kind.

    A uid with the dashes of a UUID counts too, since older clients write agents' ids so.
    """
    match = _UID_FORM.fullmatch(public_id)
    if match is None:
        match = _DASHED_FORM.fullmatch(public_id)
        return "".join(match.groups()[1:]) if match is not None and match[1] == kind else None
    return match[2] if match[1] == kind else None


def make_id_with_seq(kind: str, uid: str, seq: int, *, hidden: int | None = None) -> str:
    """Returns the id of a message, passage or step. The parameters are those of `ObjectRef`."""
    assert kind in WITH_SEQ, kind
    return f"{kind}-{uid}-{seq}" if hidden is None else f"{kind}-{uid}-{seq}-h{hidden}"


def with_attempt(public_id: str, attempt: int) -> str:
    """Returns the id of a reply for which the model was called again."""
    return f"{public_id}-{attempt}"


def without_attempt(public_id: str) -> str:
    """Returns the id of a message without its attempt."""
    match = _SEQ_FORM.fullmatch(public_id)
    if match is None:
        return public_id
    ref = _make_ref(match)
    return make_id_with_seq(match[1], ref.uid, ref.seq, hidden=ref.hidden)


def parse_ref(kind: str, public_id: str) -> ObjectRef | None:
    """Returns the reference in an id of this kind; None: the id has another form or kind."""
    match = _SEQ_FORM.fullmatch(public_id)
    return None if match is None or match[1] != kind else _make_ref(match)


def _make_ref(match: re.Match[str]) -> ObjectRef:
    return ObjectRef(match[2], int(match[3]), None if match[4] is None else int(match[4]))
