"""The arguments of a call, as the model wrote them, and the errors in the arguments of a memory tool."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from adapters.types import Json
from gateway.core import exact_json
from gateway.core.json_limits import is_too_deep
from gateway.core.memory.memory_tools import MEMORY_TOOLS
from gateway.core.nul import without_nul

# The Python types of values by the types of JSON Schema. A bool is an int as well, and no number of JSON.
_TYPES: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
)
# The bound of line numbers, limits and minutes in arguments. Not measured: far above any useful number.
_MAX_NUMBER = 2**31


def read_arguments(text: str) -> Json | None:
    """Returns a call's arguments; None: the text is no JSON object. Models send "" for no arguments.

    A whole number is an int, also in a list and if it is written as 5.0, since some providers have floats alone.
    """
    if not text.strip():
        return {}
    try:
        parsed = exact_json.loads(text)
    except ValueError:
        return None
    if not isinstance(parsed, dict):
        return None
    arguments = {
        name: [*map(_as_int, value)] if isinstance(value, list) else _as_int(value)
        for name, value in parsed.items()
    }
    if "\\u0000" not in text:
        return arguments
    return None if is_too_deep(arguments) else without_nul(arguments)


def drop_unknown_arguments(tool: str, arguments: Mapping[str, Any]) -> Json:
    """Returns the arguments that are in a tool's schema: models also send arguments of other tools of this name."""
    properties = MEMORY_TOOLS[tool].schema["parameters"]["properties"]
    return {name: value for name, value in arguments.items() if name in properties}


def find_argument_error(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns the error in a call's arguments, for the model to read; None: the arguments are right.

    Arguments that are not in the schema are ignored.
    """
    parameters = MEMORY_TOOLS[tool].schema["parameters"]
    for name, schema in parameters["properties"].items():
        value = arguments.get(name)
        if value is None:
            if name in parameters["required"]:
                return f"Error: {tool} needs `{name}`. Nothing was done."
        elif not _has_type(value, schema["type"]):
            return f"Error: `{name}` of {tool} must be of type {schema['type']}. Nothing was done."
        elif "enum" in schema and value not in schema["enum"]:
            return f"Error: `{name}` of {tool} must be one of {', '.join(schema['enum'])}. Nothing was done."
    return find_number_error(tool, arguments)


def find_number_error(tool: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns the error of a call with a number that is too large for the gateway's tools; None: no number is."""
    large = (
        name
        for name, value in arguments.items()
        if isinstance(value, int | float) and abs(value) > _MAX_NUMBER
    )
    name = next(large, None)
    return None if name is None else f"Error: `{name}` of {tool} is too large. Nothing was done."


def _as_int(value: Any) -> Any:
    """Returns a float that is a whole number as an int, unless a float of its size stands for several."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _has_type(value: object, name: str) -> bool:
    """Returns whether a value is of a type of JSON Schema."""
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
