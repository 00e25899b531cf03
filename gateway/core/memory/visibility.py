"""What of an exchange other conversations may know.

Never what was off the record, never tool results, never a head that was made elsewhere (few-shot examples, templates)
until it was carried on, nor when another conversation opened with the same one.
"""

from __future__ import annotations

from collections.abc import Container

import orjson

from gateway.core.conversation.canonical import WireMessage, text_of
from gateway.core.conversation.tree import is_tombstone
from gateway.core.prompt import note
from storage.records import Exchange, Message

__all__ = ["messages_of", "told", "told_places"]


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
    return found if e.said is None or -1 in e.hush else [*found, -1]


def told(e: Exchange, *, head_is_shared: bool) -> list[tuple[int, WireMessage]]:
    """(place, message), in order."""
    places = told_places(e, head_is_shared=head_is_shared)
    if not places:
        return []
    # Taken apart once: an imported head may have thousands of messages.
    inputs: list[WireMessage] = orjson.loads(e.input or b"[]")
    return [(i, orjson.loads(e.said or b"{}") if i < 0 else inputs[i]) for i in places]


def messages_of(
    e: Exchange, head_is_shared: bool, previous: int | None, wanted: Container[int] | None = None
) -> list[Message]:
    """What recall may find of an exchange. A reply may quote a note of ours: that part is not its own words.

    previous: seq of the message before it. wanted: seqs; None: all.
    """
    found = []
    for i, m in told(e, head_is_shared=head_is_shared):
        is_reply = i < 0
        seq = e.seq + (len(e.inputs) if is_reply else i)
        if wanted is not None and seq not in wanted:
            continue
        text = note.strip_notes(text_of(m)) if is_reply else text_of(m)
        if not text.strip():
            continue
        name = m.get("name")
        found.append(
            Message(
                seq=seq,
                exchange=e.id,
                role="assistant" if is_reply else str(m.get("role")),
                text=text,
                at=(e.ended if is_reply else None) or e.begun,
                conversation=e.conversation,
                speaker=name if isinstance(name, str) else None,
                atoms=(e.reply or ()) if is_reply else e.inputs[i],
                previous=previous,
            )
        )
        previous = seq
    return found
