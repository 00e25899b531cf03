"""A strict `/v1/responses` with `/v1/conversations` that keeps what it answers, as OpenAI's does.

Pure: a request in, an answer out. It refuses what OpenAI refuses: unknown fields, parts and tools, ids that it does not
know, results without their calls and calls without their results, thoughts that nobody can open, an item twice.
(platform.openai.com/docs/api-reference/responses, .../conversations)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import orjson

from tests.doubles.openai_rules import Refusal
from tests.doubles.responses_events import events_of

Json = dict[str, Any]
CREATED = 1_700_000_000
_KNOWN = (
    "background context_management conversation include input instructions max_output_tokens max_tool_calls metadata "
    "model parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_retention reasoning "
    "safety_identifier service_tier store stream stream_options temperature text tool_choice tools top_logprobs top_p "
    "truncation user client_metadata"
)
_FIELDS = frozenset(_KNOWN.split())
_INCLUDED = frozenset(
    (
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        *("message.input_image.image_url", "computer_call_output.output.image_url"),
        *("code_interpreter_call.outputs", "reasoning.encrypted_content", "message.output_text.logprobs"),
    )
)
_ASKED = frozenset(("input_text", "input_image", "input_file", "input_audio"))
_SAID = frozenset(("output_text", "refusal"))
# What an item may have, and how its id begins.
_ITEMS: Mapping[str, tuple[str, frozenset[str]]] = {
    kind: (prefix, frozenset(("type", "id", "status", *fields.split())))
    for kind, prefix, fields in (
        ("message", "msg", "role content phase"),
        ("reasoning", "rs", "summary content encrypted_content"),
        ("function_call", "fc", "call_id name arguments namespace caller async"),
        ("function_call_output", "fc", "call_id output name namespace caller"),
        ("custom_tool_call", "ctc", "call_id name input namespace caller async"),
        ("custom_tool_call_output", "ctc", "call_id output caller"),
        ("web_search_call", "ws", "action"),
        ("mcp_approval_request", "mcpr", "server_label name arguments"),
        ("mcp_approval_response", "mcprs", "approval_request_id approve reason"),
        ("item_reference", "", ""),
    )
}
_ANSWERED = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_NEEDED = {  # by a tool
    "function": ("name", "parameters"),
    "custom": ("name",),
    "web_search": (),
    "web_search_preview": (),
    "file_search": ("vector_store_ids",),
    "code_interpreter": ("container",),
    "image_generation": (),
    "mcp": ("server_label",),
    "namespace": ("name", "description", "tools"),
    "tool_search": (),
    "local_shell": (),
}


def said(text: str) -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "status": "completed", "content": [part]}


def called(name: str, arguments: str = "{}", call_id: str = "call_1") -> Json:
    named = {"name": name, "arguments": arguments, "call_id": call_id}
    return {"type": "function_call", "status": "completed", **named}


def searched(query: str) -> Json:
    return {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": query}}


def thought(text: str) -> Json:
    return {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}],
        "encrypted_content": "x",
    }


class StoredResponses:
    """The responses and conversations of one account.

    asked: the bodies that were taken; heard: what the model read for each. outputs: of the next replies, each a list
    of items. script: makes them when there is none left, of the request and what the model reads; else it says "Ok.".
    conversations: their items.
    """

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.heard: list[list[Json]] = []
        self.outputs: deque[Sequence[Json]] = deque()
        self.script: Callable[[Json, list[Json]], Sequence[Json]] = lambda asked, heard: [said("Ok.")]
        self.conversations: dict[str, list[Json]] = {}
        self._stored: dict[
            str, tuple[Json, list[Json]]
        ] = {}  # by id a response, and all that was read for it
        self._items: dict[str, Json] = {}
        self._ids = count(1)

    def answer(self, asked: Json) -> list[bytes]:
        """Returns the body of an answer, of a stream its events. Raises: Refusal."""
        read = self._read(asked)
        self.asked.append(asked)
        self.heard.append(read)
        n = next(self._ids)
        made = self.outputs.popleft() if self.outputs else self.script(asked, read)
        output = [{**item, "id": f"{_ITEMS[item['type']][0]}_{n}_{k}"} for k, item in enumerate(made)]
        if (
            "reasoning.encrypted_content" not in (asked.get("include") or ())
            and asked.get("store") is not False
        ):
            output = [{k: v for k, v in item.items() if k != "encrypted_content"} for item in output]
        whole = self._response(asked, f"resp_{n}", output)
        if asked.get("store") is not False:
            self._stored[f"resp_{n}"] = (whole, [*map(self._kept, read)])
            self._items.update((item["id"], item) for item in output)
        if (conversation := _id(asked.get("conversation"))) is not None:
            self.conversations[conversation] = [*map(self._kept, read), *output]
            self._items.update((item["id"], item) for item in output)
        return events_of(whole) if asked.get("stream") else [orjson.dumps(whole)]

    def respond(self, method: str, place: Sequence[str], query: str) -> Json | None:
        """Returns what a request about a stored response gets; None: there is no such endpoint. Raises: Refusal."""
        name, *rest = place
        if name not in self._stored:
            raise Refusal(f"Response with id '{name}' not found.", status=404)
        whole, read = self._stored[name]
        match method, rest:
            case "GET", []:
                return whole
            case "GET", ["input_items"]:
                return _list(read, query)
            case "DELETE", []:
                del self._stored[name]
                return {"id": name, "object": "response", "deleted": True}
            case "POST", ["cancel"]:
                raise Refusal("Cannot cancel a synchronous response.")
        return None

    def converse(self, method: str, place: Sequence[str], query: str, asked: Json) -> Json | None:
        """Returns what a request about conversations gets; None: there is no such endpoint. Raises: Refusal."""
        if not place and method == "POST":
            name = f"conv_{next(self._ids)}"
            self.conversations[name] = []
            self._add(name, asked.get("items") or ())
            return _conversation(name, asked)
        name, *rest = place
        if name not in self.conversations:
            raise Refusal(f"Conversation with id '{name}' not found.", status=404)
        items = self.conversations[name]
        match method, rest:
            case "GET" | "POST", []:
                return _conversation(name, asked)
            case "DELETE", []:
                del self.conversations[name]
                return {"id": name, "object": "conversation.deleted", "deleted": True}
            case "GET", ["items"]:
                return _list(items, query)
            case "POST", ["items"]:
                return _list(self._add(name, asked["items"]), "order=asc")
            case "GET" | "DELETE", ["items", id]:
                found = next((item for item in items if item.get("id") == id), None)
                if found is None:
                    raise Refusal(f"Item with id '{id}' not found.", status=404)
                if method == "DELETE":
                    items.remove(found)
                return found if method == "GET" else _conversation(name, {})
        return None

    def _add(self, conversation: str, items: Sequence[Any]) -> list[Json]:
        added = [self._kept(self._item(item, f"items[{n}]")) for n, item in enumerate(items)]
        self.conversations[conversation] += added
        return added

    def _kept(self, item: Json) -> Json:
        """Returns an item as it is shown later: with an id, and its text as a part."""
        kept = {"type": "message", "status": "completed", **item}
        kept.setdefault("id", f"{_ITEMS[kept['type']][0]}_{next(self._ids)}")
        if isinstance(kept.get("content"), str):
            kind = "output_text" if kept["role"] == "assistant" else "input_text"
            kept["content"] = [{"type": kind, "text": kept["content"]}]
        return kept

    def _read(self, asked: Json) -> list[Json]:
        if unknown := asked.keys() - _FIELDS:
            name = min(unknown)
            raise Refusal(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        if not isinstance(asked.get("instructions", ""), str | None):
            raise Refusal("Invalid type for 'instructions'.", "instructions", "invalid_type")
        if wrong := set(asked.get("include") or ()) - _INCLUDED:
            raise Refusal(f"Invalid value: '{min(wrong)}'.", "include[0]", "invalid_value")
        for n, tool in enumerate(asked.get("tools") or ()):
            _check_tool(tool, f"tools[{n}]")
        items = asked["input"]
        if isinstance(items, str):
            items = [{"type": "message", "role": "user", "content": items}]
        items = [self._item(item, f"input[{n}]") for n, item in enumerate(items)]
        before: list[Json] = []
        if (previous := asked.get("previous_response_id")) is not None:
            if previous not in self._stored:
                raise Refusal(
                    f"Previous response with id '{previous}' not found.",
                    "previous_response_id",
                    "previous_response_not_found",
                )
            earlier, read = self._stored[previous]
            before = [*read, *earlier["output"]]
        if (conversation := _id(asked.get("conversation"))) is not None:
            if previous is not None:
                raise Refusal("'previous_response_id' cannot be used in conjunction with 'conversation'.")
            if conversation not in self.conversations:
                raise Refusal(f"Conversation with id '{conversation}' not found.", status=404)
            before = self.conversations[conversation]
        whole = [*before, *items]
        _check_ids(whole)
        _check_calls(whole)
        return whole

    def _item(self, item: Any, where: str) -> Json:
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind not in _ITEMS:
            raise Refusal(f"Invalid value: '{kind}'.", f"{where}.type", "invalid_value")
        if kind == "item_reference":
            if item["id"] not in self._items:
                raise Refusal(f"Item with id '{item['id']}' not found.", "input", status=404)
            return self._items[item["id"]]
        prefix, fields = _ITEMS[kind]
        if unknown := item.keys() - fields:
            raise Refusal(f"Unknown parameter: '{where}.{min(unknown)}'.", where, "unknown_parameter")
        if (id := item.get("id")) is not None and not id.startswith(prefix):
            raise Refusal(
                f"Invalid '{where}.id': '{id}'. Expected an ID that begins with '{prefix}'.", f"{where}.id"
            )
        if kind == "reasoning" and not item.get("encrypted_content") and id not in self._items:
            raise Refusal(
                f"Item with id '{id}' not found. Items are not persisted when `store` is set to false.",
                "input",
                status=404,
            )
        if kind == "message":
            parts = item["content"] if isinstance(item["content"], list) else ()
            for n, part in enumerate(parts):
                if part["type"] not in (_SAID if item["role"] == "assistant" else _ASKED):
                    raise Refusal(
                        f"Invalid value: '{part['type']}'.", f"{where}.content[{n}]", "invalid_value"
                    )
        return dict(item)

    def _response(self, asked: Json, name: str, output: list[Json]) -> Json:
        conversation = _id(asked.get("conversation"))
        return {
            "id": name,
            "object": "response",
            "created_at": CREATED,
            "model": asked["model"],
            "status": "completed",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": asked.get("previous_response_id"),
            "tool_choice": "auto",
            "tools": asked.get("tools") or [],
            "store": asked.get("store") is not False,
            "metadata": asked.get("metadata") or {},
            "text": {"format": {"type": "text"}, **(asked.get("text") or {})},
            "usage": {
                "input_tokens": 9,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 2,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 11,
            },
            **({} if conversation is None else {"conversation": {"id": conversation}}),
        }


def _check_tool(tool: Json, where: str) -> None:
    kind = tool.get("type")
    if kind not in _NEEDED:
        raise Refusal(f"Invalid value: '{kind}'.", f"{where}.type", "invalid_value")
    for name in _NEEDED[kind]:
        if name not in tool:
            raise Refusal(
                f"Missing required parameter: '{where}.{name}'.", where, "missing_required_parameter"
            )


def _check_ids(items: Sequence[Json]) -> None:
    ids = [item["id"] for item in items if item.get("id") is not None]
    for id in ids:
        if ids.count(id) > 1:
            raise Refusal(
                f"Duplicate item found with id {id}. Remove duplicate items from your input and try again.",
                "input",
            )


def _check_calls(items: Sequence[Json]) -> None:
    calls = {item["call_id"]: _ANSWERED[item["type"]] for item in items if item.get("type") in _ANSWERED}
    results = {item["call_id"] for item in items if item.get("type") in _ANSWERED.values()}
    for item in items:
        if item.get("type") in _ANSWERED.values() and calls.get(item["call_id"]) != item["type"]:
            raise Refusal(
                f"No tool call found for function call output with call_id {item['call_id']}.", "input"
            )
    if items and items[-1].get("type") not in _ANSWERED:
        for id in calls.keys() - results:
            raise Refusal(f"No tool output found for function call {id}.", "input")


def _id(conversation: Any) -> str | None:
    id: str | None = conversation["id"] if isinstance(conversation, dict) else conversation
    return id


def _conversation(name: str, asked: Json) -> Json:
    metadata = asked.get("metadata") or {}
    return {"id": name, "object": "conversation", "created_at": CREATED, "metadata": metadata}


def _list(items: Sequence[Json], query: str) -> Json:
    """Returns the items as a page, the newest first unless the query asks for another order."""
    items = items if "order=asc" in query else items[::-1]
    ends = {"first_id": None, "last_id": None}
    if items:
        ends = {"first_id": items[0].get("id"), "last_id": items[-1].get("id")}
    return {"object": "list", "data": list(items), "has_more": False, **ends}
