"""The tools of a Responses request as chat completions have them, and the form of their calls (`call_items`).

A tool that the client runs becomes a function upstream, unless the upstream takes the tool as it is. Stored calls have
the tool's name upstream, so that a list matches whichever form its client gives the calls.
(platform.openai.com/docs/api-reference/responses/create, `tools`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.portable_message import INPUT_ARGUMENT
from gateway.core.conversation.wire_message import (
    WireMessage,
    call_id,
    list_raw_calls,
    read_named_call,
    read_text,
)
from gateway.dialects.fields import (
    QUOTED_CHARS,
    make_missing_field_error,
    make_unknown_value_error,
    make_wrong_type_error,
    read_optional,
    read_required_text,
)
from gateway.dialects.lenient import as_list, decode_list
from gateway.dialects.responses.left_out import LeftOutFields
from gateway.errors import BadRequest

# The most characters of a function's name, as OpenAI's errors show.
MAX_NAME_CHARS: Final = 64
# The bytes of the hash in a name that was cut: enough for the few tools of a request.
_HASH_BYTES: Final = 4
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

    description: str
    parameters: Json


# OpenAI's tools that the client runs, by their names.
_BUILT_IN_TOOLS: Final[Mapping[str, _FunctionForm]] = {
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
    **dict.fromkeys(_BUILT_IN_TOOLS, frozenset(("type", "environment"))),
}
_ENVIRONMENT_FIELDS: Final = frozenset(("type",))
_FILTER_FIELDS: Final = frozenset(("allowed_domains",))
_SEARCH_FIELDS: Final = frozenset(("type", "external_web_access", "filters", "user_location"))
# Types of tools of which a request has one at most, so `tool_choice` names only the type.
_TYPES_FORCED_BY_TYPE: Final = frozenset((*_BUILT_IN_TOOLS, TOOL_SEARCH))
_WEB_SEARCH_TYPES: Final = frozenset(("web_search", "web_search_2025_08_26", "web_search_preview"))
_CLAUDE_SEARCH_TYPE: Final = "web_search_20250305"


class UpstreamTools(Struct, frozen=True):
    """Which tools, besides functions, a request's upstreams take in chat completions."""

    # Custom tools and `allowed_tools`, as OpenAI's own endpoint takes them.
    custom: bool = False
    # Claude's web search (`web_search_20250305`).
    web_search: bool = False


FUNCTIONS_ALONE: Final = UpstreamTools()


class CallForm(Struct, frozen=True, array_like=True):
    """The form in which a client has the calls of one tool. It is stored as an array (`StoredResponse`)."""

    # The type of an item with a call.
    item_type: str
    # The tool's name in the item; upstream the tool may have another name.
    name: str
    namespace: str | None = None


NO_FORMS: Final[Mapping[str, CallForm]] = MappingProxyType({})


class RequestTools(Struct, frozen=True):
    """The tools of a request."""

    # The tools as a chat completion has them.
    chat_tools: list[Json]
    # The forms of calls with items unlike those of plain function calls, by the tool's name upstream.
    forms: dict[str, CallForm]
    # The tools as the response repeats them.
    echo: list[Json]


def make_unsupported_error(param: str, value: object) -> BadRequest:
    """Returns the error about a value that chat completions have no place for."""
    return BadRequest(
        f"Unsupported value for '{param}': {str(value)[:QUOTED_CHARS]!r}. The gateway answers this model by way of "
        "chat completions, which have no place for it.",
        param=param,
        code="unsupported_value",
    )


