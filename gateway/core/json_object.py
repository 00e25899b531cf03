"""Objects of JSON, which are read strictly. (Upstreams' JSON is read leniently: adapters.json_escapes.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from adapters.types import Json

_MEMBERS_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
# The end of a key as Python's `json` writes it and orjson never does. It is looked for in the beginning of a text.
_KEY_END_WITH_BLANK: Final = b'": '
_BEGINNING_BYTES: Final = 64


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


def is_written_by_orjson(data: bytes, value: Json) -> bool:
    """Returns whether orjson would write a value as a JSON text has it. True is certain; False may be wrong.

    Such a text repeats no key, and has no integer beyond 64 bits. Most SDKs write as orjson does.

    value: the value that orjson has read in the text.
    """
    if data.find(_KEY_END_WITH_BLANK, 0, _BEGINNING_BYTES) >= 0:
        return False
    try:
        return orjson.dumps(value) == data
    except orjson.JSONEncodeError:
        return False


def without_none(values: Mapping[str, Any]) -> Json:
    """Returns the values that are not null, by name."""
    return {name: value for name, value in values.items() if value is not None}
