"""Compiles a tool's JSON schema, which is not trusted, into a validator.

`jsonschema-rs` follows the draft that the schema names (2020-12 where it names none), fetches nothing, and matches
patterns in linear time; `format` is not checked. An invalid keyword, and a reference that leads nowhere, forbid
nothing; the rest of the schema applies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from jsonschema_rs import Validator

# The most bytes of one compiled pattern. A larger pattern forbids nothing. Not measured.
_MAX_REGEX_BYTES = 256 * 1024
# The index of a list's element in a JSON pointer (RFC 6901), without a zero before it. Python refuses to parse an index
# of thousands of digits.
_INDEX = re.compile("0|[1-9][0-9]{0,8}")
# The most invalid parts that are removed from a schema. A schema with more forbids nothing. Not measured.
_MAX_REPAIRS = 16


class RepairedSchema(NamedTuple):
    """A schema without its invalid parts, and its validator."""

    # The validator of the repaired schema.
    validator: Validator
    # The repaired schema.
    schema: Any


def compile_schema(schema: Any) -> Validator:
    """Returns the validator of a schema as it is. Raises: ValueError: it is no JSON Schema."""
    import jsonschema_rs  # takes 0.03 s, which only a gateway that calls tools has to spend

    patterns = jsonschema_rs.RegexOptions(size_limit=_MAX_REGEX_BYTES, dfa_size_limit=_MAX_REGEX_BYTES)
    return jsonschema_rs.validator_for(schema, offline=True, validate_formats=False, pattern_options=patterns)


def repair_schema(schema: Any) -> RepairedSchema | None:
    """Returns a schema without its invalid parts, and its validator; None: too much is invalid."""
    for _ in range(_MAX_REPAIRS):
        try:
            return RepairedSchema(compile_schema(schema), schema)
        except ValueError as error:
            repaired = _without_fault(schema, error)
        if repaired == schema:
            return None
        schema = repaired
    return None


def resolve_pointer(root: Mapping[str, Any], reference: str) -> Any:
    """Returns the part of a schema to which a reference leads; None: it leads nowhere, or is no JSON pointer.

    root: the whole schema.
    reference: the value of `$ref`. A JSON pointer (RFC 6901) begins with "#".
    """
    # A fragment that does not begin with "/" is the name of an anchor.
    if not reference.startswith("#") or reference[1:2] not in ("", "/"):
        return None
    target: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and _INDEX.fullmatch(key) and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict) and key in target:
            target = target[key]
        else:
            return None
    return target


def _without_fault(schema: Any, error: ValueError) -> Any:
    """Returns a copy of a schema without the part at fault; the schema as it is if that part is not found."""
    path = getattr(error, "instance_path", None)
    if not path:
        # The fault is a reference or the draft, which the library does not name.
        return _with_local_references(schema, schema)
    try:
        return _without_path(schema, path)
    except LookupError:
        return schema


def _without_path(part: Any, path: Sequence[str | int]) -> Any:
    """Returns a copy of a part of a schema without the element to which a path leads.

    Raises: LookupError: the path leads nowhere. The library leaves empty names out of its paths.
    """
    step, *further_steps = path
    if isinstance(part, list) and isinstance(step, int):
        changed_items = [_without_path(part[step], further_steps)] if further_steps else []
        return [*part[:step], *changed_items, *part[step + 1 :]]
    if not isinstance(part, dict):
        raise LookupError(step)
    name = str(step)  # the library takes a name of digits for an index
    others = {key: value for key, value in part.items() if key != name}
    return {**others, name: _without_path(part[name], further_steps)} if further_steps else others


def _with_local_references(part: Any, root: Mapping[str, Any]) -> Any:
    """Returns a copy of a part of a schema without the references that lead to no part of the schema.

    The draft and the ids are removed as well, since a reference may be relative to an id.
    """
    if isinstance(part, list):
        return [_with_local_references(item, root) for item in part]
    if not isinstance(part, dict):
        return part
    copy = {
        key: _with_local_references(value, root)
        for key, value in part.items()
        # An object or a boolean is the schema of a property with this name.
        if key not in ("$schema", "$id") or isinstance(value, dict | bool)
    }
    reference = copy.get("$ref")
    if isinstance(reference, str):
        del copy["$ref"]
        if resolve_pointer(root, reference) is not None:
            copy["$ref"] = quote(unquote(reference), safe="#/~$")
    return copy
