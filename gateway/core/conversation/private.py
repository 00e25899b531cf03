"""Private fields: the fields of a stored message that no model gets.

Private fields lie under one key of the message, have no atoms, and are forgotten with the message.
`with_private` adds them, `without_private` removes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, cast

from msgspec import Meta

from gateway.core.conversation.wire_message import PRIVATE, WireMessage, read_text
from gateway.core.tags import Tags

# The field `own_length` in rows that were written before it was renamed.
LEGACY_OWN_LENGTH = "said"
# A nudge is a message in the user's role that the gateway writes for the model within a run, for an agent's rules or
# its memory. It begins no turn. This is its `sender`.
NUDGE_SENDER = "rules"

# The characters that OpenAI refuses in the name of a message's author, as its errors show.
_NOT_IN_NAMES = re.compile(r"[\s<|\\/>]")
# The most characters of such a name, as OpenAI's errors show.
_NAME_CHARS = 64

# The fields of a reply that belong to its id, whatever form its words come back in.
_RESPONSE_FIELDS = ("ids", "response", "directions")

# The tags around a system message that is sent in the role of a user.
_FRAME_BEGIN = "<system_message>"
_FRAME_END = "</system_message>"
_escape_tags = Tags("system_message").escape


# The outcome of a call.
CallStatus = Literal["success", "error"]


class PrivateFields(TypedDict, total=False):
    """The fields, as the gateway writes them. An import checks their types (admin.transfer.export_lines)."""

    # Any message can have these.
    shown: str  # "system": the page shows it as a message of the system
    otid: str  # the id that the client gave the message
    sender: str  # the agent that sent the message, or NUDGE_SENDER
    name: str  # the author's name as it was given, if another spelling goes upstream
    # A tool's result can have these.
    status: CallStatus  # without it, the call succeeded
    stdout: str | list[str]  # the output of code that the tool ran
    stderr: str | list[str]  # the errors of that code
    unrun: bool  # the tool did not run
    unapproved: bool  # the call needs an approval that no client could give
    own_length: Annotated[int, Meta(ge=0)]  # the number of characters that are the tool's own text
    shown_blocks: Mapping[str, str]  # gateway.core.prompt.shown_blocks.ShownBlocks
    # An answer to a call can have these.
    approval: str  # "approved" or "denied"
    reason: str  # the reason that the person gave
    # A reply can have these.
    filler: str  # text of its calls, before its own text
    spoken: str  # text of its calls, after its own text
    asides: Mapping[str, Sequence[str]]  # tool -> the names of the asides among its arguments
    fillers: list[tuple[int, int]]  # [from, to] of each, in characters of its text
    cut: bool  # the reply was cut
    unread: bool  # the reply was made without the results right before it, which the upstream refused to read
    unread_earlier: bool  # the reply was made without the results before the previous reply
    audio: Mapping[str, Any]  # `id`: the provider's name of the sound in which the model spoke it
    # A message that the gateway puts into a request can have these.
    stored: bool  # the message comes from the store
    model: str  # the model that made the message
    ids: Sequence[str]  # the ids by which the client may name the reply, if the upstream stores it
    response: Mapping[str, Any]  # gateway.dialects.responses.stored_response
    directions: list[Any]  # gateway.core.conversation.directions


def with_private(message: WireMessage, **fields: Any) -> WireMessage:
    """Returns a copy of the message with private fields added. A field that is None is not added."""
    added_fields = {name: value for name, value in fields.items() if value is not None}
    return {**message, PRIVATE: {**read_private(message), **added_fields}} if added_fields else message


def with_transcript(reply: WireMessage) -> WireMessage:
    """Returns a copy of a spoken reply with its transcript as its text, as it is stored; another reply as it is.

    The sound is not stored. Its provider knows the sound by an id for an hour.
    """
    audio = reply.get("audio")
    if not isinstance(audio, dict):
        return reply
    other_fields = {key: value for key, value in reply.items() if key != "audio"}
    text = reply.get("content") or audio.get("transcript")
    return with_private(
        {**other_fields, "content": text}, audio={"id": audio["id"]} if audio.get("id") else None
    )


def without_private(message: WireMessage) -> WireMessage:
    """Returns a copy of the message without its private fields; the same message if it has no such fields."""
    if PRIVATE not in message:
        return message
    return {key: value for key, value in message.items() if key != PRIVATE}


def without_private_fields(message: WireMessage, *names: str) -> WireMessage:
    """Returns a copy of the message without some of its private fields. names: the fields to leave out."""
    remaining_fields = {name: value for name, value in read_private(message).items() if name not in names}
    bare_message = without_private(message)
    return {**bare_message, PRIVATE: remaining_fields} if remaining_fields else bare_message


def read_private(message: Mapping[str, Any]) -> PrivateFields:
    """Returns the private fields of a message."""
    fields = message.get(PRIVATE)
    return cast(PrivateFields, fields) if isinstance(fields, dict) else {}


def with_response_of(message: WireMessage, stored_message: Mapping[str, Any]) -> WireMessage:
    """Returns a copy of the client's reply with the fields of the stored reply that belong to its id."""
    private: Mapping[str, Any] = read_private(stored_message)
    return with_private(message, **{name: private.get(name) for name in _RESPONSE_FIELDS})


def find_own_length(message: Mapping[str, Any]) -> int | None:
    """Returns the number of a result's first characters that are the tool's own text; None: all of its text.

    A note of changed blocks follows these characters.
    """
    private: Mapping[str, Any] = read_private(message)
    length: int | None = private.get("own_length", private.get(LEGACY_OWN_LENGTH))
    return length


def with_name(message: WireMessage, name: str) -> WireMessage:
    """Returns a copy of the message with its author's name. name: "": the author has no name.

    Strict servers refuse the request over a blank or a bracket in a name, so those characters are replaced.
    """
    if not name:
        return message
    valid_name = _NOT_IN_NAMES.sub("_", name)[:_NAME_CHARS]
    return with_private({**message, "name": valid_name}, name=None if valid_name == name else name)


def find_author(message: Mapping[str, Any]) -> str | None:
    """Returns the name of a message's author, as given."""
    name = read_private(message).get("name") or message.get("name")
    return name if isinstance(name, str) else None


def is_nudge(message: Mapping[str, Any]) -> bool:
    """Returns whether a message is a nudge: the gateway wrote it for the model within a run."""
    return PRIVATE in message and read_private(message).get("sender") == NUDGE_SENDER


def make_framed_system_message(text: str, **fields: Any) -> WireMessage:
    """Returns a message of a party other than the user, in a form that every model takes.

    Templates refuse a system message after the first; so it is a user message in a fixed frame, shown as the system's.
    """
    content = f"{_FRAME_BEGIN}\n{_escape_tags(text)}\n{_FRAME_END}"
    return with_private({"role": "user", "content": content}, shown="system", **fields)


def read_system_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message of `make_framed_system_message` without its frame."""
    return read_text(message).removeprefix(f"{_FRAME_BEGIN}\n").removesuffix(f"\n{_FRAME_END}")
