"""The JSON schemas of the types of a Python source, with their defaults. The source is never run.

A class of the source defines an object's fields: a model of pydantic, a dataclass, a typed dict.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from gateway.errors import BadRequest

# The most characters of the fields of classes, counted at each use of a class: few classes may use one another often.
_MAX_FIELD_CHARS = 100_000
_PLAIN_TYPES: Final[Mapping[str, str]] = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "None": "null",
}
_LISTS: Final = ("list", "List", "Sequence", "Iterable")
_DICTS: Final = ("dict", "Dict", "Mapping")

ToolFunction = ast.FunctionDef | ast.AsyncFunctionDef


class _Field(NamedTuple):
    """A field of a class."""

    # The expression of the default; None: the field has none.
    default: ast.expr | None
    # The description of the field; None: it has none.
    description: str | None


class TypeSchemas:
    """Makes the schemas of the types that a source names."""

    def __init__(self, classes: Mapping[str, ast.ClassDef], line_offsets: Sequence[int]) -> None:
        # The classes at the top level of the source, by name.
        self._classes = classes
        # The offsets of the source's lines.
        self._line_offsets = line_offsets
        # The annotated fields of the classes that were read so far, by class.
        self._fields: dict[str, dict[str, ast.AnnAssign]] = {}
        # The fields of those that an object may lack.
        self._optional_fields: set[ast.AnnAssign] = set()
        # The classes that are being written out, outermost first.
        self._open_classes: list[str] = []
        # The number of characters of fields that may still be written out. A class is written out at each use, since
        # not every provider follows references.
        self._remaining_chars = _MAX_FIELD_CHARS

    def make_schema(self, node: ast.expr) -> dict[str, Any]:
        """Returns the schema of a type. Raises: BadRequest if the type has no schema."""
        if _find_members(node) is not None:
            # Deduplicated by their text, which is quick for thousands of schemas.
            schemas = list({repr(schema): schema for schema in self._list_alternatives(node)}.values())
            return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        if isinstance(node, ast.Constant) and node.value is None:
            return {"type": "null"}
        if isinstance(node, ast.Subscript):
            return self._make_generic_schema(node)
        name = _get_last_name(node)
        if name in _PLAIN_TYPES:
            return {"type": _PLAIN_TYPES[name]}
        if name in _LISTS:
            # Some providers refuse a list without a type of its items (OpenAI: "array schema missing items").
            return {"type": "array", "items": {}}
        if name in _DICTS:
            return {"type": "object"}
        if name in ("Any", "object"):
            return {}
        return self._make_class_schema(node, name)

    def _make_generic_schema(self, node: ast.Subscript) -> dict[str, Any]:
        """Returns the schema of a type with arguments, such as `list[str]`. Raises: BadRequest if it has no schema."""
        name, arguments = _get_last_name(node.value), _list_arguments(node)
        if name in _LISTS and len(arguments) == 1:
            return {"type": "array", "items": self.make_schema(arguments[0])}
        if name in _DICTS and len(arguments) == 2 and _get_last_name(arguments[0]) == "str":
            return {"type": "object", "additionalProperties": self.make_schema(arguments[1])}
        if name in ("tuple", "Tuple") and arguments:
            if len(arguments) == 2 and _is_ellipsis(arguments[1]):
                return {"type": "array", "items": self.make_schema(arguments[0])}
            size = len(arguments)
            parts = [self.make_schema(argument) for argument in arguments]
            return {"type": "array", "prefixItems": parts, "minItems": size, "maxItems": size}
        if name == "Literal":
            return _make_literal_schema(node, arguments)
        raise _make_type_error(node)

    def _list_alternatives(self, node: ast.expr) -> Iterator[dict[str, Any]]:
        """Yields the schemas of the types that a value may have."""
        members = _find_members(node)
        if members is None:
            yield self.make_schema(node)
        else:
            for member in members:
                yield from self._list_alternatives(member)

    def _make_class_schema(self, node: ast.expr, name: str) -> dict[str, Any]:
        """Returns the schema of a class of the source.

        Raises: BadRequest if the source lacks the class, or the class contains itself.
        """
        fields = self._find_fields(name)
        if not fields or name in self._open_classes:
            raise _make_type_error(node)
        properties: dict[str, Any] = {}
        required = []
        self._open_classes.append(name)
        for field_name, assignment in fields.items():
            self._remaining_chars -= self._measure_field(assignment)
            if self._remaining_chars < 0:
                raise make_error(
                    node,
                    f"the fields of its classes have more than {_MAX_FIELD_CHARS:,} characters, counted wherever one "
                    "is used",
                )
            field = _read_field(assignment.value)
            properties[field_name] = self.make_schema(assignment.annotation)
            if field.description is not None:
                properties[field_name]["description"] = field.description
            if field.default is not None:
                properties[field_name] |= read_default(field.default)
            elif assignment not in self._optional_fields:
                required.append(field_name)
        self._open_classes.pop()
        return {"type": "object", "properties": properties, "required": required}

    def _find_fields(self, name: str) -> dict[str, ast.AnnAssign]:
        """Returns the annotated fields of a class and of its base classes in the source, by name."""
        if name not in self._classes or name in self._fields:
            return self._fields.get(name, {})
        fields = self._fields[name] = {}
        for base in reversed(self._classes[name].bases):
            fields |= self._find_fields(_get_last_name(base))
        is_total = not any(
            keyword.arg == "total" and ast.unparse(keyword.value) == "False"
            for keyword in self._classes[name].keywords
        )
        for statement in self._classes[name].body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                annotation = statement.annotation
                qualifier = _get_last_name(annotation.value) if isinstance(annotation, ast.Subscript) else ""
                if qualifier != "ClassVar" and not statement.target.id.startswith("_"):
                    fields[statement.target.id] = statement
                    if qualifier == "NotRequired" or (not is_total and qualifier != "Required"):
                        self._optional_fields.add(statement)
        return fields

    def _measure_field(self, node: ast.AnnAssign) -> int:
        """Returns the length of a field in the source."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        end = self._line_offsets[node.end_lineno - 1] + node.end_col_offset
        return end - self._line_offsets[node.lineno - 1] - node.col_offset


