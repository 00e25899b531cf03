"""Edits of a request body in the client's own bytes, without serialising the client's JSON again.

`scan` finds the members of the body and the elements of `messages`, as byte offsets. `Splice` collects edits against
those offsets and joins the slices once. Everything that no edit touches comes out as the very bytes that came in,
white space, escapes and order of keys included.

The body has been accepted by a JSON parser before, so the scanner trusts its form: any closing bracket closes.
Bodies that break that trust raise ValueError; they never hang the scanner. Two rules keep its cost linear whatever
is nested in what: a pattern looks at most `_LOOKAHEAD` bytes ahead, and nothing in it can match in two ways.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from operator import itemgetter
from typing import Any

import orjson

from storage.value import frozen

Span = tuple[int, int]  # from the first byte to the one after the last
_NOWHERE: Span = (-1, -1)
_Edit = tuple[int, int, bytes]  # replace body[start:end]

_QUOTE, _BACKSLASH = 0x22, 0x5C
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")
_TAKES_TEXT = b'"[n'  # how a content begins that text can be added to: a string, a list or null

# How far a pattern looks ahead; longer values are taken piece by piece. Chosen so that a try that fails (an image
# in base64) costs about 10 us, while ordinary messages and tool declarations fit.
_LOOKAHEAD = 16_384
_DEPTH = 8  # brackets within brackets that one pattern follows; a tool declaration has 6

# The pattern of a JSON string jumps from quote to quote (2 GB/s) and looks back at the backslashes before each;
# looking at every character costs six times as much. An odd number of backslashes escapes the quote, an even number
# are escaped backslashes, and the quote ends the string. A look-behind has a fixed width, so one alternative stands
# for each number, up to four. Behind more backslashes the pattern does not match, and `_string_end` counts them.
_ESCAPED = rb'(?:(?<=[^\\]\\")|(?<=[^\\]\\\\\\"))'  # one or three
_ENDING = rb'(?:(?<!\\")|(?<=[^\\]\\\\")|(?<=[^\\]\\\\\\\\"))'  # none, two or four
# The first alternative takes the common case, a string without an escaped quote, after a single look behind. `*+` and
# `(?>` never give back what they took: a string that does not match fails at once, not after trying every split.
_STRING = rb'"[^"]*+"(?:(?<!\\")|(?<=\\")(?>(?:' + _ESCAPED + rb'[^"]*+")*)' + _ENDING + rb")"
# What stands between two strings or brackets of one level: commas, colons, numbers, literals, white space.
_FILL = rb'[^"\[\]{}]*+'


def _nested(depth: int) -> bytes:
    """Returns the pattern of an object or array in which brackets are nested at most `depth` deep."""
    inner = _STRING + b"|" + _nested(depth - 1) if depth else _STRING
    return rb"[\[{]" + _FILL + rb"(?:(?:" + inner + rb")" + _FILL + rb")*[\]}]"


_NESTED = re.compile(_nested(_DEPTH), re.DOTALL)
_ELEMENT = re.compile(rb"[\s,]*+(" + _nested(_DEPTH) + rb")", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
# Whole strings and everything between them, to cut a long value at a place that is in no string.
_OUTSIDE = re.compile(rb'[^"]*+(?:' + _STRING + rb'[^"]*+)*', re.DOTALL)
_BRACKET = re.compile(_STRING + rb"|([\[\]{}])", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}
# Both go on for at most 4,096 repeats, because a repeat costs memory until the match ends.
_ESCAPED_QUOTES = re.compile(rb'(?:[^"]*+"(?<=[^\\]\\")){0,4096}', re.DOTALL)
_ESCAPES = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+){0,4096}', re.DOTALL)
# Most messages of most clients: a role and a text.
_PLAIN = re.compile(
    rb'\{\s*+"role"\s*+:\s*+"[a-z]++"\s*+,\s*+"content"\s*+:\s*+(' + _STRING + rb")\s*+\}", re.DOTALL
)
# A key without escapes and its value, which is empty here if it is no short one: a text, a number or the like.
_MEMBER = re.compile(rb'[\s,]*+"([^"\\]*+)"\s*+:\s*+((?:"[^"\\]{0,99}+"|[^"\[\]{},\s]++)?+)')
_GAP = re.compile(rb"[\s,]*+")
_COLON = re.compile(rb"\s*+:\s*+")
_SCALAR = re.compile(rb'[^"\[\]{},\s]++')


# One `"key": value` of an object: the key, where its quote is, and the value's start and end.
Member = tuple[str, int, int, int]


@frozen
class Outline:
    """The offsets of the members of a body. start, end: its object, without white space around it.

    members: in their order, repeated keys included. index: key -> its last member.
    """

    start: int
    end: int
    members: Sequence[Member]
    index: Mapping[str, Member]


@dataclass(slots=True)
class Layout:
    """The offsets of the parts of a request body.

    places: start and end of each element of the last `messages`, if that is an array. outline: scanned when it is asked
    for, since an edit within messages needs none.
    """

    body: bytes
    places: array[int]
    _outline: Outline | None = field(default=None, repr=False, compare=False)

    @property
    def outline(self) -> Outline:
        if self._outline is None:
            self._outline = _outline(self.body, self.places)
        return self._outline

    @property
    def messages(self) -> list[Span]:
        return [*zip(self.places[::2], self.places[1::2], strict=True)]

    def message(self, index: int) -> Span:
        """Returns the span of one of the messages. Raises: IndexError."""
        if not 0 <= 2 * index < len(self.places):
            raise IndexError(f"no message {index} among {len(self.places) // 2}")
        return self.places[2 * index], self.places[2 * index + 1]

    @property
    def duplicates(self) -> tuple[str, ...]:
        """Returns the keys that occur more than once; parsers differ in which one they take."""
        members, index = self.outline.members, self.outline.index
        if len(members) == len(index):
            return ()
        times = Counter(key for key, *_ in members)
        return tuple(key for key in index if times[key] > 1)

    def span(self, key: str) -> Span | None:
        """Returns the span of a member's value, or None where there is no such member."""
        member = self.outline.index.get(key)
        return None if member is None else member[2:]


