"""What Claude said goes back to it as it was, whatever blocks it came in and however it was asked for.

The strict upstream's rules judge the request: a thought counts only at its place.
"""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from adapters.claude.content import make_assistant_blocks
from adapters.claude.reply import make_native_reply, translate_message
from adapters.claude.request import translate_request
from adapters.claude.stream import StreamTranslator
from adapters.types import NATIVE_REPLY, Event
from tests.doubles.anthropic_rules import bind, check_request, sign
from tests.doubles.anthropic_upstream import split_block

Json = dict[str, Any]

HI = {"role": "user", "content": "Hi"}
ASKED: Json = {"model": "claude-opus-5-5", "max_tokens": 9, "messages": [HI]}
HEADERS = {
    "content-type": "application/json",
    "anthropic-version": "2026-10-21",
    "anthropic-beta": "thinking-binding-controls-2026-08-01",
}
THOUGHTS = ("thinking", "redacted_thinking")

words = st.text("aø😀 \n.", max_size=6)
texts = words.map(lambda said: {"type": "text", "text": said})
thoughts = words.map(lambda said: {"type": "thinking", "thinking": said, "signature": sign(said)})
redacted = st.just({"type": "redacted_thinking", "data": "opaque"})
calls = words.map(lambda said: {"type": "tool_use", "id": "", "name": "f", "input": {"x": said}})
searches = st.just({"type": "server_tool_use", "id": "", "name": "web_search", "input": {"query": "q"}})


@st.composite
def replies(draw: st.DrawFn) -> list[Json]:
    """A reply's blocks: text, searches with their results and thoughts, then calls with thoughts between them."""
    found: list[Json] = []
    begin = draw(st.lists(st.one_of(texts, thoughts, redacted, searches), max_size=6))
    end = draw(st.lists(st.one_of(calls, thoughts, redacted), max_size=5))
    for n, block in enumerate([*begin, *end]):
        if block["type"] in ("tool_use", "server_tool_use"):
            block = {**block, "id": f"id_{n}"}
        found.append(block)
        if block["type"] == "server_tool_use":
            found.append({"type": "web_search_tool_result", "tool_use_id": block["id"], "content": []})
    return found


def streamed(message: Json, *, is_native: bool = False) -> Json:
    """Returns the message of the stream with these blocks."""
    translator = StreamTranslator(0, wants_usage=False, is_native=is_native)
    events: list[Json] = [{"type": "message_start", "message": {**message, "content": []}}]
    for index, block in enumerate(message["content"]):
        start, deltas = split_block(block)
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    said: Json = {"role": "assistant", "content": ""}
    for event in events:
        for made in translator.feed(Event(b"", orjson.dumps(event))):
            for key, value in orjson.loads(made.data or b"")["choices"][0]["delta"].items():
                if key == "tool_calls":
                    for piece in value:
                        if "id" in piece:
                            said.setdefault(key, []).append(piece)
                        else:
                            said[key][piece["index"]]["function"]["arguments"] += piece["function"][
                                "arguments"
                            ]
                elif isinstance(value, dict):
                    said.setdefault(key, {"content": []})["content"] += value["content"]
                elif isinstance(value, list):
                    said[key] = [*said.get(key, ()), *value]
                elif isinstance(value, str) and key != "role":
                    said[key] = said.get(key, "") + value
    return said


def seen(blocks: list[Json]) -> list[tuple[str, str]]:
    """What has to come back: all but blank text, its ends and how it is cut, and thoughts that nothing follows."""
    found: list[tuple[str, str]] = []
    for block in blocks:
        said = block.get("text")
        if said is None:
            found.append((block["type"], orjson.dumps(block, option=orjson.OPT_SORT_KEYS).decode()))
        elif found and found[-1][0] == "text":
            found[-1] = ("text", found[-1][1] + said)
        elif said.strip():
            found.append(("text", said))
    while found and found[-1][0] in THOUGHTS:
        found.pop()
    return [(kind, "".join(said.split()) if kind == "text" else said) for kind, said in found]


@given(replies(), st.booleans(), st.booleans())
def test_the_blocks_of_a_reply_go_back_unchanged(
    blocks: list[Json], is_streamed: bool, is_newer: bool
) -> None:
    asked = ASKED if is_newer else {**ASKED, "model": "claude-opus-4-6"}
    said = bind(
        blocks,
        {**asked, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        joins_text=True,
    )
    message = {"id": "m", "type": "message", "role": "assistant", "content": said, "stop_reason": "end_turn"}
    reply = streamed(message) if is_streamed else translate_message(message, 0)["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in reply.get("tool_calls") or ()
    ]
    wire = translate_request({**asked, "messages": [HI, reply, *results, HI]})
    check_request(orjson.dumps(wire), HEADERS)
    back = [block for turn in wire["messages"] if turn["role"] == "assistant" for block in turn["content"]]
    assert seen(orjson.loads(orjson.dumps(back))) == seen(said)


@given(replies(), st.booleans())
def test_a_reply_in_its_own_dialect_goes_back_block_by_block(blocks: list[Json], is_streamed: bool) -> None:
    """Blank text and thoughts that nothing follows are left out: the API refuses them."""
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": blocks,
        "stop_reason": "end_turn",
    }
    if is_streamed:
        reply = streamed(message, is_native=True)
    else:
        reply = translate_message(message, 0)["choices"][0]["message"]
        reply[NATIVE_REPLY] = make_native_reply(message)
    kept = [block for block in blocks if block["type"] != "text" or block["text"].strip()]
    while kept and kept[-1]["type"] in THOUGHTS:
        kept.pop()
    assert orjson.loads(orjson.dumps(make_assistant_blocks(reply, "messages[0]"))) == kept
