"""The parts of an item's content, translated to parts of a chat completion's message.

(platform.openai.com/docs/api-reference/responses/create, `input`)
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from adapters.types import Json
from gateway.dialects.fields import (
    FieldPath,
    make_missing_field_error,
    make_unsupported_error,
    make_wrong_type_error,
    read_optional,
    read_required_text,
)

# The fields of a file that chat completions have, too.
_FILE_FIELDS = ("file_data", "file_id", "filename")


def _translate_text(part: Json, path: FieldPath) -> Json:
    return {"type": "text", "text": read_required_text(part, "text", path)}


def _translate_refusal(part: Json, path: FieldPath) -> Json:
    return {"type": "refusal", "refusal": read_required_text(part, "refusal", path)}


def _translate_image(part: Json, path: FieldPath) -> Json:
    """Returns an image by its URL or its data. Raises: BadRequest: it is a file of the upstream's."""
    if part.get("file_id") is not None:
        raise make_unsupported_error(f"{path}.file_id", part["file_id"])
    image = {"url": read_required_text(part, "image_url", path)}
    detail = read_optional(part, "detail", str, path)
    if detail is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _translate_file(part: Json, path: FieldPath) -> Json:
    """Returns a file by its data or its id. Raises: BadRequest: it is named by a URL."""
    if part.get("file_url") is not None:
        raise make_unsupported_error(f"{path}.file_url", part["file_url"])
    return {
        "type": "file",
        "file": {
            key: read_required_text(part, key, path) for key in _FILE_FIELDS if part.get(key) is not None
        },
    }


def _translate_audio(part: Json, path: FieldPath) -> Json:
    """Returns audio, which has the same form in both dialects. Raises: BadRequest."""
    audio = part.get("input_audio")
    if audio is None:
        raise make_missing_field_error(f"{path}.input_audio")
    if not isinstance(audio, dict):
        raise make_wrong_type_error(f"{path}.input_audio", "an object", audio)
    return {"type": "input_audio", "input_audio": audio}


class ContentPartKind(Struct, frozen=True):
    """A kind of part of an item's content."""

    # Returns a part as a part of a chat completion. Its parameters are the part, and the path to it in the body. It
    # raises BadRequest.
    translate: Callable[[Json, FieldPath], Json]
    # The fields that are read; other fields are left out.
    read_fields: frozenset[str]


_TEXT_KIND = ContentPartKind(_translate_text, frozenset(("type", "text")))
# The kinds of parts, by their types.
PART_KINDS = {
    "input_text": _TEXT_KIND,
    "output_text": _TEXT_KIND,
    "text": _TEXT_KIND,
    "refusal": ContentPartKind(_translate_refusal, frozenset(("type", "refusal"))),
    "input_image": ContentPartKind(_translate_image, frozenset(("type", "image_url", "file_id", "detail"))),
    "input_file": ContentPartKind(_translate_file, frozenset(("type", "file_url", *_FILE_FIELDS))),
    "input_audio": ContentPartKind(_translate_audio, frozenset(("type", "input_audio"))),
}
# The types of parts that have only text.
TEXT_PART_TYPES = ("input_text", "output_text", "text", "refusal")
