"""OpenAI's `/v1/responses` and `/v1/conversations`, with their rules and with the responses that they store.

The module is pure: each method takes a request and returns a reply. It refuses what OpenAI refuses: unknown fields,
parts, tools and ids, results without calls and calls without results, reasoning that another account has encrypted, and
an item that comes twice.
(platform.openai.com/docs/api-reference/responses, .../conversations)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count, pairwise
from typing import Any
from urllib.parse import parse_qs

import orjson

from tests.doubles.openai_rules import Refusal
from tests.doubles.responses_events import events_of
from tests.doubles.responses_fields import (
    Check,
    a_list,
    check_fields,
    members,
    missing,
    one_of,
    short,
    text,
)

Json = dict[str, Any]
CREATED = 1_700_000_000
_USAGE: Json = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 11,
}
# The beginning of content that the API has encrypted.
_SEALED = "gAAAAA"
_INPUT_PARTS = frozenset(("input_text", "input_image", "input_file", "input_audio"))
_OUTPUT_PARTS = frozenset(("output_text", "refusal"))
# type of an item -> the prefix of its id, and its fields
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
        ("compaction", "cmp", "encrypted_content"),
        ("mcp_approval_request", "mcpr", "server_label name arguments"),
        ("mcp_approval_response", "mcprs", "approval_request_id approve reason"),
        ("item_reference", "", ""),
    )
}
# type of an item -> its required fields
_REQUIRED = {
    "message": ("role", "content"),
    "reasoning": ("summary",),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "compaction": ("encrypted_content",),
    "item_reference": ("id",),
}
_BREAKPOINT: Mapping[str, Check] = {
    "prompt_cache_breakpoint": members({"mode": one_of("explicit")}, {"ttl": one_of("30m", "12h")})
}
# type of a part -> the fields of which at least one is required
_ALTERNATIVES = {"input_image": ("image_url", "file_id"), "input_file": ("file_data", "file_id", "file_url")}
_PARTS = {
    "input_text": members({"type": text, "text": text}, _BREAKPOINT),
    "input_image": members(
        {"type": text},
        {
            **_BREAKPOINT,
            "image_url": text,
            "file_id": text,
            "detail": one_of("auto", "low", "high", "original"),
        },
    ),
    "input_file": members(
        {"type": text},
        {**_BREAKPOINT, **dict.fromkeys(("file_data", "file_id", "file_url", "filename", "detail"), text)},
    ),
    "input_audio": members(
        {"type": text, "input_audio": members({"data": text, "format": one_of("mp3", "wav")})}
    ),
    "output_text": members({"type": text, "text": text}, {"annotations": a_list, "logprobs": a_list}),
    "refusal": members({"type": text, "refusal": text}),
}
# The types of items that may follow reasoning.
_AFTER_REASONING = ("message", "function_call", "custom_tool_call", "web_search_call", "reasoning")
# type of a call -> the type of its result
_RESULT_TYPES = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}


def message_item(text: str) -> Json:
    """Returns an item with a text of the assistant."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "status": "completed", "content": [part]}


def call_item(name: str, arguments: str = "{}", call_id: str = "call_1") -> Json:
    call = {"name": name, "arguments": arguments, "call_id": call_id}
    return {"type": "function_call", "status": "completed", **call}


def search_item(query: str) -> Json:
    return {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": query}}


def reasoning_item(text: str) -> Json:
    """Returns an item with a thought, shown as a summary."""
    return {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}],
        "encrypted_content": f"{_SEALED}x",
    }


