"""The envelope: fields that voice platforms and front ends add for the server of a request. They do not go upstream.

OpenAI refuses fields that it does not know, and these are not meant for a model: they name the user or the
conversation. Every other field passes. The module also finds the fields that an upstream's API cannot express.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.core.lenient import as_object

# The types that a vendor sends, by the field. A value of another type belongs to another vendor's field of that name.
_VENDOR_FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "call": (dict,),  # Vapi, docs.vapi.ai/customization/custom-llm
    "customer": (dict,),
    "phoneNumber": (dict,),
    # ElevenLabs, elevenlabs.io/docs/agents-platform/customization/llm/custom-llm
    "user_id": (str, int, type(None)),
    "elevenlabs_extra_body": (dict, type(None)),
}
# The fields that may stay here: values of these names may have no use for an upstream.
_CONSUMED_NAMES: Final = frozenset((*_VENDOR_FIELDS, "metadata"))


def list_consumed_fields(body: Mapping[str, Any], *, takes_metadata: bool) -> tuple[str, ...]:
    """Returns the names of the fields that do not go upstream.

    takes_metadata: True if the upstream takes `metadata` without `store`. A client that sets `store` uses OpenAI's own
        feature, so the upstream judges its `metadata`.
    """
    if _CONSUMED_NAMES.isdisjoint(body):
        return ()
    consumed_names = [
        name for name, types in _VENDOR_FIELDS.items() if name in body and isinstance(body[name], types)
    ]
    metadata = body.get("metadata")
    if metadata is not None and not body.get("store"):
        is_plain = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        if not (takes_metadata and is_plain):
            consumed_names.append("metadata")
    return tuple(consumed_names)


def list_untranslatable_fields(body: Mapping[str, Any], fields: Collection[str]) -> tuple[str, ...]:
    """Returns the fields that this request uses and that are lost in a translation.

    fields: `Capabilities.untranslatable_fields`. The `user_id` of `metadata` and users' names are not lost.
    """
    return tuple(name for name in fields if _FIELD_CHECKS.get(name, _has_value)(body, name))


def find_developer_indices(messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Returns the indices of `developer` messages, which are `system` for an upstream that has no such role."""
    return tuple(i for i, message in enumerate(messages) if message.get("role") == "developer")


def enables_thinking(body: Mapping[str, Any]) -> bool:
    """Returns whether a request turns thinking on by Anthropic's field `thinking`."""
    return as_object(body.get("thinking")).get("type") not in (None, "disabled")


def read_thinking_budget(body: Mapping[str, Any]) -> int:
    """Returns the tokens that a request allows for thinking by Anthropic's field `thinking`; 0: it names no number."""
    budget = as_object(body.get("thinking")).get("budget_tokens")
    return budget if isinstance(budget, int) else 0


def _has_value(body: Mapping[str, Any], name: str) -> bool:
    return body.get(name) is not None


def _has_more_than_user(body: Mapping[str, Any], name: str) -> bool:
    metadata = body.get(name)
    return metadata is not None and not (isinstance(metadata, dict) and metadata.keys() <= {"user_id"})


def _has_detail(body: Mapping[str, Any], _: str) -> bool:
    images = (part.get("image_url") for part in _iterate_parts(body))
    return any(isinstance(image, dict) and image.get("detail") not in (None, "auto") for image in images)


def _has_breakpoint(body: Mapping[str, Any], _: str) -> bool:
    return any(part.get("prompt_cache_breakpoint") for part in _iterate_parts(body))


def _iterate_parts(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the parts of which the contents of the messages consist."""
    contents = (message.get("content") for message in body["messages"])
    return (
        part
        for content in contents
        if isinstance(content, list)
        for part in content
        if isinstance(part, dict)
    )


def _has_name(body: Mapping[str, Any], _: str) -> bool:
    """Returns whether a speaker other than a user has a name. A tool's name is not lost, since its call has it."""
    roles = (message.get("role") for message in body["messages"] if message.get("name"))
    return any(role not in ("user", "tool") for role in roles)


def _has_strict(body: Mapping[str, Any], _: str) -> bool:
    """Returns whether a function of a request asks for strict arguments."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return False
    functions = (tool.get("function") for tool in tools if isinstance(tool, dict))
    return any(isinstance(function, dict) and function.get("strict") for function in functions)


# The checks of fields that a dialect may have no place for: each returns whether a request has the field.
_FIELD_CHECKS: Final[dict[str, Callable[[Mapping[str, Any], str], bool]]] = {
    "metadata": _has_more_than_user,
    "messages.content.image_url.detail": _has_detail,
    "messages.content.prompt_cache_breakpoint": _has_breakpoint,
    "messages.name": _has_name,
    "tools.function.strict": _has_strict,
}
