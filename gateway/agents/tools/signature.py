"""The JSON schema of a tool that is written in Python, read off its last function. The source is never run.

As on Letta's server, types are required, descriptions come from the docstring (in Google's, Sphinx's or NumPy's
style), the model does not fill `self` and `agent_state`, and a class of the source defines an object's fields
(pydantic's models). In addition the gateway takes `dict[str, …]`, unions, defaults, dataclasses and typed dicts. A
parameter without a default is required, even an `Optional` one, which may be null.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from gateway.agents.tools.docstring import read_docstring
from gateway.agents.tools.type_schema import ToolFunction, TypeSchemas, error_at, make_error, read_default
from gateway.core.json_limits import can_be_written
from gateway.errors import BadRequest

# The parameter that gets the agent.
_AGENT_STATE = "agent_state"
_UNSHOWN_PARAMETERS: Final = ("self", _AGENT_STATE)
# The most characters of a source. Such a source takes 0.2 s at most to parse.
_MAX_CHARS = 100_000
# The names that every provider takes (platform.openai.com/docs/guides/function-calling).
TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def make_schema(source: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns {"name", "description", "parameters"} of the tool, which is the last function.

    parameters: the schema of the parameters that the caller sent; None: the source's types and `Args:` make the schema.

    Raises: BadRequest, which names the line.
    """
    function, types = _parse_tool(source)
    docstring = read_docstring(ast.get_docstring(function, clean=False) or "")
    try:
        parameters_schema = (
            _make_parameters_schema(function, docstring.parameters, types)
            if parameters is None
            else parameters
        )
    except RecursionError:
        raise make_error(function, "its types are nested too deeply") from None
    schema = {"name": function.name, "description": docstring.description, "parameters": parameters_schema}
    if not can_be_written(schema):
        raise make_error(
            function,
            "its types or its docstring contain half a surrogate pair or a number beyond 64 bits, or are nested too "
            "deeply",
        )
    return schema


def read_function_name(source: str) -> str:
    """Returns the name of the tool, the last function. Raises: BadRequest, as `make_schema` does."""
    return _parse_tool(source)[0].name


def _make_parameters_schema(
    function: ToolFunction, descriptions: Mapping[str, str], types: TypeSchemas
) -> dict[str, Any]:
    """Returns the schema of the parameters. descriptions: the descriptions of parameters, by name."""
    properties: dict[str, Any] = {}
    required = []
    for parameter, default in _list_parameters(function):
        name = parameter.arg
        if parameter.annotation is None:
            raise make_error(parameter, f"parameter {name!r} has no type")
        if not descriptions.get(name):
            raise make_error(
                parameter, f"parameter {name!r} has no description in the docstring's section `Args:`"
            )
        properties[name] = {**types.make_schema(parameter.annotation), "description": descriptions[name]}
        if default is None:
            required.append(name)
        else:
            properties[name] |= read_default(default)
    return {"type": "object", "properties": properties, "required": required}


def _parse_tool(source: str) -> tuple[ToolFunction, TypeSchemas]:
    """Returns the tool, and the types of its source. Raises: BadRequest."""
    if len(source) > _MAX_CHARS:
        raise BadRequest(f"The source has more than {_MAX_CHARS:,} characters.", param="source_code")
    try:
        # An invalid escape in a string raises a warning, which does not matter here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except SyntaxError as error:
        raise error_at(error.lineno or 1, f"this is no Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadRequest(f"The source cannot be read: {error}.", param="source_code") from error
    functions = [statement for statement in module.body if isinstance(statement, ToolFunction)]
    if not functions:
        raise BadRequest("The source has no function at its top level.", param="source_code")
    function = functions[-1]
    if not TOOL_NAME.fullmatch(function.name):
        raise make_error(function, f"{function.name!r} is no name for a tool: 1 to 64 of A-Z, a-z, 0-9, _")
    lines = source.encode().splitlines(keepends=True)
    classes = {statement.name: statement for statement in module.body if isinstance(statement, ast.ClassDef)}
    return function, TypeSchemas(classes, [0, *accumulate(map(len, lines))])


def _list_parameters(function: ToolFunction) -> Sequence[tuple[ast.arg, ast.expr | None]]:
    """Returns the parameters that the model fills, each with its default."""
    arguments = function.args
    for star in (arguments.vararg, arguments.kwarg):
        if star is not None:
            raise make_error(star, f"a tool cannot take any number of arguments, as {star.arg!r} does")
    for parameter in arguments.posonlyargs:
        raise make_error(parameter, f"parameter {parameter.arg!r} must be one that can be named")
    required_count = len(arguments.args) - len(arguments.defaults)
    pairs = list(zip(arguments.args, [*[None] * required_count, *arguments.defaults], strict=True))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [(parameter, default) for parameter, default in pairs if parameter.arg not in _UNSHOWN_PARAMETERS]
