"""A client's list of messages with their atoms. Messages that an earlier request has hashed are not hashed again."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from msgspec import Struct

from gateway.core.conversation.canonical import ATOM_DIGEST_BYTES, MessageHasher
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.roles import SYSTEM_ROLES
from storage.records import Atom

_ATOM_BYTES = 1 + ATOM_DIGEST_BYTES


class MessageSpan(NamedTuple):
    """Consecutive messages of a list, by their indices."""

    # The index of the first message.
    start: int
    # The index after the last message.
    end: int


class HashedPrefix(Struct, frozen=True):
    """The beginning of a client's list as an earlier request has hashed it."""

    # The index of each message in that request, which has system messages, too.
    positions: array[int]
    # The number of atoms before each message, and at last the number of all atoms.
    offsets: array[int]
    # The number of messages up to the last assistant message.
    answered_count: int
    # The hash of the path up to the last assistant message.
    answered_path_hash: bytes
    # The atoms of all messages of the prefix, concatenated.
    atoms: bytes


class HashedReply(Struct, frozen=True):
    """A reply that was hashed when it was recorded."""

    # The index of the message in the request's own list.
    index: int
    # The atoms of the message.
    atoms: tuple[Atom, ...]
    # The hash of the path down to the reply.
    path_hash: bytes


_EMPTY_PREFIX = HashedPrefix(array("I"), array("I", [0]), 0, b"", b"")


