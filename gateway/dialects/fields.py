"""Checks of a request's fields, as OpenAI's API makes them. An error names the field, and never quotes the body."""

from __future__ import annotations

import json as standard_json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from gateway.core.json_limits import MAX_LEVELS, check_values, is_too_deep
from gateway.errors import BadRequest

# Longer than any that is served. Names are cached in several tables, by hundreds.
LONGEST_MODEL = 1_000


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
            f"We could not parse the JSON body of your request: expected an object, got {_type_name(json)}."
        )
    return json


def read_members(body: bytes) -> dict[str, msgspec.Raw]:
    """Returns the members of a body as they are written; of those with the same key the last. Takes little memory.

    Raises: msgspec.DecodeError (ValidationError: it is no object), RecursionError.
    """
    return _MEMBERS.decode(body)


def repeated_keys(
    body: bytes, members: Mapping[str, msgspec.Raw] | None = None, *, json: dict[str, Any] | None = None
) -> tuple[str, ...]:
    """Returns the keys of a body that occur more than once in it; parsers differ in which one they take.

    Keys of objects within it are not looked at.

    members: those of the body, where they have been read.
    json: its value, where that has been read.

    Raises: BadRequest: it is nested too deep; BodyTooLarge.
    """
    if json is not None and is_written_so(body, json):
        return ()
    try:
        if members is None:
            members = read_members(body)
        if len(members) <= _MAX_FAST_MEMBERS and _is_exactly(body, members.values()):
            return ()
        check_values(body)
        standard_json.loads(
            body, object_pairs_hook=(pairs := _OutermostKeys()), parse_int=str, parse_float=str
        )
    except RecursionError as error:
        raise BadRequest("The JSON body of your request is nested too deep.") from error
    return tuple(key for key, times in Counter(pairs.keys).items() if times > 1)


def is_written_so(body: bytes, json: dict[str, Any]) -> bool:
    """Returns whether orjson writes a value as the body has it, and so each key once. Most SDKs write as it does.

    To write it takes half as long as to look for its members.
    """
    if body.find(_AFTER_KEY, 0, _BEGINNING_BYTES) >= 0:
        return False
    try:
        return orjson.dumps(json) == body
    except orjson.JSONEncodeError:
        return False


# After a key, as Python's own module writes it, and orjson never.
_AFTER_KEY = b'": '
_BEGINNING_BYTES = 64
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MAX_FAST_MEMBERS = 100  # members; with more of them the standard library's reading takes less time
_KEY = re.compile(rb'[\s{,]*+"[^"\\]*+"\s*+:\s*+')
_END = re.compile(rb"[\s{]*+}\s*+")


def _is_exactly(body: bytes, values: Iterable[msgspec.Raw]) -> bool:
    """Returns whether a body is these values in their order, each after a key without escapes, and nothing else."""
    at = 0
    for value in values:
        key = _KEY.match(body, at)
        if key is None or not body.startswith(value, key.end()):
            return False
        at = key.end() + len(value)
    return _END.fullmatch(body, at) is not None


class _OutermostKeys:
    """Takes the keys of objects while JSON is read; those of the outermost one come last."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, pairs: list[tuple[str, Any]]) -> None:
        self.keys = [key for key, _ in pairs]


class ItemPath(msgspec.Struct):
    """The path to an item of a list, as errors name it. Who reads the list sets the index, and `str` gives the path.

    It is written out for errors alone, which most requests have none of.
    """

    # The path to the object with the list; "": it is the body.
    parent: object
    # The name of the list, after what separates it from `parent`.
    key: str
    # How the index of an item is written.
    form: str = "[{}]"
    index: int = 0

    def __str__(self) -> str:
        return f"{self.parent}{self.key}{self.form.format(self.index)}"


def check_length(param: str, items: list[Any], most: int) -> None:
    if len(items) > most:
        raise BadRequest(
            f"Invalid '{param}': array too long. Expected an array with maximum length {most}, but got "
            f"an array with length {len(items)} instead.",
            param=param,
            code="array_above_max_length",
        )


def check_depth(param: str, json: list[Any]) -> None:
    """Refuses what is nested too deep to be stored, or to have its tokens counted. json: as deep as in the body."""
    if is_too_deep(json):
        raise BadRequest(
            f"Invalid '{param}': nested too deep. Expected at most {MAX_LEVELS} levels.", param=param
        )


def check_model_name(model: str) -> None:
    """Refuses what can be no model's name, before it is put into a table. Raises: BadRequest."""
    if len(model) > LONGEST_MODEL:
        raise BadRequest(
            f"Invalid 'model': the name has more than {LONGEST_MODEL:,} characters.", param="model"
        )
    if not model.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in model):
        raise BadRequest("Invalid 'model': the name contains a control character.", param="model")


def missing_field(param: str) -> BadRequest:
    text = f"Missing required parameter: '{param}'."
    return BadRequest(text, param=param, code="missing_required_parameter")


def read_integer(json: dict[str, Any], key: str) -> int | None:
    value = json.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 256.0: some languages have no other numbers
    raise wrong_type(key, "an integer", value)


def read_optional(json: dict[str, Any], key: str, kind: type[Any], where: object = "") -> Any:
    """Returns a field that may be missing.

    where: the path to its object, a text or what `str` makes one of; "": it is the body.
    """
    value = json.get(key)
    if value is not None and not isinstance(value, kind):
        raise wrong_type(f"{where}.{key}" if where else key, _TYPE_NAMES[kind], value)
    return value


def read_text(json: dict[str, Any], key: str, where: object) -> str:
    """Returns a text that has to be there. where: as for `read_optional`."""
    value = json.get(key)
    if isinstance(value, str):
        return value
    param = f"{where}.{key}" if where else key
    raise missing_field(param) if value is None else wrong_type(param, "a string", value)


_TYPE_NAMES: dict[type[Any], str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    type(None): "null",
}


def _type_name(value: Any) -> str:
    return _TYPE_NAMES[type(value)]


def wrong_type(param: str, expected: str, value: Any) -> BadRequest:
    return BadRequest(
        f"Invalid type for '{param}': expected {expected}, but got {_type_name(value)} instead.",
        param=param,
        code="invalid_type",
    )
