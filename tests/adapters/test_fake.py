"""The providers without a network: real shapes, and a demo model that shows its memory."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.demo import answer
from adapters.errors import ProviderBroke, ProviderUnreachable, UnfinishedEvent
from adapters.fake import DemoProvider, Raw, Said, ScriptedCall, ScriptedFailure, ScriptedProvider
from adapters.types import ModelRequest
from tests.adapters.test_sse import DONES
from tests.doubles.openai_rules import check_chat

SCHEMA = {"type": "object", "properties": {}}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or SCHEMA}}


MEMORY = [
    tool(name)
    for name in (
        "memory_insert",
        "memory_replace",
        "memory_rethink",
        "archival_memory_insert",
        "archival_memory_search",
        "conversation_search",
    )
]


def body_of(*contents: str, **more: Any) -> dict[str, Any]:
    """A chat whose messages alternate, the last one the user's."""
    roles = ["user", "assistant"] if len(contents) % 2 else ["assistant", "user"]
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"model": "demo", "messages": messages, **more}


def request(body: dict[str, Any]) -> ModelRequest:
    return ModelRequest(orjson.dumps(body))


def arguments(said: Said) -> list[tuple[str, Any]]:
    return [(call.name, orjson.loads(call.arguments)) for call in said.calls]


async def stream(provider: ScriptedProvider, body: dict[str, Any]) -> list[Any]:
    reply = await provider.send(request({**body, "stream": True}))
    events = [event.data async for batch in reply.events() for event in batch]
    await reply.aclose()
    assert events[-1] == b"[DONE]"
    return [orjson.loads(data) for data in events[:-1] if data is not None]


async def whole(provider: ScriptedProvider, body: dict[str, Any]) -> Any:
    reply = await provider.send(request(body))
    return orjson.loads(await reply.read(1_000_000))


async def test_a_stream_has_the_chunks_of_the_real_api() -> None:
    provider = ScriptedProvider(replies=[Said("Hello, you there")])
    chunks = await stream(provider, body_of("hi", stream_options={"include_usage": True}))
    *deltas, usage = chunks
    assert deltas[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["delta"].get("content") for c in deltas[1:-1]] == ["Hello,", " you", " there"]
    assert (deltas[-1]["choices"][0]["delta"], deltas[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert all(c["usage"] is None for c in deltas)
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1


@pytest.mark.parametrize("n", [1, 2])
async def test_the_usage_counts_every_choice(n: int) -> None:
    provider = ScriptedProvider(replies=[Said("Hello, you there")] * 2)
    reply = await whole(provider, body_of("hi", n=n))
    *_, last = await stream(provider, body_of("hi", n=n, stream_options={"include_usage": True}))
    assert len(reply["choices"]) == n
    for usage in (reply["usage"], last["usage"]):
        assert usage["completion_tokens"] == 3 * n
        assert usage["total_tokens"] == usage["prompt_tokens"] + 3 * n


@pytest.mark.parametrize(
    ("offered", "tries"),
    [
        ([], None),
        (["weather"], None),
        (["memory_insert"], "“remember: …” make"),
        (["conversation_search", "mnemogate_memory_insert"], "“remember: …” or “search: …” make"),
    ],
)
def test_the_demo_model_invites_to_the_memory_tools_that_are_there(
    offered: list[str], tries: str | None
) -> None:
    tools = [tool(name) for name in offered]
    for text in ("Hello.", ""):
        said = answer(body_of(text, tools=tools)).text or ""
        assert "demo model" in said
        assert tries in said if tries else "Lines such as" not in said


async def test_usage_is_streamed_only_if_asked_for() -> None:
    assert all(c["choices"] and "usage" not in c for c in await stream(ScriptedProvider(), body_of("hi")))


async def test_a_whole_reply_and_a_streamed_one_say_the_same() -> None:
    said = Said("Let me look.", (ScriptedCall("f", '{"a": "b c"}', "c1"), ScriptedCall("g", "{}", "c2")))
    provider = ScriptedProvider(replies=[said, said])
    message = (await whole(provider, body_of("hi")))["choices"][0]["message"]
    chunks = await stream(provider, body_of("hi"))
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            calls.setdefault(call["index"], []).extend((function.get("name", ""), function["arguments"]))
    assert ["".join(calls[i]) for i in sorted(calls)] == ['f{"a": "b c"}', "g{}"]
    assert [c["function"] for c in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"a": "b c"}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("end", DONES)
async def test_a_done_without_its_blank_line_is_whole_as_it_is_over_a_network(end: bytes) -> None:
    provider = ScriptedProvider(replies=[Raw((b"data: {}\n\n", tail)) for tail in (end, b"data: [DONE")])
    assert await stream(provider, body_of("1")) == [{}]
    with pytest.raises(UnfinishedEvent):
        await stream(provider, body_of("2"))


async def test_errors_raw_bytes_and_lost_connections_can_be_scripted() -> None:
    provider = ScriptedProvider(
        replies=[
            ScriptedFailure(429, "Slow down.", headers=(("retry-after", "2"),)),
            Raw((b"data: {}\n\n", ProviderBroke("cut"))),
            ProviderUnreachable("nobody there"),
        ]
    )
    refused = await provider.send(request(body_of("1")))
    assert (refused.status, dict(refused.headers)["retry-after"]) == (429, "2")
    broken = await provider.send(request(body_of("2")))
    with pytest.raises(ProviderBroke):
        [batch async for batch in broken.events()]
    with pytest.raises(ProviderUnreachable, match="nobody"):
        await provider.send(request(body_of("3")))
    assert [body["messages"][0]["content"] for body in provider.bodies] == ["1", "2", "3"]


async def test_what_is_no_chat_is_refused_as_the_real_api_does() -> None:
    for path, body, status in (("/chat/completions", b"{", 400), ("/audio/speech", b"{}", 404)):
        reply = await DemoProvider().send(ModelRequest(body, path=path))
        assert reply.status == status
        assert ("POST /v1/audio/speech" in orjson.loads(await reply.read(10_000))["error"]["message"]) is (
            status == 404
        )
    odd = await DemoProvider().send(request(body_of("hi", tools=5)))
    assert odd.status == 400


COMMANDS = [
    ("remember: I like tea", [("memory_insert", {"label": "human", "new_string": "I like tea"})]),
    ("Archive: flat 7", [("archival_memory_insert", {"content": "flat 7"})]),
    (
        "search: tea",
        [("conversation_search", {"query": "tea"}), ("archival_memory_search", {"query": "tea"})],
    ),
    (
        "replace: tea -> coffee",
        [("memory_replace", {"label": "human", "old_string": "tea", "new_string": "coffee"})],
    ),
    ("rethink: Likes tea.", [("memory_rethink", {"label": "human", "new_memory": "Likes tea."})]),
    ('Please:\ncall look_up {"q": "a b"}\ncall now', [("look_up", {"q": "a b"}), ("now", {})]),
]


@pytest.mark.parametrize(("text", "calls"), COMMANDS, ids=[text for text, _ in COMMANDS])
def test_a_line_makes_the_demo_call_these_tools(text: str, calls: list[Any]) -> None:
    body = body_of(text, tools=[*MEMORY, tool("look_up"), tool("now")])
    assert arguments(answer(body)) == calls


def test_a_tool_renamed_because_of_a_clash_is_found() -> None:
    assert [c.name for c in answer(body_of("remember: x", tools=[tool("mg_memory_insert")])).calls] == [
        "mg_memory_insert"
    ]


def test_a_tool_that_is_not_on_offer_is_named_in_the_answer() -> None:
    said = answer(body_of("call lookup {}", tools=[tool("other")]))
    assert not said.calls
    assert "lookup" in (said.text or "")
    assert "other" in (said.text or "")


def test_after_the_tools_answered_it_says_what_they_answered() -> None:
    body = body_of("remember: I like tea", tools=MEMORY)
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for i, call in enumerate(answer(body).calls)
    ]
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c0", "content": "Added to human."},
    ]
    check_chat(body)
    assert answer(body) == Said("memory_insert answered: Added to human.")


