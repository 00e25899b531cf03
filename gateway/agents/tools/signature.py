"""The JSON schema of a tool that is written in Python, read off its last function. The source is never run.

As Letta's server has it: types are required, descriptions come from the docstring (in Google's, Sphinx's or NumPy's
style), `self` and `agent_state` are not the model's, and a class of the source defines an object's fields (pydantic's
models). Beyond it: `dict[str, …]`, unions, defaults, dataclasses and typed dicts. A parameter is required if it has no
default, also an `Optional` one, which may then be null.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from itertools import accumulate
from typing import Any, Final

import orjson

from gateway.core.json_limits import can_be_written
from gateway.errors import BadRequest

AGENT_STATE = "agent_state"  # a parameter of this name gets the agent
_CALLERS: Final = ("self", AGENT_STATE)
# The longest source, which takes 0.2 s at most to parse. The same bound holds for the fields of its classes, counted
# wherever a class is used: few classes may use one another very often.
_MAX_CHARS = 100_000
# What every provider takes as a name (platform.openai.com/docs/guides/function-calling).
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLAIN: Final[Mapping[str, str]] = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "None": "null",
}
_LISTS: Final = ("list", "List", "Sequence", "Iterable")
_DICTS: Final = ("dict", "Dict", "Mapping")
_ARGUMENTS: Final = ("args", "arguments", "parameters", "params", "keyword args", "keyword arguments")
_EXAMPLES: Final = ("example", "examples")
_SECTIONS: Final = (
    *_ARGUMENTS,
    *_EXAMPLES,
    *("returns", "return", "yields", "raises", "attributes", "note", "notes", "warning", "warnings", "todo"),
)
_FIELDS: Final = ("param", "parameter", "arg", "argument", "keyword", "key")  # `:param name: text` of Sphinx
_OTHER_FIELDS: Final = ("type", "return", "returns", "rtype", "raise", "raises", "yield", "yields")
_PARAMETER = re.compile(r"\*{0,2}(\w++)\s*+(?:\([^)]*\)\s*+)?:\s*(.*)")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def schema_of(source: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns {"name", "description", "parameters"} of the tool, the last function. Raises: BadRequest: names the line.

    parameters: their schema, if it was sent; then the source needs no types and no `Args:`.
    """
    function, classes = _read(source)
    description, described = _read_docstring(ast.get_docstring(function, clean=False) or "")
    try:
        found = _schema(function, described, classes) if parameters is None else parameters
    except RecursionError:
        raise _wrong(function, "its types are nested too deeply") from None
    schema = {"name": function.name, "description": description, "parameters": found}
    if not can_be_written(schema):
        raise _wrong(
            function,
            "its types or its docstring contain half a surrogate pair or a number beyond 64 bits, or are nested too "
            "deeply",
        )
    return schema


def function_name(source: str) -> str:
    """Returns the name of the tool, the last function. Raises: BadRequest: as `schema_of`."""
    return _read(source)[0].name


def _schema(function: _Function, described: Mapping[str, str], classes: _Classes) -> dict[str, Any]:
    """Returns the schema of the parameters. described: their descriptions."""
    properties: dict[str, Any] = {}
    required = []
    for parameter, default in _parameters(function):
        name = parameter.arg
        if parameter.annotation is None:
            raise _wrong(parameter, f"parameter {name!r} has no type")
        if not described.get(name):
            raise _wrong(
                parameter, f"parameter {name!r} has no description in the docstring's section `Args:`"
            )
        properties[name] = {**_type(parameter.annotation, classes), "description": described[name]}
        if default is None:
            required.append(name)
        else:
            properties[name] |= _default(default)
    return {"type": "object", "properties": properties, "required": required}


