"""The lists that clients sent last: a list that goes on from one of them is read from there on.

A client resends its whole list with each request. So the hashes of its messages are stored from one turn to the next,
and a long conversation costs little more than a short one. The reply was hashed when it was recorded, and is not
hashed again when it comes back with the same text. Only a list of messages with the same marks is taken for the
same; what is stored is never out of date. (Python's hash of bytes and texts is SipHash with 64 bits, under a key that
each process draws. Two lists are only compared within one memory.)
"""

from __future__ import annotations

from collections import OrderedDict

import orjson

from gateway.core.conversation.canonical import Canon, ListFront, Listing, WireMessage, text_alone
from gateway.core.request.chat_request import ChatRequest
from storage.records import Atom

# Chosen: some two thousand six hundred conversations of ten messages.
CACHE_BYTES = 5 << 19
_MOST_BYTES = 1 << 20  # of one request; to mark its messages takes 1 ms
_LIST_BYTES, _MESSAGE_BYTES = 780, 20  # measured; of a message with one atom

# An agent's secret, and how many messages there are.
_Name = tuple[bytes, int]
# The reply to a list: the hash of its text, its atoms, and the hash of the path down to it.
_Reply = tuple[int, tuple[Atom, ...], bytes]
# A list that was sent: the mark of its messages, their hashes, and the reply; None: none yet, or none that is text
# alone.
_Sent = tuple[int, ListFront, _Reply | None]


class ResentLists:
    """One for the process. Only the event loop's thread uses it."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._sent: OrderedDict[_Name, _Sent] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    def listing(self, canon: Canon, request: ChatRequest) -> Listing:
        """Returns a request's list with its atoms, and stores it in place of the list that it goes on from."""
        messages = request.messages
        if len(request.raw) > _MOST_BYTES:
            return Listing(canon, messages)
        # The list before ended with what the last reply answers.
        end = len(messages) - 1
        while end > 0 and messages[end]["role"] != "assistant":
            end -= 1
        marks: list[int] = []
        found = self._sent.get((canon.secret, end))
        if found is not None:
            marks = [*map(_mark, messages)]
        if found is not None and hash(tuple(marks[:end])) == found[0]:
            self._drop((canon.secret, end))
            _, front, reply = found
            text, known = text_alone(messages[end]), None
            if reply is not None and text is not None and hash(text) == reply[0]:
                known = end, reply[1], reply[2]
            listing = Listing(canon, messages, front, known)
        else:
            listing = Listing(canon, messages)
            if not listing.answered:
                return listing  # to read the first words again costs less than to store them
        sent = hash(tuple(marks or map(_mark, messages))), listing.front(), None
        self._store((canon.secret, len(messages)), sent)
        return listing

    def answered(
        self,
        request: ChatRequest,
        listing: Listing,
        answered: WireMessage,
        reply: tuple[Atom, ...],
        path: bytes,
    ) -> None:
        """Takes in the reply to a list.

        reply: its atoms.
        path: the hash of the path down to it.
        """
        name, text = (listing.canon.secret, len(request.messages)), text_alone(answered)
        sent = self._sent.get(name)
        if text is None or sent is None:
            return
        mark, front, _ = sent
        # Another list of as many messages may have taken its place.
        if front[0] is listing.positions:
            self._sent[name] = mark, front, (hash(text), reply, path)

    def clear(self) -> None:
        """Drops all: something was forgotten that clients may resend."""
        self._sent.clear()
        self.bytes = 0

    def _store(self, name: _Name, sent: _Sent) -> None:
        if name in self._sent:
            self._drop(name)
        self._sent[name] = sent
        self.bytes += _LIST_BYTES + _MESSAGE_BYTES * name[1]
        while self.bytes > self._limit:
            self._drop(next(iter(self._sent)))

    def _drop(self, name: _Name) -> None:
        del self._sent[name]
        self.bytes -= _LIST_BYTES + _MESSAGE_BYTES * name[1]


def _mark(message: WireMessage) -> int:
    """Returns the hash of a message, whatever the order of a plain one's fields."""
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):
        return hash((message["role"], content))
    return hash(orjson.dumps(message))
