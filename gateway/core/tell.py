"""What of an exchange other conversations may know.

Never what was off the record, never tool results, never a head that was made elsewhere (few-shot examples, templates)
until it was carried on, nor when another conversation opened with the same one.
"""

from __future__ import annotations

import orjson

from gateway.core.canonical import WireMessage
from gateway.core.tree import is_tombstone
from storage.records import Exchange

__all__ = ["message_at", "told", "told_places"]


def told_places(e: Exchange, *, head_is_shared: bool) -> list[int]:
    """Indices in the input, and -1 for the reply, in order. The exchange is one with its content."""
    if is_tombstone(e) or e.input is None:
        return []
    head = 0 if e.carried and not head_is_shared else e.head
    found = [
        i
        for i, atoms in enumerate(e.inputs)
        if i >= head and i not in e.hush and not (atoms and atoms[0][:1] == b"t")
    ]
    return found if e.said is None else [*found, -1]


def message_at(e: Exchange, place: int) -> WireMessage:
    """A message of an exchange with its content; place as in `told_places`."""
    assert e.input is not None
    found: WireMessage = orjson.loads(e.said or b"{}") if place < 0 else orjson.loads(e.input)[place]
    return found


def told(e: Exchange, *, head_is_shared: bool) -> list[tuple[int, WireMessage]]:
    """(place, message), in order."""
    return [(i, message_at(e, i)) for i in told_places(e, head_is_shared=head_is_shared)]
