"""Provider deltas in, whole messages out: what one reply says, piece by piece.

Knows the shape of a chat completion (chunks and whole bodies) and nothing of turns: which calls are ours is
told by a set of names. A whole reply is read as a stream of one delta. Pure; the bytes that a client gets
unchanged never pass through here.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from adapters.types import announces_events
from gateway.core.conversation.canonical import gap

__all__ = [
    "CallOwner",
    "Draft",
    "HeldText",
    "Json",
    "ToolCall",
    "View",
    "chunk_of",
    "decide_owner",
    "frame",
    "is_event_stream",
    "join_messages",
    "says_nothing",
]

Json = dict[str, Any]


# String fields that name something: a later piece replaces the earlier one. All other strings are continued.
NAMING = frozenset(
    {"role", "type", "id", "name", "format", "object", "model", "index", "mime_type", "expires_at"}
)


FUNCTION = (None, "", "function")  # what a call's `type` says of a function, or is before it says anything


class CallOwner(Enum):
    UNKNOWN = "unknown"  # the name has not been read to its end
    OURS = "ours"
    THEIRS = "theirs"


class ToolCall:
    """One tool call as it grows. index: the upstream's; pieces: how many came; sent: the client has its beginning."""

    __slots__ = ("arguments", "fields", "function", "index", "name", "owner", "pieces", "sent")

    def __init__(self, index: Any) -> None:
        self.index = index
        self.fields: Json = {}
        self.function: Json = {}
        self.name = ""
        self.arguments: list[str] = []
        self.owner = CallOwner.UNKNOWN
        self.pieces = 0
        self.sent = False

    @property
    def id(self) -> str:
        value = self.fields.get("id")
        return value if isinstance(value, str) else ""

    @property
    def text(self) -> str:
        return "".join(self.arguments)

    def add(self, entry: Json) -> None:
        self.pieces += 1
        for key, value in entry.items():
            if key == "function":
                if isinstance(value, dict):
                    self._add_function(value, bool(entry.get("id")) and bool(self.id))
            elif key == "id":
                if value or "id" not in self.fields:  # some upstreams send "" after the first piece
                    self.fields["id"] = value
            elif key != "index":
                _merge_field(self.fields, key, value)

    def _add_function(self, function: Json, is_header_again: bool) -> None:
        for key, value in function.items():
            if key == "name":
                # Names come whole, in pieces, or whole again with every piece (then the id comes again, too).
                if isinstance(value, str) and not (is_header_again and value == self.name):
                    self.name += value
            elif key == "arguments":
                if isinstance(value, str):
                    self.arguments.append(value)
                elif value is not None:  # an object instead of its text
                    self.arguments.append(orjson.dumps(value).decode())
            else:
                _merge_field(self.function, key, value)

    def built(self) -> Json:
        """The call as a message carries it (no `index`, which belongs to streams)."""
        call: Json = {"type": "function", **self.fields}
        if call["type"] is None:
            call["type"] = "function"
        if self.name or self.arguments or self.function or call["type"] == "function":
            call["function"] = {**self.function, "name": self.name, "arguments": self.text}
        return call


