"""The tools of a Responses request as chat completions have them, and the form in which their calls come back.

A tool that the client runs becomes a function upstream, unless the upstream takes it as it is. Its name upstream is
also the name of stored calls, so that lists match whichever form a client sends a call in.
(platform.openai.com/docs/api-reference/responses/create, `tools`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.dialects.fields import missing, optional, text_in, wrong_type
from gateway.dialects.lenient import decode_list, decode_object
from gateway.dialects.responses.left_out import LeftOutFields
from gateway.errors import BadRequest

MOST_NAME_CHARS: Final = 64  # of a function's name, as OpenAI's errors show
_HASH_BYTES: Final = 4
INPUT: Final = "input"  # the only argument of a custom tool as a function
SEARCH: Final = "tool_search"
_SHELL: Final[Json] = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "The command and its arguments."},
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["command"],
}  # fmt: skip
_SHELL_COMMANDS: Final[Json] = {
    "type": "object",
    "properties": {
        "commands": {"type": "array", "items": {"type": "string"}, "description": "Shell commands, run in order."},
        "timeout_ms": {"type": "integer"},
        "max_output_length": {"type": "integer"},
    },
    "required": ["commands"],
}  # fmt: skip
_PATCH: Final[Json] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
        "path": {"type": "string"},
        "diff": {"type": "string", "description": "A V4A diff. Empty for delete_file."},
    },
    "required": ["type", "path"],
}  # fmt: skip
# Tools of OpenAI's that the client runs, each as a function of its name.
_BUILT_IN: Final[Mapping[str, tuple[str, Json]]] = {
    "local_shell": ("Runs a command on the user's machine and returns its output.", _SHELL),
    "shell": ("Runs shell commands and returns their output.", _SHELL_COMMANDS),
    "apply_patch": ("Creates, changes or deletes a file.", _PATCH),
}
_NAMED: Final = frozenset(("type", "name", "description"))
# The fields that are read of each tool.
_READ: Final[Mapping[str, frozenset[str]]] = {
    "function": _NAMED | {"parameters", "strict"},
    "custom": _NAMED | {"format"},
    "namespace": _NAMED | {"tools"},
    "tool_search": frozenset(("type", "execution", "description", "parameters")),
    **dict.fromkeys(_BUILT_IN, frozenset(("type",))),
}
_SEARCHED: Final = frozenset(("type", "external_web_access", "filters", "user_location"))
# Tools that can be forced by their type alone.
_BY_TYPE: Final = frozenset((*_BUILT_IN, SEARCH))
_WEB: Final = frozenset(("web_search", "web_search_2025_08_26", "web_search_preview"))
_CLAUDES_SEARCH: Final = "web_search_20250305"


class UpstreamTools(Struct, frozen=True):
    """The tools that chat completions of a request's upstreams take beside functions."""

    # Custom tools and `allowed_tools`, as OpenAI's own endpoint takes them.
    custom: bool = False
    # Claude's web search.
    web_search: bool = False


FUNCTIONS_ALONE: Final = UpstreamTools()


class CallForm(Struct, frozen=True):
    """The form in which a client has the calls of one tool."""

    # The type of the item.
    kind: str
    # The tool's name there.
    name: str
    namespace: str | None = None


NO_FORMS: Final[Mapping[str, CallForm]] = MappingProxyType({})


class RequestTools(Struct):
    """The tools of a request."""

    # As a chat completion has them.
    chat: list[Json]
    # Of those whose calls come back in another form: name upstream -> form.
    forms: dict[str, CallForm]
    # As the response repeats them.
    echo: list[Json]
    # Where a search of the web stands that nobody here can make; it was left out.
    search: str | None = None


def unsupported(param: str, value: object) -> BadRequest:
    """Returns the error for what chat completions have no place for."""
    return BadRequest(
        f"Unsupported value for '{param}': {str(value)[:60]!r}. The gateway answers this model by way of chat "
        "completions, which have no place for it.",
        param=param,
        code="unsupported_value",
    )


