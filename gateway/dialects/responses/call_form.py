"""The forms of tools and their calls: the forms that an upstream takes, and the forms that a client has.

A tool in a namespace has one flat name upstream, and so in stored calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from msgspec import Struct, field

from gateway.core.turn.call_ids import MAX_NAME_CHARS

# The bytes of the hash in a name that was cut: enough for the few tools of a request.
_HASH_BYTES: Final = 4


class UpstreamTools(Struct, frozen=True):
    """The tools, besides functions, that a request's upstreams take in chat completions.

    It is stored with a request in the background (`StoredResponseRequest`), under the names of its fields there.
    """

    # Custom tools and `allowed_tools`, as OpenAI's own endpoint takes them.
    takes_custom_tools: bool = field(name="custom", default=False)
    # Claude's web search (`web_search_20250305`).
    takes_web_search: bool = field(name="web_search", default=False)


FUNCTIONS_ALONE: Final = UpstreamTools()


class CallForm(Struct, frozen=True, array_like=True):
    """The form in which a client has the calls of one tool. It is stored as an array (`StoredResponse`)."""

    # The type of an item with a call.
    item_type: str
    # The tool's name in the item; upstream the tool may have another name.
    name: str
    # The tool's namespace in the item; None: the tool is in no namespace.
    namespace: str | None = None


NO_FORMS: Final[Mapping[str, CallForm]] = MappingProxyType({})


def make_flat_name(namespace: str | None, name: str) -> str:
    """Returns the name upstream of a tool in a namespace."""
    if namespace is None:
        return name
    full_name = f"{namespace}__{name}"
    if len(full_name) <= MAX_NAME_CHARS:
        return full_name
    digits = blake2b(full_name.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{full_name[: MAX_NAME_CHARS - len(digits) - 1]}_{digits}"