class StoredResponses:
    """The responses and conversations of one account."""

    def __init__(self) -> None:
        # The bodies of the accepted requests.
        self.bodies: list[Json] = []
        # For each of these requests the items that the model reads: earlier items, and the input.
        self.inputs: list[list[Json]] = []
        # The items of the next replies.
        self.outputs: deque[Sequence[Json]] = deque()
        # Makes the items of a reply if `outputs` is empty, of the body and the items that the model reads.
        self.script: Callable[[Json, list[Json]], Sequence[Json]] = lambda body, items: [message_item("Ok.")]
        # id of a conversation -> its items
        self.conversations: dict[str, list[Json]] = {}
        # id of a stored response -> the response, and the items that the model read for it
        self._stored: dict[str, tuple[Json, list[Json]]] = {}
        # id of an item -> the item, of stored responses and conversations
        self._items: dict[str, Json] = {}
        # id of an item of a stored response -> the id of the reasoning before it
        self._reasoning_before: dict[str, str] = {}
        # True: responses in the background stay in progress.
        self.is_busy = False
        self._ids = count(1)

    def answer(self, body: Json) -> list[bytes]:
        """Returns the pieces of a reply: a whole body, or the events of a stream. Raises: Refusal."""
        input_items = self._read_input(body)
        self.bodies.append(body)
        self.inputs.append(input_items)
        number = next(self._ids)
        items = self.outputs.popleft() if self.outputs else self.script(body, input_items)
        output = [
            {**item, "id": f"{_ITEMS[item['type']][0]}_{number}_{index}"} for index, item in enumerate(items)
        ]
        if (
            "reasoning.encrypted_content" not in (body.get("include") or ())
            and body.get("store") is not False
        ):
            output = [
                {key: value for key, value in item.items() if key != "encrypted_content"} for item in output
            ]
        response = self._make_response(body, f"resp_{number}", output)
        for item_before, item in pairwise(output):
            if item_before["type"] == "reasoning" and body.get("store") is not False:
                self._reasoning_before[item["id"]] = item_before["id"]
        if body.get("store") is not False:
            self._stored[f"resp_{number}"] = (response, [*map(self._with_id, input_items)])
            self._items.update((item["id"], item) for item in output)
        if (conversation := _read_conversation_id(body.get("conversation"))) is not None:
            self.conversations[conversation] = [*map(self._with_id, input_items), *output]
            self._items.update((item["id"], item) for item in output)
        if body.get("background") and not body.get("stream"):
            return [orjson.dumps(_as_unfinished(response, "queued"))]
        return events_of(response) if body.get("stream") else [orjson.dumps(response)]

    def compact(self, body: Json) -> Json:
        """Returns a compacted conversation: the user's messages, and an encrypted item. Raises: Refusal."""
        if unknown := body.keys() - {"model", "input", "instructions", "previous_response_id"}:
            raise Refusal(f"Unknown parameter: '{min(unknown)}'.", min(unknown), "unknown_parameter")
        input_items = self._read_input({"input": [], **body})
        number = next(self._ids)
        sealed = {"type": "compaction", "id": f"cmp_{number}", "encrypted_content": f"{_SEALED}{number}"}
        return {
            "id": f"resp_{number}",
            "object": "response.compaction",
            "created_at": CREATED,
            "output": [*(self._with_id(item) for item in input_items if item.get("role") == "user"), sealed],
            "usage": _USAGE,
        }

    def answer_stored_response(self, method: str, segments: Sequence[str], query: str) -> Json | None:
        """Returns the reply to a request for a stored response; None: there is no such endpoint. Raises: Refusal."""
        id, *subpath = segments
        if id not in self._stored:
            raise Refusal(f"Response with id '{id}' not found.", status=404)
        response, input_items = self._stored[id]
        match method, subpath:
            case "GET", []:
                is_busy = response["background"] and response["status"] == "completed" and self.is_busy
                return _as_unfinished(response, "in_progress") if is_busy else response
            case "GET", ["input_items"]:
                return _render_page(input_items, query)
            case "DELETE", []:
                del self._stored[id]
                return {"id": id, "object": "response", "deleted": True}
            case "POST", ["cancel"] if response["background"]:
                if not self.is_busy:
                    return response
                cancelled = {**response, "status": "cancelled", "output": [], "usage": None}
                self._stored[id] = cancelled, input_items
                return cancelled
            case "POST", ["cancel"]:
                raise Refusal("Cannot cancel a synchronous response.")
        return None

    def list_events(self, id: str, query: str) -> list[bytes]:
        """Returns the events of a background response after the cursor in a query. Raises: Refusal."""
        if id not in self._stored:
            raise Refusal(f"Response with id '{id}' not found.", status=404)
        response, _ = self._stored[id]
        if not response["background"]:
            raise Refusal("Only a response that was made in the background can be streamed.", "stream")
        after = next((int(n) for n in parse_qs(query).get("starting_after", ())), -1)
        return events_of(response)[after + 1 :]

    def answer_conversations(
        self, method: str, segments: Sequence[str], query: str, body: Json
    ) -> Json | None:
        """Returns the reply to a request for conversations; None: there is no such endpoint. Raises: Refusal."""
        if not segments and method == "POST":
            name = f"conv_{next(self._ids)}"
            self.conversations[name] = []
            self._add_items(name, body.get("items") or ())
            return _render_conversation(name, body)
        name, *subpath = segments
        if name not in self.conversations:
            raise Refusal(f"Conversation with id '{name}' not found.", status=404)
        items = self.conversations[name]
        match method, subpath:
            case "GET" | "POST", []:
                return _render_conversation(name, body)
            case "DELETE", []:
                del self.conversations[name]
                return {"id": name, "object": "conversation.deleted", "deleted": True}
            case "GET", ["items"]:
                return _render_page(items, query)
            case "POST", ["items"]:
                return _render_page(self._add_items(name, body["items"]), "order=asc")
            case "GET" | "DELETE", ["items", id]:
                found_item = next((item for item in items if item.get("id") == id), None)
                if found_item is None:
                    raise Refusal(f"Item with id '{id}' not found.", status=404)
                if method == "DELETE":
                    items.remove(found_item)
                return found_item if method == "GET" else _render_conversation(name, {})
        return None

    def _add_items(self, conversation: str, items: Sequence[Any]) -> list[Json]:
        added = [self._with_id(self._parse_item(item, f"items[{n}]")) for n, item in enumerate(items)]
        self.conversations[conversation] += added
        return added

    def _with_id(self, item: Json) -> Json:
        """Returns an item as it is stored: with an id, and a text as a part."""
        stored = {"type": "message", "status": "completed", **item}
        stored.setdefault("id", f"{_ITEMS[stored['type']][0]}_{next(self._ids)}")
        if isinstance(stored.get("content"), str):
            type_ = "output_text" if stored["role"] == "assistant" else "input_text"
            stored["content"] = [{"type": type_, "text": stored["content"]}]
        return stored

    def _read_input(self, body: Json) -> list[Json]:
        """Checks a body, and returns the items that the model reads. Raises: Refusal."""
        check_fields(body)
        items = body["input"]
        if isinstance(items, str):
            items = [{"type": "message", "role": "user", "content": items}]
        if not isinstance(items, list):
            raise Refusal("Invalid type for 'input': expected a string or an array.", "input", "invalid_type")
        if not items and body.get("previous_response_id") is None and body.get("conversation") is None:
            raise Refusal("Invalid 'input': empty array.", "input", "empty_array")
        items = [self._parse_item(item, f"input[{n}]") for n, item in enumerate(items)]
        earlier_items: list[Json] = []
        if (previous := body.get("previous_response_id")) is not None:
            if previous not in self._stored:
                raise Refusal(
                    f"Previous response with id '{previous}' not found.",
                    "previous_response_id",
                    "previous_response_not_found",
                )
            response, earlier_input = self._stored[previous]
            earlier_items = [*earlier_input, *response["output"]]
        if (conversation := _read_conversation_id(body.get("conversation"))) is not None:
            if conversation not in self.conversations:
                raise Refusal(f"Conversation with id '{conversation}' not found.", status=404)
            earlier_items = self.conversations[conversation]
        all_items = [*earlier_items, *items]
        _check_ids(all_items)
        _check_calls(all_items)
        _check_thoughts(all_items, self._reasoning_before)
        return all_items

    def _parse_item(self, item: Any, path: str) -> Json:
        """Checks an item of a list, and returns it, or the item that it refers to. Raises: Refusal."""
        if not isinstance(item, dict):
            raise Refusal(f"Invalid type for '{path}': expected an object.", path, "invalid_type")
        type_ = item.get("type") or ("message" if "role" in item else "item_reference")
        if type_ not in _ITEMS:
            raise Refusal(f"Invalid value: '{type_}'.", f"{path}.type", "invalid_value")
        if type_ == "item_reference":
            if item.get("id") is None:
                raise missing(f"{path}.id")
            if item["id"] not in self._items:
                raise Refusal(f"Item with id '{item['id']}' not found.", "input", status=404)
            return self._items[item["id"]]
        prefix, fields = _ITEMS[type_]
        if unknown := item.keys() - fields:
            raise Refusal(f"Unknown parameter: '{path}.{min(unknown)}'.", path, "unknown_parameter")
        if (id := item.get("id")) is not None and not id.startswith(prefix):
            raise Refusal(
                f"Invalid '{path}.id': '{id}'. Expected an ID that begins with '{prefix}'.", f"{path}.id"
            )
        sealed = item.get("encrypted_content")
        needs_seal = type_ == "compaction" or (type_ == "reasoning" and sealed)
        if needs_seal and not str(sealed or "").startswith(_SEALED):
            raise Refusal(
                f"The encrypted content of '{path}' could not be verified.",
                path,
                "invalid_encrypted_content",
            )
        if type_ == "reasoning" and not item.get("encrypted_content") and id not in self._items:
            raise Refusal(
                f"Item with id '{id}' not found. Items are not persisted when `store` is set to false.",
                "input",
                status=404,
            )
        for name in _REQUIRED.get(type_, ()):
            if item.get(name) is None:
                raise missing(f"{path}.{name}")
        for name in ("call_id", "name", "arguments", "input"):
            if name in item and type_ != "mcp_approval_request":
                short(64)(item[name], f"{path}.{name}") if name == "call_id" else text(
                    item[name], f"{path}.{name}"
                )
        if type_ == "message":
            one_of("user", "assistant", "system", "developer")(item["role"], f"{path}.role")
            if not isinstance(item["content"], str | list):
                raise Refusal(f"Invalid type for '{path}.content'.", f"{path}.content", "invalid_type")
            _check_parts(
                item["content"],
                _OUTPUT_PARTS if item["role"] == "assistant" else _INPUT_PARTS,
                f"{path}.content",
            )
        elif type_ in ("function_call_output", "custom_tool_call_output"):
            _check_parts(item["output"], _INPUT_PARTS - {"input_audio"}, f"{path}.output")
        return dict(item)

    def _make_response(self, body: Json, id: str, output: list[Json]) -> Json:
        conversation = _read_conversation_id(body.get("conversation"))
        return {
            "id": id,
            "object": "response",
            "created_at": CREATED,
            "model": body["model"],
            "status": "completed",
            "background": bool(body.get("background")),
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": body.get("previous_response_id"),
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
            "store": body.get("store") is not False,
            "metadata": body.get("metadata") or {},
            "text": {"format": {"type": "text"}, **(body.get("text") or {})},
            "usage": _USAGE,
            **({} if conversation is None else {"conversation": {"id": conversation}}),
        }


