"""The lists that clients sent last, so that a list that continues one of them is hashed from there on.

A client resends its whole list with each request. The hashes of its messages are cached from one turn to the next, so a
long conversation costs little more than a short one. The reply was hashed when it was recorded, and is not hashed again
when it comes back with the same text.

Messages are recognised by Python's hash of 64 bits: SipHash of the texts, under a key that each process draws (unless
`PYTHONHASHSEED` is set), and Python's own combination of these hashes. Lists are only compared within one memory. What
is cached of a list follows from its messages alone, so it is never out of date.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.hashed_list import HashedList, HashedPrefix, HashedReply
from gateway.core.conversation.wire_message import WireMessage, find_text_hashed_alone
from gateway.core.request.chat_request import ChatRequest
from storage.records import Atom

# Some 2,600 conversations of ten messages. Not measured: a list that is not cached is hashed again.
CACHE_BYTES = 5 << 19
# A larger request is not cached. It is hashed in a thread, since other requests would wait: 8 MB of ASCII take 26 ms of
# the processor, and other words up to 170 ms.
MAX_REQUEST_BYTES = 1 << 20
# The bytes that a list takes without its atoms; measured.
_LIST_BYTES = 780
# The bytes that each of its messages takes; measured.
_MESSAGE_BYTES = 8


class _ListKey(NamedTuple):
    """The key of a cached list."""

    # The secret of the agent.
    secret: bytes
    # The number of the list's messages.
    length: int


class _Reply(Struct, frozen=True):
    """The reply to a list."""

    # The hash of the text.
    text_hash: int
    # The atoms of the reply.
    atoms: tuple[Atom, ...]
    # The hash of the path down to the reply.
    path_hash: bytes


class _SentList(Struct, frozen=True):
    """A list that was sent."""

    # The hash of its messages' hashes.
    list_hash: int
    # The hashes of its messages.
    prefix: HashedPrefix
    # The reply to the list; None: no reply yet, or a reply that is not text alone.
    reply: _Reply | None = None

    @property
    def size_bytes(self) -> int:
        """The bytes of memory that the list takes."""
        return _LIST_BYTES + _MESSAGE_BYTES * len(self.prefix.positions) + len(self.prefix.atoms)


class ResentLists:
    """The lists sent last, with their hashes. One for the process; only the event loop's thread uses it.

    Each memory has one entry for each length. If two of its conversations have lists of the same length, the later list
    replaces the earlier list, which is hashed again the next time it is sent.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # The cached lists. The first list is the first to be dropped.
        self._lists: OrderedDict[_ListKey, _SentList] = OrderedDict()
        # The sum of the sizes of the cached lists.
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._lists)

    def hash_list(self, hasher: MessageHasher, request: ChatRequest) -> HashedList:
        """Returns a request's list with its atoms, and caches this list in place of the list that it continues.

        request: a request of at most `MAX_REQUEST_BYTES`.
        """
        messages = request.messages
        # The list that this one continues ended before the last reply.
        reply_index = len(messages) - 1
        while reply_index > 0 and messages[reply_index]["role"] != "assistant":
            reply_index -= 1
        earlier_key = _ListKey(hasher.secret, reply_index)
        earlier_list = self._lists.get(earlier_key)
        hashes = [] if earlier_list is None else [*map(_hash_message, messages)]
        if earlier_list is not None and hash(tuple(hashes[:reply_index])) == earlier_list.list_hash:
            self._drop(earlier_key)
            reply = _find_hashed_reply(earlier_list, messages[reply_index], reply_index)
            listing = HashedList(hasher, messages, earlier_list.prefix, reply)
        else:
            listing = HashedList(hasher, messages)
            if not listing.answered_count:
                return listing  # the first words cost less to hash again than to cache
        list_hash = hash(tuple(hashes or map(_hash_message, messages)))
        self._put(_ListKey(hasher.secret, len(messages)), _SentList(list_hash, listing.as_prefix()))
        return listing

    def cache_reply(
        self,
        request: ChatRequest,
        listing: HashedList,
        reply: WireMessage,
        atoms: tuple[Atom, ...],
        path_hash: bytes,
    ) -> None:
        """Caches the reply to a list.

        reply: the reply in the form that the client has.
        atoms: the atoms of the reply.
        path_hash: the hash of the path down to the reply.
        """
        key = _ListKey(listing.hasher.secret, len(request.messages))
        text = find_text_hashed_alone(reply)
        sent_list = self._lists.get(key)
        if text is None or sent_list is None:
            return
        # Another list with as many messages may have its place. The prefix of this one has the same `positions` object.
        if sent_list.prefix.positions is listing.positions:
            self._lists[key] = replace(sent_list, reply=_Reply(hash(text), atoms, path_hash))

    def clear(self) -> None:
        """Drops all lists, for privacy: something was forgotten that clients may resend."""
        self._lists.clear()
        self.size_bytes = 0

    def _put(self, key: _ListKey, sent_list: _SentList) -> None:
        """Caches a list, and drops the oldest lists while the cache is too large."""
        if key in self._lists:
            self._drop(key)
        self._lists[key] = sent_list
        self.size_bytes += sent_list.size_bytes
        while self.size_bytes > self._limit_bytes:
            self._drop(next(iter(self._lists)))

    def _drop(self, key: _ListKey) -> None:
        self.size_bytes -= self._lists.pop(key).size_bytes


def _find_hashed_reply(sent_list: _SentList, message: WireMessage, index: int) -> HashedReply | None:
    """Returns the reply to a list if it came back with the same text, as the message at this index."""
    reply = sent_list.reply
    text = find_text_hashed_alone(message)
    if reply is None or text is None or hash(text) != reply.text_hash:
        return None
    return HashedReply(index, reply.atoms, reply.path_hash)


def _hash_message(message: WireMessage) -> int:
    """Returns the hash of a message, whatever the order of a plain one's fields."""
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):
        return hash((message["role"], content))
    return hash(orjson.dumps(message))
