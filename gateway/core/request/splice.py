"""Edits of a request body in the client's own bytes, without serialising the client's JSON again.

`Splice` collects edits against the offsets of a body's parts (scan.py) and joins the slices once. Everything that no
edit touches comes out as the very bytes that came in, white space, escapes and order of keys included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import orjson

from gateway.core.request.scan import QUOTE, Layout, Member, Span, first_of, members_at

_NOWHERE: Span = (-1, -1)
_Edit = tuple[int, int, bytes]  # replace body[start:end]

_PLACE = itemgetter(0, 1)

_LIST, _NULL = b"[n"
# How a content begins that text can be added to: a string, a list or null; None: there is none.
_TAKES_TEXT = frozenset((QUOTE, _LIST, _NULL, None))


def dump(message: Mapping[str, Any]) -> bytes:
    """Returns a message or tool of our own as JSON."""
    return orjson.dumps(message)


class Splice:
    """Edits of one body, rendered once. Indices are those of the client's messages, whatever was edited before.

    Edits of different kinds compose; of one kind they apply in the order of the calls. A message that is
    replaced or dropped cannot be edited inside (ValueError), nor a member that is set or dropped as a whole.
    """

    def __init__(self, layout: Layout, text_kind: str = "text") -> None:
        """text_kind: the type of a part that is text; other dialects have other names."""
        self._layout = layout
        self._text_kind = text_kind
        self._body = layout.body
        self._members: dict[str, bytes | None] = {}
        self._before: dict[int, list[bytes]] = {}
        self._instead: dict[int, list[bytes]] = {}
        self._texts: list[_Edit] = []  # within texts of the client's
        self._parts: dict[int, list[str]] = {}  # before contents that do not begin with a text
        self._prefixed: set[int] = set()
        self._roles: dict[int, str] = {}
        self._appended: list[str] = []
        self._tools: list[bytes] = []
        self._are_in_front = False
        self._opened: dict[int, tuple[list[Member], int]] = {}  # members of messages that were looked into

    def set_member(self, key: str, value: bytes) -> None:
        """Replaces the value where it stands, or adds the member at the end. Of a repeated key one stays."""
        self._members[key] = value

    def put_around(self, key: str, before: str = "", behind: str = "") -> None:
        """Puts texts around a member that is a string."""
        span = self._layout.span(key)
        if span is None or self._body[span[0]] != QUOTE:
            raise ValueError(f"`{key}` is no string")
        self._texts.append((span[0] + 1, span[0] + 1, _escape(before)))
        self._texts.append((span[1] - 1, span[1] - 1, _escape(behind)))

    def drop_member(self, key: str) -> None:
        self._members[key] = None

    def insert_messages(self, index: int, messages: Iterable[bytes]) -> None:
        """Inserts before the message `index`; the number of messages as index means the end."""
        if not 0 <= 3 * index <= len(self._layout.places):
            raise IndexError(f"no place {index} among {len(self._layout.places) // 3} messages")
        self._before.setdefault(index, []).extend(messages)

    def replace_message(self, index: int, messages: Iterable[bytes]) -> None:
        self._layout.message(index)
        self._instead[index] = list(messages)

    def drop_message(self, index: int) -> None:
        self.replace_message(index, ())

    def prefix_text(self, index: int, text: str) -> bool:
        """Puts `text` before the message's own: inside a string, or inside the first part of a list if that is text.

        So the model reads the same text in whichever form the client sends its words: some send the newest message as
        a list, to mark it for the cache, and later as a string. Before parts of another kind it is a part of its own.
        Returns False, and does nothing, where the content is neither a string, a list, null nor missing.
        """
        _, begin, _ = self._layout.place(index)
        if not begin:
            content = self._value(index, "content")
            kind = None if content is None else self._body[content[0]]
            if kind not in _TAKES_TEXT:
                return False
            if content is not None and kind != _NULL:
                begin = content[0] + 1 if kind == QUOTE else self._first_text(content[0])
        if begin:
            self._texts.append((begin, begin, _escape(text)))
        else:
            self._parts.setdefault(index, []).append(text)
        self._prefixed.add(index)
        return True

    def set_role(self, index: int, role: str) -> None:
        """Sets the role of a message that has one."""
        self._layout.message(index)
        self._roles[index] = role

    def append_system(self, text: str) -> None:
        """Puts `text`, after an empty line, at the end of the leading system (or developer) message.

        It is a part of its own where the content is a list, and a new message in front where there is no such message.
        """
        self._appended.append(text)

    def add_tools(self, tools: Iterable[bytes], *, in_front: bool = False) -> None:
        """Adds tools behind the client's own, or in front of them.

        Adding none changes nothing: some upstreams refuse an empty `tools`.
        """
        self._tools.extend(tools)
        self._are_in_front = in_front

    def render(self) -> bytes:
        """Returns the body with all edits in it; the same object when there are none."""
        edits = [*self._texts]
        if self._before or self._instead or self._parts or self._appended or self._roles:
            self._edit_messages(edits)
        if edits and "messages" in self._members:
            raise ValueError("`messages` is set or dropped and edited at once")
        members = self._edit_tools(edits) if self._tools else self._members
        if members:
            self._edit_members(edits, members)
        if not edits:
            return self._body
        edits.sort(key=_PLACE)  # stable: insertions at one place keep their order
        body = self._body
        parts: list[bytes] = []
        at = 0
        for start, end, new in edits:
            parts.append(body[at:start])
            parts.append(new)
            at = end
        parts.append(body[at:])
        return b"".join(parts)

    # messages

    def _edit_messages(self, edits: list[_Edit]) -> None:
        layout = self._layout
        # The list is looked for only if it is empty.
        list_at, _ = _NOWHERE if layout.places else layout.span("messages") or (0, 0)
        if list_at >= 0 and self._body[list_at] != 0x5B:
            raise ValueError("there is no `messages` to edit")
        before = self._before
        appended: dict[int, list[str]] = {}
        if self._appended:
            if self._has_leading_system():
                appended[0] = self._appended
            else:
                system = {"role": "system", "content": _clean("\n\n".join(self._appended))}
                before = {**before, 0: [dump(system), *before.get(0, ())]}
        for index in self._prefixed | appended.keys():
            if index in self._instead:
                raise ValueError(f"message {index} is replaced and edited at once")
        for index in self._parts.keys() | appended.keys():
            self._edit_text(edits, index, self._parts.get(index, []), appended.get(index, []))
        for index, role in self._roles.items():
            if index in self._instead or (span := self._value(index, "role")) is None:
                raise ValueError(f"message {index} has no role to set")
            edits.append((*span, orjson.dumps(role)))
        if before or self._instead:
            _edit_items(edits, layout.messages, list_at + 1, before, self._instead)

    def _edit_text(self, edits: list[_Edit], index: int, parts: list[str], appended: list[str]) -> None:
        """Adds parts in front of a content and texts at its end."""
        content = self._value(index, "content")
        kind = None if content is None else self._body[content[0]]
        if content is not None and kind == _LIST:
            start, end = content
            # A comma stands between a new part and the client's, and none where the client's list is empty.
            empty = not self._body[start + 1 : end - 1].strip()
            front, back = (b",".join(map(self._text_part, texts)) for texts in (parts, appended))
            if empty:
                edits.append((start + 1, start + 1, b",".join(filter(None, (front, back)))))
                return
            if front:
                edits.append((start + 1, start + 1, front + b","))
            if back:
                edits.append((end - 1, end - 1, b"," + back))
        elif content is not None and kind == QUOTE:
            start, end = content
            if text := "\n\n".join(appended):
                has_text = end - start > 2 or any(new for at, _, new in self._texts if at == start + 1)
                edits.append((end - 1, end - 1, _escape("\n\n" + text if has_text else text)))
        else:
            # The content is null or missing: the text becomes the content.
            text = "\n\n".join(filter(None, ("".join(parts), *appended)))
            value = as_string(text)
            if content is not None:
                edits.append((*content, value))
                return
            members, end = self._open(index)
            at = members[-1][3] if members else end - 1
            edits.append((at, at, (b',"content":' if members else b'"content":') + value))

    def _first_text(self, start: int) -> int:
        """Returns the offset of the text in the first part of the list at `start`; 0 where that part is no text."""
        at = first_of(self._body, start)
        if self._body[at] != 0x7B:
            return 0
        values = {key: slice(value, end) for key, _, value, end in members_at(self._body, at)[0]}
        kind, text = values.get("type"), values.get("text")
        if kind is None or text is None or self._body[text.start] != QUOTE:
            return 0
        return text.start + 1 if orjson.loads(self._body[kind]) == self._text_kind else 0

    def _text_part(self, text: str) -> bytes:
        return dump({"type": self._text_kind, "text": _clean(text)})

    def _value(self, index: int, key: str) -> Span | None:
        for name, _, value, end in reversed(self._open(index)[0]):
            if name == key:  # the last of a repeated key counts, as in the parser
                return value, end
        return None

    def _open(self, index: int) -> tuple[list[Member], int]:
        opened = self._opened.get(index)
        if opened is None:
            opened = self._opened[index] = members_at(self._body, self._layout.message(index)[0])
        return opened

    def _has_leading_system(self) -> bool:
        role = self._value(0, "role") if self._layout.places else None
        if role is None or orjson.loads(self._body[slice(*role)]) not in ("system", "developer"):
            return False
        content = self._value(0, "content")
        return content is None or self._body[content[0]] in _TAKES_TEXT

    # members

    def _edit_tools(self, edits: list[_Edit]) -> Mapping[str, bytes | None]:
        """Returns the members to set or drop, `tools` among them where the client sent none."""
        if "tools" in self._members:
            raise ValueError("`tools` is set or dropped and added to at once")
        joined = b",".join(self._tools)
        span = self._layout.span("tools")
        if span is None or self._body[span[0]] != 0x5B:
            return {**self._members, "tools": b"[" + joined + b"]"}
        start, end = span
        empty = not self._body[start + 1 : end - 1].strip()
        if self._are_in_front and not empty:
            edits.append((start + 1, start + 1, joined + b","))
        else:
            edits.append((end - 1, end - 1, joined if empty else b"," + joined))
        return self._members

    def _edit_members(self, edits: list[_Edit], wanted: Mapping[str, bytes | None]) -> None:
        outline = self._layout.outline
        dropped: dict[int, list[bytes]] = {}
        added: list[bytes] = []
        for place, member in enumerate(outline.members):
            key, _, start, end = member
            if key not in wanted:
                continue
            value = wanted[key]
            # A repeated member that was not the last of its key goes, too, so that no parser takes its old value.
            if value is None or member is not outline.index[key]:
                dropped[place] = []
            else:
                edits.append((start, end, value))
        for key, value in wanted.items():
            if value is not None and key not in outline.index:
                added.append(orjson.dumps(key) + b":" + value)
        spans = [(start, end) for _, start, _, end in outline.members]
        if added or dropped:
            _edit_items(edits, spans, outline.start + 1, {len(spans): added}, dropped)


def _edit_items(
    edits: list[_Edit],
    spans: Sequence[Span],
    empty_at: int,
    before: Mapping[int, list[bytes]],
    instead: Mapping[int, list[bytes]],
) -> None:
    """Edits a comma-separated list. Between two items that stay neighbours not a byte changes."""
    kept_end: int | None = None  # of the last item that stays
    new: list[bytes] = []
    cut = False  # whether an item went since then
    for place, (start, end) in enumerate(spans):
        new += before.get(place, ())
        if place in instead:
            new += instead[place]
            cut = True
            continue
        # An item that stays, with something removed or added between it and the one kept before it. After a removal
        # the whole gap is replaced, commas and white space included; else the new items stand just before this one.
        if cut:
            ahead = [*new, b""]  # with a comma behind it
            if kept_end is None:
                edits.append((spans[0][0], start, b",".join(ahead)))
            else:
                edits.append((kept_end, start, b",".join([b"", *ahead])))
        elif new:
            edits.append((start, start, b",".join([*new, b""])))
        kept_end, new, cut = end, [], False
    new += before.get(len(spans), ())
    # The end of the list: after the last item that stays, in place of all items, or in a list that was empty.
    if cut and kept_end is None:
        edits.append((spans[0][0], spans[-1][1], b",".join(new)))
    elif cut and kept_end is not None:
        edits.append((kept_end, spans[-1][1], b",".join([b"", *new])))
    elif new and kept_end is not None:
        edits.append((kept_end, kept_end, b",".join([b"", *new])))
    elif new:
        edits.append((empty_at, empty_at, b",".join(new)))


# writing


def as_string(text: str) -> bytes:
    """Returns the text as a JSON string, whatever is in it."""
    return b'"' + _escape(text) + b'"'


def _escape(text: str) -> bytes:
    """Returns the text as it stands between the quotes of a JSON string."""
    if text.isascii():
        return orjson.dumps(text)[1:-1]
    # A copy is escaped: orjson leaves its UTF-8 with a text, and notes are kept for long.
    return orjson.dumps(_clean((text + " ")[:-1]))[1:-1]


def _clean(text: str) -> str:
    """Replaces halves of surrogate pairs, which cannot be sent: memory never fails a request over one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
