"""A strict `/v1/responses` with `/v1/conversations` that keeps what it answers, as OpenAI's does.

Pure: a request in, an answer out. It refuses what OpenAI refuses: unknown fields, parts and tools, ids that it does not
know, results without their calls and calls without their results, thoughts that nobody can open, an item twice.
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
    check_fields,
    many,
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
_SEALED = "gAAAAA"  # how what the API has encrypted begins
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
        ("compaction", "cmp", "encrypted_content"),
        ("mcp_approval_request", "mcpr", "server_label name arguments"),
        ("mcp_approval_response", "mcprs", "approval_request_id approve reason"),
        ("item_reference", "", ""),
    )
}
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
# The fields of a part of which one at least has to be there.
_ONE_OF = {"input_image": ("image_url", "file_id"), "input_file": ("file_data", "file_id", "file_url")}
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
    "output_text": members({"type": text, "text": text}, {"annotations": many, "logprobs": many}),
    "refusal": members({"type": text, "refusal": text}),
}
# What may follow thoughts.
_THOUGHT_FOR = ("message", "function_call", "custom_tool_call", "web_search_call", "reasoning")
_ANSWERED = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}


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
        "encrypted_content": f"{_SEALED}x",
    }


class StoredResponses:
    """The responses and conversations of one account.

    asked: the bodies that were taken; heard: what the model read for each. outputs: of the next replies, each a list
    of items. script: makes them when there is none left, of the request and what the model reads; else it says "Ok.".
    conversations: their items. is_busy: no response in the background ends.
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
        self._after: dict[str, str] = {}  # by id of an item of a stored reply the thoughts before it
        # Responses in the background are made when this is False.
        self.is_busy = False
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
        for thought, item in pairwise(output):
            if thought["type"] == "reasoning" and asked.get("store") is not False:
                self._after[item["id"]] = thought["id"]
        if asked.get("store") is not False:
            self._stored[f"resp_{n}"] = (whole, [*map(self._kept, read)])
            self._items.update((item["id"], item) for item in output)
        if (conversation := _id(asked.get("conversation"))) is not None:
            self.conversations[conversation] = [*map(self._kept, read), *output]
            self._items.update((item["id"], item) for item in output)
        if asked.get("background") and not asked.get("stream"):
            return [orjson.dumps(_under_way(whole, "queued"))]
        return events_of(whole) if asked.get("stream") else [orjson.dumps(whole)]

    def compact(self, asked: Json) -> Json:
        """Returns a conversation in short: the user's messages, and the rest sealed. Raises: Refusal."""
        if unknown := asked.keys() - {"model", "input", "instructions", "previous_response_id"}:
            raise Refusal(f"Unknown parameter: '{min(unknown)}'.", min(unknown), "unknown_parameter")
        read = self._read({"input": [], **asked})
        n = next(self._ids)
        sealed = {"type": "compaction", "id": f"cmp_{n}", "encrypted_content": f"{_SEALED}{n}"}
        return {
            "id": f"resp_{n}",
            "object": "response.compaction",
            "created_at": CREATED,
            "output": [*(self._kept(item) for item in read if item.get("role") == "user"), sealed],
            "usage": _USAGE,
        }

    def respond(self, method: str, place: Sequence[str], query: str) -> Json | None:
        """Returns what a request about a stored response gets; None: there is no such endpoint. Raises: Refusal."""
        name, *rest = place
        if name not in self._stored:
            raise Refusal(f"Response with id '{name}' not found.", status=404)
        whole, read = self._stored[name]
        match method, rest:
            case "GET", []:
                is_busy = whole["background"] and whole["status"] == "completed" and self.is_busy
                return _under_way(whole, "in_progress") if is_busy else whole
            case "GET", ["input_items"]:
                return _list(read, query)
            case "DELETE", []:
                del self._stored[name]
                return {"id": name, "object": "response", "deleted": True}
            case "POST", ["cancel"] if whole["background"]:
                if not self.is_busy:
                    return whole
                gone = {**whole, "status": "cancelled", "output": [], "usage": None}
                self._stored[name] = gone, read
                return gone
            case "POST", ["cancel"]:
                raise Refusal("Cannot cancel a synchronous response.")
        return None

    def events(self, name: str, query: str) -> list[bytes]:
        """Returns the events of a response in the background after the cursor of a query. Raises: Refusal."""
        if name not in self._stored:
            raise Refusal(f"Response with id '{name}' not found.", status=404)
        whole, _ = self._stored[name]
        if not whole["background"]:
            raise Refusal("Only a response that was made in the background can be streamed.", "stream")
        after = next((int(n) for n in parse_qs(query).get("starting_after", ())), -1)
        return events_of(whole)[after + 1 :]

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
        check_fields(asked)
        items = asked["input"]
        if isinstance(items, str):
            items = [{"type": "message", "role": "user", "content": items}]
        if not isinstance(items, list):
            raise Refusal("Invalid type for 'input': expected a string or an array.", "input", "invalid_type")
        if not items and asked.get("previous_response_id") is None and asked.get("conversation") is None:
            raise Refusal("Invalid 'input': empty array.", "input", "empty_array")
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
            if conversation not in self.conversations:
                raise Refusal(f"Conversation with id '{conversation}' not found.", status=404)
            before = self.conversations[conversation]
        whole = [*before, *items]
        _check_ids(whole)
        _check_calls(whole)
        _check_thoughts(whole, self._after)
        return whole

    def _item(self, item: Any, where: str) -> Json:
        if not isinstance(item, dict):
            raise Refusal(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind not in _ITEMS:
            raise Refusal(f"Invalid value: '{kind}'.", f"{where}.type", "invalid_value")
        if kind == "item_reference":
            if item.get("id") is None:
                raise missing(f"{where}.id")
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
        sealed = item.get("encrypted_content")
        is_asked = kind == "compaction" or (kind == "reasoning" and sealed)
        if is_asked and not str(sealed or "").startswith(_SEALED):
            raise Refusal(
                f"The encrypted content of '{where}' could not be verified.",
                where,
                "invalid_encrypted_content",
            )
        if kind == "reasoning" and not item.get("encrypted_content") and id not in self._items:
            raise Refusal(
                f"Item with id '{id}' not found. Items are not persisted when `store` is set to false.",
                "input",
                status=404,
            )
        for name in _REQUIRED.get(kind, ()):
            if item.get(name) is None:
                raise missing(f"{where}.{name}")
        for name in ("call_id", "name", "arguments", "input"):
            if name in item and kind != "mcp_approval_request":
                short(64)(item[name], f"{where}.{name}") if name == "call_id" else text(
                    item[name], f"{where}.{name}"
                )
        if kind == "message":
            one_of("user", "assistant", "system", "developer")(item["role"], f"{where}.role")
            if not isinstance(item["content"], str | list):
                raise Refusal(f"Invalid type for '{where}.content'.", f"{where}.content", "invalid_type")
            _check_parts(
                item["content"], _SAID if item["role"] == "assistant" else _ASKED, f"{where}.content"
            )
        elif kind in ("function_call_output", "custom_tool_call_output"):
            _check_parts(item["output"], _ASKED - {"input_audio"}, f"{where}.output")
        return dict(item)

    def _response(self, asked: Json, name: str, output: list[Json]) -> Json:
        conversation = _id(asked.get("conversation"))
        return {
            "id": name,
            "object": "response",
            "created_at": CREATED,
            "model": asked["model"],
            "status": "completed",
            "background": bool(asked.get("background")),
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


def _check_thoughts(items: Sequence[Json], after: Mapping[str, str]) -> None:
    """Thoughts stand before what they were thought for, and what was thought about stands after its thoughts.

    after: ids of items -> the thoughts before them.
    """
    for n, item in enumerate(items):
        following = items[n + 1] if n + 1 < len(items) else {"type": ""}
        if item.get("type") == "reasoning" and (
            following.get("type", "message") not in _THOUGHT_FOR
            or following.get("role", "assistant") != "assistant"
        ):
            raise Refusal(
                f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.",
                "input",
            )
        needed = after.get(str(item.get("id")))
        if needed is not None and (not n or items[n - 1].get("id") != needed):
            raise Refusal(
                f"Item '{item['id']}' of type '{item['type']}' was provided without its required 'reasoning' item: "
                f"'{needed}'.",
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


def _under_way(whole: Json, status: str) -> Json:
    return {**whole, "status": status, "output": [], "usage": None}


def _id(conversation: Any) -> str | None:
    id: str | None = conversation["id"] if isinstance(conversation, dict) else conversation
    return id


def _check_parts(content: Any, known: frozenset[str], where: str) -> None:
    """Checks the parts of a content that may be a text. Raises: Refusal."""
    if isinstance(content, str):
        return
    many(content, where)
    for n, part in enumerate(content):
        at, kind = f"{where}[{n}]", part["type"]
        if kind not in known:
            raise Refusal(f"Invalid value: '{kind}'.", at, "invalid_value")
        _PARTS[kind](part, at)
        if kind in _ONE_OF and not any(part.get(key) for key in _ONE_OF[kind]):
            raise missing(f"{at}.{_ONE_OF[kind][0]}")


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
