"""A client's list with the atoms of its messages, hashed from where an earlier request's list ended."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from gateway.core.conversation.canonical import SYSTEM_ROLES, MessageHasher, WireMessage, text_of
from storage.records import Atom

_ATOM_BYTES = 12


class HashedPrefix(Struct, frozen=True):
    """The beginning of a client's list, as it was hashed with an earlier request: attributes of its `HashedList`."""

    positions: array[int]
    before: array[int]
    answered: int
    answered_path_hash: bytes
    # All its atoms, concatenated.
    atoms: bytes


class HashedReply(Struct, frozen=True):
    """A reply that was hashed when it was recorded."""

    # The index of the message in the request's own list.
    index: int
    atoms: tuple[Atom, ...]
    # The hash of the path down to the reply.
    path_hash: bytes


_EMPTY_PREFIX = HashedPrefix(array("I"), array("I", [0]), 0, b"", b"")


class HashedList:
    """The client's list, system messages aside, with its atoms."""

    __slots__ = (
        "_atoms",
        "_joined",
        "_media",
        "_path_hashes",
        "answered",
        "answered_path_hash",
        "before",
        "hasher",
        "messages",
        "new_atoms",
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
        # The indices of its messages in the request's own list.
        self.positions = prefix.positions[:]
        # The number of atoms before each of its messages, and at last in all.
        self.before = prefix.before[:]
        # The number of messages up to the last assistant message; what follows is new.
        self.answered = prefix.answered
        # The hash of the path up to the last assistant message.
        self.answered_path_hash = prefix.answered_path_hash
        joined = [prefix.atoms]
        if reply is not None:
            joined += reply.atoms
            self.positions.append(reply.index)
            self.before.append(self.before[-1] + len(reply.atoms))
            self.answered = len(self.positions)
            self.answered_path_hash = reply.path_hash
        in_path = self.before[self.answered]
        # The atoms of each new message.
        self.new_atoms = self._hash_rest(messages, joined)
        # All atoms, concatenated.
        self._joined = b"".join(joined)
        if self.before[self.answered] > in_path:
            atoms = self.between(in_path, self.before[self.answered])
            self.answered_path_hash = hasher.hash_path(atoms, self.answered_path_hash)
        # Hashes of paths by their number of messages.
        self._path_hashes = {0: b"", self.answered: self.answered_path_hash}
        # Nearly always no system message follows another.
        rest = messages[self.positions[0] :] if self.positions else ()
        is_all = len(rest) == len(self.positions)
        self.messages = [*rest] if is_all else [*map(messages.__getitem__, self.positions)]
        self._atoms: list[tuple[Atom, ...]] | None = None
        self._media: dict[int, bytes] = {}

    def _hash_rest(self, messages: Sequence[WireMessage], joined: list[Atom]) -> tuple[tuple[Atom, ...], ...]:
        """Hashes the messages after the prefix into `joined`. Returns the atoms of each that no reply follows."""
        positions, before = self.positions, self.before
        count = before[-1]
        new: list[tuple[Atom, ...]] = []
        for i in range(positions[-1] + 1 if positions else 0, len(messages)):
            role = messages[i].get("role")
            if role in SYSTEM_ROLES:
                continue
            atoms = self.hasher.atoms(messages[i])
            joined += atoms
            count += len(atoms)
            positions.append(i)
            before.append(count)
            if role == "assistant":
                self.answered = len(positions)
                new.clear()
            else:
                new.append(atoms)
        return tuple(new)

    def __len__(self) -> int:
        return len(self.messages)

    def media_digest(self, i: int) -> bytes:
        """Returns the digest of a message's images and sounds; b"" where it has none."""
        if isinstance(self.messages[i].get("content"), str):
            return b""
        # Hashed when asked for: a picture may have megabytes, and most messages of a list are never compared by it.
        if i not in self._media:
            self._media[i] = self.hasher.media_digest(self.messages[i])
        return self._media[i]

    def as_prefix(self) -> HashedPrefix:
        """Returns the hashes of this whole list, from which a longer list goes on."""
        return HashedPrefix(self.positions, self.before, self.answered, self.answered_path_hash, self._joined)

    @property
    def atoms(self) -> list[tuple[Atom, ...]]:
        """The atoms of each message."""
        if self._atoms is None:
            flat = self.between(0, self.before[-1])
            self._atoms = [flat[start:end] for start, end in pairwise(self.before)]
        return self._atoms

    def flat(self, end: int) -> list[Atom]:
        """Returns the atoms of the first `end` messages."""
        return list(self.between(0, self.before[end]))

    def between(self, start: int, end: int) -> tuple[Atom, ...]:
        """Returns the atoms from number `start` up to `end`."""
        # A struct of them all halves the time that taking one by one needs. `struct.unpack` would cache the format.
        return struct.Struct("12s" * (end - start)).unpack(
            self._joined[_ATOM_BYTES * start : _ATOM_BYTES * end]
        )

    def message_at(self, offset: int) -> int:
        """Returns the index of the message that has an atom. offset: how many atoms are in front of it."""
        return bisect_right(self.before, offset) - 1

    def hash_path(self, end: int) -> bytes:
        """Returns the hash of the path that the first `end` messages are."""
        hashed = end
        while hashed not in self._path_hashes:
            hashed -= 1
        if hashed < end:
            atoms = self.between(self.before[hashed], self.before[end])
            self._path_hashes[end] = self.hasher.hash_path(atoms, self._path_hashes[hashed])
        return self._path_hashes[end]

    @property
    def reply_count(self) -> int:
        """The number of its assistant messages."""
        return sum(m.get("role") == "assistant" for m in self.messages)

    @property
    def reply_group_count(self) -> int:
        """The number of its assistant messages, where those in a row count as one: a reply may be sent in parts."""
        is_reply = [m.get("role") == "assistant" for m in self.messages]
        return sum(now and not before for before, now in pairwise([False, *is_reply]))

    def role(self, i: int) -> str:
        return str(self.messages[i].get("role"))

    def text(self, i: int) -> str:
        return text_of(self.messages[i])
