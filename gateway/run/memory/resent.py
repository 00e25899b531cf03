"""The lists that clients sent last: a list that goes on from one of them is read from there on.

A client resends its whole list with each request, and nearly always byte for byte. So the scan of its bytes and the
hashes of its messages are kept from one turn to the next, and a long conversation costs no more than a short one.
Only a list whose bytes are the same is taken for the same; what is kept is never out of date.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.core.conversation.canonical import Canon, ListFront, Listing
from gateway.core.request.chat import ChatRequest
from gateway.core.request.splice import Layout
from storage.value import frozen

# Chosen: some fifteen hundred conversations of ten messages.
KEPT_BYTES = 8 << 20
_MOST_BYTES = KEPT_BYTES // 8  # of one list
_MESSAGE_BYTES = 350  # measured: a span, an atom and a hash

# An agent's secret, and how many messages there are.
_Name = tuple[bytes, int]


@frozen
class _Sent:
    """A list that was sent. raw: the request's bytes up to its end."""

    raw: bytes
    layout: Layout
    listing: ListFront

    @property
    def bytes(self) -> int:
        return len(self.raw) + _MESSAGE_BYTES * self.listing.count


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
        messages = request.messages
        # The list before ended with what the last reply answers.
        end = len(messages) - 1
        while end > 0 and messages[end]["role"] != "assistant":
            end -= 1
        name = canon.secret, end
        before = self._sent.get(name)
        if before is None or not request.raw.startswith(before.raw):
            listing = Listing(canon, messages)
        else:
            self._drop(name)
            request.lay_out(before.layout)
            listing = Listing(canon, messages, before.listing)
        if listing.said:  # to read the first words again costs less than to keep them
            self._keep((canon.secret, len(messages)), request, listing)
        return listing

    def clear(self) -> None:
        """Drops all: something was forgotten, which clients may have said."""
        self._sent.clear()
        self.bytes = 0

    def _keep(self, name: _Name, request: ChatRequest, listing: Listing) -> None:
        layout = request.layout.front()
        if layout is None or layout.end > _MOST_BYTES:
            return
        self._drop(name)
        sent = self._sent[name] = _Sent(request.raw[: layout.end], layout, listing.front(name[1]))
        self.bytes += sent.bytes
        while self.bytes > self._limit:
            self._drop(next(iter(self._sent)))

    def _drop(self, name: _Name) -> None:
        sent = self._sent.pop(name, None)
        if sent is not None:
            self.bytes -= sent.bytes