def flat_name(namespace: str | None, name: str) -> str:
    """Returns the name upstream of a tool in a namespace."""
    if namespace is None:
        return name
    whole = f"{namespace}__{name}"
    if len(whole) <= MOST_NAME_CHARS:
        return whole
    digits = blake2b(whole.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{whole[: MOST_NAME_CHARS - len(digits) - 1]}_{digits}"


def read_tools(json: Json, takes: UpstreamTools, left_out: LeftOutFields) -> RequestTools:
    """Returns the tools of a request, those that its input brings included.

    left_out: gets what has no place in a chat completion.

    Raises: BadRequest.
    """
    reader = _Reader(takes, json.get("max_tool_calls"), left_out)
    tools = json.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise wrong_type("tools", "an array of objects", tools)
        reader.found.echo = [_echoed(tool) for n, tool in enumerate(tools) if reader.add(tool, f"tools[{n}]")]
    items = json.get("input")
    for n, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("type") in ("additional_tools", "tool_search_output"):
            for k, tool in enumerate(optional(item, "tools", list, f"input[{n}]") or ()):
                reader.add(tool, f"input[{n}].tools[{k}]")
    if reader.found.search is not None and not reader.found.chat:
        raise unsupported(reader.found.search, "web_search")
    return reader.found


class _Reader:
    def __init__(self, takes: UpstreamTools, most_calls: Any, left_out: LeftOutFields) -> None:
        self.found = RequestTools([], {}, [])
        self._left_out = left_out
        self._takes = takes
        self._most_calls = most_calls
        self._names: set[str] = set()

    def add(self, tool: Any, where: str, namespace: str | None = None, about: str = "") -> bool:
        """Adds a tool. Returns False where it is left out. Raises: BadRequest: its kind is none that can be taken."""
        if not isinstance(tool, dict):
            raise wrong_type(where, "an object", tool)
        kind = tool.get("type")
        match kind:
            case "function":
                self._add_function(tool, where, namespace, about)
            case "custom":
                self._add_custom(tool, where, namespace, about)
            case "namespace" if namespace is None:
                name, text = text_in(tool, "name", where), optional(tool, "description", str, where) or ""
                for n, each in enumerate(optional(tool, "tools", list, where) or ()):
                    self.add(each, f"{where}.tools[{n}]", name, text)
            case "tool_search" if tool.get("execution") == "client":
                named = {"name": SEARCH, **_fields(tool, "description", "parameters")}
                self._put(named, CallForm("tool_search_call", SEARCH))
            case "local_shell" | "shell" | "apply_patch":
                text, parameters = _BUILT_IN[kind]
                named = {"name": kind, "description": text, "parameters": parameters}
                self._put(named, CallForm(f"{kind}_call", kind))
            case str() if kind in _WEB:
                return self._add_search(tool, where)
            case None:
                raise missing(f"{where}.type")
            case _:
                raise unsupported(f"{where}.type", kind)
        self._left_out.add_rest(tool, _READ[kind], where)
        return True

    def _add_function(self, tool: Json, where: str, namespace: str | None, about: str) -> None:
        name = text_in(tool, "name", where)
        named = {"name": flat_name(namespace, name), **_fields(tool, "description", "parameters", "strict")}
        _describe(named, about)
        self._put(named, None if namespace is None else CallForm("function_call", name, namespace))

    def _add_custom(self, tool: Json, where: str, namespace: str | None, about: str) -> None:
        name, form = text_in(tool, "name", where), optional(tool, "format", dict, where)
        named: Json = {"name": flat_name(namespace, name), **_fields(tool, "description")}
        _describe(named, about)
        is_grammar = form is not None and form.get("type") == "grammar"
        if not self._takes.custom:
            if form is not None and is_grammar:
                syntax, grammar = form.get("syntax") or "a", form.get("definition")
                _describe(named, f"`{INPUT}` has to match this {syntax} grammar:\n{grammar}", is_after=True)
            value = {"type": "string", "description": "The whole input of the tool, as plain text."}
            schema = {"type": "object", "properties": {INPUT: value}, "required": [INPUT]}
            named["parameters"] = {**schema, "additionalProperties": False}
            self._put(named, CallForm("custom_tool_call", name, namespace))
            return
        if form is not None:
            grammar = {"type": "grammar", "grammar": _fields(form, "definition", "syntax")}
            named["format"] = grammar if is_grammar else form
        self.found.chat.append({"type": "custom", "custom": named})
        if namespace is not None:
            self.found.forms[named["name"]] = CallForm("custom_tool_call", name, namespace)

    def _add_search(self, tool: Json, where: str) -> bool:
        if tool.get("external_web_access") is False:
            return False  # an index of pages that were read before, of which there is none here
        if not self._takes.web_search:
            # An offer beside other tools, as Codex makes it in every request; alone it is what is asked for.
            self.found.search = f"{where}.type"
            self._left_out.add("tools.web_search")
            return False
        found: Json = {"type": _CLAUDES_SEARCH, "name": "web_search"}
        if isinstance(self._most_calls, int):
            found["max_uses"] = self._most_calls
        filters = optional(tool, "filters", dict, where) or {}
        if filters.get("allowed_domains"):
            found["allowed_domains"] = filters["allowed_domains"]
        self._left_out.add_rest(filters, {"allowed_domains"}, f"{where}.filters")
        self._left_out.add_rest(tool, _SEARCHED, where)
        if tool.get("user_location") is not None:
            found["user_location"] = tool["user_location"]
        self.found.chat.append(found)
        return True

    def _put(self, named: Json, form: CallForm | None) -> None:
        name = named["name"]
        if form is not None:
            self.found.forms[name] = form
        elif name in self.found.forms:
            del self.found.forms[name]
        if name in self._names:  # found by a search, and offered since
            self.found.chat[:] = [each for each in self.found.chat if _name_of(each) != name]
        self._names.add(name)
        self.found.chat.append({"type": "function", "function": named})


def read_choice(choice: Any, tools: RequestTools, takes: UpstreamTools) -> Json:
    """Returns the members of a chat completion that choose among its tools. Raises: BadRequest."""
    if isinstance(choice, str):
        return {"tool_choice": choice}
    if not isinstance(choice, dict):
        raise wrong_type("tool_choice", "a string or an object", choice)
    if choice.get("type") != "allowed_tools":
        return {"tool_choice": _named(choice, "tool_choice", takes)}
    listed = optional(choice, "tools", list, "tool_choice") or []
    allowed = [_named(tool, f"tool_choice.tools[{n}]", takes) for n, tool in enumerate(listed)]
    mode = choice.get("mode") or "auto"
    if mode not in ("auto", "required"):
        raise BadRequest(
            f"Invalid value: {str(mode)[:40]!r}. Supported values are: 'auto' and 'required'.",
            param="tool_choice.mode",
            code="invalid_value",
        )
    if takes.custom:
        return {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}}
    names = {each["function"]["name"] for each in allowed}
    return {"tool_choice": mode, "tools": [tool for tool in tools.chat if _name_of(tool) in names]}


