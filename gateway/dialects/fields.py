"""Checks of a request's fields, as OpenAI's API makes them. An error names the field, and never quotes the body."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, TypeVar

import msgspec
import orjson

from gateway.core.json_limits import MAX_LEVELS, check_values, is_too_deep
from gateway.errors import BadRequest

# The most characters of a client's key or value that an error quotes: enough to recognise it. Not measured.
QUOTED_CHARS = 60
# The most characters of a model's name. Real names are shorter; several tables cache hundreds of names.
MAX_MODEL_CHARS = 1_000
_Value = TypeVar("_Value")
_TYPE_NAMES: dict[type[Any], str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    type(None): "null",
    # An integer with too many digits for orjson (`read_exact`).
    orjson.Fragment: "an integer",
}


def read_object(body: bytes) -> dict[str, Any]:
    """Returns a body's JSON. Raises: BadRequest, BodyTooLarge."""
    check_values(body)
    try:
        json = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"We could not parse the JSON body of your request: {error.msg} at line {error.lineno}, "
            f"column {error.colno}."
        ) from error
    if not isinstance(json, dict):
        raise BadRequest(
            f"We could not parse the JSON body of your request: expected an object, got {_name_type(json)}."
        )
    return json


class ItemPath(msgspec.Struct):
    """The path to an item of a list, as errors name it. The reader of the list sets the index.

    Only `str` makes the path, since most requests have no errors.
    """

    # The path to the object with the list; "": the body.
    parent: FieldPath
    # The name of the list, with the separator before it.
    key: str
    # The form in which the index of an item is written.
    form: str = "[{}]"
    # The index of the item.
    index: int = 0

    def __str__(self) -> str:
        return f"{self.parent}{self.key}{self.form.format(self.index)}"


# The path of a value in a body, as errors name it.
FieldPath = ItemPath | str


def check_length(param: str, items: list[Any], max_length: int) -> None:
    """Refuses a list that is too long. param: the list's path in the body. Raises: BadRequest."""
    if len(items) > max_length:
        raise BadRequest(
            f"Invalid '{param}': array too long. Expected an array with maximum length {max_length}, but got "
            f"an array with length {len(items)} instead.",
            param=param,
            code="array_above_max_length",
        )


def check_depth(param: str, value: Any, *, depth: int) -> None:
    """Refuses a value that is nested too deep to be stored, or to have its tokens counted.

    depth: the number of lists and objects in which the value lies where it is stored or counted.

    Raises: BadRequest.
    """
    for _ in range(depth):
        value = [value]
    if is_too_deep(value):
        raise BadRequest(
            f"Invalid '{param}': nested too deep. Expected at most {MAX_LEVELS} levels.", param=param
        )


def check_model_name(model: str) -> None:
    """Refuses a text that can be no model's name, before it gets into a cache. Raises: BadRequest."""
    if len(model) > MAX_MODEL_CHARS:
        raise BadRequest(
            f"Invalid 'model': the name has more than {MAX_MODEL_CHARS:,} characters.", param="model"
        )
    if not model.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in model):
        raise BadRequest("Invalid 'model': the name contains a control character.", param="model")


def refuse_unknown_fields(json: Iterable[str], known: Container[str]) -> None:
    """Refuses a body with a field that is not known. Raises: BadRequest."""
    for key in json:
        if key not in known:
            raise BadRequest(
                f"Unknown parameter: '{key[:QUOTED_CHARS]}'.",
                param=key[:QUOTED_CHARS],
                code="unknown_parameter",
            )


def make_missing_field_error(param: str) -> BadRequest:
    """Returns the error for a field that must not be missing. param: the field's path in the body."""
    text = f"Missing required parameter: '{param}'."
    return BadRequest(text, param=param, code="missing_required_parameter")


def read_optional_integer(json: dict[str, Any], key: str) -> int | None:
    """Returns an integer of the body, which may be missing or null. Raises: BadRequest: it is no integer."""
    value = json.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 256.0: some languages have no other numbers
    raise make_wrong_type_error(key, "an integer", value)


def read_optional(
    json: dict[str, Any], key: str, value_type: type[_Value], path: FieldPath = ""
) -> _Value | None:
    """Returns a field that may be missing or null. Raises: BadRequest: it has another type.

    path: the path to the object with the field; "": the body.
    """
    value = json.get(key)
    if value is not None and not isinstance(value, value_type):
        raise make_wrong_type_error(f"{path}.{key}" if path else key, _TYPE_NAMES[value_type], value)
    return value


def read_required_text(json: dict[str, Any], key: str, path: FieldPath) -> str:
    """Returns a text that must not be missing. path: the path to the object with the field. Raises: BadRequest."""
    value = json.get(key)
    if isinstance(value, str):
        return value
    param = f"{path}.{key}" if path else key
    if value is None:
        raise make_missing_field_error(param)
    raise make_wrong_type_error(param, "a string", value)


def make_wrong_type_error(param: str, expected: str, value: Any) -> BadRequest:
    """Returns the error for a value of another type.

    param: the value's path in the body.
    expected: the type, such as "a string".
    """
    return BadRequest(
        f"Invalid type for '{param}': expected {expected}, but got {_name_type(value)} instead.",
        param=param,
        code="invalid_type",
    )


def make_unknown_value_error(param: str, value: Any, supported: str) -> BadRequest:
    """Returns the error for a value that is not one of a few texts.

    param: the value's path in the body.
    supported: the texts, as the error lists them.
    """
    if value is None:
        return make_missing_field_error(param)
    if not isinstance(value, str):
        return make_wrong_type_error(param, "a string", value)
    return BadRequest(
        f"Invalid value: {value[:QUOTED_CHARS]!r}. Supported values are: {supported}.",
        param=param,
        code="invalid_value",
    )


def make_unsupported_error(param: str, value: object) -> BadRequest:
    """Returns the error about a value without a place in chat completions. param: the value's path in the body."""
    return BadRequest(
        f"Unsupported value for '{param}': {str(value)[:QUOTED_CHARS]!r}. The gateway answers this model by way of "
        "chat completions, which have no place for it.",
        param=param,
        code="unsupported_value",
    )


def _name_type(value: Any) -> str:
    return _TYPE_NAMES[type(value)]
