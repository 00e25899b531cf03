"""Checks a call's arguments by the tool's JSON schema, and puts what is wrong into words that a model can act on.

The schema is a stranger's, and so are the arguments. `jsonschema-rs` judges by the draft that the schema names (2020-12
where it names none), fetches nothing, and matches patterns in linear time; `format` is not checked. Alternatives within
alternatives still take any time, in which nothing else runs in this process. So `estimate_cost` says beforehand what a
check can take at most, and what costs much is checked in another process (gateway.agents.tools.argument_check).

A keyword that is no JSON Schema, and a reference that leads nowhere, forbid nothing; the rest of the schema holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import orjson

from gateway.core.json_limits import is_too_deep

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

_LARGE = 32 * 1024  # of a schema; to look at all of a larger one takes more than 30 ms
_PATTERN_BYTES = 4096  # of a compiled pattern, and what it takes to compile one, as a schema of so many bytes
_REGEX_BYTES = 256 * 1024  # of one compiled pattern at most; a larger one forbids nothing
_LEAST_BYTES = 64  # counted of any arguments: the schema is compiled for none
_LEVELS = 64  # of a schema with its references written out, for `estimate_cost`
_MENDED = 16  # faults of one schema that are left out; one with more forbids nothing
# Their cost does not follow from the size of the schema, or they say what a reference leads to.
_UNKNOWN: Final = (
    b'"$id"', b'"$anchor"', b'"$dynamicAnchor"', b'"$dynamicRef"', b'"$recursiveRef"', b'"unevaluated', b'"multipleOf"',
)  # fmt: skip
# The library compares numbers exactly, so 5e-324 and 1e308 take a hundred times as long as others.
_EXTREME: Final = re.compile(rb"[0-9]e[+-]?[0-9]{2}")
# What is for people, unless it is the name of a property.
_WORDS: Final = frozenset(("title", "description", "$comment", "default", "examples"))
_SHOWN = 80
_MOST_CHARS = 1_000  # of an error's text
_NAMES_CHARS = 600  # of the names or values that there are


def estimate_cost(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> float:
    """Returns a bound of the work of a check: bytes of the schema times bytes of arguments.

    References are written out for it, and what is for people alone is left out.

    inf: there is no bound that is known. 0: `fit_arguments` refuses the arguments by their depth alone.
    """
    if is_too_deep(arguments):
        return 0
    data, given = orjson.dumps(schema), orjson.dumps(arguments)
    if (
        len(data) > _LARGE
        or any(word in data for word in _UNKNOWN)
        or _is_extreme(data)
        or _is_extreme(given)
    ):
        return inf
    size = _Expansion(schema).size + _PATTERN_BYTES * data.count(b'"pattern')  # and patternProperties
    return size * (len(given) + _LEAST_BYTES)


def _is_extreme(data: bytes) -> bool:
    """Returns whether JSON has a number with a large exponent."""
    if _EXTREME.search(data) is None:
        return False
    # It may be within a text, as ids have such letters.
    outside = data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return _EXTREME.search(b'"'.join(outside)) is not None


def fits_schema(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Returns whether arguments fit a schema. False: they may all the same, `fit_arguments` knows."""
    try:
        return _compiled(schema).is_valid(arguments)
    except ValueError:
        return False