def _find_members(node: ast.expr) -> Sequence[ast.expr] | None:
    """Returns the alternatives of a type, such as the members of a union; None for a type without alternatives."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            quoted = ast.parse(node.value, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise _make_type_error(node) from None
        return [ast.copy_location(quoted, node)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [node.left, node.right]
    if isinstance(node, ast.Subscript):
        name, arguments = _get_last_name(node.value), _list_arguments(node)
        if name == "Optional" and len(arguments) == 1:
            return [*arguments, ast.copy_location(ast.Constant(None), node)]
        if name == "Union" and arguments:
            return arguments
        if name in ("Annotated", "NotRequired", "Required", "ReadOnly") and arguments:
            return arguments[:1]
    return None


def _list_arguments(node: ast.Subscript) -> Sequence[ast.expr]:
    """Returns the arguments of a type, such as `str` of `list[str]`."""
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _make_literal_schema(node: ast.Subscript, nodes: Sequence[ast.expr]) -> dict[str, Any]:
    """Returns the schema of a `Literal`. Raises: BadRequest if JSON lacks one of its values."""
    values = [constant.value for constant in nodes if isinstance(constant, ast.Constant)]
    kinds = {type(value).__name__.replace("NoneType", "None") for value in values}
    if not values or len(values) < len(nodes) or not kinds <= {"str", "int", "bool", "None"}:
        raise _make_type_error(node)
    names = sorted(_PLAIN_TYPES[kind] for kind in kinds)
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _get_last_name(node: ast.expr) -> str:
    """Returns the last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _read_field(value: ast.expr | None) -> _Field:
    """Returns a field of a class. value: the expression that the source assigns to the field; None: it assigns none."""
    if not isinstance(value, ast.Call) or _get_last_name(value.func) not in ("Field", "field"):
        return _Field(_drop_ellipsis(value), None)
    keywords = {keyword.arg: keyword.value for keyword in value.keywords}
    first = value.args[0] if value.args else None
    default = keywords.get("default") or keywords.get("default_factory") or first
    description = keywords.get("description")
    text = description.value if isinstance(description, ast.Constant) else None
    return _Field(_drop_ellipsis(default), text if isinstance(text, str) else None)


def _drop_ellipsis(default: ast.expr | None) -> ast.expr | None:
    """Returns a default; None for `...`, which stands for no default."""
    return None if default is None or _is_ellipsis(default) else default


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def read_default(default: ast.expr) -> dict[str, Any]:
    """Returns the `default` of a schema; {} for a default that JSON cannot express."""
    try:
        value = ast.literal_eval(default)
        # A tuple is read back as a list, and an infinity as null.
        is_json = orjson.loads(orjson.dumps(value)) == value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {}
    return {"default": value} if is_json else {}


def _make_type_error(node: ast.expr) -> BadRequest:
    """Returns the error about a type without a schema."""
    return make_error(
        node,
        f"the type `{ast.unparse(node)[:80]}` has no JSON schema that can be read off the source; "
        "use str, int, float, bool, list, dict, Optional, Union, Literal or a class of the source that has annotated "
        "fields, or send `args_json_schema`",
    )


def make_error(node: ast.expr | ast.arg | ToolFunction, message: str) -> BadRequest:
    """Returns the error about a source. node: the part of the source whose line the error names."""
    return error_at(node.lineno, message)


def error_at(line: int, message: str) -> BadRequest:
    """Returns the error about a line of a source."""
    return BadRequest(f"Line {line}: {message}.", param="source_code")