def _named(choice: Any, where: str, takes: UpstreamTools) -> Json:
    if not isinstance(choice, dict):
        raise wrong_type(where, "an object", choice)
    kind = choice.get("type")
    if kind is None:
        raise missing(f"{where}.type")
    if kind in _BY_TYPE:
        return {"type": "function", "function": {"name": kind}}
    if kind not in ("function", "custom"):
        raise unsupported(f"{where}.type", kind)
    name = flat_name(optional(choice, "namespace", str, where), text_in(choice, "name", where))
    form = kind if takes.custom else "function"
    return {"type": form, form: {"name": name}}


def _echoed(tool: Json) -> Json:
    """Returns a tool as the response repeats it."""
    if tool.get("type") == "function" and not isinstance(tool.get("strict"), bool):
        return {**tool, "strict": False}
    return tool


def _describe(named: Json, text: str, *, is_after: bool = False) -> None:
    own = named.get("description") or ""
    parts: Iterable[str] = (own, text) if is_after else (text, own)
    if joined := "\n\n".join(filter(None, parts)):
        named["description"] = joined


def _name_of(tool: Json) -> str:
    return str((tool.get(str(tool.get("type"))) or tool).get("name"))


def _fields(value: Json, *keys: str) -> Json:
    """Returns those of the fields that are set."""
    return {key: value[key] for key in keys if value.get(key) is not None}


