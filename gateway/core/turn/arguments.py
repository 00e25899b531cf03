"""Checks a call's arguments by the tool's JSON schema, and says what is wrong in words that a model can act on.

A subset of JSON Schema 2020-12: types, enum and const, objects, arrays, bounds, any/one/all of, references within the
schema. Other keywords are not checked: `pattern` least of all, since a schema is a stranger's and a pattern can take
for ever. The tool itself judges the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import orjson

_DEEP = 64  # references followed or levels entered; deeper is not checked
_STEPS = 20_000  # parts of schemas that are looked at in all: alternatives within alternatives multiply
_SHOWN = 80

# Where a value stands: the keys and places above it. It is put into words for an error alone, since keys may be long.
_Path = tuple[str | int, ...]


def wrong_arguments(tool: str, schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Returns the result of a call whose arguments do not fit; None if they do. schema: of the tool's parameters."""
    wrong = check_arguments(schema, arguments)
    return None if wrong is None else f"Error: {wrong} in the call of {tool}. Nothing was done."


def as_meant(schema: Mapping[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments with JSON in the place of a text that is some, where a text does not fit and that does.

    Small models write a number, a list or true so ("4"), and Letta's server reads it so.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return arguments
    checker, meant = _Checker(schema), dict[str, Any]()
    for name, value in arguments.items():
        wanted = properties.get(name)
        if not isinstance(value, str) or checker.check(wanted, value, (), 0) is None:
            continue
        with suppress(orjson.JSONDecodeError):
            read = orjson.loads(value)
            if checker.check(wanted, read, (), 0) is None:
                meant[name] = read
    return {**arguments, **meant} if meant else arguments


def check_arguments(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Returns the first thing that is wrong, such as "`a.b[2]` must be an integer, and is 'x'"; None if nothing is."""
    return _Checker(schema).check(schema, arguments, (), 0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or float(value).is_integer())


_TYPES: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "string": ("a string", lambda value: isinstance(value, str)),
    "integer": ("an integer", _is_integer),
    "number": ("a number", _is_number),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
    "null": ("null", lambda value: value is None),
}


def _type(schema: Mapping[str, Any], value: Any, path: _Path) -> str | None:
    named = schema.get("type")
    names = named if isinstance(named, list) else [named]
    wanted = [_TYPES[each] for each in names if isinstance(each, str) and each in _TYPES]
    if not wanted or any(fits(value) for _, fits in wanted):
        return None
    return f"{_name(path)} must be {' or '.join(words for words, _ in wanted)}, and is {_short(value)}"


def _enum(schema: Mapping[str, Any], value: Any, path: _Path) -> str | None:
    allowed = schema.get("enum")
    if isinstance(allowed, list) and not any(_is_same(value, each) for each in allowed):
        return f"{_name(path)} must be one of {', '.join(map(_short, allowed))}, and is {_short(value)}"
    if "const" in schema and not _is_same(value, schema["const"]):
        return f"{_name(path)} must be {_short(schema['const'])}, and is {_short(value)}"
    return None


def _is_same(one: Any, other: Any) -> bool:
    # In JSON true is not 1.
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)


_BOUNDS: Final[
    tuple[tuple[str, Callable[[Any], bool], Callable[[Any], Any], Callable[[Any, Any], bool], str], ...]
] = (
    ("minimum", _is_number, lambda v: v, lambda v, b: v >= b, "must be at least {}"),
    ("maximum", _is_number, lambda v: v, lambda v, b: v <= b, "must be at most {}"),
    ("exclusiveMinimum", _is_number, lambda v: v, lambda v, b: v > b, "must be more than {}"),
    ("exclusiveMaximum", _is_number, lambda v: v, lambda v, b: v < b, "must be less than {}"),
    ("minLength", lambda v: isinstance(v, str), len, lambda v, b: v >= b, "must have at least {} characters"),
    ("maxLength", lambda v: isinstance(v, str), len, lambda v, b: v <= b, "must have at most {} characters"),
    ("minItems", lambda v: isinstance(v, list), len, lambda v, b: v >= b, "must have at least {} items"),
    ("maxItems", lambda v: isinstance(v, list), len, lambda v, b: v <= b, "must have at most {} items"),
)


def _bounds(schema: Mapping[str, Any], value: Any, path: _Path) -> str | None:
    for key, concerns, measure, holds, words in _BOUNDS:
        bound = schema.get(key)
        if _is_number(bound) and concerns(value) and not holds(measure(value), bound):
            return f"{_name(path)} {words.format(bound)}, and is {_short(value)}"
    return None


class _Checker:
    """Checks a value by a schema. root: the whole schema, in which references are resolved."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = _STEPS

    def check(self, schema: object, value: Any, path: _Path, depth: int) -> str | None:
        if schema is False:
            return f"{_name(path)} is not allowed"
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > _DEEP or self._left < 0:
            return None
        if "$ref" in schema:
            wrong = self.check(self._resolve(schema["$ref"]), value, path, depth + 1)
            if wrong is not None:
                return wrong
        for check in (_type, _enum, _bounds):
            if (wrong := check(schema, value, path)) is not None:
                return wrong
        if (wrong := self._alternatives(schema, value, path, depth)) is not None:
            return wrong
        if isinstance(value, dict):
            return self._object(schema, value, path, depth)
        return self._array(schema, value, path, depth) if isinstance(value, list) else None

    def _resolve(self, reference: object) -> object:
        """Returns the part of the schema that a reference names; True (anything) if there is none."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        found: object = self._root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                return True
            found = found[key]
        return found

    def _alternatives(self, schema: Mapping[str, Any], value: Any, path: _Path, depth: int) -> str | None:
        for each in _list(schema, "allOf"):
            if (wrong := self.check(each, value, path, depth + 1)) is not None:
                return wrong
        for key in ("anyOf", "oneOf"):
            found = [self.check(each, value, path, depth + 1) for each in _list(schema, key)]
            if found and None not in found:
                # Of optional values the null is not what the model has missed.
                others = [
                    w for w, each in zip(found, _list(schema, key), strict=True) if each != {"type": "null"}
                ]
                return (others or found)[0]
        return None

    def _object(
        self, schema: Mapping[str, Any], value: dict[str, Any], path: _Path, depth: int
    ) -> str | None:
        known = schema.get("properties")
        known = known if isinstance(known, Mapping) else {}
        for key in _list(schema, "required"):
            if isinstance(key, str) and key not in value:
                return f"{_name((*path, key))} is missing"
        others = schema.get("additionalProperties", True)
        for key, inner in value.items():
            if key not in known and others is False:
                names = ", ".join(map(str, known)) or "none"
                return f"{_name((*path, key))} is not known (there are: {names})"
            wrong = self.check(known.get(key, others), inner, (*path, key), depth + 1)
            if wrong is not None:
                return wrong
        return None

    def _array(self, schema: Mapping[str, Any], value: list[Any], path: _Path, depth: int) -> str | None:
        first = _list(schema, "prefixItems")
        for n, inner in enumerate(value):
            each = first[n] if n < len(first) else schema.get("items", True)
            if (wrong := self.check(each, inner, (*path, n), depth + 1)) is not None:
                return wrong
        return None


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _name(path: _Path) -> str:
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)
    return f"`{text.removeprefix('.')}`" if path else "the value"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
