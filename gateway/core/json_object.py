"""Objects of JSON, which are read strictly. (Upstreams' JSON is read leniently: adapters.json_escapes.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from adapters.types import Json

_MEMBERS_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_object(data: bytes | str) -> Json | None:
    """Returns the value of a JSON text that is an object; None: another value, or no JSON."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def read_members(data: bytes) -> dict[str, msgspec.Raw]:
    """Returns the members of an object as they are written, which takes little memory. The last value of a key counts.

    Raises: msgspec.DecodeError (ValidationError: it is no object), UnicodeDecodeError, RecursionError.
    """
    return _MEMBERS_DECODER.decode(data)


def without_none(values: Mapping[str, Any]) -> Json:
    """Returns the values that are not null, by name."""
    return {name: value for name, value in values.items() if value is not None}
