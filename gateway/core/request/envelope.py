"""What voice platforms and front ends put around a request for whoever serves it: read here, not sent on.

OpenAI refuses fields it does not know, and these are known not to be meant for a model. They have said what they have
to say (whose memory, which conversation) when the request goes up. Everything that is not in the table passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

__all__ = ["consumed", "developer_places", "spent"]

# Field -> the types in which its vendor sends it; in another form it is somebody else's field.
_FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "call": (dict,),  # Vapi, docs.vapi.ai/customization/custom-llm
    "customer": (dict,),
    "phoneNumber": (dict,),
    "user_id": (
        str,
        type(None),
    ),  # ElevenLabs, elevenlabs.io/docs/agents-platform/customization/llm/custom-llm
    "elevenlabs_extra_body": (dict, type(None)),
}
_LOOKED_FOR: Final = frozenset((*_FIELDS, "metadata"))


def consumed(body: Mapping[str, Any], takes_metadata: bool) -> tuple[str, ...]:
    """Names of the fields that do not go upstream.

    takes_metadata: whether the upstream takes `metadata` without `store`. Who sets `store` speaks to OpenAI's own
    feature, and its judgement of `metadata` is what he wants to hear.
    """
    if _LOOKED_FOR.isdisjoint(body):
        return ()
    found = [name for name, kinds in _FIELDS.items() if name in body and isinstance(body[name], kinds)]
    metadata = body.get("metadata")
    if metadata is not None and not body.get("store"):
        is_plain = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        if not (takes_metadata and is_plain):
            found.append("metadata")
    return tuple(found)


def spent(body: Mapping[str, Any], fields: Collection[str]) -> tuple[str, ...]:
    """Names of the fields that a translation has no place for. fields: those it only reads, of what it may be told.

    Of `metadata` it has a place for `user_id`, of names for those of users.
    """
    return tuple(name for name in fields if _SPENT.get(name, _is_there)(body, name))


def _is_there(body: Mapping[str, Any], name: str) -> bool:
    return body.get(name) is not None


def _says_more_than_who(body: Mapping[str, Any], name: str) -> bool:
    metadata = body.get(name)
    return metadata is not None and not (isinstance(metadata, dict) and metadata.keys() <= {"user_id"})


def _has_detail(body: Mapping[str, Any], _: str) -> bool:
    contents = (message.get("content") for message in body["messages"])
    parts = (part for content in contents if isinstance(content, list) for part in content)
    images = (part.get("image_url") for part in parts if isinstance(part, dict))
    return any(isinstance(image, dict) and image.get("detail") not in (None, "auto") for image in images)


def _has_name(body: Mapping[str, Any], _: str) -> bool:
    """Of who speaks; a tool's result is told by the id of its call."""
    named = (message.get("role") for message in body["messages"] if message.get("name"))
    return any(role not in ("user", "tool") for role in named)


_SPENT: Final[dict[str, Callable[[Mapping[str, Any], str], bool]]] = {
    "metadata": _says_more_than_who,
    "messages.content.image_url.detail": _has_detail,
    "messages.name": _has_name,
}


def developer_places(messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Where the messages of role `developer` are; an upstream that has no such role calls them `system`."""
    return tuple(i for i, message in enumerate(messages) if message.get("role") == "developer")
