"""Sealed fields: a client gets them as `encrypted_content`, does not read them, and sends them back to the gateway.

Sealed are summaries, and the thoughts of replies as the upstream made them: some upstreams want the thoughts back with
the results of calls. Only OpenAI can read content that OpenAI has encrypted.
"""

from __future__ import annotations

from typing import Final, TypeGuard

import orjson

from adapters.types import Json
from gateway.core.json_limits import check_values
from gateway.dialects.fields import check_depth
from gateway.errors import BadRequest

SEALED_PREFIX: Final = "mnemogate:"


def seal(fields: Json) -> str:
    """Returns an `encrypted_content` with these fields. Fields of thoughts include the name of their model."""
    return SEALED_PREFIX + orjson.dumps(fields).decode()


def is_sealed(content: object) -> TypeGuard[str]:
    """Returns whether the gateway has made an `encrypted_content`."""
    return isinstance(content, str) and content.startswith(SEALED_PREFIX)


def unseal(content: str, param: str) -> Json:
    """Returns the fields in a sealed content. Raises: BadRequest: the content was changed; BodyTooLarge."""
    sealed_json = content.removeprefix(SEALED_PREFIX).encode()
    check_values(sealed_json)
    try:
        fields = orjson.loads(sealed_json)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise BadRequest(f"Invalid '{param}': it is not as the gateway made it.", param=param)
    check_depth(param, [[fields]])  # as deep as the fields will lie in the messages
    return fields
