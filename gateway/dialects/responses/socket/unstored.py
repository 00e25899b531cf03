"""The responses that one connection alone knows: those that are not stored (`store: false`).

Over a WebSocket a client may go on from such a response by its id. The upstream is asked by HTTP, where it knows none
but those that it has stored, so it is sent the items instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec
import orjson
from msgspec import Struct

from gateway.dialects.responses.members import NOT_READABLE, members, written
from gateway.dialects.responses.socket.client_events import Create

# Responses that are held. One conversation needs the newest alone, several or forked ones a few more; no measurement.
_MOST_CACHED: Final = 64
_array = msgspec.json.Decoder(list[msgspec.Raw])


class _CachedResponse(Struct, frozen=True):
    """A response that is not stored. base: the stored one before its items; None: they are all there is."""

    base: str | None
    items: Sequence[bytes]
    size: int


class Unanswered(Struct, frozen=True):
    """A request with a response that may be cached. base, items: before its reply; None: they are not known here."""

    base: str | None
    items: Sequence[bytes] | None
    is_stored: bool


class Unstored:
    """The responses of one connection that are not stored, so that the next request may go on from one by its id.

    Their thoughts are left out unless the client asked for them in a form that can be sent back
    (`reasoning.encrypted_content`): an upstream knows no thoughts that it has not stored.
    """

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: of all that is cached; a longer conversation can only be gone on from with all of its items."""
        self._limit_bytes = limit_bytes
        self._by_id: OrderedDict[str, _CachedResponse] = OrderedDict()
        self._bytes = 0

    def request(self, create: Create) -> tuple[bytes, Unanswered]:
        """Returns an equivalent request body, and the state to cache with its response."""
        fields = {**create.fields, "stream": b"true"}
        own = _items(fields.get("input", b"null"))
        previous = create.previous
        cached = None if previous is None else self._by_id.get(previous)
        items: Sequence[bytes] | None = own
        if cached is not None:
            items, previous = [*cached.items, *own], cached.base
            fields["input"] = b"[%b]" % b",".join(items)
            fields["previous_response_id"] = orjson.dumps(previous)
        if fields.get("conversation", b"null") != b"null":
            items = None
        is_stored = fields.get("store") != b"false"
        return written(fields), Unanswered(previous, items, is_stored)

    def keep(self, asked: Unanswered, response: bytes) -> None:
        """Caches a response that is complete, unless it is stored elsewhere. response: as in its last event."""
        try:
            fields = members(response)
            id, store = orjson.loads(fields.get("id", b"null")), fields.get("store", b"null")
            is_stored = asked.is_stored if store == b"null" else store == b"true"
            if not isinstance(id, str) or asked.items is None or is_stored:
                return
            items = [*asked.items, *_sent_back(_array.decode(fields.get("output", b"[]")))]
        except (*NOT_READABLE, orjson.JSONDecodeError):
            return  # no response as the API has them, which an upstream may send for all that is known
        self._put(id, _CachedResponse(asked.base, items, sum(map(len, items))))

    def drop(self, id: str | None) -> None:
        """Drops a response: the one that went on from it has failed."""
        if id is not None and (dropped := self._by_id.pop(id, None)) is not None:
            self._bytes -= dropped.size

    def _put(self, id: str, cached: _CachedResponse) -> None:
        if cached.size > self._limit_bytes:
            return
        if (earlier := self._by_id.pop(id, None)) is not None:
            self._bytes -= earlier.size
        self._by_id[id] = cached
        self._bytes += cached.size
        while self._bytes > self._limit_bytes or len(self._by_id) > _MOST_CACHED:
            _, oldest = self._by_id.popitem(last=False)
            self._bytes -= oldest.size


def _items(raw: bytes) -> list[bytes]:
    """Returns the items of an `input`, which may be missing."""
    if raw.startswith(b'"'):
        return [b'{"role":"user","content":%b}' % raw]
    return [bytes(item) for item in _array.decode(raw)] if raw.startswith(b"[") else []


def _sent_back(output: Sequence[msgspec.Raw]) -> list[bytes]:
    """Returns the items of a reply as an input has them."""
    items = [members(bytes(item)) for item in output]
    returned = [each for each in items if each.get("type") != b'"reasoning"' or "encrypted_content" in each]
    if len(returned) < len(items):
        for each in returned:  # by its id a call would be asked for the thoughts before it
            each.pop("id", None)
    return [written(each) for each in returned]
