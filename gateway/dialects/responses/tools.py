"""The tools of a Responses request as chat completions have them, with the forms of their calls (`call_form`).

A tool that the client runs becomes a function upstream, unless the upstream takes the tool as it is. Stored calls have
the tool's name upstream, so that a list matches whichever form its client gives the calls.
(platform.openai.com/docs/api-reference/responses/create, `tools`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.portable_message import INPUT_ARGUMENT
from gateway.core.conversation.wire_message import (
    WireMessage,
    list_raw_calls,
    read_call_id,
    read_named_call,
    read_text,
)
from gateway.core.lenient import as_list, decode_list
from gateway.dialects.fields import (
    make_missing_field_error,
    make_unsupported_error,
    make_wrong_type_error,
    read_optional,
    read_required_text,
)
from gateway.dialects.responses.call_form import CallForm, UpstreamTools, make_flat_name
from gateway.dialects.responses.left_out import LeftOutFields

TOOL_SEARCH: Final = "tool_search"
_LOCAL_SHELL_SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "The command and its arguments."},
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["command"],
}  # fmt: skip
_SHELL_SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {
        "commands": {"type": "array", "items": {"type": "string"}, "description": "Shell commands, run in order."},
        "timeout_ms": {"type": "integer"},
        "max_output_length": {"type": "integer"},
    },
    "required": ["commands"],
}  # fmt: skip
_PATCH_SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
        "path": {"type": "string"},
        "diff": {"type": "string", "description": "A V4A diff. Empty for delete_file."},
    },
    "required": ["type", "path"],
}  # fmt: skip


class _FunctionForm(NamedTuple):
    """The form of a built-in tool as a function."""

    # The description of the function.
    description: str
    # The JSON schema of the arguments.
    parameters: Json


# OpenAI's built-in tools that the client runs, by their names.
BUILT_IN_TOOLS: Final[Mapping[str, _FunctionForm]] = {
    "local_shell": _FunctionForm(
        "Runs a command on the user's machine and returns its output.", _LOCAL_SHELL_SCHEMA
    ),
    "shell": _FunctionForm("Runs shell commands and returns their output.", _SHELL_SCHEMA),
    "apply_patch": _FunctionForm("Creates, changes or deletes a file.", _PATCH_SCHEMA),
}
_COMMON_FIELDS: Final = frozenset(("type", "name", "description"))
# The fields of a tool that are read, by its type.
_FIELDS_READ: Final[Mapping[str, frozenset[str]]] = {
    "function": _COMMON_FIELDS | {"parameters", "strict"},
    "custom": _COMMON_FIELDS | {"format"},
    "namespace": _COMMON_FIELDS | {"tools"},
    "tool_search": frozenset(("type", "execution", "description", "parameters")),
    **dict.fromkeys(BUILT_IN_TOOLS, frozenset(("type", "environment"))),
}
_ENVIRONMENT_FIELDS: Final = frozenset(("type",))
_FILTER_FIELDS: Final = frozenset(("allowed_domains",))
_SEARCH_FIELDS: Final = frozenset(("type", "external_web_access", "filters", "user_location"))
_WEB_SEARCH_TYPES: Final = frozenset(("web_search", "web_search_2025_08_26", "web_search_preview"))
_CLAUDE_SEARCH_TYPE: Final = "web_search_20250305"


class RequestTools(Struct, frozen=True):
    """The tools of a request."""

    # The tools as a chat completion has them.
    chat_tools: list[Json]
    # The forms of calls with items unlike those of plain function calls, by the tool's name upstream.
    forms: dict[str, CallForm]
    # The tools as the response repeats them.
    echo: list[Json]


def list_found_tools(messages: Sequence[WireMessage]) -> list[Json]:
    """Returns the tools that searches have found, from the results in messages."""
    searches = {
        read_call_id(call)
        for message in messages
        for call in list_raw_calls(message)
        if read_named_call(call).name == TOOL_SEARCH
    }
    results = (message for message in messages if message.get("tool_call_id") in searches)
    return [tool for result in results for tool in decode_list(read_text(result)) if isinstance(tool, dict)]


def read_tools(
    json: Json,
    upstream_tools: UpstreamTools,
    left_out: LeftOutFields,
    waiting_items: Sequence[Json] = (),
    found_tools: Sequence[Json] = (),
) -> RequestTools:
    """Returns the tools of a request, and the tools that its items bring.

    left_out: the collection to which the fields without a place in a chat completion are added.
    waiting_items: the items that come before the input.
    found_tools: the tools that searches have found, as in `ResponsesRequest`.

    Raises: BadRequest.
    """
    reader = _ToolReader(upstream_tools, json.get("max_tool_calls"), left_out)
    for index, tool in enumerate(found_tools):
        reader.add(tool, f"tools[{index}]")
    tools = json.get("tools")
    echo = []
    if tools is not None:
        if not isinstance(tools, list):
            raise make_wrong_type_error("tools", "an array of objects", tools)
        echo = [_echo_tool(tool) for index, tool in enumerate(tools) if reader.add(tool, f"tools[{index}]")]
    reader.add_item_tools([*waiting_items, *as_list(json.get("input"))], "input", len(waiting_items))
    if reader.omitted_search is not None and not reader.offered:
        raise make_unsupported_error(reader.omitted_search, "web_search")
    return RequestTools(chat_tools=[*reader.offered.values()], forms=reader.forms, echo=echo)


def check_item_tools(items: Sequence[Any]) -> None:
    """Checks the tools that the `items` of a request bring. Raises: BadRequest."""
    reader = _ToolReader(UpstreamTools(takes_custom_tools=True, takes_web_search=True), None, LeftOutFields())
    reader.add_item_tools(items, "items")


class _Namespace(NamedTuple):
    """The namespace in which a tool is declared."""

    # The name of the namespace; None: the tool is in no namespace.
    name: str | None = None
    # A chat completion has no namespaces, so this description goes before the description of each tool.
    description: str = ""


_NO_NAMESPACE: Final = _Namespace()


class _ToolReader:
    """Translates the tools of one request."""

    def __init__(self, upstream_tools: UpstreamTools, max_calls: Any, left_out: LeftOutFields) -> None:
        """Begins without tools.

        upstream_tools: the kinds of tools that upstreams take.
        max_calls: the request's `max_tool_calls`, unchecked.
        left_out: the collection to which the fields without a place in a chat completion are added.
        """
        # Tools by their names upstream. A later tool replaces an earlier tool of its name: the request may offer a tool
        # that a search has found before.
        self.offered: dict[str, Json] = {}
        # The forms of calls with items unlike those of plain function calls, by the tool's name upstream.
        self.forms: dict[str, CallForm] = {}
        # The path to a web search that was left out, since not every upstream can make one; None: no search was left
        # out.
        self.omitted_search: str | None = None
        self._left_out = left_out
        self._upstream_tools = upstream_tools
        self._max_calls = max_calls

    def add(self, tool: Any, path: str, namespace: _Namespace = _NO_NAMESPACE) -> bool:
        """Adds a tool. Returns False if the tool is left out. Raises: BadRequest: a chat completion cannot have it."""
        if not isinstance(tool, dict):
            raise make_wrong_type_error(path, "an object", tool)
        tool_type = tool.get("type")
        match tool_type:
            case "function":
                self._add_function(tool, path, namespace)
            case "custom":
                self._add_custom(tool, path, namespace)
            case "namespace" if namespace.name is None:
                description = read_optional(tool, "description", str, path) or ""
                inner_namespace = _Namespace(read_required_text(tool, "name", path), description)
                for index, inner_tool in enumerate(read_optional(tool, "tools", list, path) or ()):
                    self.add(inner_tool, f"{path}.tools[{index}]", inner_namespace)
            case "tool_search" if tool.get("execution") == "client":
                function = {"name": TOOL_SEARCH, **_pick_fields(tool, "description", "parameters")}
                self._append_function(function, CallForm("tool_search_call", TOOL_SEARCH))
            case "local_shell" | "shell" | "apply_patch":
                self._check_environment(tool, path)
                description, parameters = BUILT_IN_TOOLS[tool_type]
                function = {"name": tool_type, "description": description, "parameters": parameters}
                self._append_function(function, CallForm(f"{tool_type}_call", tool_type))
            case str() if tool_type in _WEB_SEARCH_TYPES:
                return self._add_search(tool, path)
            case None:
                raise make_missing_field_error(f"{path}.type")
            case _:
                raise make_unsupported_error(f"{path}.type", tool_type)
        self._left_out.add_rest(tool, _FIELDS_READ[tool_type], path)
        return True

    def add_item_tools(self, items: Sequence[Any], field: str, items_before: int = 0) -> None:
        """Adds the tools that items bring.

        field: the request's field with the items, for errors.
        items_before: the number of stored items before the request's own, which positions in errors do not count.

        Raises: BadRequest.
        """
        for item_index, item in enumerate(items, -items_before):
            if isinstance(item, dict) and item.get("type") in ("additional_tools", "tool_search_output"):
                path = f"{field}[{item_index}]"
                for tool_index, tool in enumerate(read_optional(item, "tools", list, path) or ()):
                    self.add(tool, f"{path}.tools[{tool_index}]")

    def _add_function(self, tool: Json, path: str, namespace: _Namespace) -> None:
        """Adds a function; its name upstream has the name of its namespace, too. Raises: BadRequest."""
        name = read_required_text(tool, "name", path)
        read_optional(tool, "description", str, path)
        function = {
            "name": make_flat_name(namespace.name, name),
            **_pick_fields(tool, "description", "parameters", "strict"),
        }
        _add_description(function, namespace.description)
        form = None
        if namespace.name is not None:
            form = CallForm("function_call", name, namespace.name)
        self._append_function(function, form)

    def _add_custom(self, tool: Json, path: str, namespace: _Namespace) -> None:
        """Adds a custom tool, as a function if the upstream takes no custom tools. Raises: BadRequest."""
        name = read_required_text(tool, "name", path)
        syntax = read_optional(tool, "format", dict, path)
        read_optional(tool, "description", str, path)
        custom_tool: Json = {
            "name": make_flat_name(namespace.name, name),
            **_pick_fields(tool, "description"),
        }
        _add_description(custom_tool, namespace.description)
        form = CallForm("custom_tool_call", name, namespace.name)
        if not self._upstream_tools.takes_custom_tools:
            self._append_function(_make_function_of_custom_tool(custom_tool, syntax), form)
            return
        if syntax is not None:
            custom_tool["format"] = syntax
            if syntax.get("type") == "grammar":
                custom_tool["format"] = {
                    "type": "grammar",
                    "grammar": _pick_fields(syntax, "definition", "syntax"),
                }
        # Outside a namespace the upstream's calls have the client's form.
        upstream_form = form if namespace.name is not None else None
        self._offer(custom_tool["name"], {"type": "custom", "custom": custom_tool}, upstream_form)

    def _check_environment(self, tool: Json, path: str) -> None:
        """Refuses a shell in a container of OpenAI's, since the client does not run such shells. Raises: BadRequest."""
        environment = read_optional(tool, "environment", dict, path) or {}
        environment_type = environment.get("type")
        if environment_type not in (None, "local"):
            raise make_unsupported_error(f"{path}.environment.type", environment_type)
        self._left_out.add_rest(environment, _ENVIRONMENT_FIELDS, f"{path}.environment")

    def _add_search(self, tool: Json, path: str) -> bool:
        """Adds a web search in the form of Claude's API. Returns False if the search is left out."""
        if tool.get("external_web_access") is False:
            return False  # such a search reads OpenAI's index of pages, which does not exist here
        if not self._upstream_tools.takes_web_search:
            # Codex offers a search in every request, so a search is left out among other tools. A search that is the
            # only tool is refused (`read_tools`).
            self.omitted_search = f"{path}.type"
            self._left_out.add("tools.web_search")
            return False
        search: Json = {"type": _CLAUDE_SEARCH_TYPE, "name": "web_search"}
        if isinstance(self._max_calls, int):
            search["max_uses"] = self._max_calls
        filters = read_optional(tool, "filters", dict, path) or {}
        if filters.get("allowed_domains"):
            search["allowed_domains"] = filters["allowed_domains"]
        self._left_out.add_rest(filters, _FILTER_FIELDS, f"{path}.filters")
        self._left_out.add_rest(tool, _SEARCH_FIELDS, path)
        if tool.get("user_location") is not None:
            search["user_location"] = tool["user_location"]
        self._offer(_CLAUDE_SEARCH_TYPE, search, None)
        return True

    def _append_function(self, function: Json, form: CallForm | None) -> None:
        self._offer(function["name"], {"type": "function", "function": function}, form)

    def _offer(self, name: str, tool: Json, form: CallForm | None) -> None:
        """Offers a tool. form: the form of the tool's calls; None: plain function calls."""
        self.offered.pop(name, None)
        self.offered[name] = tool
        self.forms.pop(name, None)
        if form is not None:
            self.forms[name] = form


