"""Requests of an application of the Responses API, and what it reads of the replies.

with serve_memory(upstream, tmp_path, agent()) as world:
    assert respond(world, input="Hello.", stream=True).output_text == "Ok."
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.settings import ProfileSettings
from tests.doubles.upstream import Reply, StrictUpstream, raw
from tests.gateway.sdk import World, remember
from tests.patience import becomes
from tests.server import chat_upstreams

Json = dict[str, Any]
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def serve_memory(upstream: StrictUpstream, place: Path, *profiles: ProfileSettings, **parts: Any) -> Any:
    """Serves memory before an upstream that has chat completions only. parts: as for `remember`."""
    return remember(upstream, place, *profiles, **{"upstreams": chat_upstreams(upstream), **parts})


def respond(world: World, **options: Any) -> Any:
    """Returns the response to a request. Checks a stream as `read_stream` does."""
    fields = {"model": "m", **options}
    if not fields.get("stream"):
        return world.sdk.responses.create(**fields)
    return read_stream(list(world.sdk.responses.create(**fields)))


def read_stream(events: list[Any]) -> Any:
    """Returns the last response of a stream. Checks that all events agree with it."""
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}
    texts: dict[tuple[int, int], str] = {}
    arguments: dict[int, str] = {}
    added, done = {}, {}
    for event in events:
        match event.type:
            case "response.output_item.added":
                added[event.output_index] = event.item
            case "response.output_item.done":
                done[event.output_index] = event.item
            case "response.output_text.delta":
                at = (event.output_index, event.content_index)
                texts[at] = texts.get(at, "") + event.delta
                assert event.item_id == added[event.output_index].id
            case "response.output_text.done":
                assert event.text == texts[event.output_index, event.content_index]
            case "response.function_call_arguments.delta":
                arguments[event.output_index] = arguments.get(event.output_index, "") + event.delta
            case "response.function_call_arguments.done":
                assert event.arguments == arguments.get(event.output_index, "")
    assert [done[n] for n in range(len(done))] == last.output
    assert {n: item.id for n, item in added.items()} == {n: item.id for n, item in done.items()}
    for (item, part), text in texts.items():
        assert last.output[item].content[part].text == text
    return last


def begin(world: World, **options: Any) -> Any:
    """Begins a response in the background."""
    return world.sdk.responses.create(**{"model": "m", "background": True, **options})


def polled(world: World, id: str) -> Any:
    """Returns a response that has ended, as an application waits for it."""

    def ended() -> Any:
        found = world.sdk.responses.retrieve(id)
        return found if found.status not in ("queued", "in_progress") else None

    return becomes(ended)


def shown(response: Any) -> Json:
    """Returns a response as JSON."""
    found: Json = response.model_dump(mode="json")
    return found


def texts_of(items: list[Json]) -> list[str]:
    """Returns the texts of items, and the outputs of calls."""
    return [item["content"][0]["text"] if "content" in item else item.get("output", "") for item in items]


def streamed(*deltas: Json, finish: str = "stop") -> Reply:
    """Returns a reply of these deltas, the last one with the finish_reason."""
    chunk: Json = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    reasons = [*[None] * (len(deltas) - 1), finish]
    events = [
        {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in zip(deltas, reasons, strict=True)
    ]
    return raw(*(b"data: %b\n\n" % orjson.dumps(event) for event in events), b"data: [DONE]\n\n")