def scan(body: bytes, known: Sequence[int] = ()) -> Layout:
    """Returns the layout of a body that was parsed before.

    known: the places of the first messages, in a body that has one `messages`. They are not scanned again.
    Raises: ValueError when the body is not a JSON object; most other defects are not noticed.
    """
    places = array("I", known)
    if not known:
        return Layout(body, places, _outline(body, places))
    try:
        _elements(body, places[-1], places)
    except IndexError as error:
        raise ValueError("the JSON ends too early") from error
    return Layout(body, places)


def _outline(body: bytes, places: array[int]) -> Outline:
    """Returns the outline of a body. places: to be filled with those of the messages; known ones are passed over."""
    members: list[Member] = []
    try:
        start = _skip(_GAP, body, 0)
        if body[start : start + 1] != b"{":
            raise ValueError("the body is not a JSON object")
        end = _members(body, start + 1, members, places)
    except IndexError as error:
        raise ValueError("the JSON ends too early") from error
    return Outline(start, end, members, {member[0]: member for member in members})


def dump(message: Mapping[str, Any]) -> bytes:
    """Returns a message or tool of our own as JSON."""
    return orjson.dumps(message)


class Splice:
    """Edits of one body, rendered once. Indices are those of the client's messages, whatever was edited before.

    Edits of different kinds compose; of one kind they apply in the order of the calls. A message that is
    replaced or dropped cannot be edited inside (ValueError), nor a member that is set or dropped as a whole.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._body = layout.body
        self._members: dict[str, bytes | None] = {}
        self._before: dict[int, list[bytes]] = {}
        self._instead: dict[int, list[bytes]] = {}
        self._prefixes: dict[int, list[str]] = {}
        self._roles: dict[int, str] = {}
        self._appended: list[str] = []
        self._tools: list[bytes] = []
        self._are_in_front = False
        # Of messages that were looked into: their contents and members.
        self._contents: dict[int, Span] = {}
        self._opened: dict[int, tuple[list[Member], int]] = {}

    def set_member(self, key: str, value: bytes) -> None:
        """Replaces the value where it stands, or adds the member at the end. Of a repeated key one stays."""
        self._members[key] = value

    def drop_member(self, key: str) -> None:
        self._members[key] = None

    def insert_messages(self, index: int, messages: Iterable[bytes]) -> None:
        """Inserts before the message `index`; the number of messages as index means the end."""
        if not 0 <= 2 * index <= len(self._layout.places):
            raise IndexError(f"no place {index} among {len(self._layout.places) // 2} messages")
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
        content = self._content(index)
        if content is not None and self._body[content[0]] not in _TAKES_TEXT:
            return False
        self._prefixes.setdefault(index, []).append(text)
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
        edits: list[_Edit] = []
        if self._before or self._instead or self._prefixes or self._appended or self._roles:
            self._edit_messages(edits)
        members = self._edit_tools(edits) if self._tools else self._members
        if members:
            self._edit_members(edits, members)
        if not edits:
            return self._body
        edits.sort(key=itemgetter(0, 1))  # stable: insertions at one place keep their order
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
        if "messages" in self._members or (list_at >= 0 and self._body[list_at] != 0x5B):
            raise ValueError("there is no `messages` to edit")
        before = self._before
        appended: dict[int, list[str]] = {}
        if self._appended:
            if self._has_leading_system():
                appended[0] = self._appended
            else:
                system = {"role": "system", "content": _clean("\n\n".join(self._appended))}
                before = {**before, 0: [dump(system), *before.get(0, ())]}
        for index in self._prefixes.keys() | appended.keys():
            if index in self._instead:
                raise ValueError(f"message {index} is replaced and edited at once")
            self._edit_text(edits, index, self._prefixes.get(index, []), appended.get(index, []))
        for index, role in self._roles.items():
            if index in self._instead or (span := self._value(index, "role")) is None:
                raise ValueError(f"message {index} has no role to set")
            edits.append((*span, orjson.dumps(role)))
        if before or self._instead:
            _edit_items(edits, layout.messages, list_at + 1, before, self._instead)

    def _edit_text(self, edits: list[_Edit], index: int, prefixes: list[str], appended: list[str]) -> None:
        content = self._content(index)
        kind = None if content is None else self._body[content[0]]
        if content is not None and kind == 0x5B:
            start, end = content
            first = self._first_text(start) if prefixes else None
            if first is not None:
                edits.append((first, first, _escape("".join(prefixes))))
                prefixes = []
            # A comma stands between a new part and the client's, and none where the client's list is empty.
            empty = not self._body[start + 1 : end - 1].strip()
            front, back = (b",".join(map(_text_part, texts)) for texts in (prefixes, appended))
            if empty:
                edits.append((start + 1, start + 1, b",".join(filter(None, (front, back)))))
                return
            if front:
                edits.append((start + 1, start + 1, front + b","))
            if back:
                edits.append((end - 1, end - 1, b"," + back))
        elif content is not None and kind == _QUOTE:
            start, end = content
            if prefixes:
                edits.append((start + 1, start + 1, _escape("".join(prefixes))))
            if text := "\n\n".join(appended):
                between = "\n\n" if any(prefixes) or end - start > 2 else ""
                edits.append((end - 1, end - 1, _escape(between + text)))
        else:
            # The content is null or missing: the text becomes the content.
            text = "\n\n".join(filter(None, ("".join(prefixes), *appended)))
            value = b'"' + _escape(text) + b'"'
            if content is not None:
                edits.append((*content, value))
                return
            members, end = self._open(index)
            at = members[-1][3] if members else end - 1
            edits.append((at, at, (b',"content":' if members else b'"content":') + value))

    def _first_text(self, start: int) -> int | None:
        """Returns the offset of the text in the first part of the list at `start`; None where that part is no text."""
        at = _skip(_GAP, self._body, start + 1)
        if self._body[at] != 0x7B:
            return None
        found: list[Member] = []
        _members(self._body, at + 1, found)
        values = {key: slice(value, end) for key, _, value, end in found}
        kind, text = values.get("type"), values.get("text")
        if kind is None or text is None or self._body[text.start] != _QUOTE:
            return None
        return text.start + 1 if orjson.loads(self._body[kind]) == "text" else None

    def _content(self, index: int) -> Span | None:
        found = self._contents.get(index)
        if found is None:
            start, end = self._layout.message(index)
            plain = _PLAIN.fullmatch(self._body, start, end)
            found = plain.span(1) if plain is not None else self._value(index, "content") or _NOWHERE
            self._contents[index] = found
        return None if found is _NOWHERE else found

    def _value(self, index: int, key: str) -> Span | None:
        for name, _, value, end in reversed(self._open(index)[0]):
            if name == key:  # the last of a repeated key counts, as in the parser
                return value, end
        return None

    def _open(self, index: int) -> tuple[list[Member], int]:
        opened = self._opened.get(index)
        if opened is None:
            start, _ = self._layout.message(index)
            if self._body[start] != 0x7B:
                raise ValueError(f"message {index} is not an object")
            members: list[Member] = []
            opened = self._opened[index] = members, _members(self._body, start + 1, members)
        return opened

    def _has_leading_system(self) -> bool:
        role = self._value(0, "role") if self._layout.places else None
        if role is None or orjson.loads(self._body[slice(*role)]) not in ("system", "developer"):
            return False
        content = self._content(0)
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


# reading


def _members(body: bytes, at: int, members: list[Member], places: array[int] | None = None) -> int:
    """Adds the members of the object that is open at `at`; returns where it ends.

    places: to be filled with those of the elements of `messages`; of the last one, if it is repeated. It begins with
    those that are known.
    """
    is_repeated = False
    while True:
        # The pattern takes most members in one go; other keys and values are taken step by step.
        match = _MEMBER.match(body, at)
        if match is not None:
            key, key_start = match[1].decode(), match.start(1) - 1
            at, end = match.span(2)
            if end > at and key != "messages":
                members.append((key, key_start, at, end))
                at = end
                continue
        else:
            key_start = _skip(_GAP, body, at)
            if body[key_start] != _QUOTE:
                return key_start + 1
            at = _string_end(body, key_start)
            key = orjson.loads(body[key_start:at])
            at = _skip(_COLON, body, at)
        if places is not None and key == "messages":
            if is_repeated:
                del places[:]
            is_repeated = True
            begin = places[-1] if places else at + 1
            end = _elements(body, begin, places) if body[at] == 0x5B else _value_end(body, at)
        else:
            end = _value_end(body, at)
        members.append((key, key_start, at, end))
        at = end


def _elements(body: bytes, at: int, places: array[int]) -> int:
    """Adds the places of the elements of the array that is open at `at`; returns where it ends."""
    match_element = _ELEMENT.match
    while True:
        match = match_element(body, at, at + _LOOKAHEAD)
        if match is not None:
            places.extend(match.span(1))
            at = match.end()
            continue
        at = _skip(_GAP, body, at)
        if body[at] in _CLOSING:
            return at + 1
        end = _nested_end(body, at) if body[at] in _OPENING else _value_end(body, at)
        places.extend((at, end))
        at = end


def _value_end(body: bytes, start: int) -> int:
    first = body[start]
    if first == _QUOTE:
        return _string_end(body, start)
    if first in _OPENING:
        match = _NESTED.match(body, start, start + _LOOKAHEAD)
        return _nested_end(body, start) if match is None else match.end()
    return _skip(_SCALAR, body, start)


def _nested_end(body: bytes, start: int) -> int:
    """Returns the end of an object or array that is too deep or too long for a pattern."""
    depth = 1
    at = start + 1
    while True:
        # A piece ends outside strings, so its brackets can be counted once its strings are taken out.
        end = _skip(_OUTSIDE, body, at, at + _LOOKAHEAD)
        piece = body[at:end]
        brackets = _STRINGS.sub(b"", piece).translate(None, _NO_BRACKETS)
        depths = list(accumulate(map(_STEPS.__getitem__, brackets), initial=depth))
        if 0 in depths:
            # The value ends in this piece: at its bracket number `closing`, counted from one.
            closing = depths.index(0)
            found = (match for match in _BRACKET.finditer(piece) if match[1])
            return at + next(islice(found, closing - 1, None)).end()
        depth = depths[-1]
        at = end
        # The pattern stopped at a string that is longer than the window, or has more backslashes than it knows.
        if body[at] == _QUOTE:
            at = _string_end(body, at)


def _string_end(body: bytes, start: int) -> int:
    """Returns the offset behind the closing quote of the string at `start`."""
    at = start + 1
    while True:
        quote = body.find(b'"', at)
        if quote < 0:
            raise ValueError("a string does not end")
        if quote == at or body[quote - 1] != _BACKSLASH:
            return quote + 1
        ahead = body[at:quote]
        if (len(ahead) - len(ahead.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        # The quote is escaped. The two patterns skip such quotes by the thousand; the loop then looks at the next.
        at = _skip(_ESCAPED_QUOTES, body, at)
        at = _skip(_ESCAPES, body, at)


def _skip(pattern: re.Pattern[bytes], body: bytes, at: int, stop: int | None = None) -> int:
    match = pattern.match(body, at) if stop is None else pattern.match(body, at, stop)
    if match is None:
        raise ValueError(f"not JSON at byte {at}")
    return match.end()


# writing


def _escape(text: str) -> bytes:
    """Returns the text as it stands between the quotes of a JSON string."""
    if text.isascii():
        return orjson.dumps(text)[1:-1]
    # A copy is escaped: orjson leaves its UTF-8 with a text, and notes are kept for long.
    return orjson.dumps(_clean((text + " ")[:-1]))[1:-1]


def _text_part(text: str) -> bytes:
    return dump({"type": "text", "text": _clean(text)})


def _clean(text: str) -> str:
    """Replaces halves of surrogate pairs, which cannot be sent: memory never fails a request over one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