def fit_arguments(schema: Mapping[str, Any], arguments: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Returns arguments as they are meant, and the first thing that is wrong with them; None if nothing is.

    A text with JSON in it is read where a text does not fit and that does: small models write a number, a list or true
    so ("4"), and Letta's server reads it so. What is wrong is, say, "`a.b[2]` must be an integer, and is 'x'".
    """
    mended = _mended(schema)
    if mended is None:
        return arguments, None
    if is_too_deep(arguments):
        return arguments, "the arguments have too many lists and objects within one another"
    validator, schema = mended
    if validator.is_valid(arguments):
        return arguments, None
    meant = _as_meant(validator, arguments)
    error = _first_error(validator, meant)
    return meant, None if error is None else _words(error, schema)


def fit_json(work: Mapping[str, Any]) -> dict[str, Any]:
    """Does what `fit_arguments` does for a process that asks in JSON.

    work: has "schema" and "arguments".
    The answer has "arguments" and "wrong".
    """
    arguments, wrong = fit_arguments(work["schema"], work["arguments"])
    return {"arguments": arguments, "wrong": wrong}


class _Expansion:
    """The size of a schema with each reference replaced by what it leads to. inf: it has no end."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[str, float] = {}
        self.size = self._of(root, 0)

    def _of(self, part: Any, level: int) -> float:
        if level > _LEVELS:
            return inf
        if isinstance(part, str):
            return len(part.encode(errors="replace")) + 3
        if isinstance(part, list):
            return 2 + sum(self._of(each, level + 1) for each in part)
        if not isinstance(part, dict):
            return 8
        texts = {
            key: value for key, value in part.items() if key not in _WORDS or isinstance(value, dict | bool)
        }
        size = 2 + sum(len(key) + 4 + self._of(value, level + 1) for key, value in texts.items())
        reference = part.get("$ref")
        return size + (self._of_target(reference, level + 1) if isinstance(reference, str) else 0)

    def _of_target(self, reference: str, level: int) -> float:
        if reference not in self._known:
            self._known[reference] = inf  # while it is looked at: it leads to itself
            target = _target(self._root, reference)
            self._known[reference] = inf if target is None else self._of(target, level)
        return self._known[reference]


def _target(root: Mapping[str, Any], reference: str) -> Any:
    """Returns the part of a schema that a reference names; None: it has none."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return None
    return found


# -- compiling


def _compiled(schema: Any) -> Validator:
    """Raises: ValueError: it is no JSON Schema."""
    import jsonschema_rs  # 0.03 s, for those that call tools alone

    patterns = jsonschema_rs.RegexOptions(size_limit=_REGEX_BYTES, dfa_size_limit=_REGEX_BYTES)
    return jsonschema_rs.validator_for(schema, offline=True, validate_formats=False, pattern_options=patterns)


def _mended(schema: Any) -> tuple[Validator, Any] | None:
    """Returns a schema without what is wrong in it, with its validator; None: too much is."""
    is_local = False
    for _ in range(_MENDED):
        try:
            return _compiled(schema), schema
        except ValueError as error:
            place = getattr(error, "instance_path", None)
            if place:
                schema = _without(schema, place)
            elif not is_local and isinstance(schema, dict):
                # A reference or a draft; the library does not say which.
                is_local, schema = True, _local(schema, schema)
            else:
                return None
    return None


def _without(part: Any, place: Sequence[str | int]) -> Any:
    """Returns a copy of a part of a schema without what is at a place."""
    first, *rest = place
    if isinstance(part, list):
        assert isinstance(first, int)
        inner = [_without(part[first], rest)] if rest else []
        return [*part[:first], *inner, *part[first + 1 :]]
    others = {key: value for key, value in part.items() if key != first}
    return {**others, first: _without(part[first], rest)} if rest else others


def _local(part: Any, root: Mapping[str, Any]) -> Any:
    """Returns a copy of a part of a schema, with the references alone that lead somewhere in the schema."""
    if isinstance(part, list):
        return [_local(each, root) for each in part]
    if not isinstance(part, dict):
        return part
    copy = {key: _local(value, root) for key, value in part.items() if key not in ("$schema", "$id")}
    reference = copy.get("$ref")
    if isinstance(reference, str):
        del copy["$ref"]
        if _target(root, reference) is not None:
            copy["$ref"] = quote(unquote(reference), safe="#/~$")
    return copy


# -- checking


def _as_meant(validator: Validator, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments that do not fit with JSON in the place of a text that is some, where that fits."""
    texts: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, str):
            with suppress(orjson.JSONDecodeError):
                read = orjson.loads(value)
                if not is_too_deep(read):
                    texts[name] = read
    wrong = _wrong_names(validator, {name: arguments[name] for name in texts})
    found = {name: texts[name] for name in wrong}
    still_wrong = _wrong_names(validator, found)
    return {**arguments, **{name: value for name, value in found.items() if name not in still_wrong}}


