"""Checks a call's arguments against the tool's JSON schema, and writes errors that a model can act on.

Neither the schema nor the arguments are trusted. `jsonschema-rs` follows the draft that the schema names (2020-12 where
it names none), fetches nothing, and matches patterns in linear time; `format` is not checked. Nested alternatives can
still take any time, and block this process. So `estimate_cost` bounds the cost of a check beforehand, and an expensive
check runs in another process (gateway.agents.tools.argument_check).

An invalid keyword, and a reference that leads nowhere, forbid nothing; the rest of the schema holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import orjson

from gateway.core import exact_json
from gateway.core.json_limits import is_too_deep

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

_MAX_SCHEMA_BYTES = 32 * 1024  # of which the cost is estimated; a larger one takes more than 30 ms
# What it costs to compile a pattern, in bytes of a schema.
_PATTERN_COST_BYTES = 4096
_MAX_REGEX_BYTES = 256 * 1024  # of one compiled pattern; a larger one forbids nothing
_MIN_ARGUMENT_BYTES = 64  # counted of any arguments: even for none the schema is compiled
_MAX_EXPANDED_LEVELS = 64  # of a schema with its references written out
_MAX_DIGITS = 10  # of an index in a reference; Python refuses to parse one of thousands
_MAX_REPAIRS = 16  # faults that are left out of a schema; a schema with more forbids nothing
# Their cost does not follow from the size of the schema, or they decide what a reference leads to.
_UNBOUNDED_KEYWORDS: Final = (
    b'"$id"', b'"$anchor"', b'"$dynamicAnchor"', b'"$dynamicRef"', b'"$recursiveRef"', b'"unevaluated', b'"multipleOf"',
)  # fmt: skip
# The library compares numbers exactly, so 5e-324 and 1e308 take a hundred times as long as others.
_LARGE_EXPONENT: Final = re.compile(rb"[0-9]e[+-]?[0-9]{2}")
# Keywords that forbid nothing, unless they are names of properties.
_ANNOTATIONS: Final = frozenset(("title", "description", "$comment", "default", "examples"))
_MAX_VALUE_CHARS = 80  # of a value in an error's text
_MAX_NAMES_CHARS = 600  # of the names or values that are allowed, in an error's text
_MAX_ERROR_CHARS = 1_000


def estimate_cost(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> float:
    """Returns an upper bound of the work of a check: bytes of the schema times bytes of the arguments.

    The schema is counted with its references written out, and without annotations.

    inf: no bound is known. 0: `fit_arguments` refuses the arguments by their depth alone.
    """
    if is_too_deep(arguments):
        return 0
    data, given = orjson.dumps(schema), exact_json.dumps(arguments)
    if (
        len(data) > _MAX_SCHEMA_BYTES
        or any(word in data for word in _UNBOUNDED_KEYWORDS)
        or _has_large_exponent(data)
        or _has_large_exponent(given)
    ):
        return inf
    size = _Expansion(schema).size + _PATTERN_COST_BYTES * data.count(b'"pattern')  # and patternProperties
    return size * (len(given) + _MIN_ARGUMENT_BYTES)


def _has_large_exponent(data: bytes) -> bool:
    """Returns whether JSON has a number with a large exponent."""
    if _LARGE_EXPONENT.search(data) is None:
        return False
    # It may be within a text, as ids have such letters.
    outside = data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return _LARGE_EXPONENT.search(b'"'.join(outside)) is not None


def fits_schema(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Returns True if arguments fit a schema as they are. False: `fit_arguments` may still accept them."""
    try:
        return _compile(schema).is_valid(arguments)
    except ValueError:
        return False