def make_flat_name(namespace: str | None, name: str) -> str:
    """Returns the name upstream of a tool in a namespace."""
    if namespace is None:
        return name
    full_name = f"{namespace}__{name}"
    if len(full_name) <= MAX_NAME_CHARS:
        return full_name
    digits = blake2b(full_name.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{full_name[: MAX_NAME_CHARS - len(digits) - 1]}_{digits}"


def list_found_tools(messages: Sequence[WireMessage]) -> list[Json]:
    """Returns the tools that searches have found: the results in these messages have them."""
    searches = {
        call_id(call)
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

    left_out: gets the fields without a place in a chat completion.
    waiting_items: the items that come before the input.
    found_tools: as in `ResponsesRequest`.

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
    reader = _ToolReader(UpstreamTools(custom=True, web_search=True), None, LeftOutFields())
    reader.add_item_tools(items, "items")


class _Namespace(NamedTuple):
    """The namespace in which a tool is declared."""

    # None: the tool is in no namespace.
    name: str | None = None
    # A chat completion has no namespaces, so this description goes before the description of each tool.
    description: str = ""


_NO_NAMESPACE: Final = _Namespace()


class _ToolReader:
    """Translates the tools of one request."""

    def __init__(self, upstream_tools: UpstreamTools, max_calls: Any, left_out: LeftOutFields) -> None:
        # Tools by their names upstream. A later tool replaces an earlier tool of its name: the request may offer a tool
        # that a search has found before.
        self.offered: dict[str, Json] = {}
        # The forms of calls with items unlike those of plain function calls, by the tool's name upstream.
        self.forms: dict[str, CallForm] = {}
        # The path to a web search that was left out, since not every upstream can make one; None: none was left out.
        self.omitted_search: str | None = None
        self._left_out = left_out
        self._upstream_tools = upstream_tools
        self._max_calls = max_calls

    def add(self, tool: Any, where: str, namespace: _Namespace = _NO_NAMESPACE) -> bool:
        """Adds a tool. Returns False if the tool is left out. Raises: BadRequest: a chat completion cannot have it."""
        if not isinstance(tool, dict):
            raise make_wrong_type_error(where, "an object", tool)
        tool_type = tool.get("type")
        match tool_type:
            case "function":
                self._add_function(tool, where, namespace)
            case "custom":
                self._add_custom(tool, where, namespace)
            case "namespace" if namespace.name is None:
                description = read_optional(tool, "description", str, where) or ""
                inner_namespace = _Namespace(read_required_text(tool, "name", where), description)
                for index, inner_tool in enumerate(read_optional(tool, "tools", list, where) or ()):
                    self.add(inner_tool, f"{where}.tools[{index}]", inner_namespace)
            case "tool_search" if tool.get("execution") == "client":
                function = {"name": TOOL_SEARCH, **_pick_fields(tool, "description", "parameters")}
                self._append_function(function, CallForm("tool_search_call", TOOL_SEARCH))
            case "local_shell" | "shell" | "apply_patch":
                self._check_environment(tool, where)
                description, parameters = _BUILT_IN_TOOLS[tool_type]
                function = {"name": tool_type, "description": description, "parameters": parameters}
                self._append_function(function, CallForm(f"{tool_type}_call", tool_type))
            case str() if tool_type in _WEB_SEARCH_TYPES:
                return self._add_search(tool, where)
            case None:
                raise make_missing_field_error(f"{where}.type")
            case _:
                raise make_unsupported_error(f"{where}.type", tool_type)
        self._left_out.add_rest(tool, _FIELDS_READ[tool_type], where)
        return True

    def add_item_tools(self, items: Sequence[Any], field: str, items_before: int = 0) -> None:
        """Adds the tools that items bring.

        field: the request's field with the items, for errors.
        items_before: stored items before those of the request; the positions in errors do not count them.

        Raises: BadRequest.
        """
        for item_index, item in enumerate(items, -items_before):
            if isinstance(item, dict) and item.get("type") in ("additional_tools", "tool_search_output"):
                where = f"{field}[{item_index}]"
                for tool_index, tool in enumerate(read_optional(item, "tools", list, where) or ()):
                    self.add(tool, f"{where}.tools[{tool_index}]")

    def _add_function(self, tool: Json, where: str, namespace: _Namespace) -> None:
        name = read_required_text(tool, "name", where)
        read_optional(tool, "description", str, where)
        function = {
            "name": make_flat_name(namespace.name, name),
            **_pick_fields(tool, "description", "parameters", "strict"),
        }
        _add_description(function, namespace.description)
        form = None
        if namespace.name is not None:
            form = CallForm("function_call", name, namespace.name)
        self._append_function(function, form)

    def _add_custom(self, tool: Json, where: str, namespace: _Namespace) -> None:
        name, syntax = read_required_text(tool, "name", where), read_optional(tool, "format", dict, where)
        read_optional(tool, "description", str, where)
        custom_tool: Json = {
            "name": make_flat_name(namespace.name, name),
            **_pick_fields(tool, "description"),
        }
        _add_description(custom_tool, namespace.description)
        form = CallForm("custom_tool_call", name, namespace.name)
        if not self._upstream_tools.custom:
            self._append_function(_make_custom_function(custom_tool, syntax), form)
            return
        if syntax is not None:
            custom_tool["format"] = syntax
            if syntax.get("type") == "grammar":
                custom_tool["format"] = {
                    "type": "grammar",
                    "grammar": _pick_fields(syntax, "definition", "syntax"),
                }
        # Outside a namespace the upstream's calls have the client's form.
        form_of_calls = form if namespace.name is not None else None
        self._offer(custom_tool["name"], {"type": "custom", "custom": custom_tool}, form_of_calls)

    def _check_environment(self, tool: Json, where: str) -> None:
        """Refuses a shell in a container of OpenAI's, since the client does not run such shells. Raises: BadRequest."""
        environment = read_optional(tool, "environment", dict, where) or {}
        environment_type = environment.get("type")
        if environment_type not in (None, "local"):
            raise make_unsupported_error(f"{where}.environment.type", environment_type)
        self._left_out.add_rest(environment, _ENVIRONMENT_FIELDS, f"{where}.environment")

    def _add_search(self, tool: Json, where: str) -> bool:
        """Adds a web search in the form of Claude's. Returns False if the search is left out."""
        if tool.get("external_web_access") is False:
            return False  # such a search reads OpenAI's index of pages, which does not exist here
        if not self._upstream_tools.web_search:
            # Codex offers a search in every request, so a search is left out among other tools. A search that is the
            # only tool is refused (`read_tools`).
            self.omitted_search = f"{where}.type"
            self._left_out.add("tools.web_search")
            return False
        search: Json = {"type": _CLAUDE_SEARCH_TYPE, "name": "web_search"}
        if isinstance(self._max_calls, int):
            search["max_uses"] = self._max_calls
        filters = read_optional(tool, "filters", dict, where) or {}
        if filters.get("allowed_domains"):
            search["allowed_domains"] = filters["allowed_domains"]
        self._left_out.add_rest(filters, _FILTER_FIELDS, f"{where}.filters")
        self._left_out.add_rest(tool, _SEARCH_FIELDS, where)
        if tool.get("user_location") is not None:
            search["user_location"] = tool["user_location"]
        self._offer(_CLAUDE_SEARCH_TYPE, search, None)
        return True

    def _append_function(self, function: Json, form: CallForm | None) -> None:
        self._offer(function["name"], {"type": "function", "function": function}, form)

    def _offer(self, name: str, tool: Json, form: CallForm | None) -> None:
        """Offers a tool. form: the form of its calls; None: they are plain function calls."""
        self.offered.pop(name, None)
        self.offered[name] = tool
        self.forms.pop(name, None)
        if form is not None:
            self.forms[name] = form


def read_choice(choice: Any, tools: RequestTools, upstream_tools: UpstreamTools) -> Json:
    """Returns the members of a chat completion for a `tool_choice`. Raises: BadRequest."""
    if isinstance(choice, str):
        return {"tool_choice": choice}
    if not isinstance(choice, dict):
        raise make_wrong_type_error("tool_choice", "a string or an object", choice)
    if choice.get("type") != "allowed_tools":
        return {"tool_choice": _translate_named_choice(choice, "tool_choice", upstream_tools)}
    listed_tools = read_optional(choice, "tools", list, "tool_choice") or []
    allowed_tools = [
        _translate_named_choice(tool, f"tool_choice.tools[{n}]", upstream_tools)
        for n, tool in enumerate(listed_tools)
    ]
    mode = choice.get("mode") or "auto"
    if mode not in ("auto", "required"):
        raise make_unknown_value_error("tool_choice.mode", mode, "'auto' and 'required'")
    if upstream_tools.custom:
        return {
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed_tools}}
        }
    names = {each["function"]["name"] for each in allowed_tools}
    return {
        "tool_choice": mode,
        "tools": [tool for tool in tools.chat_tools if _read_tool_name(tool) in names],
    }


