"""Sealed fields: a client gets them as `encrypted_content`, does not read them, and sends them back to the gateway.

The gateway seals summaries, and the thoughts of replies as the upstream made them: some upstreams want the thoughts
back with the results of calls. Content that OpenAI has encrypted can be read by OpenAI alone.

A sealed content is plain JSON after a prefix, neither encrypted nor signed, so a client can read and forge it. A forged
content gains nothing: a summary becomes a system message, and thoughts become a part of an assistant message, and a
client may send such messages itself.
"""

from __future__ import annotations

from typing import Final, TypeGuard

import orjson

from adapters.types import Json
from gateway.core.json_limits import check_values
from gateway.core.json_object import parse_object
from gateway.dialects.fields import check_depth
from gateway.errors import BadRequest

SEALED_PREFIX: Final = "mnemogate:"


def seal(fields: Json) -> str:
    """Returns an `encrypted_content` with these fields. Fields of thoughts include the name of their model."""
    return SEALED_PREFIX + orjson.dumps(fields).decode()


def is_sealed(content: object) -> TypeGuard[str]:
    """Returns whether an `encrypted_content` has the prefix of the gateway."""
    return isinstance(content, str) and content.startswith(SEALED_PREFIX)


def unseal(content: str, param: str) -> Json:
    """Returns the fields in a sealed content, as the client sent them.

    param: the request's field with the content, for errors.

    Raises: BadRequest: the content is no JSON object, or too deep. BodyTooLarge: it has too many values.
    """
    sealed_json = content.removeprefix(SEALED_PREFIX).encode()
    check_values(sealed_json)
    fields = parse_object(sealed_json)
    if fields is None:
        raise BadRequest(f"Invalid '{param}': it is not as the gateway made it.", param=param)
    check_depth(param, fields, depth=2)  # as deep as the fields will lie in the messages
    return fields