def fit_arguments(schema: Mapping[str, Any], arguments: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Returns the arguments as they are meant, and their first error; None: they fit.

    Small models write a number, a list or true as a text ("4"). Such a text is parsed where its value fits and the text
    does not, as Letta's server does. An error is, say, "`a.b[2]` must be an integer, and is 'x'".
    """
    repaired = _compile_repaired(schema)
    if repaired is None:
        return arguments, None
    if is_too_deep(arguments):
        return arguments, "the arguments have too many lists and objects within one another"
    validator, schema = repaired
    if validator.is_valid(arguments):
        return arguments, None
    meant = _parse_json_texts(validator, arguments)
    error = _first_error(validator, meant)
    return meant, None if error is None else _error_text(error, schema)


def fit_json(work: Mapping[str, Any]) -> dict[str, Any]:
    """Does what `fit_arguments` does for a process that asks in JSON.

    work: has "schema" and "arguments".
    The answer has "arguments" and "wrong".
    """
    arguments, wrong = fit_arguments(work["schema"], work["arguments"])
    return {"arguments": arguments, "wrong": wrong}


class _Expansion:
    """The size in bytes of a schema with each reference replaced by its target. inf: it has no end."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._sizes: dict[str, float] = {}  # by reference
        self.size = self._measure(root, 0)

    def _measure(self, part: Any, level: int) -> float:
        if level > _MAX_EXPANDED_LEVELS:
            return inf
        if isinstance(part, str):
            return len(part.encode(errors="replace")) + 3
        if isinstance(part, list):
            return 2 + sum(self._measure(each, level + 1) for each in part)
        if not isinstance(part, dict):
            return 8
        size = 2 + sum(
            len(key) + 4 + self._measure(value, level + 1)
            for key, value in part.items()
            if key not in _ANNOTATIONS or isinstance(value, dict | bool)
        )
        reference = part.get("$ref")
        return size + (self._measure_target(reference, level + 1) if isinstance(reference, str) else 0)

    def _measure_target(self, reference: str, level: int) -> float:
        if reference not in self._sizes:
            self._sizes[reference] = inf  # until it is measured: what leads to itself has no end
            target = _find_target(self._root, reference)
            self._sizes[reference] = inf if target is None else self._measure(target, level)
        return self._sizes[reference]


def _find_target(root: Mapping[str, Any], reference: str) -> Any:
    """Returns the part of a schema that a reference leads to; None: it leads nowhere."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and len(key) < _MAX_DIGITS and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return None
    return found


# -- compiling


def _compile(schema: Any) -> Validator:
    """Raises: ValueError: it is no JSON Schema."""
    import jsonschema_rs  # 0.03 s, for those that call tools alone

    patterns = jsonschema_rs.RegexOptions(size_limit=_MAX_REGEX_BYTES, dfa_size_limit=_MAX_REGEX_BYTES)
    return jsonschema_rs.validator_for(schema, offline=True, validate_formats=False, pattern_options=patterns)


def _compile_repaired(schema: Any) -> tuple[Validator, Any] | None:
    """Returns the validator of a schema and the schema, without what is invalid in it; None: too much is."""
    is_local = False
    for _ in range(_MAX_REPAIRS):
        try:
            return _compile(schema), schema
        except ValueError as error:
            path = getattr(error, "instance_path", None)
            if path:
                try:
                    schema = _without(schema, path)
                except LookupError:
                    return None
            elif not is_local and isinstance(schema, dict):
                # A reference or a draft; the library does not say which.
                is_local, schema = True, _with_local_references(schema, schema)
            else:
                return None
    return None


def _without(part: Any, path: Sequence[str | int]) -> Any:
    """Returns a copy of a part of a schema without what a path leads to.

    Raises: LookupError: it leads nowhere, as the library leaves empty names out.
    """
    first, *rest = path
    if isinstance(part, list):
        assert isinstance(first, int)
        inner = [_without(part[first], rest)] if rest else []
        return [*part[:first], *inner, *part[first + 1 :]]
    name = str(first)  # the library takes a name of digits for an index
    others = {key: value for key, value in part.items() if key != name}
    return {**others, name: _without(part[name], rest)} if rest else others


def _with_local_references(part: Any, root: Mapping[str, Any]) -> Any:
    """Returns a copy of a part of a schema with only those references that lead to a part of the schema."""
    if isinstance(part, list):
        return [_with_local_references(each, root) for each in part]
    if not isinstance(part, dict):
        return part
    copy = {
        key: _with_local_references(value, root)
        for key, value in part.items()
        if key not in ("$schema", "$id")
    }
    reference = copy.get("$ref")
    if isinstance(reference, str):
        del copy["$ref"]
        if _find_target(root, reference) is not None:
            copy["$ref"] = quote(unquote(reference), safe="#/~$")
    return copy


# -- checking


def _parse_json_texts(validator: Validator, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments with a text that does not fit replaced by the JSON value in it, where that one fits."""
    texts: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, str):
            with suppress(ValueError):
                read = exact_json.loads(value)
                if not is_too_deep(read):
                    texts[name] = read
    wrong = _wrong_names(validator, {name: arguments[name] for name in texts})
    found = {name: texts[name] for name in wrong}
    still_wrong = _wrong_names(validator, found)
    return {**arguments, **{name: value for name, value in found.items() if name not in still_wrong}}


