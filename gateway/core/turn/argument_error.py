"""Words the error in a call's arguments so that a model can correct the call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError

# The most characters that are quoted of a value.
_MAX_VALUE_CHARS = 80
# The most characters of the list of allowed names or values.
_MAX_NAMES_CHARS = 600
# The most characters of an error. All three are chosen: enough for a model to correct its call.
_MAX_ERROR_CHARS = 1_000

# The words for a type of JSON Schema.
_TYPE_PHRASES: Final[Mapping[str, str]] = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
# The words for a bound of JSON Schema.
_BOUND_PHRASES: Final[Mapping[str, str]] = {
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
# The requirements in words, by the keyword that a value breaks. The library's `kind` has the keyword's own value.
_OTHER_PHRASES: Final[Mapping[str, Callable[[Any], str]]] = {
    "type": lambda kind: (
        "must be " + " or ".join(text for name, text in _TYPE_PHRASES.items() if name in kind.types)
    ),
    "enum": lambda kind: f"must be one of {_join(kind.options, _render_value)}",
    "const": lambda kind: f"must be {_render_value(kind.expected_value)}",
    "pattern": lambda kind: f"must match the pattern {_render_value(kind.pattern)}",
    "multipleOf": lambda kind: f"must be a multiple of {kind.multiple_of}",
    "uniqueItems": lambda kind: "must not have an item twice",
    "not": lambda kind: f"must not fit {_render_value(kind.schema)}",
    "oneOf": lambda kind: "must fit exactly one of its alternatives",
}


def render_error(error: ValidationError, schema: Any) -> str:
    """Returns an error as a sentence without its full stop. schema: the schema that the arguments break."""
    inner_error = _find_inner_error(error)
    if inner_error is not None:
        return render_error(inner_error, schema)
    return _cut(_render_sentence(error, schema), _MAX_ERROR_CHARS)


def _render_sentence(error: ValidationError, schema: Any) -> str:
    """Returns a sentence that names the path of an error, the broken requirement and the value."""
    path: Sequence[str | int] = error.instance_path
    kind: Any = error.kind
    if kind.name in ("required", "dependentRequired"):
        return f"{_render_path([*path, kind.property])} is missing"
    if kind.name in ("additionalProperties", "unevaluatedProperties"):
        return f"{_render_path([*path, kind.unexpected[0]])} is not known{_render_known_names(error, schema)}"
    if kind.name == "falseSchema":
        return f"{_render_path(path)} is not allowed"
    if kind.name == "propertyNames":
        return f"{_render_path(path)} has a name that does not fit: {kind.error.message}"
    return f"{_render_path(path)} {_render_requirement(kind, error)}, and is {_render_value(error.instance)}"


def _render_requirement(kind: Any, error: ValidationError) -> str:
    """Returns the requirement that a value breaks, in words."""
    name = kind.name
    if name in _BOUND_PHRASES:
        return _BOUND_PHRASES[name].format(kind.limit)
    if name in _OTHER_PHRASES:
        return _OTHER_PHRASES[name](kind)
    return f"does not fit ({error.message[:_MAX_VALUE_CHARS]})"


def _find_inner_error(error: ValidationError) -> ValidationError | None:
    """Returns the error of the first alternative that is not null, or else of the first one.

    None: the schema has no alternatives there.
    """
    context: Sequence[Sequence[ValidationError]] = getattr(error.kind, "context", ())
    first_errors = [errors[0] for errors in context if errors]
    # An optional value may also be null, which the model did not mean.
    not_null = [each for each in first_errors if getattr(each.kind, "types", None) != ["null"]]
    return next(iter(not_null or first_errors), None)


def _render_known_names(error: ValidationError, schema: Any) -> str:
    """Returns the names that the schema has at the error, in brackets after a space; "": it has no names there."""
    for step in error.schema_path[:-1]:
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            return ""
    names = schema.get("properties") if isinstance(schema, dict) else None
    return f" (there are: {_join(names or (), str) or 'none'})"


def _join(values: Iterable[Any], render: Callable[[Any], str]) -> str:
    """Returns values with commas between them, cut if they are long. render: returns the text of a value."""
    text = ""
    for value in values:
        if len(text) > _MAX_NAMES_CHARS:
            return f"{text}, …"
        text += (", " if text else "") + render(value)
    return text


def _render_path(path: Sequence[str | int]) -> str:
    # Without quotation marks, `repr` leaves a name as it is, and all of it on one line.
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{repr(each)[1:-1]}" for each in path)
    return f"`{text.removeprefix('.')}`" if path else "the value"


def _render_value(value: object) -> str:
    return _cut(repr(value), _MAX_VALUE_CHARS)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