def _make_custom_function(custom_tool: Json, syntax: Json | None) -> Json:
    """Returns a custom tool as a function with one text as its argument. syntax: the `format` of the tool."""
    function = dict(custom_tool)
    if syntax is not None and syntax.get("type") == "grammar":
        syntax_name, grammar = syntax.get("syntax") or "a", syntax.get("definition")
        rule = f"`{INPUT_ARGUMENT}` has to match this {syntax_name} grammar:\n{grammar}"
        _add_description(function, rule, is_after=True)
    input_schema = {"type": "string", "description": "The whole input of the tool, as plain text."}
    schema = {"type": "object", "properties": {INPUT_ARGUMENT: input_schema}, "required": [INPUT_ARGUMENT]}
    return {**function, "parameters": {**schema, "additionalProperties": False}}


def _translate_named_choice(choice: Any, where: str, upstream_tools: UpstreamTools) -> Json:
    if not isinstance(choice, dict):
        raise make_wrong_type_error(where, "an object", choice)
    tool_type = choice.get("type")
    if tool_type is None:
        raise make_missing_field_error(f"{where}.type")
    if isinstance(tool_type, str) and tool_type in _TYPES_FORCED_BY_TYPE:
        return {"type": "function", "function": {"name": tool_type}}
    if tool_type not in ("function", "custom"):
        raise make_unsupported_error(f"{where}.type", tool_type)
    name = make_flat_name(
        read_optional(choice, "namespace", str, where), read_required_text(choice, "name", where)
    )
    upstream_type = tool_type if upstream_tools.custom else "function"
    return {"type": upstream_type, upstream_type: {"name": name}}


def _echo_tool(tool: Json) -> Json:
    """Returns a tool as the response repeats it."""
    if tool.get("type") == "function" and not isinstance(tool.get("strict"), bool):
        return {**tool, "strict": False}
    return tool


def _add_description(tool: Json, text: str, *, is_after: bool = False) -> None:
    description = tool.get("description") or ""
    parts: Iterable[str] = (description, text) if is_after else (text, description)
    if joined := "\n\n".join(filter(None, parts)):
        tool["description"] = joined


def _read_tool_name(tool: Json) -> str:
    return str((tool.get(str(tool.get("type"))) or tool).get("name"))


def _pick_fields(value: Json, *keys: str) -> Json:
    """Returns the fields of an object that have these names and are not null."""
    return {key: value[key] for key in keys if value.get(key) is not None}