class Draft:
    """One round's assistant message in the making (choice 0)."""

    __slots__ = ("_fields", "_texts", "calls", "finish_reason", "usage")

    def __init__(self) -> None:
        self._fields: Json = {}
        self._texts: dict[str, list[str]] = {}
        self.calls: list[ToolCall] = []
        self.finish_reason: str | None = None
        self.usage: Json | None = None

    def add(self, delta: Json) -> None:
        """Everything of a delta but its tool calls."""
        for key, value in delta.items():
            if type(value) is str and key not in NAMING:
                texts = self._texts.get(key)
                if texts is None:
                    self._texts[key] = [value]
                    self._fields.setdefault(key, None)  # keeps the fields in the order in which they came
                else:
                    texts.append(value)
            elif key != "tool_calls":
                if value is None:
                    self._fields.setdefault(key, None)
                else:
                    _merge_field(self._fields, key, value)

    def call_for(self, entry: Json) -> ToolCall:
        """The call that a piece continues, or a new one; the piece is added to it."""
        index, id_ = entry.get("index"), entry.get("id")
        function = entry.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        found: ToolCall | None = None
        for call in reversed(self.calls):
            if index is None or call.index == index:
                found = call
                break
        if found is not None and id_ and found.id and id_ != found.id and (name or index is None):
            found = None  # parallel calls under one index, or without any: another id with another name
        elif found is not None and index is None and not id_ and name and found.name and found.arguments:
            found = None  # neither index nor id: a name after arguments begins the next call
        if found is None:
            found = ToolCall(index)
            self.calls.append(found)
        found.add(entry)
        return found

    def take_calls(self, entries: list[Any], ours: Collection[str], is_over: bool) -> list[Json] | None:
        """Add pieces of tool calls. Returns: the pieces for the client now; None: just as they came.

        is_over: no name will be continued. A call of theirs waits until the calls before it are known, so that
        its index does not depend on how the bytes were cut.
        """
        touched: list[tuple[ToolCall, Json]] = []
        for entry in entries:
            if isinstance(entry, dict):
                call = self.call_for(entry)
                touched.append((call, entry))
                if call.owner is CallOwner.UNKNOWN and ours:
                    function = entry.get("function")
                    has_arguments = isinstance(function, dict) and bool(function.get("arguments"))
                    call.owner = decide_owner(call, ours, bool(call.name) and has_arguments)
        if not ours:
            return None
        if is_over:
            for call in self.calls:
                if call.owner is CallOwner.UNKNOWN:
                    call.owner = decide_owner(call, ours, True)
        shown: list[Json] = []
        unchanged = 0
        place = 0
        for position, call in enumerate(self.calls):
            if call.owner is CallOwner.UNKNOWN:
                break
            if call.owner is CallOwner.OURS:
                continue
            pieces = [entry for other, entry in touched if other is call]
            if not call.sent and call.pieces != len(pieces):  # earlier ones were kept back: all in one
                index = place if place != position or call.index is None else call.index
                shown.append({"index": index, **call.built()})
            elif place != position:
                shown.extend({**entry, "index": place} for entry in pieces)
            else:
                shown.extend(pieces)
                unchanged += len(pieces)
            call.sent = True
            place += 1
        return None if unchanged == len(entries) == len(shown) else shown

    def generated(self) -> str:
        """All that the model wrote, calls included; what an estimate of its tokens goes by."""
        parts = [piece for texts in self._texts.values() for piece in texts]
        for call in self.calls:
            parts.append(call.name)
            parts.extend(call.arguments)
        return "".join(parts)

    def message(self, calls: Iterable[ToolCall] = ()) -> Json:
        """The assistant message with these calls, as the real API takes it back."""
        built: Json = {"role": "assistant"}
        for key, value in self._fields.items():
            built[key] = _continue(value, "".join(self._texts[key])) if key in self._texts else value
        built["role"] = built["role"] or "assistant"
        made = [call.built() for call in calls]
        content = built.get("content")
        built["content"] = content or (None if made or built.get("function_call") else "")
        built.pop("tool_calls", None)
        if made:
            built["tool_calls"] = made
        return built


def join_messages(messages: Iterable[Json]) -> Json:
    """One assistant message that says what several said one after the other.

    messages: oldest first; text goes on behind a gap, tool calls are listed, other fields merged.
    """
    joined: Json = {}
    calls: list[Json] = []
    for message in messages:
        for key, value in message.items():
            if key == "tool_calls":
                calls.extend(value)
            elif value is None:
                joined.setdefault(key, None)
            elif key == "content":
                joined[key] = _continue(joined.get(key), value, gap(joined.get(key), value))
            else:
                _merge_field(joined, key, value)
    joined["content"] = joined.get("content") or (None if calls else "")
    if calls:
        joined["tool_calls"] = calls
    return joined


def _continue(content: Any, more: Any, between: str = "") -> Any:
    """Content followed by more of it; either may be text or a list of parts."""
    if not content or not more:
        return _copy(content or more)
    if isinstance(content, str) and isinstance(more, str):
        return content + between + more
    return [*_parts(content), *_parts(more)]


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def decide_owner(call: ToolCall, ours: Collection[str], is_complete: bool) -> CallOwner:
    """Whose call it is, as early as its name allows.

    A name may come in pieces: while it is the beginning of one of ours, only what follows it tells that it
    has ended. is_complete: arguments came after the name, or the reply is over. Ours are functions: what says
    that it is something else (OpenAI's `custom` tools) is theirs, wherever its name stands.
    """
    if call.fields.get("type") not in FUNCTION:
        return CallOwner.THEIRS
    if is_complete:
        return CallOwner.OURS if call.name in ours else CallOwner.THEIRS
    if call.name and not any(name.startswith(call.name) for name in ours):
        return CallOwner.THEIRS
    return CallOwner.UNKNOWN