def _check_ids(items: Sequence[Json]) -> None:
    ids = [item["id"] for item in items if item.get("id") is not None]
    for id in ids:
        if ids.count(id) > 1:
            raise Refusal(
                f"Duplicate item found with id {id}. Remove duplicate items from your input and try again.",
                "input",
            )


def _check_thoughts(items: Sequence[Json], thoughts_before: Mapping[str, str]) -> None:
    """Checks that reasoning is followed by an item of its reply, and that no item lacks the reasoning before it.

    thoughts_before: id of an item -> the id of the reasoning before it.
    """
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else {"type": ""}
        if item.get("type") == "reasoning" and (
            following.get("type", "message") not in _AFTER_REASONING
            or following.get("role", "assistant") != "assistant"
        ):
            raise Refusal(
                f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.",
                "input",
            )
        thought_id = thoughts_before.get(str(item.get("id")))
        if thought_id is not None and (not index or items[index - 1].get("id") != thought_id):
            raise Refusal(
                f"Item '{item['id']}' of type '{item['type']}' was provided without its required 'reasoning' item: "
                f"'{thought_id}'.",
                "input",
            )


def _check_calls(items: Sequence[Json]) -> None:
    calls = {
        item["call_id"]: _RESULT_TYPES[item["type"]] for item in items if item.get("type") in _RESULT_TYPES
    }
    results = {item["call_id"] for item in items if item.get("type") in _RESULT_TYPES.values()}
    for item in items:
        if item.get("type") in _RESULT_TYPES.values() and calls.get(item["call_id"]) != item["type"]:
            raise Refusal(
                f"No tool call found for function call output with call_id {item['call_id']}.", "input"
            )
    if items and items[-1].get("type") not in _RESULT_TYPES:
        for id in calls.keys() - results:
            raise Refusal(f"No tool output found for function call {id}.", "input")


