"""Edits of a request body: they are made in its parsed value, which is serialised once.

A body without edits stays the client's bytes. In an edited body equal values become equal bytes in every request; a
value that orjson cannot serialise, or would change, keeps the client's bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.json_escapes import may_round, read_exact
from adapters.types import Json
from gateway.core.json_limits import is_too_deep
from gateway.core.json_object import is_written_by_orjson, read_members
from gateway.core.lenient import as_list
from gateway.core.message_text import with_text_before, with_texts_after, without_surrogates
from gateway.core.roles import SYSTEM_ROLES
from gateway.errors import BadRequest

# The value of a member that is dropped.
_DROPPED: Final = object()


class BodyEdit:
    """The edits of one body.

    Indices count the client's messages, whatever was edited before. A message that is replaced or dropped is not edited
    inside, except that texts for the leading system message go into the message that replaces it.
    """

    def __init__(
        self, raw: bytes, json: Json, *, list_key: str = "messages", text_kind: str = "text"
    ) -> None:
        """Begins without edits.

        raw: the body as it came.
        json: the value of the body, which is not changed.
        list_key: the member that has the messages in the request's dialect.
        text_kind: the type of a part that is text in that dialect.
        """
        self._raw = raw
        self._json = json
        self._list_key = list_key
        self._text_kind = text_kind
        # The new values of members, by their keys.
        self._members: Json = {}
        # The inserted messages, by the index of the message before which they come.
        self._inserted_messages: dict[int, list[Json]] = {}
        # The messages that replace a message, by its index.
        self._replacements: dict[int, list[Json]] = {}
        # The texts before a message's own, by its index.
        self._prefixes: dict[int, str] = {}
        # The new roles of messages, by their indices.
        self._roles: dict[int, str] = {}
        # The texts at the end of the leading system message.
        self._system_texts: list[str] = []
        # The added tools.
        self._tools: list[Json] = []
        # All added tools go before the client's own.
        self._are_tools_first = False

    def set_member(self, key: str, value: Any) -> None:
        """Replaces a member's value in its place, or adds the member at the end."""
        self._members[key] = without_surrogates(value) if isinstance(value, str) else value

    def drop_member(self, key: str) -> None:
        """Removes a member, if the body has it."""
        if key in self._json:
            self._members[key] = _DROPPED

    def insert_messages(self, index: int, messages: Iterable[Json]) -> None:
        """Inserts messages. index: the index of the message after them; the number of messages: at the end."""
        new_messages = [*messages]
        if new_messages:
            self._inserted_messages.setdefault(index, []).extend(new_messages)

    def replace_message(self, index: int, messages: Iterable[Json]) -> None:
        """Puts other messages in the place of a message."""
        self._replacements[index] = [*messages]

    def drop_message(self, index: int) -> None:
        """Removes a message."""
        self._replacements[index] = []

    def prefix_text(self, index: int, text: str) -> None:
        """Puts `text` before the message's own text, as `with_text_before` does."""
        if text:
            self._prefixes[index] = without_surrogates(text)

    def set_role(self, index: int, role: str) -> None:
        """Replaces a message's role."""
        self._roles[index] = role

    def append_system(self, text: str) -> None:
        """Puts `text`, after an empty line, at the end of the leading system (or developer) message.

        The text is a part of its own if the content is a list, and a new first message if the list has no such message.
        """
        self._system_texts.append(without_surrogates(text))

    def add_tools(self, tools: Iterable[Json], *, are_first: bool = False) -> None:
        """Adds tools after the client's own. Adding none changes nothing: some upstreams refuse an empty `tools`.

        are_first: True if these tools and all tools that were added before go before the client's own.
        """
        self._tools.extend(tools)
        self._are_tools_first = are_first

    def render(self) -> bytes:
        """Returns the body with all edits; the same object if nothing was edited.

        Raises: BadRequest: a member is nested too deep for an edit next to it.
        """
        if not (self._edits_messages or self._members or self._tools):
            return self._raw
        if not (self._edits_messages or self._tools) and self._only_adds_members():
            # New members are appended to the bytes as they came.
            return self._raw.rstrip()[:-1] + b"," + orjson.dumps(self._members)[1:]
        edited_body = self._apply_edits(self._json)
        try:
            if not _may_have_big_integer(self._raw, self._json):
                return orjson.dumps(edited_body)
        except orjson.JSONEncodeError:
            pass  # a member is nested more deeply than orjson writes
        return orjson.dumps(self._apply_edits(_with_raw_members(self._raw, self._json)))

    def list_origins(self) -> list[int | None]:
        """Returns, for each message of the edited body, its index in the client's list; None: it was added."""
        client_messages = self._json[self._list_key]
        count = len(client_messages)
        origins: list[int | None] = []
        for index in range(count + 1):
            origins += [None] * len(self._inserted_messages.get(index, ()))
            if index < count:
                origins += [index] * len(self._replacements.get(index, (None,)))
        leading_messages = self._replacements.get(0, client_messages[:1])
        adds_first_message = bool(self._system_texts) and self._append_system_texts(leading_messages) is None
        return [None, *origins] if adds_first_message else origins

    @property
    def _edits_messages(self) -> bool:
        """True if the edit changes messages."""
        return bool(
            self._inserted_messages
            or self._replacements
            or self._prefixes
            or self._roles
            or self._system_texts
        )

    def _only_adds_members(self) -> bool:
        """Returns whether the only edits are new members of an object that is not empty."""
        return bool(self._json) and self._json.keys().isdisjoint(self._members)

    def _apply_edits(self, json: Json) -> Json:
        """Returns a body's value with all edits. json: the value of the body, perhaps with bytes for some members."""
        body = {key: value for key, value in {**json, **self._members}.items() if value is not _DROPPED}
        if self._edits_messages:
            body[self._list_key] = self._list_edited_messages(json[self._list_key])
        if self._tools:
            client_tools = as_list(json.get("tools"))
            body["tools"] = (
                [*self._tools, *client_tools] if self._are_tools_first else [*client_tools, *self._tools]
            )
        return body

    def _list_edited_messages(self, client_messages: Sequence[Json]) -> list[Json]:
        """Returns the client's messages with all edits."""
        messages = [*client_messages]
        for index, text in self._prefixes.items():
            messages[index] = with_text_before(messages[index], text, self._text_kind)
        for index, role in self._roles.items():
            messages[index] = {**messages[index], "role": role}
        replacements = dict(self._replacements)
        edited_messages: list[Json] = []
        if self._system_texts:
            leading_messages = replacements.get(0, messages[:1])
            if (extended_messages := self._append_system_texts(leading_messages)) is not None:
                replacements[0] = extended_messages
            else:
                edited_messages = [{"role": "system", "content": "\n\n".join(self._system_texts)}]
        start = 0
        for index in sorted(self._inserted_messages.keys() | replacements.keys()):
            edited_messages += messages[start:index]
            edited_messages += self._inserted_messages.get(index, ())
            start = index
            if index in replacements:
                edited_messages += replacements[index]
                start += 1
        edited_messages += messages[start:]
        return edited_messages

    def _append_system_texts(self, messages: Sequence[Json]) -> list[Json] | None:
        """Returns the messages with the texts at the end of the first; None: the first is no system message."""
        if messages and messages[0].get("role") in SYSTEM_ROLES:
            extended_message = with_texts_after(messages[0], self._system_texts, self._text_kind)
            if extended_message is not None:
                return [extended_message, *messages[1:]]
        return None


def _may_have_big_integer(raw: bytes, json: Json) -> bool:
    """Returns whether a body may have an integer beyond 64 bits, which orjson changes; False is certain."""
    return not is_written_by_orjson(raw, json) and may_round(raw)


def _with_raw_members(raw: bytes, json: Mapping[str, Any]) -> Json:
    """Returns a body's value with the client's bytes in place of members that orjson does not write, or changes.

    Such members are nested too deep, or have integers beyond 64 bits.

    Raises: BadRequest.
    """
    try:
        members = read_members(raw)
    except RecursionError as error:
        raise BadRequest("The JSON body of your request is nested too deep.") from error
    return {
        key: _decode_value(bytes(members[key]), value)
        if key in members and isinstance(value, dict | list | float)
        else value
        for key, value in json.items()
    }


def _decode_value(raw: bytes, value: Any) -> Any:
    if is_too_deep([value]):
        return orjson.Fragment(raw)
    return read_exact(raw, value)
