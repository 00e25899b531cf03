"""Reads the metadata that a client puts on a response or a conversation."""

from __future__ import annotations

from typing import Final

from adapters.types import Json
from gateway.dialects.fields import make_wrong_type_error, read_optional
from gateway.errors import BadRequest

# OpenAI's limits.
_MAX_PAIRS: Final = 16
_KEY_CHARS: Final = 64
_VALUE_CHARS: Final = 512


def read_metadata(json: Json) -> Json:
    """Returns the pairs of texts in a request's field `metadata`. Raises: BadRequest, in OpenAI's words."""
    metadata: Json = read_optional(json, "metadata", dict) or {}
    if len(metadata) > _MAX_PAIRS:
        raise BadRequest(
            f"Invalid 'metadata': too many properties. Expected an object with at most {_MAX_PAIRS} properties, "
            f"but got an object with {len(metadata)} properties instead.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in metadata.items():
        param = f"metadata.{key[:_KEY_CHARS]}"
        if not isinstance(value, str):
            raise make_wrong_type_error(param, "a string", value)
        for text, max_chars in ((key, _KEY_CHARS), (value, _VALUE_CHARS)):
            if len(text) > max_chars:
                raise BadRequest(
                    f"Invalid '{param}': string too long. Expected a string with maximum length {max_chars}, but got "
                    f"a string with length {len(text)} instead.",
                    param=param,
                    code="string_above_max_length",
                )
    return metadata
