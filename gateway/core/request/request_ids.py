"""The ids in the headers and the body of a request, in the order in which they count.

They are checked strictly, because two callers with the same id would share a memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gateway.core.request.request_headers import read_header
from gateway.errors import BadRequest

# The most characters of an id: far above a UUID or an e-mail address, which front ends send.
MAX_ID_CHARS = 256
# A character that no id may have.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# The sources of the user, in order. Names with a dash are headers, the others fields of the body.
USER_ORDER = (
    "x-mnemogate-user",
    "x-openwebui-user-id",
    "user",
    "safety_identifier",
    "metadata.user_id",
    "user_id",
    "elevenlabs_extra_body.user_id",
    "customer.number",
    "customer.id",
)
# The sources of the conversation, in order. `prompt_cache_key` and x-session-affinity are not among them, because whole
# workloads share one; nor is x-livekit-session-id, which is new with every request.
CONVERSATION_ORDER = (
    "x-mnemogate-conversation",
    "x-openwebui-chat-id",
    "x-claude-code-session-id",
    "x-session-id",
    "metadata.conversation_id",
    "elevenlabs_extra_body.conversation_id",
    "call.id",
    "x-livekit-room-id",
)
# OpenAI's own fields must be texts. Fields of other vendors may be numbers.
_TEXT_FIELDS = frozenset(("user", "safety_identifier"))
_CALLER_NUMBER = "customer.number"
# The words that telephone providers send for a number that its caller withholds. Such callers are not one user.
_WITHHELD_WORDS = frozenset(
    ("anonymous", "blocked", "private", "restricted", "unavailable", "unknown", "withheld")
)
# The key of a telephone for each letter.
_TELEPHONE_KEYS = str.maketrans("abcdefghijklmnopqrstuvwxyz", "22233344455566677778889999")
# Twilio types these words on a telephone's keys.
_WITHHELD_NUMBERS = _WITHHELD_WORDS | {word.translate(_TELEPHONE_KEYS) for word in _WITHHELD_WORDS}


class IdSource(NamedTuple):
    """A field or a header of a request that may have an id."""

    # The name in `USER_ORDER` or `CONVERSATION_ORDER`.
    name: str
    # The header with the id; None: the id is in the body.
    header: bytes | None
    # The keys that lead to the id in the body; (): the id is in a header.
    keys: tuple[str, ...]


def parse_order(order: Iterable[str]) -> tuple[IdSource, ...]:
    """Returns the sources with these names, in the form of `USER_ORDER`."""
    return tuple(
        IdSource(name, name.lower().encode(), ())
        if "-" in name
        else IdSource(name, header=None, keys=tuple(name.split(".")))
        for name in order
    )


def find_id(
    sources: tuple[IdSource, ...], headers: Mapping[bytes, bytes], body: Mapping[str, Any]
) -> str | None:
    """Returns the id of the first source that has one; None: no source has. Raises: BadRequest: a malformed id."""
    for source in sources:
        if source.header is None:
            found_id = _read_body_id(body, source)
        elif source.header in headers:
            found_id = read_header_id(headers[source.header], source.name)
        else:
            found_id = None
        if found_id is not None:
            return found_id
    return None


def read_header_id(raw: bytes, name: str) -> str | None:
    """Returns the id in the value of a header, as `normalize_id` does."""
    return normalize_id(read_header(raw, name), name)


def normalize_id(text: str, name: str) -> str | None:
    """Returns an id without the blanks around it; None: the id is empty.

    name: the name of the id's header or field, for the error.

    Raises: BadRequest.
    """
    text = text.strip(" \t")
    if not text:
        return None
    if len(text) > MAX_ID_CHARS:
        raise BadRequest(
            f"`{name}` is too long: {len(text)} characters, at most {MAX_ID_CHARS} are accepted.",
            param=name,
            code="string_above_max_length",
        )
    if not text.isprintable() and _CONTROL_CHARACTER.search(text):
        raise BadRequest(f"`{name}` contains a control character.", param=name)
    return text


def _read_body_id(body: Mapping[str, Any], source: IdSource) -> str | None:
    """Returns the id that a body has at a source; None: no id, or a number that the caller withholds."""
    if source.keys[0] not in body:
        return None
    member: Any = body
    for key in source.keys:
        member = member.get(key) if isinstance(member, dict) else None
    found_id = (
        normalize_id(member, source.name) if isinstance(member, str) else _read_number_id(member, source.name)
    )
    is_withheld = (
        source.name == _CALLER_NUMBER
        and found_id is not None
        and found_id.lstrip("+").lower() in _WITHHELD_NUMBERS
    )
    return None if is_withheld else found_id


def _read_number_id(value: Any, name: str) -> str | None:
    """Returns an id that is a whole number, if its vendor sends numbers; None for null."""
    if value is None:
        return None
    # A float is refused: two long whole numbers may be the same float, so that two users would share a memory.
    if name in _TEXT_FIELDS or isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(
            f"Invalid type for `{name}`: expected a string, but got {_name_json_type(value)}.",
            param=name,
            code="invalid_type",
        )
    return normalize_id(str(value), name)


def _name_json_type(value: Any) -> str:
    """Returns the name of the type of a value that is neither text nor null, with its article."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool):
        return "a boolean"
    return "an integer" if isinstance(value, int) else "a decimal number"
