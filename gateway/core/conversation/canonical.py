"""The canonical form of a message, which stays the same however a client stores and resends it.

A list is flattened into atoms, keyed hashes of 12 bytes: one for a user or tool message, one for an assistant's text,
one for each of its calls. The first byte of an atom is its kind: u, t, a or c, in this order. White space, ids, the
split into messages, the dump of arguments, reasoning and unknown fields make no difference; the words, the kinds of
media and a speaker's `name` do. A reply that its model has spoken is known by its id, which a client sends in place of
the words. System messages have no atoms, nor has the text that OpenClaw appends to the newest message, which no later
list has.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from storage.records import Atom

WireMessage = dict[str, Any]

# The key of a message under which its private fields are (gateway.core.conversation.private).
PRIVATE = "mnemogate"
# The ASCII characters that `str.split` takes for white space.
_ASCII_SPACE = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"
# The older and the newer name of each role.
SYSTEM_ROLES = frozenset({"system", "developer"})
RESULT_ROLES = frozenset({"tool", "function"})
# They enclose the text that OpenClaw appends to the newest message in the user's role.
_OPENCLAW_BEGIN, _OPENCLAW_END = (
    b"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>",
    b"<<<END_OPENCLAW_INTERNAL_CONTEXT>>>",
)
# The length of an atom without its first byte, which is its kind.
ATOM_DIGEST_BYTES = 11
# A copy of this object costs a third of a new one.
_EMPTY_PATH_HASH = blake2b(digest_size=16)


def is_system(message: Mapping[str, Any]) -> bool:
    return message.get("role") in SYSTEM_ROLES


def first_after_system(messages: Sequence[WireMessage]) -> int:
    """Returns the index of the first message after the leading system messages."""
    return next((i for i, m in enumerate(messages) if not is_system(m)), len(messages))


def text_of(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, whatever the form of its content.

    The parts of a user's message are lines, since an application puts a file, a title or a hint before a question. The
    parts of a reply may end within a sentence, as those with citations do.
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    between_parts = "\n" if message.get("role") == "user" else ""
    return between_parts.join(text for text in texts if isinstance(text, str))


def sound_id(message: Mapping[str, Any]) -> str:
    """Returns the id of the sound as which a model has spoken a reply; "": the reply is written.

    A client's message has it in `audio`, a stored one in its private fields.
    """
    audio = message.get("audio")
    if audio is None and isinstance(private := message.get(PRIVATE), dict):
        audio = private.get("audio")
    id = audio.get("id") if isinstance(audio, dict) else None
    return id if isinstance(id, str) else ""


def only_text(message: Mapping[str, Any]) -> str | None:
    """Returns the text of an assistant message that is hashed by its text alone; None for every other message."""
    content = message.get("content")
    if not isinstance(content, str) or message.get("name") is not None or sound_id(message):
        return None
    has_calls = message.get("tool_calls") is not None or message.get("function_call") is not None
    return None if has_calls else content


def media_in(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts of a message that are no text."""
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [part for part in content if isinstance(part, dict) and not isinstance(part.get("text"), str)]


def are_results(messages: Iterable[Mapping[str, Any]]) -> list[bool]:
    """Returns of each message whether it is the result of a call, or has only the media of results before it.

    A tool's message cannot have media, so they follow in the user's role.
    """
    flags: list[bool] = []
    for message in messages:
        role = message.get("role")
        follows_result = bool(flags) and flags[-1]
        is_media = role == "user" and follows_result and bool(media_in(message)) and not text_of(message)
        flags.append(role in RESULT_ROLES or is_media)
    return flags


class NamedCall(NamedTuple):
    """A call of a tool, without its id."""

    # The name of the tool.
    name: str
    # The arguments as they came, mostly JSON in a text; of a custom tool, its input.
    arguments: Any


def calls_in(message: Mapping[str, Any]) -> list[NamedCall]:
    """Returns the calls in a message, also that of the older `function_call`."""
    named_calls: list[NamedCall] = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        if called_function(call) is not None:
            named_calls.append(name_and_arguments(call))
    function = message.get("function_call")
    if isinstance(function, dict):
        named_calls.append(NamedCall(str(function.get("name")), function.get("arguments")))
    return named_calls


def called_function(call: object) -> dict[str, Any] | None:
    """Returns the function or the custom tool of a call; None: the call is broken."""
    function = call.get("function") or call.get("custom") if isinstance(call, dict) else None
    return function if isinstance(function, dict) else None


def name_and_arguments(call: object) -> NamedCall:
    """Returns the tool and the arguments of a call."""
    function = called_function(call) or {}
    return NamedCall(str(function.get("name")), function.get("arguments", function.get("input")))


