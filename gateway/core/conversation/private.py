"""Private fields: what a stored message of an agent bears besides what the model gets.

They lie under one key of the message, have no atoms, are in no body that goes upstream, and are forgotten with the
row. `with_private` adds them, `without_private` takes them off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.core.conversation.canonical import WireMessage, text_of
from gateway.core.tags import Tags

# The key. Its fields:
#   of any message: shown ("system": it is shown as one of the system's), otid, sender, name (where another one goes
#     upstream);
#   of a tool's result: status, stdout, stderr, unrun, own_length (how many characters are the tool's own text),
#     shown_blocks (what it shows of memory blocks: gateway.core.prompt.shown_blocks.Shown);
#   of an answer to a call: approval, reason;
#   of a reply: filler and spoken (text of its calls, before its own text and after it), asides (tool -> which of its
#     arguments are not the tool's), fillers (gateway.core.conversation.fillers), cut, ids (by which its client may name
#     a reply that its upstream stores), response (what the Responses API shows of it beside its words:
#     gateway.dialects.responses.stored_response), directions (system and developer messages of its request:
#     gateway.core.conversation.directions).
PRIVATE = "mnemogate"
FORMER_OWN_LENGTH = "said"  # the field `own_length` in rows that were written before it was renamed
NUDGE = "rules"  # the sender of messages without an author: an agent's rules, or its memory within a run

# What OpenAI takes as the name of a message's author, as its errors show.
_NOT_IN_NAMES = re.compile(r"[\s<|\\/>]")
_NAME_CHARS = 64

_FRAME_BEGIN, _FRAME_END = "<system_message>", "</system_message>"
_plain = Tags("system_message").make_plain


def with_private(message: WireMessage, **fields: Any) -> WireMessage:
    """Returns the message with these fields added to those that it has; a field that is None is left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {**message, PRIVATE: {**private_of(message), **given}} if given else message


def without_private(message: WireMessage) -> WireMessage:
    """Returns the message as it goes upstream."""
    if PRIVATE not in message:
        return message
    return {key: value for key, value in message.items() if key != PRIVATE}


def without_fields(message: WireMessage, *names: str) -> WireMessage:
    """Returns the message without these private fields."""
    left = {name: value for name, value in private_of(message).items() if name not in names}
    bare = without_private(message)
    return {**bare, PRIVATE: left} if left else bare


def private_of(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the private fields of a message, by name."""
    found = message.get(PRIVATE)
    return found if isinstance(found, dict) else {}


def own_length(message: Mapping[str, Any]) -> int | None:
    """Returns how many characters of a result are the tool's own text; None: all of them.

    A note of changed blocks follows them.
    """
    private = private_of(message)
    length: int | None = private.get("own_length", private.get(FORMER_OWN_LENGTH))
    return length


def with_name(message: WireMessage, name: str) -> WireMessage:
    """Returns the message with its author's name. "": it has none.

    Strict servers refuse the request over a blank or a bracket in a name, so it goes upstream without such.
    """
    if not name:
        return message
    sent = _NOT_IN_NAMES.sub("_", name)[:_NAME_CHARS]
    return with_private({**message, "name": sent}, name=None if sent == name else name)


def name_of(message: Mapping[str, Any]) -> str | None:
    """Returns the name of a message's author, as given."""
    found = private_of(message).get("name") or message.get("name")
    return found if isinstance(found, str) else None


def is_nudge(message: Mapping[str, Any]) -> bool:
    """Returns whether a message has no author: an agent's rules or its memory wrote it for the model within a run."""
    return PRIVATE in message and private_of(message).get("sender") == NUDGE


def as_system(text: str, **fields: Any) -> WireMessage:
    """Returns a message of a party other than the user, in a form that every model takes.

    Templates refuse a system message after the first; so it is the user's in a fixed frame, and shown as the system's.
    """
    content = f"{_FRAME_BEGIN}\n{_plain(text)}\n{_FRAME_END}"
    return with_private({"role": "user", "content": content}, shown="system", **fields)


def system_text(message: Mapping[str, Any]) -> str:
    """Returns the text of such a message without its frame."""
    return text_of(message).removeprefix(f"{_FRAME_BEGIN}\n").removesuffix(f"\n{_FRAME_END}")
