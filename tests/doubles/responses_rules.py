"""A strict `/v1/responses` that keeps what it answers, as OpenAI's does.

Pure: a request in, an answer out. It refuses what OpenAI refuses: unknown fields and parts, ids that it does not know,
results without their calls and calls without their results. (platform.openai.com/docs/api-reference/responses)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any

import orjson

from tests.doubles.openai_rules import Refusal

Json = dict[str, Any]
CREATED = 1_700_000_000
_KNOWN = (
    "background context_management conversation include input instructions max_output_tokens max_tool_calls metadata "
    "model parallel_tool_calls previous_response_id prompt prompt_cache_key reasoning safety_identifier service_tier "
    "store stream stream_options temperature text tool_choice tools top_logprobs top_p truncation user"
)
_FIELDS = frozenset(_KNOWN.split())
_ASKED = frozenset(("input_text", "input_image", "input_file", "input_audio"))
_SAID = frozenset(("output_text", "refusal"))
_KINDS = (
    "message reasoning function_call function_call_output custom_tool_call custom_tool_call_output web_search_call "
    "mcp_approval_request mcp_approval_response item_reference"
)
_ITEMS = frozenset(_KINDS.split())
_MESSAGE = frozenset(("type", "role", "content", "id", "status", "phase"))
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
        "encrypted_content": "x",
    }


class StoredResponses:
    """The responses of one account. asked: the bodies that were taken; heard: what the model read for each.

    outputs: of the next replies, each a list of items; without one it says "Ok.". conversations: that were made.
    """

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.heard: list[list[Json]] = []
        self.outputs: deque[Sequence[Json]] = deque()
        self.conversations: dict[str, list[Json]] = {}
        self._stored: dict[str, list[Json]] = {}  # by response, all that the model has read and said by then
        self._items: dict[str, Json] = {}
        self._ids = count(1)

    def answer(self, asked: Json) -> list[bytes]:
        """Returns the body of an answer, of a stream its events. Raises: Refusal."""
        read = self._read(asked)
        self.asked.append(asked)
        self.heard.append(read)
        n = next(self._ids)
        made = self.outputs.popleft() if self.outputs else [said("Ok.")]
        output = [{**item, "id": f"{item['type'][:3]}_{n}_{k}"} for k, item in enumerate(made)]
        whole = self._response(asked, f"resp_{n}", output)
        if asked.get("store") is not False:
            self._stored[f"resp_{n}"] = [*read, *output]
            self._items.update((item["id"], item) for item in output)
        if (conversation := _id(asked.get("conversation"))) is not None:
            self.conversations[conversation] = [*read, *output]
        return _events(whole) if asked.get("stream") else [orjson.dumps(whole)]

    def _read(self, asked: Json) -> list[Json]:
        if unknown := asked.keys() - _FIELDS:
            name = min(unknown)
            raise Refusal(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        if not isinstance(asked.get("instructions", ""), str | None):
            raise Refusal("Invalid type for 'instructions'.", "instructions", "invalid_type")
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
            before = self._stored[previous]
        if (conversation := _id(asked.get("conversation"))) is not None:
            if previous is not None:
                raise Refusal("'previous_response_id' cannot be used in conjunction with 'conversation'.")
            if conversation not in self.conversations:
                raise Refusal(f"Conversation with id '{conversation}' not found.", status=404)
            before = self.conversations[conversation]
        whole = [*before, *items]
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
        if kind == "message":
            if unknown := item.keys() - _MESSAGE:
                raise Refusal(f"Unknown parameter: '{where}.{min(unknown)}'.", where, "unknown_parameter")
            parts = item["content"] if isinstance(item["content"], list) else ()
            for n, part in enumerate(parts):
                if part["type"] not in (_SAID if item["role"] == "assistant" else _ASKED):
                    raise Refusal(
                        f"Invalid value: '{part['type']}'.", f"{where}.content[{n}]", "invalid_value"
                    )
        return dict(item)

    def _response(self, asked: Json, name: str, output: list[Json]) -> Json:
        return {
            "id": name,
            "object": "response",
            "created_at": CREATED,
            "model": asked["model"],
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": asked.get("previous_response_id"),
            "tool_choice": "auto",
            "tools": asked.get("tools", []),
            "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
        }


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
    return conversation["id"] if isinstance(conversation, dict) else conversation


def _events(whole: Json) -> list[bytes]:
    begun = {**whole, "status": "in_progress", "output": []}
    made: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for at, item in enumerate(whole["output"]):
        place = {"output_index": at}
        made.append(
            {"type": "response.output_item.added", **place, "item": {**item, "status": "in_progress"}}
        )
        if item["type"] == "message":
            part = item["content"][0]
            where = {**place, "item_id": item["id"], "content_index": 0}
            made.append({"type": "response.content_part.added", **where, "part": {**part, "text": ""}})
            for word in part["text"].split(" "):
                last = "" if part["text"].endswith(word) else " "
                delta = {"delta": word + last, "logprobs": []}
                made.append({"type": "response.output_text.delta", **where, **delta})
            done = {"text": part["text"], "logprobs": []}
            made.append({"type": "response.output_text.done", **where, **done})
            made.append({"type": "response.content_part.done", **where, "part": part})
        made.append({"type": "response.output_item.done", **place, "item": item})
    made.append({"type": "response.completed", "response": whole})
    return [
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), orjson.dumps({**each, "sequence_number": n}))
        for n, each in enumerate(made)
    ]
