"""Lists of items that an upstream has stored, without the notes that memory had put into the client's input.

A note is the beginning of a text; the client's own words after it stay.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from adapters.json_escapes import read_json
from gateway.core.prompt.note_text import without_first_note
from gateway.core.turn.reply_change import ReplyChange
from gateway.errors import UpstreamReplyBroken

# Is in the tag of a note, however the upstream escapes "<".
_TAG_WORD: Final = b"memory"
_TEXT_PART_TYPE: Final = "input_text"


class NoteRemoval(ReplyChange):
    """Removes notes from a page of items, or from a single item."""

    def change_body(self, body: bytes) -> bytes:
        if _TAG_WORD not in body:
            return body
        value, _ = read_json(body)
        if value is None:
            raise UpstreamReplyBroken("The upstream sent a list of items that is no JSON.")
        client_value = _remove_notes(value)
        return orjson.dumps(client_value) if client_value is not value else body


def _remove_notes(value: Any) -> Any:
    """Returns a page or an item without notes; the same object if it has no note."""
    items = value.get("data") if isinstance(value, dict) else None
    if not isinstance(items, list):
        return _remove_item_notes(value)
    client_items = [_remove_item_notes(item) for item in items]
    return {**value, "data": client_items} if _is_changed(client_items, items) else value


def _remove_item_notes(item: Any) -> Any:
    parts = item.get("content") if isinstance(item, dict) else None
    if not isinstance(parts, list):
        return item
    client_parts = [_remove_part_note(part) for part in parts]
    if not _is_changed(client_parts, parts):
        return item
    if len(parts) > 1:
        # Before a part that is no text the note was a part of its own, of which nothing is left.
        client_parts = [
            client_part
            for client_part, part in zip(client_parts, parts, strict=True)
            if client_part is part or client_part["text"]
        ]
    return {**item, "content": client_parts}


def _is_changed(client_members: list[Any], members: list[Any]) -> bool:
    return any(
        client_member is not member for client_member, member in zip(client_members, members, strict=True)
    )


def _remove_part_note(part: Any) -> Any:
    if (
        not isinstance(part, dict)
        or part.get("type") != _TEXT_PART_TYPE
        or not isinstance(part.get("text"), str)
    ):
        return part
    client_text = without_first_note(part["text"])
    return part if client_text == part["text"] else {**part, "text": client_text}
