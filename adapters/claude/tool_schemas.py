"""Tools, the choice among them, and answers that follow a schema: OpenAI's form in, Anthropic's out."""

from __future__ import annotations

import json
from typing import Any, Final

from adapters.claude.error_form import Untranslatable
from adapters.claude.schema_unions import UnionMerger
from adapters.types import Json

# The most characters of a refused choice that the error quotes. Not measured: enough to recognise it.
_QUOTED_CHARS: Final = 100
_EMPTY_SCHEMA: Final[Json] = {"type": "object", "properties": {}}
# The fields of a function that are translated here; others pass.
_TRANSLATED_FIELDS: Final = ("name", "description", "parameters", "strict")
# Keywords with an object of schemas by name as their value.
_KEYWORDS_OF_NAMED_SCHEMAS: Final = ("properties", "$defs", "definitions")
# Keywords that only objects have.
_OBJECT_KEYWORDS: Final = frozenset(("properties", "additionalProperties"))
# Keywords with data as their value, not a schema.
_DATA_KEYWORDS: Final = ("const", "default", "enum")
# The other keywords that the schema of an answer may have (build-with-claude/structured-outputs, "JSON Schema
# limitations"; Anthropic's own SDK puts the rest into descriptions as well), and keywords that may have few values.
_SUPPORTED_KEYWORDS: Final = frozenset(
    ("type", "required", "additionalProperties", "items", "anyOf", "allOf", "$ref", "description", "title")
)
_SUPPORTED_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "format": ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
    "minItems": (0, 1),
}


def translate_tools(tools: Any) -> list[Json]:
    """Returns tools as Anthropic takes them. Tools in Anthropic's form (`input_schema`, or a type of its own) pass.

    Raises: Untranslatable.
    """
    if not isinstance(tools, list):
        raise Untranslatable("`tools` is a list of tools.", "tools", "invalid_type")
    merger = UnionMerger()
    return [_translate_tool(tool, f"tools[{index}]", merger) for index, tool in enumerate(tools)]


def translate_tool_choice(choice: Any, parallel: Any, *, has_tools: bool) -> Json | None:
    """Returns Anthropic's `tool_choice`; None: the default is meant. parallel: `parallel_tool_calls`.

    Raises: Untranslatable.
    """
    if choice is None and parallel is not False:
        return None
    translated = _translate_choice(choice)
    if not has_tools and translated["type"] in ("auto", "none"):
        return None
    if parallel is False and translated["type"] != "none":
        translated = {**translated, "disable_parallel_tool_use": True}
    return translated


def translate_answer_schema(schema: Any) -> Any:
    """Returns the schema of an answer as Anthropic takes it. Keywords that it refuses are put into descriptions.

    Objects are closed, as in OpenAI's strict mode: Anthropic refuses any other, and its own SDK closes them too.
    """
    if isinstance(schema, list):
        return [translate_answer_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result: Json = {}
    unsupported: Json = {}
    if schema.get("type") == "object" or not _OBJECT_KEYWORDS.isdisjoint(schema):
        if isinstance(schema.get("additionalProperties"), dict):
            unsupported["additionalProperties"] = schema["additionalProperties"]
        schema = {**schema, "additionalProperties": False}
    for key, value in schema.items():
        if key in _KEYWORDS_OF_NAMED_SCHEMAS and isinstance(value, dict):
            result[key] = {name: translate_answer_schema(named) for name, named in value.items()}
        elif key in _DATA_KEYWORDS:
            result[key] = value
        elif key == "oneOf" and "anyOf" not in schema:
            result["anyOf"] = translate_answer_schema(value)
        elif key in _SUPPORTED_KEYWORDS or value in _SUPPORTED_VALUES.get(key, ()):
            result[key] = translate_answer_schema(value)
        elif not key.startswith("$"):
            unsupported[key] = value
    if unsupported:
        description = result.get("description")
        note = json.dumps(unsupported, ensure_ascii=False)
        result["description"] = f"{description}\n\n{note}" if description else note
    return result


def _translate_tool(tool: Any, path: str, merger: UnionMerger) -> Json:
    """Returns a tool as Anthropic takes it. path: the tool's path in the request. Raises: Untranslatable."""
    if not isinstance(tool, dict):
        raise Untranslatable(f"'{path}' is not an object.", path, "invalid_type")
    function = tool.get("function")
    if not isinstance(function, dict):
        if tool.get("type") in (None, "custom") and "input_schema" not in tool:
            raise Untranslatable("Only tools of type 'function' are supported here.", f"{path}.type")
        return tool
    translated: Json = {"name": function.get("name")}
    if function.get("description") is not None:
        translated["description"] = function["description"]
    schema = function.get("parameters")
    if isinstance(schema, dict) and schema:
        schema = {"type": "object", **merger.merge(schema, f"{path}.function.parameters")}
    translated["input_schema"] = schema or _EMPTY_SCHEMA
    # `strict` is dropped, as at Anthropic's own endpoint for OpenAI's dialect: OpenAI's frameworks set it on every
    # tool, and Anthropic refuses a request with more or larger strict tools than its grammar has room for.
    translated |= {
        key: value for key, value in function.items() if key not in _TRANSLATED_FIELDS and value is not None
    }
    translated |= {key: value for key, value in tool.items() if key not in ("type", "function")}
    return translated


def _translate_choice(choice: Any) -> Json:
    match choice:
        case None | "auto":
            return {"type": "auto"}
        case "none":
            return {"type": "none"}
        case "required":
            return {"type": "any"}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
        case {"type": "auto" | "any" | "tool" | "none"}:
            return dict(choice)
    raise Untranslatable(
        f"This `tool_choice` is not supported here: {str(choice)[:_QUOTED_CHARS]}.", "tool_choice"
    )