def _merge_field(into: Json, key: str, value: Any) -> None:
    old = into.get(key)
    if old is None:
        # Copied, since it is going to grow and the chunk it came in may still be sent.
        into[key] = _copy(value)
    elif isinstance(old, str) and isinstance(value, str):
        into[key] = value if key in NAMING else old + value
    elif isinstance(old, dict) and isinstance(value, dict):
        for inner, piece in value.items():
            _merge_field(old, inner, piece)
    elif isinstance(old, list) and isinstance(value, list):
        _merge_list(old, value)
    elif value is not None:
        into[key] = _copy(value)


def _merge_list(old: list[Any], new: list[Any]) -> None:
    """Items with the same `index` and `type` are pieces of one (reasoning details); others are appended."""
    for item in new:
        if isinstance(item, dict) and isinstance(item.get("index"), int):
            for known in old:
                if (
                    isinstance(known, dict)
                    and known.get("index") == item["index"]
                    and item.get("type", known.get("type")) == known.get("type")
                ):
                    for key, value in item.items():
                        _merge_field(known, key, value)
                    break
            else:
                old.append(_copy(item))
        else:
            old.append(_copy(item))


def _copy(value: Any) -> Any:
    """Of JSON. Not function by function: orjson reads 1,024 levels, more than Python calls itself."""
    return marshal.loads(marshal.dumps(value)) if isinstance(value, dict | list) else value


def chunk_of(body: Json) -> Json:
    """A whole reply as the one chunk of a stream; shares what it does not change."""
    choices = []
    for choice in body.get("choices") or []:
        if not isinstance(choice, dict):
            continue
        message = choice.get("message")
        delta = dict(message) if isinstance(message, dict) else {}
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            delta["tool_calls"] = [
                {**call, "index": n} if isinstance(call, dict) else call for n, call in enumerate(calls)
            ]
        rest = {key: value for key, value in choice.items() if key != "message"}
        choices.append({**rest, "delta": delta})
    return {**body, "object": "chat.completion.chunk", "choices": choices}


def frame(chunk: Json, name: str | None = None) -> bytes:
    """A chunk as one server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, orjson.dumps(chunk))


def is_event_stream(status: int, headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a reply is to be read as server-sent events (else: as one body)."""
    return 200 <= status < 300 and announces_events(headers)


def says_nothing(delta: Mapping[str, Any]) -> bool:
    """Whether a delta says nothing to its reader (a role alone says nothing)."""
    return not any(value for key, value in delta.items() if key != "role")


@dataclass(slots=True)
class HeldText:
    """An event on its way to the client.

    chunk: parsed; None: it is none, and goes as it came. calls: the pieces of tool calls it shows; None: as it came.
    """

    raw: bytes
    name: str | None = None
    chunk: Json | None = None
    calls: list[Json] | None = None

    @property
    def choices(self) -> list[Any]:
        choices = self.chunk.get("choices") if self.chunk else None
        return choices if isinstance(choices, list) else []

    @property
    def has_finish(self) -> bool:
        return any(isinstance(choice, dict) and choice.get("finish_reason") for choice in self.choices)

    @property
    def is_usage(self) -> bool:
        return self.chunk is not None and _is_usage(self.chunk)


# In JSON text a quotation mark inside a string is escaped, so these bytes are a field and nothing else.
_NO_USAGE = b',"usage":null'


