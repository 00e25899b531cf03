"""The events of a streamed response, as OpenAI sends them. (openai.types.responses.ResponseStreamEvent)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

Json = dict[str, Any]


def events_of(whole: Json) -> list[bytes]:
    """Returns the events of a response that is complete."""
    return [
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), orjson.dumps({**each, "sequence_number": n}))
        for n, each in enumerate(_events(whole))
    ]


def _events(whole: Json) -> Iterator[Json]:
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for at, item in enumerate(whole["output"]):
        yield {"type": "response.output_item.added", "output_index": at, "item": _begun(item)}
        inside = _INSIDE.get(item["type"])
        for kind, event in inside(item) if inside is not None else ():
            yield {"type": f"response.{kind}", "output_index": at, "item_id": item["id"], **event}
        yield {"type": "response.output_item.done", "output_index": at, "item": item}
    yield {"type": f"response.{whole['status']}", "response": whole}


def _begun(item: Json) -> Json:
    """Returns an item as it is when nothing of it has come."""
    empty: Json = {
        "message": {"content": []},
        "reasoning": {"summary": []},
        "function_call": {"arguments": ""},
    }
    left = {key: value for key, value in item.items() if key != "status"}
    status = {"status": "in_progress"} if "status" in item else {}
    return {**left, **status, **empty.get(item["type"], {})}


def _message(item: Json) -> Iterator[tuple[str, Json]]:
    for n, part in enumerate(item["content"]):
        where = {"content_index": n}
        yield "content_part.added", {**where, "part": {**part, "text": "", "annotations": []}}
        for word in _words(part["text"]):
            yield "output_text.delta", {**where, "delta": word, "logprobs": []}
        for k, annotation in enumerate(part["annotations"]):
            yield "output_text.annotation.added", {**where, "annotation_index": k, "annotation": annotation}
        yield "output_text.done", {**where, "text": part["text"], "logprobs": []}
        yield "content_part.done", {**where, "part": part}


def _reasoning(item: Json) -> Iterator[tuple[str, Json]]:
    for n, part in enumerate(item["summary"]):
        where = {"summary_index": n}
        yield "reasoning_summary_part.added", {**where, "part": {**part, "text": ""}}
        for word in _words(part["text"]):
            yield "reasoning_summary_text.delta", {**where, "delta": word}
        yield "reasoning_summary_text.done", {**where, "text": part["text"]}
        yield "reasoning_summary_part.done", {**where, "part": part}


def _function_call(item: Json) -> Iterator[tuple[str, Json]]:
    text = item["arguments"]
    for at in range(0, len(text), 7):
        yield "function_call_arguments.delta", {"delta": text[at : at + 7]}
    yield "function_call_arguments.done", {"arguments": text, "name": item["name"]}


def _custom_call(item: Json) -> Iterator[tuple[str, Json]]:
    yield "custom_tool_call_input.delta", {"delta": item["input"]}
    yield "custom_tool_call_input.done", {"input": item["input"]}


def _search(item: Json) -> Iterator[tuple[str, Json]]:
    for kind in ("in_progress", "searching", "completed"):
        yield f"web_search_call.{kind}", {}


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [*(f"{word} " for word in words[:-1]), words[-1]]


_INSIDE = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "custom_tool_call": _custom_call,
    "web_search_call": _search,
}
