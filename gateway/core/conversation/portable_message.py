"""Stored messages as another model, another upstream or a later request can take them.

No other model reads the fields of one provider, its calls of custom tools and the files that it stores. No upstream
takes an empty reply, and none can fetch media whose address is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from msgspec import Struct

from adapters.types import ANSWER_FIELDS
from gateway.core.conversation.provider_fields import PROVIDER_FIELDS
from gateway.core.conversation.wire_message import PRIVATE

# The fields of a reply and of its calls, and the parts of its content, that another model gets. A strict upstream
# refuses all others, such as Mistral's `prefix` and OpenAI's `annotations`, and Mistral's thoughts among the parts.
_KNOWN_FIELDS = frozenset(("role", "name", *ANSWER_FIELDS, "cache_control", PRIVATE))
_KNOWN_CALL_FIELDS = frozenset(("id", "type", "function", "custom", "cache_control"))
_KNOWN_PART_TYPES = ("text", "refusal")
# The content that is sent for an empty reply, which Mistral and Kimi refuse to take back.
NO_REPLY = "(No reply.)"
# The fields of which a reply with words, calls or media has at least one.
_REPLY_FIELDS = (*ANSWER_FIELDS, *PROVIDER_FIELDS)
# The argument of a function that stands for a custom tool; it has the text that is the tool's input.
INPUT_ARGUMENT = "input"


def make_portable_message(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored message as another model gets it: a reply has its words, and calls of functions alone.

    Not even readable thoughts are left: OpenAI refuses them.
    """
    if message.get("role") != "assistant":
        return message
    known_fields = {key: value for key, value in message.items() if key in _KNOWN_FIELDS}
    calls, content = known_fields.get("tool_calls"), known_fields.get("content")
    if isinstance(calls, list):
        known_fields["tool_calls"] = [
            as_function_call({key: value for key, value in call.items() if key in _KNOWN_CALL_FIELDS})
            if isinstance(call, dict)
            else call
            for call in calls
        ]
    if isinstance(content, list):
        parts = [
            part for part in content if not isinstance(part, dict) or part.get("type") in _KNOWN_PART_TYPES
        ]
        known_fields["content"] = parts or None
    return known_fields


def is_empty_reply(message: Mapping[str, Any]) -> bool:
    """Returns whether a message is a reply with nothing in it but readable thoughts."""
    return message.get("role") == "assistant" and not any(map(message.get, _REPLY_FIELDS))


def with_placeholder_text(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored message; for an empty reply a copy with a text in its place, which each upstream takes."""
    return {**message, "content": NO_REPLY} if is_empty_reply(message) else message


def as_function_call(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a call of a custom tool as a call of a function, as most models take it; any other call as it is."""
    custom = call.get("custom")
    if not isinstance(custom, dict):
        return call
    arguments = orjson.dumps({INPUT_ARGUMENT: custom.get("input")}).decode()
    without_custom = {key: value for key, value in call.items() if key != "custom"}
    return {
        **without_custom,
        "type": "function",
        "function": {"name": custom.get("name"), "arguments": arguments},
    }


def _is_remote(part: object) -> bool:
    """Returns whether a part of a message has an address that the upstream would have to fetch."""
    if not isinstance(part, dict):
        return False
    source = part.get("source") or part.get(str(part.get("type")))
    url = source.get("url") if isinstance(source, dict) else source
    return isinstance(url, str) and url.startswith(("http:", "https:"))


def _is_claude_file(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("document", "image") and "source" in part


class UnsendableParts(Struct, frozen=True):
    """Parts of messages that some upstream cannot take, and the text that it gets in place of each part."""

    # Returns whether a part is of this kind.
    is_unsendable: Callable[[object], bool]
    # The text in place of such a part.
    replacement: str

    def are_in(self, message: Mapping[str, Any]) -> bool:
        """Returns whether a message has such a part."""
        content = message.get("content")
        return isinstance(content, list) and any(map(self.is_unsendable, content))

    def replace_in(self, message: dict[str, Any]) -> dict[str, Any]:
        """Returns a message with the text in place of each such part."""
        if not self.are_in(message):
            return message
        text_part = {"type": "text", "text": self.replacement}
        return {
            **message,
            "content": [text_part if self.is_unsendable(part) else part for part in message["content"]],
        }


# Files in Claude's own form, such as a file by its id: no other model reads them.
CLAUDE_FILES: Final = UnsendableParts(_is_claude_file, "[A file that cannot be read here.]")
# Pictures and other media that an upstream has to fetch from an address.
REMOTE_MEDIA: Final = UnsendableParts(_is_remote, "[A picture or file that can no longer be fetched.]")
