"""Puts a message together from the deltas of one reply.

It knows the shape of a chat completion (chunks and whole bodies) and nothing of turns; a set of names decides which
calls are the gateway's. A whole reply is read as a stream of one delta. Bytes for the client are rendered elsewhere.
"""

from __future__ import annotations

import marshal
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import orjson

from adapters.types import Json
from gateway.core.conversation.canonical import PRIVATE, called_function, separator, text_of
from gateway.core.conversation.fillers import Spans, filler_spans, with_filler_spans
from gateway.core.usage.reported import ReplyUsage, reported_counts
from storage.records import TokenCounts

# String fields of which a later piece replaces the earlier one. All other strings are continued.
REPLACED_FIELDS = frozenset(
    {"role", "type", "id", "name", "format", "object", "model", "index", "mime_type", "expires_at"}
)
# How many of the last items of a list a later piece may continue. Not measured; any value from 16 to 1,000 behaves
# alike.
_NEAR_ITEMS = 64
# The types of a call to a function; a call may not have named its type yet.
FUNCTION_TYPES = (None, "", "function")


class CallOwner(Enum):
    UNKNOWN = "unknown"  # the name has not been read to its end
    GATEWAY = "gateway"
    CLIENT = "client"


class AllBut(Collection[str]):
    """All names but these: gateway tools where an unknown name is an error and is not left to the client."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)

    def __contains__(self, name: object) -> bool:
        return name not in self.names

    def __iter__(self) -> Iterator[str]:
        raise TypeError("all names but a few cannot be listed")

    def __len__(self) -> int:
        return sys.maxsize


class ToolCall:
    """A tool call, of which pieces may still come."""

    __slots__ = (
        "arguments",
        "client_index",
        "fields",
        "function",
        "index",
        "is_reindexed",
        "is_sent",
        "name",
        "owner",
        "piece_count",
    )

    def __init__(self, index: Any) -> None:
        self.index = index  # the upstream's
        # The fields of the call, without the fields of its function.
        self.fields: Json = {}
        self.function: Json = {}  # the fields of its function, without name and arguments
        self.name = ""
        self.arguments: list[str] = []
        self.owner = CallOwner.UNKNOWN
        self.piece_count = 0
        self.client_index = -1  # among the client's calls, once that is known
        # Calls of the gateway come before it, so that its index for the client is another one.
        self.is_reindexed = False
        self.is_sent = False  # the client has its beginning

    @property
    def id(self) -> str:
        value = self.fields.get("id")
        return value if isinstance(value, str) else ""

    @property
    def text(self) -> str:
        return "".join(self.arguments)

    def add(self, entry: Json) -> None:
        self.piece_count += 1
        for key, value in entry.items():
            if key == "function":
                if isinstance(value, dict):
                    self._add_function(value, repeats_id=bool(entry.get("id")) and bool(self.id))
            elif key == "id":
                if value or "id" not in self.fields:  # some upstreams send "" after the first piece
                    self.fields["id"] = value
            elif key != "index":
                _merge_field(self.fields, key, value)

    def _add_function(self, function: Json, *, repeats_id: bool) -> None:
        for key, value in function.items():
            if key == "name":
                # Most upstreams send the name whole, some in pieces, and some (MiniMax's models at NVIDIA) whole with
                # every piece. Of the last kind the id comes again as well, or arguments come, before which a name has
                # ended; that distinguishes it from a name that goes on with the same letters.
                is_whole = repeats_id or bool(function.get("arguments")) or any(self.arguments)
                if isinstance(value, str) and not (is_whole and value == self.name):
                    self.name += value
            elif key == "arguments":
                if isinstance(value, str):
                    self.arguments.append(value)
                elif value is not None:  # an object instead of its text
                    self.arguments.append(orjson.dumps(value).decode())
            else:
                _merge_field(self.function, key, value)

    def as_json(self) -> Json:
        """Returns the call as a message carries it (without `index`, which belongs to streams)."""
        # In the order in which they came, which is that of clients that put a stream together.
        call = dict(self.fields)
        if call.get("type") is None:
            call["type"] = "function"
        if self.name or self.arguments or self.function or call["type"] == "function":
            call["function"] = {**self.function, "name": self.name, "arguments": self.text}
        return call


class MessageDraft(ReplyUsage):
    """The assistant message of one reply (choice 0), of which pieces may still come."""

    __slots__ = (
        "_client_call_count",
        "_decided_count",
        "_fields",
        "_newest",
        "_texts",
        "calls",
        "counts",
        "finish_reason",
        "usage",
    )

    def __init__(self) -> None:
        self._fields: Json = {}
        self._texts: dict[str, list[str]] = {}
        self.calls: list[ToolCall] = []
        self._newest: dict[Any, ToolCall] = {}  # index -> the last call under it
        self._decided_count = 0  # how many calls have an owner, up to the first without
        self._client_call_count = 0  # how many of these are the client's
        self.finish_reason: str | None = None
        self.usage: Json | None = None
        # The tokens of `usage`; None: the reply reports none.
        self.counts: TokenCounts | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts.get("content", ()))

    def add(self, delta: Json) -> None:
        """Adds everything of a delta but its tool calls."""
        for key, value in delta.items():
            if type(value) is str:
                if key in REPLACED_FIELDS:
                    self._fields[key] = value
                elif key in self._texts:
                    self._texts[key].append(value)
                else:
                    # Texts are joined once, at the end. The entry keeps the fields in the order in which they came.
                    self._texts[key] = [value]
                    self._fields.setdefault(key, None)
            elif value is None:
                self._fields.setdefault(key, None)
            elif key != "tool_calls":
                _merge_field(self._fields, key, value)

    def take_usage(self, usage: Any) -> None:
        """Takes a usage, if it reports any tokens."""
        counts = reported_counts(usage)
        if counts is not None:
            self.usage = usage
            self.counts = counts

    def add_texts(self, texts: Iterable[str]) -> None:
        """Appends texts to the content, which has begun."""
        self._texts["content"] += texts

    def add_call_piece(self, entry: Json) -> ToolCall:
        """Adds a piece to the call that it continues, or to a new one, and returns the call."""
        index, id_ = entry.get("index"), entry.get("id")
        function = entry.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        key = str(index) if isinstance(index, list | dict) else index
        last_call = self.calls[-1] if self.calls else None
        call = last_call if index is None else self._newest.get(key)
        if call is not None and id_ and call.id and id_ != call.id and (name or index is None):
            # Some upstreams send parallel calls under one index, or without any. Under one index another id is not
            # enough to distinguish a new call from a piece with a new id; a name that comes with it is.
            call = None
        elif call is not None and index is None and not id_ and name and call.name and call.arguments:
            call = None  # there is neither index nor id: a name after arguments begins the next call
        if call is None:
            call = self._newest[key] = ToolCall(index)
            self.calls.append(call)
        call.add(entry)
        return call

    def take_calls(
        self, entries: list[Any], gateway_tools: Collection[str], is_over: bool
    ) -> list[Json] | None:
        """Adds pieces of tool calls. Returns the pieces that the client gets now; None: the given ones, unchanged.

        A call of the client's waits until the owners of all calls before it are known, so that the index under which
        the client gets it does not depend on how the bytes were cut.

        gateway_tools: names of the tools that run here; their calls are withheld from the client.
        is_over: no more pieces come, so that every name is complete.
        """
        pieces: dict[ToolCall, list[Json]] = {}
        for entry in entries:
            if isinstance(entry, dict):
                call = self.add_call_piece(entry)
                pieces.setdefault(call, []).append(entry)
                # Arguments come after the name, so the first of them shows that the name has ended.
                if call.owner is CallOwner.UNKNOWN and gateway_tools:
                    function = entry.get("function")
                    has_arguments = isinstance(function, dict) and bool(function.get("arguments"))
                    call.owner = decide_owner(
                        call, gateway_tools, is_complete=bool(call.name) and has_arguments
                    )
        if not gateway_tools:
            return None
        if is_over:
            for call in self.calls[self._decided_count :]:
                if call.owner is CallOwner.UNKNOWN:
                    call.owner = decide_owner(call, gateway_tools, is_complete=True)
        shown, unchanged = self._take_client_pieces(pieces)
        # Where all go out as they are, so does the event, in its own bytes.
        return None if unchanged == len(entries) == len(shown) else shown

    def _take_client_pieces(self, pieces: Mapping[ToolCall, list[Json]]) -> tuple[list[Json], int]:
        """Returns the pieces that the client gets now, and how many of them are as they came.

        pieces: the new ones of each call.
        """
        shown_pieces: list[Json] = []
        unchanged = 0
        due = [call for call in pieces if call.is_sent] + self._index_client_calls()
        for call in sorted(due, key=lambda call: call.client_index):
            new = pieces.get(call, [])
            if not call.is_sent and call.piece_count != len(new):
                # Earlier pieces were held back while the owner was unknown: all of them go as one.
                index = call.client_index if call.is_reindexed or call.index is None else call.index
                shown_pieces.append({"index": index, **call.as_json()})
            elif call.is_reindexed:
                shown_pieces.extend({**entry, "index": call.client_index} for entry in new)
            else:
                shown_pieces.extend(new)
                unchanged += len(new)
            call.is_sent = True
        return shown_pieces, unchanged

    def _index_client_calls(self) -> list[ToolCall]:
        """Gives the client's calls their indices, in which the gateway's calls leave no gap. Returns these calls.

        It stops at the first call whose owner is unknown.
        """
        indexed: list[ToolCall] = []
        while self._decided_count < len(self.calls):
            call = self.calls[self._decided_count]
            if call.owner is CallOwner.UNKNOWN:
                break
            if call.owner is CallOwner.CLIENT:
                call.client_index = self._client_call_count
                call.is_reindexed = call.client_index != self._decided_count
                self._client_call_count += 1
                indexed.append(call)
            self._decided_count += 1
        return indexed

    @property
    def chars(self) -> int:
        """The characters of all that the model wrote."""
        return len(self.generated_text())

    def generated_text(self) -> str:
        """Returns all that the model wrote, calls included, for an estimate of its tokens."""
        parts = [piece for texts in self._texts.values() for piece in texts]
        for call in self.calls:
            parts.append(call.name)
            parts.extend(call.arguments)
        return "".join(parts)

    def message(self, calls: Iterable[ToolCall] = ()) -> Json:
        """Returns the assistant message with these calls, in the form in which OpenAI's API takes it back.

        LiteLLM's wrapper for other providers' fields is left out: LiteLLM would hand it on to servers that refuse it.
        """
        built: Json = {"role": "assistant", **self._fields}
        for key, texts in self._texts.items():
            text = "".join(texts)
            value = built[key]
            built[key] = _concatenate(value, text) if value else text
        built["role"] = "assistant"  # whatever the upstream called it: it is the reply
        built.pop("tool_calls", None)
        built.pop("provider_specific_fields", None)
        built.pop(PRIVATE, None)  # set by the gateway alone
        call_json = [call.as_json() for call in calls]
        if not built.get("content"):
            built["content"] = None if call_json or built.get("function_call") else ""
        if call_json:
            built["tool_calls"] = call_json
        return built


def join_messages(messages: Iterable[Json]) -> Json:
    """Returns one assistant message with the content of several.

    messages: oldest first. Texts are joined with a separator, tool calls are listed one after the other, other fields
        merged.
    """
    joined: Json = {}
    calls: list[Json] = []
    fillers: Spans = []
    for message in messages:
        text, own = text_of(joined), text_of(message)
        text_at = len(text) + len(separator(text, own))
        for key, value in message.items():
            if key == "tool_calls":
                calls.extend(value)
            elif value is None:
                joined.setdefault(key, None)
            elif key == "content":
                joined[key] = _concatenate(joined.get(key), value, separator(joined.get(key), value))
            elif key == PRIVATE:
                fillers += [(text_at + start, text_at + end) for start, end in filler_spans(message)]
            else:
                _merge_field(joined, key, value)
    joined["content"] = joined.get("content") or (None if calls else "")
    if calls:
        joined["tool_calls"] = calls
    return with_filler_spans(joined, fillers)


def _concatenate(content: Any, more: Any, separator: str = "") -> Any:
    """Returns content followed by more of it; either may be text or a list of parts."""
    if not content or not more:
        return _copy(content or more)
    if isinstance(content, str) and isinstance(more, str):
        return content + separator + more
    return [*_parts(content), *_parts(more)]


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def decide_owner(call: ToolCall, gateway_tools: Collection[str], *, is_complete: bool) -> CallOwner:
    """Decides the owner of a call, as early as its name allows.

    is_complete: the name has ended, because arguments came after it or the reply is over. A name may come in pieces, so
        one that is the beginning of a known one is undecided until then.

    Gateway tools are functions: a call that names another type (OpenAI's `custom` tools) is the client's, whatever its
    name.
    """
    if call.fields.get("type") not in FUNCTION_TYPES:
        return CallOwner.CLIENT
    listed = gateway_tools.names if isinstance(gateway_tools, AllBut) else gateway_tools
    if not is_complete and (not call.name or any(name.startswith(call.name) for name in listed)):
        return CallOwner.UNKNOWN
    return CallOwner.GATEWAY if call.name in gateway_tools else CallOwner.CLIENT


def _merge_field(into: Json, key: str, value: Any) -> None:
    old = into.get(key)
    if old is None:
        # Copied, since it is going to grow and the chunk it came in may still be sent.
        into[key] = _copy(value)
    elif isinstance(old, str) and isinstance(value, str):
        if key in REPLACED_FIELDS:
            into[key] = value
        else:
            # Without another reference Python extends the text where it lies; else each piece would copy all before it.
            into[key] = None
            old += value
            into[key] = old
    elif isinstance(old, dict) and isinstance(value, dict):
        for inner, piece in value.items():
            _merge_field(old, inner, piece)
    elif isinstance(old, list) and isinstance(value, list):
        _merge_list(old, value)
    elif value is not None:
        into[key] = _copy(value)


def _merge_list(old: list[Any], new: list[Any]) -> None:
    """Merges items with the same `index` and `type`, pieces of one (reasoning details), and appends others."""
    for item in new:
        known = _piece_before(old, item)
        if known is None:
            old.append(_copy(item))
        else:
            for key, value in item.items():
                _merge_field(known, key, value)


def _piece_before(old: list[Any], item: Any) -> Json | None:
    """Returns the item among the last ones that another item continues; None: that item is new."""
    if not isinstance(item, dict) or not isinstance(item.get("index"), int):
        return None
    for known in old[-_NEAR_ITEMS:]:
        if (
            isinstance(known, dict)
            and known.get("index") == item["index"]
            and item.get("type", known.get("type")) == known.get("type")
        ):
            return known
    return None


def _copy(value: Any) -> Any:
    """Copies JSON. Not by recursion, because orjson reads 1,024 levels, more than Python's own calls may nest."""
    return marshal.loads(marshal.dumps(value)) if isinstance(value, dict | list) else value


def chunk_of(body: Json) -> Json:
    """Returns a whole reply as the one chunk of a stream; what it does not change is shared with the reply."""
    choices = []
    for choice in body.get("choices") or []:
        if isinstance(choice, dict):
            rest = {key: value for key, value in choice.items() if key != "message"}
            choices.append({**rest, "delta": delta_of(choice)})
    return {**body, "object": "chat.completion.chunk", "choices": choices}


def is_first_choice(choice: Any) -> bool:
    """Returns whether an entry of `choices` is the first choice, which a turn follows. Some proxies write texts."""
    return isinstance(choice, dict) and choice.get("index") in (None, 0, "0")


def as_deltas(chunk: Json) -> Json:
    """Returns a chunk of a stream; one whose choices have messages in place of deltas, as a chunk with deltas."""
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return chunk
    has_messages = [isinstance(c, dict) and "message" in c and c.get("delta") is None for c in choices]
    return chunk_of(chunk) if has_messages and all(has_messages) else chunk


def delta_of(choice: Json) -> Json:
    """Returns the message of a whole reply's choice as a delta, which may be the message itself."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return {}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    indexed = [{**call, "index": n} if isinstance(call, dict) else call for n, call in enumerate(calls)]
    return {**message, "tool_calls": indexed}


def generated_in(message: Mapping[str, Any]) -> str:
    """Returns all that a model wrote of a message, calls included, for an estimate of its tokens."""
    calls = [called_function(call) or {} for call in message.get("tool_calls") or ()]
    parts = [message.get("reasoning_content"), text_of(message), message.get("refusal")]
    parts += [call.get(key) for call in calls for key in ("name", "arguments", "input")]
    return "".join([part for part in parts if isinstance(part, str)])


def lacks_content(delta: Mapping[str, Any]) -> bool:
    """Returns whether a delta has no content; a role alone is none."""
    return not any(value for key, value in delta.items() if key != "role")
