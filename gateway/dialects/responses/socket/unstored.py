"""The responses that are not stored (`store: false`), and are known to one connection alone.

Over a WebSocket a client may continue such a response by its id. The upstream, which is asked over HTTP, knows only the
responses that it has stored. So the request that goes upstream has the items of the response instead of its id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from itertools import takewhile
from typing import Final, NamedTuple

import msgspec
import orjson
from msgspec import Struct

from gateway.core.conversation.heard import as_heard
from gateway.core.conversation.wire_message import read_text
from gateway.dialects.responses.members import NOT_READABLE, decode_upstream_members, encode_members
from gateway.dialects.responses.socket.client_events import CreateEvent

# The most responses that are cached. A conversation needs its newest response alone; several or forked conversations
# need a few more. Not measured: an older response cannot be continued.
_MAX_CACHED_RESPONSES: Final = 64
# The memory that an item takes besides its bytes: for an object, and its place in a list.
_ITEM_BYTES: Final = 41
_ARRAY_DECODER = msgspec.json.Decoder(list[msgspec.Raw])


class _CachedResponse(Struct, frozen=True):
    """A response that is not stored."""

    # The user that the requests with the response's items have named; None: no request has named a user.
    user: str | None
    # The id of the stored response that comes before the items; None: the items begin the conversation.
    base_id: str | None
    # The input and the output since then, in the form of an input.
    items: Sequence[bytes]
    # The bytes that the items take in memory.
    size: int
    # The rows of the memories that have the items' turns.
    memories: Set[int]

    def is_open_to(self, user: str | None) -> bool:
        """Returns whether a request may continue the response. user: the request's user; None: it names no user."""
        return user is None or self.user in (None, user)


class PendingResponse(Struct, frozen=True):
    """The facts about a request that are needed when its response has ended."""

    # The user of the request, or of the response that it continues; None: neither request names one.
    user: str | None
    # The id of the stored response that comes before the items; None: the items begin the conversation.
    base_id: str | None
    # The items of the input since then; None: not known, since the upstream stores the conversation.
    items: Sequence[bytes] | None
    # True if the request asks the upstream to store the response.
    is_stored: bool
    # The rows of the memories that have the turns of the input. The memory of this turn is added when it is known.
    memories: set[int]


class TranslatedRequest(NamedTuple):
    """A request in its form for HTTP."""

    # The body of the request.
    body: bytes
    # The facts that `UnstoredResponses.cache` needs with the response.
    pending: PendingResponse