def _wrong_names(validator: Validator, arguments: dict[str, Any]) -> set[str]:
    """Returns the names of the arguments that do not fit by themselves."""
    places = (error.instance_path for error in validator.iter_errors(arguments)) if arguments else ()
    return {str(place[0]) for place in places if place and place[0] in arguments}


def _first_error(validator: Validator, arguments: dict[str, Any]) -> ValidationError | None:
    try:
        validator.validate(arguments)
    except ValueError as error:
        return error  # type: ignore[return-value]  # the library's, of which a ValueError is the base
    return None


# -- words

_TYPES: Final[Mapping[str, str]] = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_BOUNDS: Final[Mapping[str, str]] = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
    "minProperties": "must have at least {} fields",
    "maxProperties": "must have at most {} fields",
    "additionalItems": "must have at most {} items",
}


def _words(error: ValidationError, schema: Any) -> str:
    """Returns what is wrong. schema: by which it is."""
    path: Sequence[str | int] = error.instance_path
    kind: Any = error.kind
    inner = _inner(error)
    if inner is not None:
        return _words(inner, schema)
    if kind.name in ("required", "dependentRequired"):
        return _cut(f"{_name([*path, kind.property])} is missing")
    if kind.name in ("additionalProperties", "unevaluatedProperties"):
        return _cut(f"{_name([*path, kind.unexpected[0]])} is not known{_known(error, schema)}")
    if kind.name == "falseSchema":
        return _cut(f"{_name(path)} is not allowed")
    if kind.name == "propertyNames":
        return _cut(f"{_name(path)} has a name that does not fit: {kind.error.message}")
    return _cut(f"{_name(path)} {_demand(kind, error)}, and is {_short(error.instance)}")


def _demand(kind: Any, error: ValidationError) -> str:
    """Returns what a value must be."""
    name = kind.name
    if name in _BOUNDS:
        return _BOUNDS[name].format(kind.limit)
    demands: Mapping[str, Callable[[], str]] = {
        "type": lambda: (
            "must be " + " or ".join(texts for each, texts in _TYPES.items() if each in kind.types)
        ),
        "enum": lambda: f"must be one of {_listed(kind.options, _short)}",
        "const": lambda: f"must be {_short(kind.expected_value)}",
        "pattern": lambda: f"must match the pattern {_short(kind.pattern)}",
        "multipleOf": lambda: f"must be a multiple of {kind.multiple_of}",
        "uniqueItems": lambda: "must not have an item twice",
        "not": lambda: f"must not fit {_short(kind.schema)}",
        "oneOf": lambda: "must fit one of its alternatives alone",
    }
    return demands[name]() if name in demands else f"does not fit ({error.message[:_SHOWN]})"


def _inner(error: ValidationError) -> ValidationError | None:
    """Returns the error within one of alternatives; None: it has none."""
    context: Sequence[Sequence[ValidationError]] = getattr(error.kind, "context", ())
    found = [errors[0] for errors in context if errors]
    # Of optional values the null is not what the model has missed.
    others = [each for each in found if getattr(each.kind, "types", None) != ["null"]]
    return next(iter(others or found), None)


def _known(error: ValidationError, schema: Any) -> str:
    """Returns the names that there are, in brackets."""
    for step in error.schema_path[:-1]:
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            return ""
    names = schema.get("properties") if isinstance(schema, dict) else None
    return f" (there are: {_listed(names or (), str) or 'none'})"


def _listed(values: Iterable[Any], shown: Callable[[Any], str]) -> str:
    text = ""
    for value in values:
        if len(text) > _NAMES_CHARS:
            return f"{text}, …"
        text += (", " if text else "") + shown(value)
    return text


def _name(path: Sequence[str | int]) -> str:
    # Without quotation marks, `repr` leaves a name as it is, and all of it on one line.
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{repr(each)[1:-1]}" for each in path)
    return f"`{text.removeprefix('.')}`" if path else "the value"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else text[: _MOST_CHARS - 1] + "…"
