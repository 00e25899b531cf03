"""Sealed fields: what a client gets as `encrypted_content`, does not read, and sends back to the gateway.

They are the fields of a reply's thoughts as the upstream made them, which some upstreams want back with the results of
their calls, or a summary. Content that OpenAI has encrypted can be read by OpenAI alone.
"""

from __future__ import annotations

from typing import Final, TypeGuard

import orjson

from adapters.types import Json
from gateway.core.json_limits import check_values
from gateway.dialects.fields import check_depth
from gateway.errors import BadRequest

SEALED: Final = "mnemogate:"


def seal(fields: Json) -> str:
    """Returns the content that has these fields. Those of thoughts have the name of their model with them."""
    return SEALED + orjson.dumps(fields).decode()


def is_sealed(content: object) -> TypeGuard[str]:
    """Returns whether the gateway has made an `encrypted_content`."""
    return isinstance(content, str) and content.startswith(SEALED)


def unseal(content: str, param: str) -> Json:
    """Returns the fields in a sealed content. Raises: BadRequest: the content was changed; BodyTooLarge."""
    written = content.removeprefix(SEALED).encode()
    check_values(written)
    try:
        fields = orjson.loads(written)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise BadRequest(f"Invalid '{param}': it is not as the gateway made it.", param=param)
    check_depth(param, [[fields]])  # as deep as they will lie in the messages
    return fields