class HashedList:
    """The client's list without system messages, with the atoms of its messages."""

    __slots__ = (
        "_atoms",
        "_joined",
        "_media",
        "_path_hashes",
        "answered_count",
        "answered_path_hash",
        "hasher",
        "messages",
        "new_atoms",
        "offsets",
        "positions",
    )

    def __init__(
        self,
        hasher: MessageHasher,
        messages: Sequence[WireMessage],
        prefix: HashedPrefix = _EMPTY_PREFIX,
        reply: HashedReply | None = None,
    ) -> None:
        """Hashes a list.

        prefix: the hashes of all messages before one of the list's replies, made under the same secret.
        reply: the hashes of that reply, if it was hashed before.
        """
        self.hasher = hasher
        # The index of each message in the request, which has system messages, too.
        self.positions = prefix.positions[:]
        # The number of atoms before each message, and at last the number of all atoms.
        self.offsets = prefix.offsets[:]
        # The number of messages up to the last assistant message. The messages after it are new.
        self.answered_count = prefix.answered_count
        # The hash of the path up to the last assistant message.
        self.answered_path_hash = prefix.answered_path_hash
        joined = [prefix.atoms]
        if reply is not None:
            joined += reply.atoms
            self.positions.append(reply.index)
            self.offsets.append(self.offsets[-1] + len(reply.atoms))
            self.answered_count = len(self.positions)
            self.answered_path_hash = reply.path_hash
        hashed_atom_count = self.offsets[self.answered_count]
        # The atoms of each new message.
        self.new_atoms = self._hash_rest(messages, joined)
        # All atoms, concatenated.
        self._joined = b"".join(joined)
        if self.offsets[self.answered_count] > hashed_atom_count:
            atoms = self.list_atoms_between(hashed_atom_count, self.offsets[self.answered_count])
            self.answered_path_hash = hasher.hash_path(atoms, self.answered_path_hash)
        # Hashes of paths by their number of messages.
        self._path_hashes = {0: b"", self.answered_count: self.answered_path_hash}
        # A slice is faster than picking each message. It is the list if all system messages lead, as they nearly always
        # do.
        after_system = messages[self.positions[0] :] if self.positions else ()
        is_list = len(after_system) == len(self.positions)
        self.messages = [*after_system] if is_list else [*map(messages.__getitem__, self.positions)]
        # The atoms of each message; None: not listed yet.
        self._atoms: list[tuple[Atom, ...]] | None = None
        # The digests of the media of messages, by their indices, as far as they were needed.
        self._media: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.messages)

    def digest_media(self, i: int) -> bytes:
        """Returns the digest of a message's images and sounds; b"": no images and sounds."""
        if isinstance(self.messages[i].get("content"), str):
            return b""
        # Hashed on demand: an image may have megabytes, and most messages are never compared by their media.
        if i not in self._media:
            self._media[i] = self.hasher.digest_media(self.messages[i])
        return self._media[i]

    def hash_new_media(self) -> None:
        """Hashes the images and sounds of the new messages, for `digest_media` in the event loop: 10 MB take 100 ms."""
        for i in range(self.answered_count, len(self)):
            self.digest_media(i)

    def as_prefix(self) -> HashedPrefix:
        """Returns the hashes of the whole list, for a longer list that begins with it.

        The arrays are shared: `ResentLists` recognises the list by them.
        """
        return HashedPrefix(
            self.positions, self.offsets, self.answered_count, self.answered_path_hash, self._joined
        )

    @property
    def atoms(self) -> list[tuple[Atom, ...]]:
        """The atoms of each message."""
        if self._atoms is None:
            flat = self.list_atoms_between(0, self.offsets[-1])
            self._atoms = [flat[start:end] for start, end in pairwise(self.offsets)]
        return self._atoms

    def list_atoms(self, end: int) -> list[Atom]:
        """Returns the atoms of the first `end` messages."""
        return list(self.list_atoms_between(0, self.offsets[end]))

    def list_atoms_between(self, start: int, end: int) -> tuple[Atom, ...]:
        """Returns the atoms from number `start` on, before number `end`."""
        # One struct for all halves the time of one slice each. `struct.unpack` would cache the format, which is long.
        return struct.Struct(f"{_ATOM_BYTES}s" * (end - start)).unpack(
            self._joined[_ATOM_BYTES * start : _ATOM_BYTES * end]
        )

    def locate_message(self, offset: int) -> int:
        """Returns the index of the message that has an atom. offset: the number of atoms before that atom."""
        return bisect_right(self.offsets, offset) - 1

    def hash_path(self, end: int) -> bytes:
        """Returns the hash of the first `end` messages as a path."""
        hashed_count = end
        while hashed_count not in self._path_hashes:
            hashed_count -= 1
        if hashed_count < end:
            atoms = self.list_atoms_between(self.offsets[hashed_count], self.offsets[end])
            self._path_hashes[end] = self.hasher.hash_path(atoms, self._path_hashes[hashed_count])
        return self._path_hashes[end]

    @property
    def reply_count(self) -> int:
        """The number of assistant messages in the list."""
        return sum(message.get("role") == "assistant" for message in self.messages)

    @property
    def reply_group_count(self) -> int:
        """The number of replies in the list: assistant messages in a row are one, since a reply may come in parts."""
        are_replies = [message.get("role") == "assistant" for message in self.messages]
        return sum(is_reply and not follows for follows, is_reply in pairwise([False, *are_replies]))

    def read_role(self, i: int) -> str:
        return str(self.messages[i].get("role"))

    def skip_replies(self, start: int) -> int:
        """Returns the index after the assistant's messages that follow each other from `start` on."""
        return next((i for i in range(start, len(self)) if self.read_role(i) != "assistant"), len(self))

    def read_text(self, i: int) -> str:
        return read_text(self.messages[i])

    def _hash_rest(self, messages: Sequence[WireMessage], joined: list[Atom]) -> tuple[tuple[Atom, ...], ...]:
        """Hashes the messages after the prefix into `joined`. Returns the atoms of messages after the last reply."""
        positions, offsets = self.positions, self.offsets
        count = offsets[-1]
        new_atoms: list[tuple[Atom, ...]] = []
        for i in range(positions[-1] + 1 if positions else 0, len(messages)):
            role = messages[i].get("role")
            if role in SYSTEM_ROLES:
                continue
            atoms = self.hasher.make_atoms(messages[i])
            joined += atoms
            count += len(atoms)
            positions.append(i)
            offsets.append(count)
            if role == "assistant":
                self.answered_count = len(positions)
                new_atoms.clear()
            else:
                new_atoms.append(atoms)
        return tuple(new_atoms)