class UnstoredResponses:
    """A cache of the unstored responses of one connection, so that a request may continue a response by its id.

    Reasoning items are left out unless the client asked for them in a form that can be sent back
    (`reasoning.encrypted_content`): an upstream knows no reasoning item that it has not stored.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Begins empty.

        limit_bytes: the most bytes that are cached. A longer conversation is not cached: its client must send all
            items.
        """
        self._limit_bytes = limit_bytes
        self._by_id: OrderedDict[str, _CachedResponse] = OrderedDict()
        self._bytes = 0

    def translate(self, request: CreateEvent, user: str | None) -> TranslatedRequest:
        """Returns an equivalent request for HTTP.

        user: the user of the request; None: the request names no user.
        """
        fields = {**request.fields, "stream": b"true"}
        new_items = _read_input_items(fields.get("input", b"null"))
        previous_id = request.previous_id
        cached_response = self._by_id.get(previous_id) if previous_id is not None else None
        items: Sequence[bytes] | None = new_items
        memories: set[int] = set()
        if cached_response is not None and cached_response.is_open_to(user):
            items = _join_items(cached_response.items, new_items)
            previous_id = cached_response.base_id
            memories |= cached_response.memories
            user = user if user is not None else cached_response.user
            fields["input"] = b"[%b]" % b",".join(items)
            fields["previous_response_id"] = orjson.dumps(previous_id)
        if fields.get("conversation", b"null") != b"null":
            items = None  # the earlier items of the upstream's conversation are not known here
        is_stored = fields.get("store") != b"false"
        pending = PendingResponse(user, previous_id, items, is_stored, memories)
        return TranslatedRequest(encode_members(fields), pending)

    def cache(self, pending: PendingResponse, response: bytes) -> None:
        """Caches a response that has ended, unless it is stored elsewhere. response: the response in its last event."""
        try:
            fields = decode_upstream_members(response)
            id = orjson.loads(fields.get("id", b"null"))
            store = fields.get("store", b"null")
            is_stored = pending.is_stored if store == b"null" else store == b"true"
            if not isinstance(id, str) or pending.items is None or is_stored:
                return
            items = [*pending.items, *_as_input(_ARRAY_DECODER.decode(fields.get("output", b"[]")))]
        except (*NOT_READABLE, orjson.JSONDecodeError):
            return  # an upstream may send anything, such as a response of another form
        size = sum(map(len, items)) + _ITEM_BYTES * len(items)
        self._put(id, _CachedResponse(pending.user, pending.base_id, items, size, pending.memories))

    def list_memories(self, response_id: str | None) -> list[int]:
        """Returns the rows of the memories that have a cached response's turns. response_id: None: no response."""
        cached_response = self._by_id.get(response_id) if response_id is not None else None
        return [] if cached_response is None else list(cached_response.memories)

    def drop_memory(self, agent_row: int) -> None:
        """Drops the responses with turns of a memory."""
        dropped_ids = [
            response_id for response_id, response in self._by_id.items() if agent_row in response.memories
        ]
        for response_id in dropped_ids:
            self.drop(response_id)

    def drop(self, response_id: str | None) -> None:
        """Drops a response, since the request that continued it has failed. response_id: None: no response."""
        if response_id is not None and (dropped := self._by_id.pop(response_id, None)) is not None:
            self._bytes -= dropped.size

    def _put(self, response_id: str, cached_response: _CachedResponse) -> None:
        if cached_response.size > self._limit_bytes:
            return
        if (earlier := self._by_id.pop(response_id, None)) is not None:
            self._bytes -= earlier.size
        self._by_id[response_id] = cached_response
        self._bytes += cached_response.size
        while self._bytes > self._limit_bytes or len(self._by_id) > _MAX_CACHED_RESPONSES:
            _, oldest = self._by_id.popitem(last=False)
            self._bytes -= oldest.size


def _read_input_items(raw: bytes) -> list[bytes]:
    """Returns the items of an `input`; []: the input is missing."""
    if raw.startswith(b'"'):
        return [b'{"role":"user","content":%b}' % raw]
    return [bytes(item) for item in _ARRAY_DECODER.decode(raw)] if raw.startswith(b"[") else []


def _join_items(cached_items: Sequence[bytes], new_items: Sequence[bytes]) -> list[bytes]:
    """Returns the items of a response and those after it. The response ends with what was heard of its last message.

    cached_items: the items up to the end of the response.
    new_items: the items of the request that continues it; they may begin with what was heard.
    """
    whole_list = [*cached_items, *new_items]
    try:
        resent = [*takewhile(_is_reply, map(orjson.loads, new_items))]
        if not resent:
            return whole_list
        last_items = [*filter(_is_reply, map(orjson.loads, cached_items[-1:]))]
        if not last_items:
            return whole_list
        heard = as_heard(last_items, resent)
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        return whole_list  # what cannot be read is refused where the whole request is read
    later_items = [item for index, item in enumerate(new_items) if index not in heard.repeat_indices]
    if heard.cut_reply is None:
        return [*cached_items, *later_items]
    cut_item = orjson.dumps({"role": "assistant", "content": read_text(heard.cut_reply)})
    return [*cached_items[:-1], cut_item, *later_items]


def _is_reply(item: object) -> bool:
    """Returns whether an item is a message of the assistant."""
    return isinstance(item, dict) and item.get("role") == "assistant"


def _as_input(output: Sequence[msgspec.Raw]) -> list[bytes]:
    """Returns the items of a reply in the form of an input."""
    items = [decode_upstream_members(bytes(item)) for item in output]
    # A reply that was cut may end with its reasoning, which the upstream refuses without the item that follows it.
    while items and items[-1].get("type") == b'"reasoning"':
        items.pop()
    returned = [item for item in items if item.get("type") != b'"reasoning"' or "encrypted_content" in item]
    if len(returned) < len(items):
        # For an item with an id the upstream would demand the reasoning item before it.
        for item in returned:
            item.pop("id", None)
    return [encode_members(item) for item in returned]
