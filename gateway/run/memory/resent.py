"""The lists that clients sent last: a list that goes on from one of them is read from there on.

A client resends its whole list with each request, and nearly always byte for byte. So the places and the hashes of its
messages are kept from one turn to the next, and a long conversation costs little more than a short one. Only a list
whose bytes have the same hash is taken for the same; what is kept is never out of date. (Python's hash of bytes is
SipHash with 64 bits, under a key that each process draws. Two lists are only compared within one memory.)
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from gateway.core.conversation.canonical import Canon, ListFront, Listing
from gateway.core.request.chat import ChatRequest
from storage.value import frozen

# Chosen: some nine thousand conversations of ten messages.
KEPT_BYTES = 8 << 20
_MOST_BYTES = 1 << 20  # of one list; a hash of it takes 0.2 ms
_LIST_BYTES = 640  # measured: without messages

# An agent's secret, and how many messages there are.
_Name = tuple[bytes, int]


@frozen
class _Sent:
    """A list that was sent. hash: of the request's bytes up to its end. places: of its messages."""

    hash: int
    places: array[int]
    listing: ListFront


class ResentLists:
    """One for the process. Only the event loop's thread uses it."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit = limit_bytes
        self._sent: OrderedDict[_Name, _Sent] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    def listing(self, canon: Canon, request: ChatRequest) -> Listing:
        """Returns a request's list with its atoms, and keeps it in place of the list that it goes on from."""
        messages, body = request.messages, memoryview(request.raw)
        name = canon.secret, _end_before(messages)
        before = self._sent.get(name)
        if before is not None and hash(body[: before.places[-1]]) == before.hash:
            self._drop(name)
            layout = request.lay_out(before.places)
            listing = Listing(canon, messages, before.listing)
        else:
            layout, listing = request.layout, Listing(canon, messages)
        end = layout.places[-1]
        # To read the first words again costs less than to keep them. Repeated keys are read each time.
        if listing.said and end <= _MOST_BYTES and not layout.duplicates:
            sent = _Sent(hash(body[:end]), layout.places, listing.front())
            self._keep((canon.secret, len(messages)), sent)
        return listing

    def clear(self) -> None:
        """Drops all: something was forgotten, which clients may have said."""
        self._sent.clear()
        self.bytes = 0

    def _keep(self, name: _Name, sent: _Sent) -> None:
        self._drop(name)
        self._sent[name] = sent
        self.bytes += _bytes(sent)
        while self.bytes > self._limit:
            self._drop(next(iter(self._sent)))

    def _drop(self, name: _Name) -> None:
        sent = self._sent.pop(name, None)
        if sent is not None:
            self.bytes -= _bytes(sent)


def _end_before(messages: Sequence[dict[str, Any]]) -> int:
    """Returns where the list before ended: with what the last reply answers."""
    end = len(messages) - 1
    while end > 0 and messages[end]["role"] != "assistant":
        end -= 1
    return end


def _bytes(sent: _Sent) -> int:
    return _LIST_BYTES + len(sent.listing.atoms) + 4 * (2 * len(sent.listing.before) + len(sent.places))