def test_it_tells_what_notes_and_blocks_say_about_the_question() -> None:
    day = "2026-01-02 Fri"
    note = f"<memory>\nNotes.\n[{day}, user] My dog is called Rex.\n[{day}, user] I ski.\n</memory>\n\n"
    block = '<memory_block label="human">\nOwns a boat.\n</memory_block>'
    section = f"<memory_blocks>\nPreamble.\n{block}\n</memory_blocks>"
    ask = body_of(note + "What is my dog called?")
    ask["messages"].insert(0, {"role": "system", "content": f"Be brief.\n{section}"})
    text = answer(ask).text or ""
    assert "Rex" in text
    assert "ski" not in text
    assert "boat" not in text
    ask["messages"][-1]["content"] = "Do I own a boat?"
    assert "Owns a boat." in (answer(ask).text or "")


def test_it_remembers_what_was_said_earlier_in_the_conversation() -> None:
    said = answer(body_of("My cat is grey.", "Nice.", "What colour is my cat?")).text or ""
    assert "My cat is grey." in said


def test_a_command_within_a_recalled_note_is_not_obeyed() -> None:
    note = "<memory>\nNotes.\nremember: I like tea\n</memory>\n\n"
    assert answer(body_of(note + "Hello there", tools=MEMORY)).calls == ()


def test_a_stranger_is_told_what_the_demo_can_do() -> None:
    text = answer(body_of("Hello there", tools=MEMORY)).text or ""
    assert "Hello there" in text
    assert "remember:" in text


def test_the_request_bounds_the_reply() -> None:
    said = answer(body_of("one two three four", max_completion_tokens=3))
    assert (said.text, said.finish_reason) == ("You said: one", "length")


def test_a_tool_that_must_be_called_gets_arguments_that_fit_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"q": {"type": "string"}, "n": {"type": "integer"}, "x": {"type": "null"}},
        "required": ["q", "n"],
    }
    said = answer(body_of("Rex", tools=[tool("find", schema)], tool_choice="required"))
    assert arguments(said) == [("find", {"q": "Rex", "n": 1})]


def test_structured_output_is_json() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"title": {}}}}}
    assert list(orjson.loads(answer(body_of("Hi", response_format=form)).text or "")) == ["title"]