# Calls in the client's form, and back


def call_item(form: CallForm, arguments: str, *, text: str | None = None) -> Json:
    """Returns the members of an item that a call of this form has. text: of a custom tool, as far as it was read."""
    space: Json = {} if form.namespace is None else {"namespace": form.namespace}
    if form.kind == "function_call":
        return {"type": form.kind, "name": form.name, "arguments": arguments, **space}
    value = decode_object(arguments)
    if form.kind == "custom_tool_call":
        given = value.get(INPUT)
        whole = text or (given if isinstance(given, str) else arguments)
        return {"type": form.kind, "name": form.name, "input": whole, **space}
    if form.kind == "tool_search_call":
        return {"type": form.kind, "execution": "client", "arguments": value}
    if form.kind == "local_shell_call":
        return {"type": form.kind, "action": {"type": "exec", "command": [], "env": {}, **value}}
    if form.kind == "shell_call":
        action = {"commands": [], "timeout_ms": None, "max_output_length": None, **value}
        return {"type": form.kind, "action": action}
    return {"type": form.kind, "operation": value}


def call_of(item: Json, where: str, takes: UpstreamTools) -> Json:
    """Returns an item with a call as a call of a chat completion. Raises: BadRequest."""
    kind: str = item["type"]
    id = _call_id(item, where)
    if kind in ("function_call", "custom_tool_call"):
        name = flat_name(optional(item, "namespace", str, where), text_in(item, "name", where))
        key = "arguments" if kind == "function_call" else "input"
        text = text_in(item, key, where)
        if kind == "custom_tool_call":
            if takes.custom:
                return {"id": id, "type": "custom", "custom": {"name": name, "input": text}}
            text = orjson.dumps({INPUT: text}).decode()
        return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}
    key = {"tool_search_call": "arguments", "apply_patch_call": "operation"}.get(kind, "action")
    value = item.get(key)
    if not isinstance(value, dict | str):
        raise missing(f"{where}.{key}") if value is None else wrong_type(f"{where}.{key}", "an object", value)
    if isinstance(value, dict):
        own = {
            k: v
            for k, v in value.items()
            if v is not None and not (kind == "local_shell_call" and k == "type")
        }
        value = orjson.dumps(own).decode()
    return {
        "id": id,
        "type": "function",
        "function": {"name": kind.removesuffix("_call"), "arguments": value},
    }


def result_of(item: Json, where: str) -> tuple[str, Any]:
    """Returns the id of a call, and the output of its tool as an item has it. Raises: BadRequest."""
    id = _call_id(item, where)
    if item["type"] == "tool_search_output":
        return id, orjson.dumps(item.get("tools") or []).decode()
    output = item.get("output")
    if item["type"] == "apply_patch_call_output":
        return id, orjson.dumps(
            {k: item[k] for k in ("status", "output") if item.get(k) is not None}
        ).decode()
    if output is None:
        raise missing(f"{where}.output")
    is_parts = item["type"] in ("function_call_output", "custom_tool_call_output")
    return id, output if is_parts or isinstance(output, str) else orjson.dumps(output).decode()


def result_item(kind: str, content: str | list[Json]) -> Json:
    """Returns the members of an item that the result of a call has. kind: the item's. content: its output."""
    if isinstance(content, list):
        return {"type": kind, "status": "completed", "output": content}
    if kind == "tool_search_output":
        return {"type": kind, "status": "completed", "execution": "client", "tools": decode_list(content)}
    if kind == "apply_patch_call_output":
        return {"type": kind, "status": "completed", **decode_object(content)}
    output = (decode_list(content) if kind == "shell_call_output" else None) or content
    return {"type": kind, "status": "completed", "output": output}


def _call_id(item: Json, where: str) -> str:
    # `local_shell_call_output` has its call's id as its own.
    key = "call_id" if item.get("call_id") is not None or item.get("id") is None else "id"
    return text_in(item, key, where)