def _wrong_names(validator: Validator, arguments: dict[str, Any]) -> set[str]:
    """Returns the names of the arguments that do not fit by themselves."""
    paths = (error.instance_path for error in validator.iter_errors(arguments)) if arguments else ()
    return {str(path[0]) for path in paths if path and path[0] in arguments}


def _first_error(validator: Validator, arguments: dict[str, Any]) -> ValidationError | None:
    try:
        validator.validate(arguments)
    except ValueError as error:
        return error  # type: ignore[return-value]  # the library's, of which a ValueError is the base
    return None


# -- error texts

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


def _error_text(error: ValidationError, schema: Any) -> str:
    """Returns an error as a sentence without its full stop. schema: the one that was checked against."""
    inner = _inner_error(error)
    if inner is not None:
        return _error_text(inner, schema)
    path: Sequence[str | int] = error.instance_path
    kind: Any = error.kind
    if kind.name in ("required", "dependentRequired"):
        return _cut(f"{_path_text([*path, kind.property])} is missing")
    if kind.name in ("additionalProperties", "unevaluatedProperties"):
        return _cut(f"{_path_text([*path, kind.unexpected[0]])} is not known{_known_names(error, schema)}")
    if kind.name == "falseSchema":
        return _cut(f"{_path_text(path)} is not allowed")
    if kind.name == "propertyNames":
        return _cut(f"{_path_text(path)} has a name that does not fit: {kind.error.message}")
    return _cut(f"{_path_text(path)} {_requirement(kind, error)}, and is {_value_text(error.instance)}")


def _requirement(kind: Any, error: ValidationError) -> str:
    """Returns what a value must be."""
    name = kind.name
    if name in _BOUNDS:
        return _BOUNDS[name].format(kind.limit)
    requirements: Mapping[str, Callable[[], str]] = {
        "type": lambda: (
            "must be " + " or ".join(texts for each, texts in _TYPES.items() if each in kind.types)
        ),
        "enum": lambda: f"must be one of {_joined(kind.options, _value_text)}",
        "const": lambda: f"must be {_value_text(kind.expected_value)}",
        "pattern": lambda: f"must match the pattern {_value_text(kind.pattern)}",
        "multipleOf": lambda: f"must be a multiple of {kind.multiple_of}",
        "uniqueItems": lambda: "must not have an item twice",
        "not": lambda: f"must not fit {_value_text(kind.schema)}",
        "oneOf": lambda: "must fit one of its alternatives alone",
    }
    return (
        requirements[name]() if name in requirements else f"does not fit ({error.message[:_MAX_VALUE_CHARS]})"
    )


def _inner_error(error: ValidationError) -> ValidationError | None:
    """Returns the error within one of the alternatives that failed; None: the error is of no alternatives."""
    context: Sequence[Sequence[ValidationError]] = getattr(error.kind, "context", ())
    found = [errors[0] for errors in context if errors]
    # Of an optional value the model did not mean the null.
    others = [each for each in found if getattr(each.kind, "types", None) != ["null"]]
    return next(iter(others or found), None)


def _known_names(error: ValidationError, schema: Any) -> str:
    """Returns the names that the schema has where the error is, in brackets."""
    for step in error.schema_path[:-1]:
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            return ""
    names = schema.get("properties") if isinstance(schema, dict) else None
    return f" (there are: {_joined(names or (), str) or 'none'})"


def _joined(values: Iterable[Any], shown: Callable[[Any], str]) -> str:
    text = ""
    for value in values:
        if len(text) > _MAX_NAMES_CHARS:
            return f"{text}, …"
        text += (", " if text else "") + shown(value)
    return text


def _path_text(path: Sequence[str | int]) -> str:
    # Without quotation marks, `repr` leaves a name as it is, and all of it on one line.
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{repr(each)[1:-1]}" for each in path)
    return f"`{text.removeprefix('.')}`" if path else "the value"


def _value_text(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 1] + "…"
