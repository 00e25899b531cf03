"""The strict upstream itself: what it refuses, and that OpenAI's own SDK takes its replies."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest

from tests.doubles.openai_rules import Refusal, Rules, check_chat
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.rows import each_row

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "not json"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}


def answer(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "ok"}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages or (USER,)), **more}


TAKEN = [
    chat(),
    chat(SYSTEM, USER, SYSTEM, USER),  # two system prompts, anywhere
    chat({"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER, USER),
    chat(USER, CALLS, answer("c2"), answer("c1"), USER, tools=[TOOL]),  # answers in any order
    chat(
        USER, {**CALLS, "tool_calls": [CALL]}, {**answer("c1"), "name": "f"}
    ),  # as OpenAI's first guide had it
    chat({"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}),
    chat(metadata={"a": "b"}, store=True),
    chat(stream=True, stream_options={"include_usage": True}),
    chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}),
    chat(temperature=None, n=1, user="alice", safety_identifier="a", prompt_cache_key="k"),
]


@pytest.mark.parametrize("body", TAKEN)
def test_requests_that_the_api_accepts_are_accepted(body: dict[str, Any]) -> None:
    check_chat(body)


REFUSED = [
    # body, the parameter it names
    ([], None),
    ({"messages": [USER]}, None),
    ({"model": "m"}, "messages"),
    ({"model": "m", "messages": []}, "messages"),
    ({"model": "m", "messages": "hi"}, "messages"),
    (chat({"role": "robot", "content": "x"}), "messages[0].role"),
    (chat({"content": "x"}), "messages[0].role"),
    (chat({"role": "user", "content": 5}), "messages[0].content"),
    (chat({"role": "user", "content": None}), "messages[0].content"),
    (chat({"role": "user", "content": []}), "messages[0].content"),
    (chat({"role": "user", "content": [{"type": "smell"}]}), "messages[0].content[0].type"),
    (chat({"role": "user", "content": "x", "cache": 1}), "messages[0].cache"),
    (chat(USER, {"role": "assistant", "content": [IMAGE]}), "messages[1].content[0].type"),
    (chat(USER, {"role": "assistant", "content": None}), "messages[1].content"),
    (chat(USER, {"role": "assistant", "content": "x", "tool_calls": []}), "messages[1].tool_calls"),
    (chat(USER, answer("c1")), "messages.[1].role"),
    (chat(USER, CALLS, answer("c1"), USER), "messages[3]"),
    (chat(USER, CALLS, answer("c1")), "messages"),
    (chat(USER, CALLS, answer("c1"), answer("c3")), "messages.[3].tool_call_id"),
    (chat(USER, CALLS, answer("c1"), answer("c1")), "messages.[3].tool_call_id"),
    (chat(USER, CALLS, answer("c1"), answer("c2"), USER, answer("c1")), "messages.[5].role"),
    (chat(tools=[]), "tools"),
    (chat(tools=[TOOL, TOOL]), "tools"),
    (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
    (chat(tools=[TOOL], prediction={"type": "content", "content": "x"}), "tools"),
    (chat(tools=[TOOL], web_search_options={}), "tools"),
    (chat(tool_choice="auto"), "tool_choice"),
    (chat(parallel_tool_calls=True), "parallel_tool_calls"),
    (chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}), "tool_choice"),
    (chat(metadata={"a": "b"}), "metadata"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(n=0), "n"),
    (chat(n=True), "n"),
    (chat(temperature=3), "temperature"),
    (chat(max_tokens=5, max_completion_tokens=5), "max_tokens"),
    (chat(response_format={"type": "json_object"}), "messages"),
    (chat(response_format={"type": ["text"]}), "response_format.type"),
    (chat(x_unheard_of=1), "x_unheard_of"),
]


@each_row(("body", "param"), REFUSED)
def test_requests_that_the_api_refuses_are_refused_by_the_field(body: Any, param: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        check_chat(body)
    assert caught.value.body["error"]["param"] == param


STRICT = [
    (chat(SYSTEM, USER), True),
    (chat(SYSTEM, SYSTEM, USER), False),
    (chat(USER, {"role": "assistant", "content": "x"}, SYSTEM, USER), False),
    (chat(USER, USER), False),
    (chat(USER, CALLS, answer("c1"), answer("c2"), {"role": "assistant", "content": "x"}, USER), True),
]


@pytest.mark.parametrize(("body", "fine"), STRICT)
def test_a_strict_template_wants_one_system_prompt_and_alternating_roles(
    body: dict[str, Any], fine: bool
) -> None:
    check_chat(body)
    if fine:
        check_chat(body, Rules(strict_template=True))
    else:
        with pytest.raises(Refusal):
            check_chat(body, Rules(strict_template=True))


def test_unknown_parameters_can_be_let_through() -> None:
    check_chat(chat({**USER, "cache": 1}, extra=1), Rules(unknown_parameters=False))


def client(upstream: StrictUpstream, key: str = "k") -> openai.OpenAI:
    return openai.OpenAI(base_url=upstream.base_url, api_key=key, max_retries=0)


def test_the_sdk_reads_its_replies_whole_and_streamed() -> None:
    with StrictUpstream(key="k") as upstream, client(upstream) as sdk:
        upstream.queue(say("Hello there"), say("Hello there"))
        whole = sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert whole.choices[0].message.content == "Hello there"
        chunks = sdk.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        seen = list(chunks)
        assert "".join(c.choices[0].delta.content or "" for c in seen if c.choices) == "Hello there"
        assert seen[-1].usage is not None
        assert upstream.last.json["stream"] is True


def test_the_sdk_puts_its_streamed_tool_calls_together() -> None:
    with StrictUpstream() as upstream, client(upstream) as sdk:
        upstream.queue(
            call_tools(Call("f", {"a": "some text"}, pieces=1), Call("g", late_name=True), text="Hm.")
        )
        with sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as stream:
            message = stream.get_final_completion().choices[0].message
        assert message.content == "Hm."
        assert [(c.function.name, c.function.arguments) for c in message.tool_calls or []] == [
            ("f", '{"a":"some text"}'),
            ("g", "{}"),
        ]


def test_errors_have_their_status_and_leave_the_queue_alone() -> None:
    with StrictUpstream(key="k") as upstream, client(upstream) as sdk, client(upstream, "wrong") as stranger:
        upstream.queue(fail(429, retry_after="3"))
        messages: Any = [{"role": "user", "content": "x"}]
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="m", messages=messages)
        with pytest.raises(openai.BadRequestError, match="empty array"):
            sdk.chat.completions.create(model="m", messages=[])
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(model="m", messages=messages)
        assert caught.value.response.headers["retry-after"] == "3"
        assert sdk.chat.completions.create(model="m", messages=messages).choices[0].message.content == "Ok."


def test_a_client_that_leaves_at_a_held_reply_is_noticed() -> None:
    held = Gate()
    with StrictUpstream() as upstream, client(upstream) as sdk:
        upstream.queue(say("a b c", hold_after={2: held}), say("d", hold_before_headers=held))
        stream = sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        next(iter(stream))
        stream.close()
        upstream.last.gone.wait_sync()
        assert upstream.last.gone_at is not None
        assert upstream.last.gone_at >= upstream.last.arrived_at
        arrived = upstream.request_gate(2)
        thread = threading.Thread(target=sdk.chat.completions.create, kwargs=chat())
        thread.start()
        arrived.wait_sync()
        assert not upstream.last.gone.is_open
        held.open()
        thread.join()
        upstream.last.settled.wait_sync()
        assert upstream.last.finished