def _as_unfinished(response: Json, status: str) -> Json:
    return {**response, "status": status, "output": [], "usage": None}


def _read_conversation_id(conversation: Any) -> str | None:
    id: str | None = conversation["id"] if isinstance(conversation, dict) else conversation
    return id


def _check_parts(content: Any, allowed: frozenset[str], parent: str) -> None:
    """Checks the parts of a content that may be a text. Raises: Refusal."""
    if isinstance(content, str):
        return
    a_list(content, parent)
    for index, part in enumerate(content):
        path, type_ = f"{parent}[{index}]", part["type"]
        if type_ not in allowed:
            raise Refusal(f"Invalid value: '{type_}'.", path, "invalid_value")
        _PARTS[type_](part, path)
        if type_ in _ALTERNATIVES and not any(part.get(key) for key in _ALTERNATIVES[type_]):
            raise missing(f"{path}.{_ALTERNATIVES[type_][0]}")


def _render_conversation(id: str, body: Json) -> Json:
    metadata = body.get("metadata") or {}
    return {"id": id, "object": "conversation", "created_at": CREATED, "metadata": metadata}


def _render_page(items: Sequence[Json], query: str) -> Json:
    """Returns the items as a page, the newest first unless the query asks for another order."""
    items = items if "order=asc" in query else items[::-1]
    ends = {"first_id": None, "last_id": None}
    if items:
        ends = {"first_id": items[0].get("id"), "last_id": items[-1].get("id")}
    return {"object": "list", "data": list(items), "has_more": False, **ends}
