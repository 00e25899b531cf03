"""The canonical form of a message, which stays the same however a client stores and resends it.

A list is flattened into atoms, keyed hashes of 12 bytes: one for a user or tool message, one for an assistant's text,
one for each of its calls. The first byte of an atom is its kind (`USER_ATOM` and so on). White space, ids, the
split into messages, the dump of arguments, reasoning and unknown fields make no difference; the words, the kinds of
media and a speaker's `name` do. A client sends the id of a spoken reply in place of its words, so its atom is of the
id. System messages have no atoms. The text that OpenClaw appends to the newest message has none either: later lists do
not repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import orjson

from gateway.core.conversation.wire_message import (
    PRIVATE,
    list_media,
    read_audio_id,
    read_named_calls,
    read_text,
    without_space,
    without_space_utf8,
)
from gateway.core.roles import RESULT_ROLES, SYSTEM_ROLES
from storage.records import CALL_ATOM, RESULT_ATOM, TEXT_ATOM, USER_ATOM, Atom

# The tags around the text that OpenClaw appends to the newest message in the user's role.
_OPENCLAW_BEGIN = b"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>"
_OPENCLAW_END = b"<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
# The length of an atom without its first byte, which is its kind.
ATOM_DIGEST_BYTES = 11
# The kinds of the first atom of some messages.
_USER_OR_TEXT = USER_ATOM + TEXT_ATOM
_QUESTION = USER_ATOM + RESULT_ATOM
_ASSISTANT = TEXT_ATOM + CALL_ATOM
# A copy of this object costs a third of a new one.
_EMPTY_PATH_HASH = blake2b(digest_size=16)


# The kind of a message is that of its first atom. These functions run on every message of a tree, and to index bytes
# makes no new object, as a slice does.


def is_user(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is a user's."""
    return bool(atoms) and atoms[0][0] in USER_ATOM


def is_user_or_text(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is a user's, or an assistant's that begins with a text."""
    return bool(atoms) and atoms[0][0] in _USER_OR_TEXT


def is_question(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is one that a reply answers: a user's, or the result of a tool."""
    return bool(atoms) and atoms[0][0] in _QUESTION


def is_assistant(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is an assistant's: it begins with a text or with a call."""
    return bool(atoms) and atoms[0][0] in _ASSISTANT


def is_result(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is the result of a tool."""
    return bool(atoms) and atoms[0][0] in RESULT_ATOM


def is_text(atom: Atom) -> bool:
    """Returns whether an atom is the hash of an assistant's text."""
    return atom[:1] == TEXT_ATOM


def is_call(atom: Atom) -> bool:
    """Returns whether an atom is the hash of a call."""
    return atom[:1] == CALL_ATOM


def has_calls(reply: Sequence[Atom] | None) -> bool:
    """Returns whether there are calls among the atoms of a reply. reply: the atoms; None: there is no reply."""
    return any(map(is_call, reply or ()))


class MessageHasher:
    """Hashes messages with one agent's secret, without which no text can be compared with the hashes."""

    __slots__ = ("_keyed", "secret")

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        # A copy of this object costs half of a new one.
        self._keyed = blake2b(digest_size=ATOM_DIGEST_BYTES, key=secret)

    def digest(self, data: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(data)
        return keyed.digest()

    def make_text_atom(self, name: object, text: str) -> Atom:
        """Returns the atom of an assistant's text. text: the text without white space."""
        return self._make_atom(TEXT_ATOM, _encode(name), _encode(text))

    def make_atoms(self, message: Mapping[str, Any], text: bytes | None = None) -> tuple[Atom, ...]:
        """Returns the atoms of a message; (): a system message, or a reply without content.

        text: the text of the message, from `without_space_utf8`; None: the text is read here.
        """
        role = message.get("role")
        if role in SYSTEM_ROLES:
            return ()
        content = message.get("content")
        if text is None:
            text = without_space_utf8(content if isinstance(content, str) else read_text(message))
        name = _encode(message["name"]) if "name" in message else b""
        if role == "assistant":
            return self._make_assistant_atoms(message, name, text)
        media = () if isinstance(content, str) else list_media(message)
        kinds = _encode(",".join(str(part.get("type")) for part in media)) if media else b""
        if role in RESULT_ROLES:
            return (self._make_atom(RESULT_ATOM, text, kinds),)
        if text.startswith(_OPENCLAW_BEGIN) and text.endswith(_OPENCLAW_END) and not media:
            return ()
        return (self._make_atom(USER_ATOM, name, text, kinds),)

    def _make_assistant_atoms(self, message: Mapping[str, Any], name: bytes, text: bytes) -> tuple[Atom, ...]:
        """Returns the atoms of an assistant's message: of its text or sound, then of its calls."""
        atoms = [self._make_atom(TEXT_ATOM, name, text)] if text else []
        if ("audio" in message or PRIVATE in message) and (audio_id := read_audio_id(message)):
            atoms = [self._make_atom(TEXT_ATOM, b"", b"audio", _encode(audio_id))]
        if "tool_calls" in message or "function_call" in message:
            for tool, arguments in read_named_calls(message):
                atoms.append(
                    self._make_atom(CALL_ATOM, _encode(tool), _encode(_canonicalize_arguments(arguments)))
                )
        return tuple(atoms)

    def digest_media(self, message: Mapping[str, Any]) -> bytes:
        """Returns the digest of a message's images and sounds; b"": no images and sounds."""
        media = list_media(message)
        if not media:
            return b""
        digest = self._keyed.copy()
        for part in media:
            digest.update(orjson.dumps(part, option=orjson.OPT_SORT_KEYS))
        return digest.digest()

    def make_reply_key(self, reply: Sequence[Atom]) -> bytes | None:
        """Returns the key under which a reply is looked up: the atom of its text, or else a hash of its calls."""
        for atom in reply:
            if is_text(atom):
                return atom
        return self.digest(b"".join(reply)) if reply else None

    @staticmethod
    def hash_path(atoms: Iterable[Atom], start: bytes = b"") -> bytes:
        """Returns the hash of a path: a hash of its last atom and of the hash of the path before that atom.

        The hash needs no key, since atoms are keyed already.

        start: the hash of the path before these atoms.
        """
        for atom in atoms:
            path_hash = _EMPTY_PATH_HASH.copy()
            path_hash.update(start + atom)
            start = path_hash.digest()
        return start

    def _make_atom(self, kind: bytes, *parts: bytes) -> Atom:
        return kind + self.digest(b"\x00".join(parts))


def _encode(text: object) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def _canonicalize_arguments(arguments: object) -> str:
    """Returns the arguments of a call as JSON with sorted keys; any other text stays, without white space."""
    if not isinstance(arguments, str):
        return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()
    try:
        return orjson.dumps(orjson.loads(arguments), option=orjson.OPT_SORT_KEYS).decode()
    # orjson reads values that are nested deeper than 254 levels, but does not write them.
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return without_space(arguments)