def call_objects(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the calls of a message as they are, without values that are no objects."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def call_id(call: object) -> str:
    return str(call.get("id")) if isinstance(call, dict) else ""


def without_space(text: str) -> str:
    """Returns a text without white space."""
    return without_space_utf8(text).decode("utf-8", "surrogatepass")


def without_space_utf8(text: str) -> bytes:
    """Returns a text without white space, as UTF-8."""
    if text.isascii():  # in a fifth of the time; all messages that clients resend pass here
        return text.encode().translate(None, _ASCII_SPACE)
    return "".join(text.split()).encode("utf-8", "surrogatepass")


def rest_after(text: str, beginning: str) -> str | None:
    """Returns the rest of a text that begins with `beginning`, white space aside; None: it begins otherwise."""
    if text.startswith(beginning):
        return text[len(beginning) :]
    offset = 0
    for char in without_space(beginning):
        while text[offset : offset + 1].isspace():
            offset += 1
        if text[offset : offset + 1] != char:
            return None
        offset += 1
    return text[offset:]


def visible_reply(full_reply: Sequence[WireMessage], gateway_calls: Container[str] = ()) -> WireMessage:
    """Returns what the client sees of a reply's messages: the text as it was streamed, and its own calls.

    gateway_calls: ids of the calls that the gateway ran itself.
    """
    replies = [message for message in full_reply if message["role"] == "assistant"]
    calls = [call for each in replies for call in call_objects(each) if call_id(call) not in gateway_calls]
    reply: WireMessage = {"role": "assistant", "content": join_texts(map(text_of, replies))}
    return {**reply, "tool_calls": calls} if calls else reply


def join_texts(texts: Iterable[str]) -> str:
    """Joins the texts of several messages into one."""
    joined = ""
    for text in texts:
        joined += separator(joined, text) + text
    return joined


def separator(before: object, after: object) -> str:
    """Returns what joins the texts of two messages, such as "Let me see." and "It rains.": a space or nothing."""
    if isinstance(before, str) and isinstance(after, str) and before and after:
        return "" if before[-1].isspace() or after[0].isspace() else " "
    return ""


def is_user(atoms: tuple[Atom, ...]) -> bool:
    # 0x75 is b"u"; indexing bytes makes no new object, and this runs on every message of a tree.
    return bool(atoms) and atoms[0][0] == 0x75


def is_spoken(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is a user's, or an assistant's that begins with a text."""
    return bool(atoms) and atoms[0][0] in b"ua"


def is_question(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is one that a reply answers: a user's, or the result of a tool."""
    return bool(atoms) and atoms[0][0] in b"ut"


def is_assistant(atoms: tuple[Atom, ...]) -> bool:
    return bool(atoms) and atoms[0][0] in b"ac"


def is_result(atoms: tuple[Atom, ...]) -> bool:
    """Returns whether a message is the result of a tool."""
    return bool(atoms) and atoms[0][0] in b"t"


def is_call(atom: Atom) -> bool:
    return atom[:1] == b"c"


def has_calls(reply: Sequence[Atom] | None) -> bool:
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

    def _atom(self, kind: bytes, *parts: bytes) -> Atom:
        keyed = self._keyed.copy()
        keyed.update(b"\x00".join(parts))
        return kind + keyed.digest()

    def text_atom(self, name: object, text: str) -> Atom:
        """Returns the atom of an assistant's text. text: without white space."""
        return self._atom(b"a", _encode(name), _encode(text))

    def atoms(self, message: Mapping[str, Any], text: bytes | None = None) -> tuple[Atom, ...]:
        """Returns the atoms of a message; a system message has none.

        text: the text of the message, as `without_space_utf8` returns it; None: it is not at hand.
        """
        role = message.get("role")
        if role in SYSTEM_ROLES:
            return ()
        content = message.get("content")
        if text is None:
            text = without_space_utf8(content if isinstance(content, str) else text_of(message))
        name = _encode(message["name"]) if "name" in message else b""
        if role == "assistant":
            atoms = [self._atom(b"a", name, text)] if text else []
            if ("audio" in message or PRIVATE in message) and (sound := sound_id(message)):
                atoms = [self._atom(b"a", b"", b"audio", _encode(sound))]
            if "tool_calls" in message or "function_call" in message:
                for tool, arguments in calls_in(message):
                    atoms.append(self._atom(b"c", _encode(tool), _encode(_canonical_arguments(arguments))))
            return tuple(atoms)
        media = () if isinstance(content, str) else media_in(message)
        kinds = _encode(",".join(str(part.get("type")) for part in media)) if media else b""
        if role in RESULT_ROLES:
            return (self._atom(b"t", text, kinds),)
        if text.startswith(_OPENCLAW_BEGIN) and text.endswith(_OPENCLAW_END) and not media:
            return ()
        return (self._atom(b"u", name, text, kinds),)

    def media_digest(self, message: Mapping[str, Any]) -> bytes:
        """Returns the digest of a message's images and sounds; b"": the message has none."""
        media = media_in(message)
        if not media:
            return b""
        digest = self._keyed.copy()
        for part in media:
            digest.update(orjson.dumps(part, option=orjson.OPT_SORT_KEYS))
        return digest.digest()

    def reply_key(self, reply: Sequence[Atom]) -> bytes | None:
        """Returns the key under which a reply is looked up: the atom of its text, or else a hash of its calls."""
        for atom in reply:
            if atom[:1] == b"a":
                return atom
        return self.digest(b"".join(reply)) if reply else None

    @staticmethod
    def hash_path(atoms: Iterable[Atom], start: bytes = b"") -> bytes:
        """Returns the hash of a path: a hash of its last atom and of the hash of the path before that atom.

        It needs no key, since atoms are keyed already.

        start: the hash of the path before these atoms.
        """
        for atom in atoms:
            hashed = _EMPTY_PATH_HASH.copy()
            hashed.update(start + atom)
            start = hashed.digest()
        return start


def _encode(text: object) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def _canonical_arguments(arguments: object) -> str:
    if not isinstance(arguments, str):
        return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()
    try:
        return orjson.dumps(orjson.loads(arguments), option=orjson.OPT_SORT_KEYS).decode()
    # orjson reads values that are nested deeper than 254 levels, but does not write them.
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return without_space(arguments)
