"""Keys that the outermost object of a body has more than once, found without building the value again if possible."""

from __future__ import annotations

import json as standard_json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.core.json_limits import check_values
from gateway.core.json_object import is_written_by_orjson, read_members
from gateway.errors import BadRequest

# The most members that are checked here. With more, the standard library's parser takes less time.
_MAX_FAST_MEMBERS = 100
_KEY_PATTERN = re.compile(rb'[\s{,]*+"[^"\\]*+"\s*+:\s*+')
_END_PATTERN = re.compile(rb"[\s{]*+}\s*+")


def find_repeated_keys(
    body: bytes, members: Mapping[str, msgspec.Raw] | None = None, *, json: dict[str, Any] | None = None
) -> tuple[str, ...]:
    """Returns the keys that a body has more than once. Parsers differ in the value that they take for such a key.

    Only the keys of the outermost object are compared.

    members: the members of the body, from `read_members`; None: the members were not read yet.
    json: the value of the body; None: the body was not read yet.

    Raises:
        BadRequest: the body is nested too deep.
        BodyTooLarge
        msgspec.DecodeError: as `read_members`, if neither `members` nor `json` is given.
    """
    # Writing a value takes half as long as looking for its members.
    if json is not None and is_written_by_orjson(body, json):
        return ()
    try:
        if members is None:
            members = read_members(body)
        if len(members) <= _MAX_FAST_MEMBERS and _consists_of(body, members.values()):
            return ()
        check_values(body)
        keys: list[str] = []

        def note_keys(pairs: list[tuple[str, Any]]) -> None:
            keys[:] = [key for key, _ in pairs]  # the outermost object comes last

        standard_json.loads(body, object_pairs_hook=note_keys, parse_int=str, parse_float=str)
    except RecursionError as error:
        raise BadRequest("The JSON body of your request is nested too deep.") from error
    return tuple(key for key, times in Counter(keys).items() if times > 1)


def _consists_of(body: bytes, values: Iterable[msgspec.Raw]) -> bool:
    """Returns whether a body consists of these values in their order, each after a key without escapes."""
    offset = 0
    for value in values:
        key = _KEY_PATTERN.match(body, offset)
        if key is None or not body.startswith(value, key.end()):
            return False
        offset = key.end() + len(value)
    return _END_PATTERN.fullmatch(body, offset) is not None
