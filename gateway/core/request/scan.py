"""The offsets of the parts of a request body, read from its bytes.

`scan` finds the elements of `messages`, and the members of the body when they are asked for. The body has been accepted
by a JSON parser before, so the scanner trusts its form: any closing bracket closes. Bodies that break that trust raise
ValueError; they never hang the scanner. Two rules keep its cost linear whatever is nested in what: a pattern looks at
most `_LOOKAHEAD` bytes ahead, and nothing in it can match in two ways.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

import orjson

from storage.value import frozen

Span = tuple[int, int]  # from the first byte to the one after the last
# One `"key": value` of an object: the key, where its quote is, and the value's start and end.
Member = tuple[str, int, int, int]

QUOTE, _BACKSLASH = 0x22, 0x5C
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")

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
# Most messages of most clients: a role and a text.
_PLAIN = rb'\{\s*+"role"\s*+:\s*+"[a-z]++"\s*+,\s*+"content"\s*+:\s*+(?P<text>' + _STRING + rb")\s*+\}"
_ELEMENT = re.compile(rb"[\s,]*+(" + _PLAIN + rb"|" + _nested(_DEPTH) + rb")", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
# Whole strings and everything between them, to cut a long value at a place that is in no string.
_OUTSIDE = re.compile(rb'[^"]*+(?:' + _STRING + rb'[^"]*+)*', re.DOTALL)
_BRACKET = re.compile(_STRING + rb"|([\[\]{}])", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}
# Both go on for at most 4,096 repeats, because a repeat costs memory until the match ends.
_ESCAPED_QUOTES = re.compile(rb'(?:[^"]*+"(?<=[^\\]\\")){0,4096}', re.DOTALL)
_ESCAPES = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+){0,4096}', re.DOTALL)
# A key without escapes and its value, which is empty here if it is no short one: a text, a number or the like.
_MEMBER = re.compile(rb'[\s,]*+"([^"\\]*+)"\s*+:\s*+((?:"[^"\\]{0,99}+"|[^"\[\]{},\s]++)?+)')
_GAP = re.compile(rb"[\s,]*+")
_COLON = re.compile(rb"\s*+:\s*+")
_SCALAR = re.compile(rb'[^"\[\]{},\s]++')


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

    places: three of each element of the last `messages`, if that is an array: where it begins, where its text does, and
    where it ends; the second is 0 unless it is a role and a short text alone. outline: scanned when it is asked for,
    since an edit within messages needs none. listed: the member that has the messages.
    """

    body: bytes
    places: array[int]
    listed: str = "messages"
    _outline: Outline | None = field(default=None, repr=False, compare=False)

    @property
    def outline(self) -> Outline:
        if self._outline is None:
            self._outline = _outline(self.body, self.places, self.listed)
        return self._outline

    @property
    def messages(self) -> list[Span]:
        return [*zip(self.places[::3], self.places[2::3], strict=True)]

    def message(self, index: int) -> Span:
        """Returns the span of one of the messages. Raises: IndexError."""
        start, _, end = self.place(index)
        return start, end

    def place(self, index: int) -> tuple[int, int, int]:
        """Returns the three places of one of the messages. Raises: IndexError."""
        at, places = 3 * index, self.places
        if not 0 <= at < len(places):
            raise IndexError(f"no message {index} among {len(places) // 3}")
        return places[at], places[at + 1], places[at + 2]

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


def scan(body: bytes, known: Sequence[int] = (), listed: str = "messages") -> Layout:
    """Returns the layout of a body that was parsed before.

    known: the places of the first messages, in a body that has one `messages`. They are not scanned again.
    listed: the member that has the messages, whose name is another one in other dialects.
    Raises: ValueError when the body is not a JSON object; most other defects are not noticed.
    """
    places = array("I", known)
    if not known:
        return Layout(body, places, listed, _outline(body, places, listed))
    try:
        _elements(body, places[-1], places)
    except IndexError as error:
        raise ValueError("the JSON ends too early") from error
    return Layout(body, places, listed)


def _outline(body: bytes, places: array[int], listed: str) -> Outline:
    """Returns the outline of a body. places: to be filled with those of the messages; known ones are passed over."""
    members: list[Member] = []
    try:
        start = _skip(_GAP, body, 0)
        if body[start : start + 1] != b"{":
            raise ValueError("the body is not a JSON object")
        end = _members(body, start + 1, members, places, listed)
    except IndexError as error:
        raise ValueError("the JSON ends too early") from error
    return Outline(start, end, members, {member[0]: member for member in members})


def members_at(body: bytes, start: int) -> tuple[list[Member], int]:
    """Returns the members of an object, and its end. Raises: ValueError: none begins at `start`."""
    if body[start] != 0x7B:
        raise ValueError(f"there is no object at byte {start}")
    members: list[Member] = []
    return members, _members(body, start + 1, members)


def first_of(body: bytes, start: int) -> int:
    """Returns where the first element of the array at `start` begins, or its closing bracket."""
    return _skip(_GAP, body, start + 1)


def _members(
    body: bytes, at: int, members: list[Member], places: array[int] | None = None, listed: str = "messages"
) -> int:
    """Adds the members of the object that is open at `at`; returns where it ends.

    places: to be filled with those of the elements of `listed`; of the last one, if it is repeated. It begins with
    those that are known.
    """
    is_repeated = False
    while True:
        # The pattern takes most members in one go; other keys and values are taken step by step.
        match = _MEMBER.match(body, at)
        if match is not None:
            key, key_start = match[1].decode(), match.start(1) - 1
            at, end = match.span(2)
            if end > at and key != listed:
                members.append((key, key_start, at, end))
                at = end
                continue
        else:
            key_start = _skip(_GAP, body, at)
            if body[key_start] != QUOTE:
                return key_start + 1
            at = _string_end(body, key_start)
            key = orjson.loads(body[key_start:at])
            at = _skip(_COLON, body, at)
        if places is not None and key == listed:
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
    # Most lists end right behind an element; to find that out by a pattern that fails costs more.
    while body[at] not in _CLOSING:
        match = match_element(body, at, at + _LOOKAHEAD)
        if match is not None:
            start, end = match.span(1)
            places.extend((start, match.start("text") + 1, end))
            at = end
            continue
        at = _skip(_GAP, body, at)
        if body[at] in _CLOSING:
            break
        end = _nested_end(body, at) if body[at] in _OPENING else _value_end(body, at)
        places.extend((at, 0, end))
        at = end
    return at + 1


def _value_end(body: bytes, start: int) -> int:
    first = body[start]
    if first == QUOTE:
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
        if body[at] == QUOTE:
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