def _read(source: str) -> tuple[_Function, _Classes]:
    """Returns the tool, and the classes at the top level. Raises: BadRequest."""
    if len(source) > _MAX_CHARS:
        raise BadRequest(f"The source has more than {_MAX_CHARS:,} characters.", param="source_code")
    try:
        # An invalid escape in a string is a warning, which concerns nothing here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except SyntaxError as error:
        raise _wrong_at(error.lineno or 1, f"this is no Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadRequest(f"The source cannot be read: {error}.", param="source_code") from error
    functions = [each for each in module.body if isinstance(each, _Function)]
    if not functions:
        raise BadRequest("The source has no function at its top level.", param="source_code")
    last = functions[-1]
    if not _NAME.fullmatch(last.name):
        raise _wrong(last, f"{last.name!r} is no name for a tool: 1 to 64 of A-Z, a-z, 0-9, _")
    lines = source.encode().splitlines(keepends=True)
    by_name = {each.name: each for each in module.body if isinstance(each, ast.ClassDef)}
    return last, _Classes(by_name, [0, *accumulate(map(len, lines))])


def _parameters(function: _Function) -> Sequence[tuple[ast.arg, ast.expr | None]]:
    """Returns the parameters that the model fills, each with its default."""
    every = function.args
    for star in (every.vararg, every.kwarg):
        if star is not None:
            raise _wrong(star, f"a tool cannot take any number of arguments, as {star.arg!r} does")
    for each in every.posonlyargs:
        raise _wrong(each, f"parameter {each.arg!r} must be one that can be named")
    missing = len(every.args) - len(every.defaults)
    pairs = list(zip(every.args, [*[None] * missing, *every.defaults], strict=True))
    pairs += zip(every.kwonlyargs, every.kw_defaults, strict=True)
    return [(each, default) for each, default in pairs if each.arg not in _CALLERS]


def _default(default: ast.expr) -> dict[str, Any]:
    """Returns a default that JSON can express; any other is left to the function."""
    try:
        value = ast.literal_eval(default)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {}
    return {"default": value} if _is_json(value) and _is_writable(value) else {}


def _is_json(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return value is None or isinstance(value, str | int)


def _is_writable(value: object) -> bool:
    """Returns whether a value goes into JSON as it is stored: without surrogates, with numbers of 64 bits."""
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


# -- types


@dataclass(slots=True)
class _Classes:
    """The classes of a source, by name."""

    by_name: Mapping[str, ast.ClassDef]
    # The offsets of the source's lines.
    lines: Sequence[int]
    # Annotated fields of the classes read so far, by class.
    fields: dict[str, dict[str, ast.AnnAssign]] = field(default_factory=dict)
    # The classes that are being written out, outermost first.
    within: list[str] = field(default_factory=list)
    # The characters of fields that may still be written out. A class is written out at each use, since not every
    # provider follows references.
    left: int = _MAX_CHARS

    def length_of(self, node: ast.AnnAssign) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        end = self.lines[node.end_lineno - 1] + node.end_col_offset
        return end - self.lines[node.lineno - 1] - node.col_offset


def _type(node: ast.expr, classes: _Classes) -> dict[str, Any]:
    """Returns the schema of a type. Raises: BadRequest: it has none."""
    if _inner(node) is not None:
        # By their text, since there may be thousands.
        every = list({repr(each): each for each in _alternatives(node, classes)}.values())
        return every[0] if len(every) == 1 else {"anyOf": every}
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if isinstance(node, ast.Subscript):
        return _generic(node, classes)
    name = _name(node)
    if name in _PLAIN:
        return {"type": _PLAIN[name]}
    if name in _LISTS:
        # Some providers refuse a list without a type of its items (OpenAI: "array schema missing items").
        return {"type": "array", "items": {}}
    if name in _DICTS:
        return {"type": "object"}
    if name in ("Any", "object"):
        return {}
    return _fields(node, name, classes)


def _generic(node: ast.Subscript, classes: _Classes) -> dict[str, Any]:
    name, every = _name(node.value), _arguments(node)
    if name in _LISTS and len(every) == 1:
        return {"type": "array", "items": _type(every[0], classes)}
    if name in _DICTS and len(every) == 2 and _name(every[0]) == "str":
        return {"type": "object", "additionalProperties": _type(every[1], classes)}
    if name in ("tuple", "Tuple") and every:
        if len(every) == 2 and isinstance(every[1], ast.Constant) and every[1].value is Ellipsis:
            return {"type": "array", "items": _type(every[0], classes)}
        size = len(every)
        parts = [_type(each, classes) for each in every]
        return {"type": "array", "prefixItems": parts, "minItems": size, "maxItems": size}
    if name == "Literal":
        return _literal(node, every)
    raise _unknown(node)


def _alternatives(node: ast.expr, classes: _Classes) -> Iterator[dict[str, Any]]:
    """Yields the schemas of the types that a value may have."""
    inner = _inner(node)
    if inner is None:
        yield _type(node, classes)
    else:
        for each in inner:
            yield from _alternatives(each, classes)


def _inner(node: ast.expr) -> Sequence[ast.expr] | None:
    """Returns the types of which a value may have any; None: it is one type by itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            inner = ast.parse(node.value, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise _unknown(node) from None
        return [ast.copy_location(inner, node)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [node.left, node.right]
    if isinstance(node, ast.Subscript):
        name, every = _name(node.value), _arguments(node)
        if name == "Optional" and len(every) == 1:
            return [*every, ast.copy_location(ast.Constant(None), node)]
        if name == "Union" and every:
            return every
        if name == "Annotated" and every:
            return every[:1]
    return None


def _arguments(node: ast.Subscript) -> Sequence[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _literal(node: ast.Subscript, nodes: Sequence[ast.expr]) -> dict[str, Any]:
    values = [each.value for each in nodes if isinstance(each, ast.Constant)]
    kinds = {type(each).__name__.replace("NoneType", "None") for each in values}
    if not values or len(values) < len(nodes) or not kinds <= {"str", "int", "bool", "None"}:
        raise _unknown(node)
    names = sorted(_PLAIN[kind] for kind in kinds)
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _name(node: ast.expr) -> str:
    """Returns the last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


# -- classes that define an object's fields: models of pydantic, dataclasses, typed dicts


def _fields(node: ast.expr, name: str, classes: _Classes) -> dict[str, Any]:
    """Returns the schema of an object of a class of the source. Raises: BadRequest: there is none, or it has no end."""
    found = _annotated(name, classes)
    if not found or name in classes.within:
        raise _unknown(node)
    properties: dict[str, Any] = {}
    required = []
    classes.within.append(name)
    for each in found.values():
        classes.left -= classes.length_of(each)
        if classes.left < 0:
            raise _wrong(
                node,
                f"the fields of its classes have more than {_MAX_CHARS:,} characters, counted wherever one is used",
            )
        assert isinstance(each.target, ast.Name)
        default, description = _default_and_limits(each.value)
        properties[each.target.id] = {**_type(each.annotation, classes), **description}
        if default is None:
            required.append(each.target.id)
        else:
            properties[each.target.id] |= _default(default)
    classes.within.pop()
    return {"type": "object", "properties": properties, "required": required}


def _annotated(name: str, classes: _Classes) -> dict[str, ast.AnnAssign]:
    """Returns the annotated fields of a class, with those that it has of others of the source."""
    if name not in classes.by_name or name in classes.fields:
        return classes.fields.get(name, {})
    found = classes.fields[name] = {}
    for base in reversed(classes.by_name[name].bases):
        found |= _annotated(_name(base), classes)
    for each in classes.by_name[name].body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            is_of_class = (
                isinstance(each.annotation, ast.Subscript) and _name(each.annotation.value) == "ClassVar"
            )
            if not is_of_class and not each.target.id.startswith("_"):
                found[each.target.id] = each
    return found


def _default_and_limits(value: ast.expr | None) -> tuple[ast.expr | None, dict[str, str]]:
    """Returns the default of a field (None: it has none), and its description."""
    if not isinstance(value, ast.Call) or _name(value.func) not in ("Field", "field"):
        return _unless_dots(value), {}
    named = {each.arg: each.value for each in value.keywords}
    default = named.get("default") or named.get("default_factory") or (value.args[0] if value.args else None)
    text = named.get("description")
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return _unless_dots(default), {"description": text.value}
    return _unless_dots(default), {}


def _unless_dots(default: ast.expr | None) -> ast.expr | None:
    """Returns a default; `...` stands for none."""
    return None if isinstance(default, ast.Constant) and default.value is Ellipsis else default


# -- the docstring


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Returns the description, examples included, and those of the parameters."""
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    described: dict[str, str] = {}
    lines = cleandoc(text).splitlines()
    is_numpy = False
    for line, below in zip(lines, (*lines[1:], ""), strict=False):
        title = line.rstrip().removesuffix(":").lower()
        if title in _SECTIONS and (line.rstrip().endswith(":") or _is_rule(below)):
            is_args = title in _ARGUMENTS
            is_numpy = is_numpy or (is_args and _is_rule(below))
            current = sections.setdefault(
                "examples" if title in _EXAMPLES else "args" if is_args else title, []
            )
            if title in _EXAMPLES:
                current.append(line)
        elif (field := _field(line)) is not None:
            # What is written below belongs to it.
            kind, name, named = field
            current = sections[f":{kind} {name}"] = [named]
            if kind in _FIELDS:
                described[name] = f":{kind} {name}"
        elif not (_is_rule(line) and len(sections) > 1):
            current.append(line)
    parts = ["\n".join(sections.get(each, ())).strip() for each in ("", "examples")]
    found = {name: " ".join(" ".join(sections[field]).split()) for name, field in described.items()}
    return "\n\n".join(filter(None, parts)), found | _described(sections.get("args", ()), is_numpy=is_numpy)


def _field(line: str) -> tuple[str, str, str] | None:
    """Returns (kind, name, text) of a line `:kind [type] name: text`; None: it is none."""
    words, colon, text = line[1:].partition(":")
    kind, *names = words.split() or [""]
    if line[:1] not in (":", "@") or not colon or kind not in (*_FIELDS, *_OTHER_FIELDS):
        return None
    return kind, names[-1].lstrip("*") if names else "", text


def _is_rule(line: str) -> bool:
    """Returns whether a line underlines a title."""
    return set(line.strip()) == {"-"}


def _described(lines: Sequence[str], *, is_numpy: bool) -> dict[str, str]:
    """Returns the parameters' descriptions: `name (type): text`, its further lines deeper than the first.

    is_numpy: these lines are `name : type`, and the text is in the further ones.
    """
    depth = next((len(each) - len(each.lstrip()) for each in lines if each.strip()), 0)
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        match = _PARAMETER.fullmatch(line.strip()) if len(line) - len(line.lstrip()) <= depth else None
        if match is not None:
            name = match[1]
            found[name] = "" if is_numpy else match[2].strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


# -- errors


def _unknown(node: ast.expr) -> BadRequest:
    return _wrong(
        node,
        f"the type `{ast.unparse(node)[:80]}` has no JSON schema that can be read off the source; "
        "use str, int, float, bool, list, dict, Optional, Union, Literal or a class of the source that has annotated "
        "fields, or send `args_json_schema`",
    )


def _wrong(node: ast.expr | ast.arg | _Function, message: str) -> BadRequest:
    return _wrong_at(node.lineno, message)


def _wrong_at(line: int, message: str) -> BadRequest:
    return BadRequest(f"Line {line}: {message}.", param="source_code")
