"""Edits of a request body in its parsed value, which is written once.

A body without an edit goes on as the bytes that came. Of an edited one the values stay: the same value is written as
the same bytes in each request, and what cannot be written as a value is taken from the bytes that came.
"""

from __future__ import annotations

import json as standard_json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from adapters.types import Json
from gateway.core.json_limits import is_too_deep
from gateway.core.message_text import with_text_before, with_texts_after, without_surrogates
from gateway.errors import BadRequest

_DROPPED: Final = object()
_SYSTEM = frozenset({"system", "developer"})

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
# Integers of 64 bits have at most so many digits; longer ones become floats in orjson.
_DIGITS = 18
_LONG = b"0" * (_DIGITS + 1)
_ALL_ZEROS = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))


class BodyEdit:
    """The edits of one body.

    Indices are those of the client's messages, whatever was edited before. A message that is replaced or dropped is
    not edited inside.
    """

    def __init__(self, raw: bytes, json: Json, *, listed: str = "messages", text_kind: str = "text") -> None:
        """Begins without edits.

        raw: the body as it came.
        json: its value, which is not changed.
        listed: the member that has the messages, a name that differs between dialects.
        text_kind: the type of a part that is text, which differs as well.
        """
        self._raw = raw
        self._json = json
        self._listed = listed
        self._text_kind = text_kind
        self._members: Json = {}
        self._before: dict[int, list[Json]] = {}
        self._instead: dict[int, list[Json]] = {}
        self._notes: dict[int, str] = {}
        self._roles: dict[int, str] = {}
        self._appended: list[str] = []
        self._tools: list[Json] = []
        self._are_in_front = False

    def set_member(self, key: str, value: Any) -> None:
        """Replaces a member's value in its place, or adds the member at the end."""
        self._members[key] = without_surrogates(value) if isinstance(value, str) else value

    def drop_member(self, key: str) -> None:
        if key in self._json:
            self._members[key] = _DROPPED

    def insert_messages(self, index: int, messages: Iterable[Json]) -> None:
        """Inserts before the message `index`; the number of messages as index means the end."""
        if new := [*messages]:
            self._before.setdefault(index, []).extend(new)

    def replace_message(self, index: int, messages: Iterable[Json]) -> None:
        self._instead[index] = [*messages]

    def drop_message(self, index: int) -> None:
        self._instead[index] = []

    def prefix_text(self, index: int, text: str) -> None:
        """Puts `text` before the message's own, as `with_text_before` does."""
        if text:
            self._notes[index] = without_surrogates(text)

    def set_role(self, index: int, role: str) -> None:
        self._roles[index] = role

    def append_system(self, text: str) -> None:
        """Puts `text`, after an empty line, at the end of the leading system (or developer) message.

        It is a part of its own where the content is a list, and a new message in front where there is no such message.
        """
        self._appended.append(without_surrogates(text))

    def add_tools(self, tools: Iterable[Json], *, in_front: bool = False) -> None:
        """Adds tools after the client's own, or in front of them.

        Adding none changes nothing: some upstreams refuse an empty `tools`.
        """
        self._tools.extend(tools)
        self._are_in_front = in_front

    def render(self) -> bytes:
        """Returns the body with all edits in it; the same object when there are none.

        Raises: BadRequest: a member is nested so deep that no edit can be made next to it.
        """
        has_list_edits = bool(self._before or self._instead or self._notes or self._roles or self._appended)
        if not (has_list_edits or self._members or self._tools):
            return self._raw
        if not (has_list_edits or self._tools) and self._adds_only():
            # What is added alone leaves the bytes that came as they are.
            return self._raw.rstrip()[:-1] + b"," + orjson.dumps(self._members)[1:]
        edited = self._edited(self._json, has_list_edits)
        try:
            if not _may_change(self._raw, self._json):
                return orjson.dumps(edited)
        except orjson.JSONEncodeError:
            pass  # a member is nested more deeply than it writes
        return orjson.dumps(self._edited(_as_came(self._raw, self._json), has_list_edits))

    def _adds_only(self) -> bool:
        """Returns whether the only edits are new members of an object that has some."""
        return bool(self._json) and self._json.keys().isdisjoint(self._members)

    def _edited(self, json: Json, has_list_edits: bool) -> Json:
        body = {**json, **self._members}
        for key, value in self._members.items():
            if value is _DROPPED:
                del body[key]
        if has_list_edits:
            body[self._listed] = self._edited_list(json[self._listed])
        if self._tools:
            own = json.get("tools")
            own = own if isinstance(own, list) else []
            body["tools"] = [*self._tools, *own] if self._are_in_front else [*own, *self._tools]
        return body

    def _edited_list(self, messages: Sequence[Json]) -> list[Json]:
        found = [*messages]
        for index, text in self._notes.items():
            found[index] = with_text_before(found[index], text, self._text_kind)
        for index, role in self._roles.items():
            found[index] = {**found[index], "role": role}
        edited: list[Json] = []
        if self._appended:
            leads = found and found[0].get("role") in _SYSTEM
            first = with_texts_after(found[0], self._appended, self._text_kind) if leads else None
            if first is not None:
                found[0] = first
            else:
                edited.append({"role": "system", "content": "\n\n".join(self._appended)})
        at = 0
        for index in sorted(self._before.keys() | self._instead.keys()):
            edited += found[at:index]
            edited += self._before.get(index, ())
            at = index
            if index in self._instead:
                edited += self._instead[index]
                at += 1
        edited += found[at:]
        return edited


def _may_change(raw: bytes, json: Json) -> bool:
    """Returns whether a body may have an integer beyond 64 bits, which orjson changes; never False where it has."""
    # Most clients write JSON as orjson does. Of the others most put spaces into it.
    is_compact = raw.find(b'": ', 0, 99) < 0 and orjson.dumps(json) == raw
    return not is_compact and _LONG in raw.translate(_ALL_ZEROS)


def _as_came(raw: bytes, json: Mapping[str, Any]) -> Json:
    """Returns a body's value, with the client's bytes in place of what orjson does not write, or changes.

    These are members that are nested too deep, and integers beyond 64 bits. Raises: BadRequest.
    """
    try:
        members = _MEMBERS.decode(raw)
    except RecursionError as error:
        raise BadRequest("The JSON body of your request is nested too deep.") from error
    return {
        key: _member(bytes(members[key]), value)
        if key in members and isinstance(value, dict | list | float)
        else value
        for key, value in json.items()
    }


def _member(raw: bytes, value: Any) -> Any:
    if is_too_deep([value]):
        return orjson.Fragment(raw)
    return standard_json.loads(raw, parse_int=_integer)


def _integer(digits: str) -> Any:
    return orjson.Fragment(digits) if len(digits) > _DIGITS else int(digits)
