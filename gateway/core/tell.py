"""What of an exchange other conversations may know.

Never what was off the record, never tool results, never a head that was made elsewhere (few-shot examples, templates)
until it was carried on, nor when another conversation opened with the same one.
"""

from __future__ import annotations

from gateway.core.canonical import WireMessage
from gateway.core.tree import Content, is_tombstone
from storage.records import Exchange

__all__ = ["told"]


def told(e: Exchange, content: Content, *, head_is_shared: bool) -> list[tuple[int, WireMessage]]:
    """(index in the input, or -1 for the reply; message), in order."""
    if is_tombstone(e) or content.messages is None:
        return []
    head = 0 if e.carried and not head_is_shared else e.head
    found = [
        (i, m)
        for i, m in enumerate(content.messages)
        if i >= head and i not in e.hush and m.get("role") not in ("tool", "function")
    ]
    return [*found, (-1, content.said)] if content.said is not None else found
