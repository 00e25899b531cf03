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

_NOTE_START: Final = b"<memory"
_TEXT_PART_TYPE: Final = "input_text"


class ClientItems(ReplyChange):
    """Removes notes from a list of items, of a single item or of a response."""

    def change_body(self, body: bytes) -> bytes:
        if _NOTE_START not in body:
            return body
        value, _ = read_json(body)
        if value is None:
            raise UpstreamReplyBroken("The upstream sent a list of items that is no JSON.")
        client_value = _without_notes(value)
        return orjson.dumps(client_value) if client_value is not value else body


def _without_notes(value: Any) -> Any:
    """Returns a list or an item without notes; the same object if it has no note."""
    if not isinstance(value, dict):
        return value
    for key, remove_note in (("data", _without_notes), ("content", _remove_part_note)):
        members = value.get(key)
        if isinstance(members, list):
            client_members = list(map(remove_note, members))
            pairs = list(zip(client_members, members, strict=True))
            if all(client_member is member for client_member, member in pairs):
                return value
            if key == "content" and len(members) > 1:
                # Before a part that is no text the note was a part of its own, of which nothing is left.
                client_members = [
                    client_part for client_part, part in pairs if client_part is part or client_part["text"]
                ]
            return {**value, key: client_members}
    return value


def _remove_part_note(part: Any) -> Any:
    if (
        not isinstance(part, dict)
        or part.get("type") != _TEXT_PART_TYPE
        or not isinstance(part.get("text"), str)
    ):
        return part
    client_text = without_first_note(part["text"])
    return part if client_text == part["text"] else {**part, "text": client_text}