def _make_function_of_custom_tool(custom_tool: Json, syntax: Json | None) -> Json:
    """Returns a custom tool as a function with one text as its argument. syntax: the `format` of the tool."""
    function = dict(custom_tool)
    if syntax is not None and syntax.get("type") == "grammar":
        syntax_name = syntax.get("syntax") or "a"
        grammar = syntax.get("definition")
        rule = f"`{INPUT_ARGUMENT}` has to match this {syntax_name} grammar:\n{grammar}"
        _add_description(function, rule, is_after=True)
    input_schema = {"type": "string", "description": "The whole input of the tool, as plain text."}
    schema = {"type": "object", "properties": {INPUT_ARGUMENT: input_schema}, "required": [INPUT_ARGUMENT]}
    return {**function, "parameters": {**schema, "additionalProperties": False}}


def _echo_tool(tool: Json) -> Json:
    """Returns a tool as the response repeats it."""
    if tool.get("type") == "function" and not isinstance(tool.get("strict"), bool):
        return {**tool, "strict": False}
    return tool


def _add_description(tool: Json, text: str, *, is_after: bool = False) -> None:
    """Adds a text before a tool's description, or after it."""
    description = tool.get("description") or ""
    parts: Iterable[str] = (description, text) if is_after else (text, description)
    if joined := "\n\n".join(filter(None, parts)):
        tool["description"] = joined


def _pick_fields(value: Json, *keys: str) -> Json:
    """Returns the fields of an object that have these names and are not null."""
    return {key: value[key] for key in keys if value.get(key) is not None}