class View:
    """The client's side of a streamed reply: one id, one role, no trace of hidden rounds.

    waits: until something is said, chunks gather instead of leaving. strips_usage: the usage chunk is not for
    the client. identity: the fields of the first round's first chunk that all later chunks take on.
    """

    __slots__ = ("_has_role", "_strips_usage", "identity", "merge_usage", "out", "waits")

    def __init__(self, waits: bool, strips_usage: bool) -> None:
        self.waits = waits
        self._strips_usage = strips_usage
        self._has_role = False
        self.identity: Json | None = None
        self.merge_usage: Callable[[Json], Json] | None = None  # set from the second round on
        self.out: list[bytes] = []

    @property
    def _is_open(self) -> bool:
        """Whether chunks go as they came: the stream has begun, in its first round."""
        return self._has_role and not self.waits and self.merge_usage is None and not self._strips_usage

    def identify(self, chunk: Json) -> None:
        if self.identity is None:
            self.identity = {key: chunk[key] for key in ("id", "created", "model") if key in chunk}

    def put(self, raw: bytes, says: bool = True) -> None:
        if self._strips_usage:
            raw = raw.replace(_NO_USAGE, b"")  # what asking for usage puts into every other chunk
        self.out.append(raw)
        if says:
            self.waits = False

    def flush(self) -> bytes:
        if self.waits or not self.out:
            return b""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        return data

    def make(self, delta: Json, finish: str | None = None) -> None:
        """Put a chunk of our own making."""
        choice: Json = {"index": 0, "delta": delta, "finish_reason": finish}
        self.put(frame({**(self.identity or {}), "object": "chat.completion.chunk", "choices": [choice]}))
        self._has_role = self._has_role or "role" in delta

    def show(self, held: HeldText, finish: str | None = None, is_hidden: bool = False) -> None:
        """Put an event as the client is to have it.

        finish: stands in for the upstream's finish_reason. is_hidden: it ends a hidden round.
        """
        chunk = held.chunk
        if chunk is None:
            self.put(held.raw, says=False)
            return
        if self._is_open and held.calls is None and finish is None and not is_hidden:
            self.out.append(held.raw)
            return
        if (self._strips_usage or is_hidden) and _is_usage(chunk):
            return
        changed: Json = {}
        if self.merge_usage is not None:
            changed = {key: value for key, value in (self.identity or {}).items() if chunk.get(key) != value}
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            if is_hidden:
                changed["usage"] = None
            elif self.merge_usage is not None:
                changed["usage"] = self.merge_usage(usage)
        says = is_emptied = has_role = False
        shown = []
        for choice in held.choices:
            if not isinstance(choice, dict):
                shown.append(choice)
                continue
            new = self._choice(choice, held.calls, finish, is_hidden)
            delta = new.get("delta")
            is_delta = isinstance(delta, dict)
            says = says or bool(new.get("finish_reason")) or (is_delta and not says_nothing(new["delta"]))
            has_role = has_role or (is_delta and bool(new["delta"].get("role")))
            is_emptied = is_emptied or new is not choice
            shown.append(new)
        if is_emptied:
            if not says and not has_role:
                return
            changed["choices"] = shown
        self._has_role = self._has_role or has_role
        self.put(frame({**chunk, **changed}, held.name) if changed else held.raw, says)

    def show_tail(self, tail: list[HeldText], finish: str | None, is_hidden: bool = False) -> None:
        """Put a round's end. finish: as the client is to have it; made where the upstream sent none."""
        if finish and not is_hidden and not any(held.has_finish for held in tail):
            self.make({}, finish)
        for held in tail:
            self.show(held, finish, is_hidden)

    def _choice(self, choice: Json, calls: list[Json] | None, finish: str | None, is_hidden: bool) -> Json:
        """A choice as the client is to have it: the same object where nothing had to change."""
        changed: Json = {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            new = delta
            if calls is not None and (calls or "tool_calls" in delta):
                new = {key: value for key, value in new.items() if key != "tool_calls"}
                if calls:
                    new["tool_calls"] = calls
            if self._has_role and self.merge_usage is not None and "role" in new:
                new = {key: value for key, value in new.items() if key != "role"}
            if new is not delta:
                changed["delta"] = new
        reason = choice.get("finish_reason")
        if reason and is_hidden:
            changed["finish_reason"] = None
        elif reason and finish and reason != finish:
            changed["finish_reason"] = finish
        return {**choice, **changed} if changed else choice


def _is_usage(chunk: Json) -> bool:
    return not chunk.get("choices") and isinstance(chunk.get("usage"), dict)
