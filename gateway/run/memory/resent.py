"""The lists that clients sent last: a list that goes on from one of them is read from there on.

A client resends its whole list with each request, and nearly always byte for byte. So the places and the hashes of its
messages are kept from one turn to the next, and a long conversation costs little more than a short one. Only a list
whose bytes have the same hash is taken for the same; what is kept is never out of date. (Python's hash of bytes is
SipHash with 64 bits, under a key that each process draws. Two lists are only compared within one memory.)
"""

from __future__ import annotations

from array import array
from collections import OrderedDict

from gateway.core.conversation.canonical import Canon, ListFront, Listing
from gateway.core.request.chat import ChatRequest

# Chosen: some two and a half thousand conversations of ten messages.
KEPT_BYTES = 5 << 19
_MOST_BYTES = 1 << 20  # of one list; a hash of it takes 0.2 ms
_LIST_BYTES, _MESSAGE_BYTES = 700, 32  # measured; of a message with one atom

# An agent's secret, and how many messages there are.
_Name = tuple[bytes, int]
# A list that was sent: the hash of the request's bytes up to its end, the places of its messages, and their hashes.
_Sent = tuple[int, "array[int]", ListFront]


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
        # The list before ended with what the last reply answers.
        end = len(messages) - 1
        while end > 0 and messages[end]["role"] != "assistant":
            end -= 1
        found = self._sent.get((canon.secret, end))
        if found is not None and hash(body[: found[1][-1]]) == found[0]:
            self._drop((canon.secret, end))
            _, places, front = found
            places = request.lay_out(places).places
            listing = Listing(canon, messages, front)
        else:
            listing = Listing(canon, messages)
            if not listing.said:
                return listing  # to read the first words again costs less than to keep them
            places = request.layout.places
        if places[-1] <= _MOST_BYTES:
            self._keep((canon.secret, len(messages)), (hash(body[: places[-1]]), places, listing.front()))
        return listing

    def clear(self) -> None:
        """Drops all: something was forgotten, which clients may have said."""
        self._sent.clear()
        self.bytes = 0

    def _keep(self, name: _Name, sent: _Sent) -> None:
        if name in self._sent:
            self._drop(name)
        self._sent[name] = sent
        self.bytes += _LIST_BYTES + _MESSAGE_BYTES * name[1]
        while self.bytes > self._limit:
            self._drop(next(iter(self._sent)))

    def _drop(self, name: _Name) -> None:
        del self._sent[name]
        self.bytes -= _LIST_BYTES + _MESSAGE_BYTES * name[1]
