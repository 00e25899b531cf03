"""OpenAI's own SDK through the gateway: it sees what it sees without it, whatever memory does meanwhile.

The tests of the SDK itself, of errors and of clients that leave run with Claude as the upstream as well.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from msgspec.structs import replace

from tests.doubles.anthropic_upstream import think
from tests.doubles.upstream import Call, Gate, Reply, call_tools, raw, say
from tests.gateway.fidelity.checks import (
    DIALECTS,
    MODES,
    WEATHER,
    Dialect,
    Mode,
    ModeWorld,
    chunks,
    serve_mode,
    whole,
)
from tests.rows import each_row

Json = dict[str, Any]
USER: list[Json] = [{"role": "user", "content": "What is the weather in Oslo and in Rome?"}]
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_cost": 0.5}
FIXED = {"id": "chatcmpl-fixed", "model": "m-2026", "usage": USAGE}
EXTRA = {"created": 1, "x_upstream": {"number": 1}}
OSLO, ROME = (
    Call("get_weather", {"city": "Oslo"}, id="call_a"),
    Call("get_weather", {"city": "Rome"}, id="call_b"),
)


@pytest.fixture(params=MODES, ids=[mode.name for mode in MODES], scope="module")
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture(scope="module")
def gateway(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModeWorld]:
    with serve_mode(mode, tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture
def shared(gateway: ModeWorld, request: pytest.FixtureRequest) -> ModeWorld:
    """One gateway for all cases of a table, each with a user of its own."""
    gateway.upstream.forget_replies()
    gateway.as_user(request.node.name)
    return gateway


@pytest.fixture
def dialect() -> Dialect:
    return "openai"


both_dialects = pytest.mark.parametrize("dialect", DIALECTS)


@pytest.fixture
def talk(mode: Mode, dialect: Dialect, tmp_path: Path) -> Iterator[ModeWorld]:
    with serve_mode(mode, tmp_path, dialect=dialect) as running:
        yield running


class City(pydantic.BaseModel):
    name: str
    people: int


CITY = '{"name":"Oslo","people":717710}'
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
LOGPROBS = {
    "content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}],
    "refusal": None,
}
CONTINUED = [
    *USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_a",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
            },
            {
                "id": "call_b",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call_a", "content": "Rain"},
    {"role": "tool", "tool_call_id": "call_b", "content": [{"type": "text", "text": "Sun"}]},
]

THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}

# name -> what is asked, and what the upstream says, whole and streamed alike
SAID: dict[str, tuple[Json, Reply]] = {
    "text": ({}, say("Grüße, 世界 👋\n\n- a\r\n", extra=EXTRA, **FIXED)),
    "empty": ({}, say("", extra=EXTRA, **FIXED)),
    "length": ({"max_tokens": 3}, say("One two", finish_reason="length", extra=EXTRA, **FIXED)),
    "filtered": ({}, say("One", finish_reason="content_filter", extra=EXTRA, **FIXED)),
    "tool": ({"tools": [WEATHER]}, call_tools(OSLO, extra=EXTRA, **FIXED)),
    "parallel tools": ({"tools": [WEATHER]}, call_tools(OSLO, ROME, extra=EXTRA, **FIXED)),
    "text and tools": (
        {"tools": [WEATHER], "tool_choice": "required"},
        call_tools(OSLO, replace(ROME, late_name=True), text="Let me see. ", extra=EXTRA, **FIXED),
    ),
    "tool results": ({"tools": [WEATHER], "messages": CONTINUED}, say("Rain, sun.", extra=EXTRA, **FIXED)),
    "broken arguments": (
        {"tools": [WEATHER]},
        call_tools(Call("get_weather", '{"city": "Os', id="call_a"), extra=EXTRA, **FIXED),
    ),
    "unknown fields": (
        {},
        say(
            "Ok.",
            extra={**EXTRA, "provider": "p", "citations": ["u"], "x_null": None},
            delta={"reasoning_content": "Hm.", "annotations": [{"type": "url_citation"}], "x": {"y": [1.5]}},
            **FIXED,
        ),
    ),
    "two choices": ({"n": 2}, say("Both.", extra=EXTRA, **FIXED)),
    "image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                    ],
                }
            ]
        },
        say("A pixel.", extra=EXTRA, **FIXED),
    ),
    "json schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "city",
                    "strict": True,
                    "schema": {"type": "object", "properties": {}},
                },
            }
        },
        say(CITY, extra=EXTRA, **FIXED),
    ),
    "everything asked": (
        {
            "temperature": 0,
            "top_p": 1.0,
            "seed": 0,
            "stop": ["\n"],
            "logit_bias": {"50256": -100},
            "presence_penalty": 0,
            "parallel_tool_calls": False,
            "tools": [WEATHER],
            "user": "bob",
            "store": True,
            "metadata": {"a": "b"},
            "service_tier": "flex",
            "max_completion_tokens": 10,
        },
        say("Ok.", extra=EXTRA, **FIXED),
    ),
}

_ROLE = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
# name -> what is asked, and a stream as some upstream writes it
STREAMED: dict[str, tuple[Json, Reply]] = {
    "logprobs": (
        {"logprobs": True, "top_logprobs": 0},
        chunks(
            {"choices": [_ROLE]},
            {
                "choices": [
                    {"index": 0, "delta": {"content": "Hi"}, "logprobs": LOGPROBS, "finish_reason": None}
                ]
            },
            {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]},
        ),
    ),
    "choices of different lengths": (
        {"n": 2},
        chunks(
            {"choices": [_ROLE, {**_ROLE, "index": 1}]},
            {"choices": [{"index": 1, "delta": {"content": "B"}, "finish_reason": "stop"}]},
            {"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {"content": "!"}, "finish_reason": "length"}]},
        ),
    ),
    "filter results first": (  # Azure's first chunk
        {},
        chunks(
            {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
            {"choices": [_ROLE]},
            {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]},
        ),
    ),
    "no role at all": (
        {},
        chunks({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}),
    ),
    "calls of which the second begins first": (
        {"tools": [WEATHER]},
        chunks(
            {"choices": [_ROLE]},
            *(
                {"choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]}
                for piece in (
                    {
                        "index": 1,
                        "id": "b",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": ""},
                    },
                    {
                        "index": 0,
                        "id": "a",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": ""},
                    },
                    {"index": 1, "function": {"arguments": '{"city":'}},
                    {"index": 0, "function": {"arguments": '{"city":"Oslo"}'}},
                    {"index": 1, "function": {"arguments": '"Rome"}'}},
                )
            ),
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        ),
    ),
    "refusal": (
        {},
        chunks(
            {"choices": [_ROLE]},
            {"choices": [{"index": 0, "delta": {"refusal": "No."}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ),
    ),
    "comments and odd line ends": (
        {},
        raw(
            b": ping\n\n",
            b'event: x\r\ndata: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m",\r\n',
            b'data: "choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},\r\n',
            b'data: "finish_reason":"stop"}]}\r\n\r\n',
            b": ping\n\ndata:[DONE]\n\n",
        ),
    ),
    "usage with a choice": (  # as some upstreams have it, asked or not
        {},
        chunks(
            {"choices": [_ROLE], "usage": None},
            {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}], "usage": USAGE},
        ),
    ),
}
WHOLE: dict[str, tuple[Json, Reply]] = {
    "logprobs": (
        {"logprobs": True},
        whole(
            [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hi"},
                    "logprobs": LOGPROBS,
                    "finish_reason": "stop",
                }
            ]
        ),
    ),
    "different choices": (
        {"n": 2},
        whole(
            [
                {
                    "index": 1,
                    "message": {"role": "assistant", "content": "B", "x": 1},
                    "finish_reason": "stop",
                },
                {"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "length"},
            ],
            usage=USAGE,
            x_vendor=[None, 1.0],
        ),
    ),
    "refusal": (
        {},
        whole(
            [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": None, "refusal": "No."},
                    "finish_reason": "stop",
                }
            ]
        ),
    ),
}


def asked(talk: ModeWorld, more: Json, *, direct: bool = False) -> Json:
    return {"model": "m" if direct else talk.mode.model, "messages": USER, **more}


def both(talk: ModeWorld, reply: Reply, more: Json) -> tuple[list[Json], list[Json]]:
    """What the SDK gets with and without the gateway, dumped."""
    seen = []
    for client, direct in ((talk.sdk, False), (talk.upstream_sdk, True)):
        talk.upstream.queue(reply)
        got = client.chat.completions.create(**asked(talk, more, direct=direct))
        seen.append([each.model_dump() for each in got] if more.get("stream") else [got.model_dump()])
    return seen[0], seen[1]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", SAID)
def test_the_sdk_sees_what_it_sees_without_the_gateway(shared: ModeWorld, name: str, stream: bool) -> None:
    more, reply = SAID[name]
    options = [{}, {"stream_options": {"include_usage": True}}] if stream else [{}]
    for each in options:
        through, directly = both(shared, reply, {**more, **({"stream": True, **each} if stream else {})})
        assert through == directly


@pytest.mark.parametrize("name", STREAMED)
def test_streams_as_upstreams_write_them(shared: ModeWorld, name: str) -> None:
    more, reply = STREAMED[name]
    through, directly = both(shared, reply, {**more, "stream": True})
    assert through == directly


@pytest.mark.parametrize("name", WHOLE)
def test_replies_as_upstreams_write_them(shared: ModeWorld, name: str) -> None:
    more, reply = WHOLE[name]
    through, directly = both(shared, reply, more)
    assert through == directly


def test_the_upstream_gets_every_field_as_it_was_sent(talk: ModeWorld) -> None:
    more = SAID["everything asked"][0]
    talk.sdk.chat.completions.create(**asked(talk, more))
    sent = {key: value for key, value in talk.upstream.last.json.items() if key not in ("model", "messages")}
    assert WEATHER in sent.pop("tools")
    assert sent == {key: value for key, value in more.items() if key != "tools"}
    assert talk.upstream.last.json["messages"][-1]["content"].endswith(USER[0]["content"])


def test_unknown_fields_reach_an_upstream_that_takes_them(mode: Mode, tmp_path: Path) -> None:
    with serve_mode(mode, tmp_path, lenient=True) as talk:
        odd = {"odd": {"deep": [1, None, 1.5]}, "top_k": 40, "chat_template_kwargs": {"thinking": False}}
        talk.sdk.chat.completions.create(**asked(talk, {"extra_body": odd}))
        assert {key: talk.upstream.last.json[key] for key in odd} == odd


@pytest.mark.parametrize("wanted", [None, False, True])
def test_usage_comes_in_a_stream_when_it_was_asked_for(shared: ModeWorld, wanted: bool | None) -> None:
    options = {} if wanted is None else {"stream_options": {"include_usage": wanted}}
    shared.upstream.queue(say("Hi there.", usage=USAGE))
    got = list(shared.sdk.chat.completions.create(**asked(shared, {"stream": True, **options})))
    usages = [each for each in got if each.usage is not None]
    assert [not each.choices for each in usages] == ([True] if wanted else [])
    assert all(each.choices for each in got if each not in usages)
    if wanted:
        assert usages[0] is got[-1]
        assert usages[0].usage is not None
        assert usages[0].usage.total_tokens == 14


@both_dialects
def test_an_answer_is_parsed_by_its_schema(talk: ModeWorld) -> None:
    talk.upstream.queue(say(CITY), say(CITY, tokens=list(CITY)))
    parsed = talk.sdk.chat.completions.parse(**asked(talk, {"response_format": City}))
    assert parsed.choices[0].message.parsed == City(name="Oslo", people=717710)
    with talk.sdk.chat.completions.stream(**asked(talk, {"response_format": City})) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == City(name="Oslo", people=717710)


@both_dialects
def test_a_tool_round_trip_as_the_sdks_examples_have_it(talk: ModeWorld) -> None:
    messages: list[Any] = list(USER)
    talk.upstream.queue(call_tools(OSLO, ROME), say("Rain and sun."))
    reply = talk.sdk.chat.completions.create(**asked(talk, {"tools": [WEATHER]}))
    message = reply.choices[0].message
    assert message.tool_calls is not None
    messages.append(message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "Rain"} for call in message.tool_calls]
    final = talk.sdk.chat.completions.create(**asked(talk, {"tools": [WEATHER], "messages": messages}))
    assert final.choices[0].message.content == "Rain and sun."
    assert talk.list_calls(talk.upstream.last) == [
        ("get_weather", {"city": city}) for city in ("Oslo", "Rome")
    ]
    results = talk.list_results(talk.upstream.last)
    assert results == [(call.id, "Rain") for call in message.tool_calls]


@both_dialects
def test_the_sdk_puts_streamed_calls_together(talk: ModeWorld) -> None:
    talk.upstream.queue(call_tools(OSLO, ROME))
    with talk.sdk.chat.completions.stream(**asked(talk, {"tools": [WEATHER]})) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert [json.loads(call.function.arguments)["city"] for call in message.tool_calls] == ["Oslo", "Rome"]


@both_dialects
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["", "usage"])
def test_a_calls_arguments_come_as_they_are_made(talk: ModeWorld, options: Json) -> None:
    gate = Gate()
    call = Call("get_weather", '{"city":"Oslo"}', pieces=['{"city":', '"Oslo"}'])
    talk.upstream.queue(call_tools(call, hold_after={4 if talk.is_claude else 3: gate}))
    got = []
    for chunk in talk.sdk.chat.completions.create(
        **asked(talk, {"tools": [WEATHER], "stream": True, **options})
    ):
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or ():
                got.append(piece.function and piece.function.arguments)
        if '{"city":' in got:
            gate.open()  # had the first piece been held back, this would never come
    assert [piece for piece in got if piece] == ['{"city":', '"Oslo"}']


@pytest.mark.parametrize("dialect", ["anthropic"])
def test_thoughts_come_as_they_are_thought(talk: ModeWorld) -> None:
    gate = Gate()
    talk.upstream.queue(think("Hm. Well.", "Ok.", hold_after={4: gate}))
    got = []
    for chunk in talk.sdk.chat.completions.create(**asked(talk, {"stream": True, "extra_body": THINKING})):
        got += [getattr(choice.delta, "reasoning_content", None) for choice in chunk.choices]
        if "Hm." in got:
            gate.open()
    assert "".join(each or "" for each in got) == "Hm. Well."


@both_dialects
@each_row("accept", ["application/json", "text/event-stream", "*/*"])
def test_the_body_says_whether_to_stream(talk: ModeWorld, accept: str) -> None:
    """Voice stacks send any `Accept`, or none."""
    for stream, expected in ((True, "text/event-stream"), (False, "application/json")):
        talk.upstream.queue(say("Hi"))
        got = talk.sdk.chat.completions.with_raw_response.create(
            **asked(talk, {"stream": stream}), extra_headers={"accept": accept}
        )
        assert got.headers["content-type"].partition(";")[0] == expected
        got.parse()


@both_dialects
def test_raw_responses_have_the_upstreams_headers(talk: ModeWorld) -> None:
    limits = {
        "x-ratelimit-remaining-tokens": "149984",
        "openai-version": "2020-10-01",
        talk.request_id: "req_up",
    }
    talk.upstream.queue(say("Hi", headers=limits), say("Hi", headers=limits))
    for stream in (False, True):
        got = talk.sdk.chat.completions.with_raw_response.create(**asked(talk, {"stream": stream}))
        assert {name: got.headers[name] for name in limits} == limits
        assert got.headers["x-mnemogate-memory"] == talk.mode.memory
        assert got.request_id == "req_up"
        got.parse()


# --- async --------------------------------------------------------------------------------------------------------


@both_dialects
async def test_the_async_sdk(talk: ModeWorld) -> None:
    """Whole, streamed and many at once."""
    async with talk.async_sdk() as client:
        talk.upstream.queue(say("One."), say("Two."))
        assert (await client.chat.completions.create(**asked(talk, {}))).choices[0].message.content == "One."
        stream = await client.chat.completions.create(**asked(talk, {"stream": True}))
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Two."
        talk.upstream.script = lambda request: say(talk.read_last_text(request)[-8:])
        replies = await asyncio.gather(
            *(
                client.chat.completions.create(
                    **asked(talk, {"messages": [{"role": "user", "content": f"number {i}"}]})
                )
                for i in range(8)
            )
        )
    assert [reply.choices[0].message.content for reply in replies] == [f"number {i}" for i in range(8)]


@both_dialects
async def test_an_async_call_that_is_cancelled_reaches_the_upstream(talk: ModeWorld) -> None:
    async with talk.async_sdk() as client:
        for stream in (False, True):
            count = len(talk.upstream.requests)
            talk.upstream.queue(say("Never.", hold_before_headers=Gate()))
            call = asyncio.ensure_future(client.chat.completions.create(**asked(talk, {"stream": stream})))
            await talk.upstream.request_gate(count + 1).wait()
            call.cancel()
            await talk.upstream.last.gone.wait()
    assert talk.list_active_replies() == []


@both_dialects
def test_a_stream_that_is_closed_is_closed_at_the_upstream(talk: ModeWorld) -> None:
    talk.upstream.queue(say("One two three", hold_after={talk.count_events(3): Gate()}))
    stream = talk.sdk.chat.completions.create(**asked(talk, {"stream": True}))
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "One"]
    stream.close()
    talk.upstream.last.gone.wait_sync()
    assert talk.list_active_replies() == []


# --- errors -------------------------------------------------------------------------------------------------------

CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}


@both_dialects
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_errors_are_the_sdks_own(talk: ModeWorld, stream: bool) -> None:
    for status, expected in CLASSES.items():
        headers = {"retry-after": "7", talk.request_id: f"req_{status}"}
        talk.upstream.queue(
            talk.make_error(status, f"No {status}.", code=f"c{status}", kind=f"t{status}", headers=headers)
        )
        with pytest.raises(expected) as caught:
            talk.sdk.chat.completions.create(**asked(talk, {"stream": stream}))
        error = caught.value
        param = None if talk.is_claude else "p"  # Anthropic has no such thing
        found = (error.status_code, error.code, error.param, error.type)
        assert found == (status, f"c{status}", param, f"t{status}")
        assert isinstance(error.body, dict)
        assert (error.body["message"], error.body["extra"]) == (f"No {status}.", [1])
        assert error.request_id == f"req_{status}"
        assert error.response.headers["retry-after"] == "7"
    assert talk.list_active_replies() == []


@both_dialects
def test_a_refusal_of_the_upstream_has_its_words(talk: ModeWorld) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk.sdk.chat.completions.create(**asked(talk, {"temperature": -1}))
    assert caught.value.param == "temperature"
    assert caught.value.code == (None if talk.is_claude else "integer_below_min_value")


@pytest.mark.parametrize("kind", ["html", "empty", "not an error object"])
def test_an_error_that_is_not_openais_passes_as_it_is(shared: ModeWorld, kind: str) -> None:
    body, content_type = {
        "html": (b"<h1>Bad Gateway</h1>", "text/html"),
        "empty": (b"", "text/plain"),
        "not an error object": (b'{"detail": "no"}', "application/json"),
    }[kind]
    shared.upstream.queue(Reply(status=502, headers={"content-type": content_type}, body=[body]))
    with pytest.raises(openai.InternalServerError) as caught:
        shared.sdk.chat.completions.create(**asked(shared, {}))
    assert caught.value.response.content == body
    assert caught.value.status_code == 502


@both_dialects
def test_an_error_in_the_middle_of_a_stream(talk: ModeWorld) -> None:
    """Sent by the upstream or found by the gateway, it is the SDK's APIError after the text that came."""
    error = {"message": "Overloaded.", "type": "server_error", "code": "overloaded", "param": None}
    for reply, message in (
        (say("One two", error_after=(talk.count_events(2), error)), "Overloaded."),
        (say("One two", cut_after=talk.count_events(2)), None),
    ):
        talk.upstream.queue(reply)
        got = []
        stream = talk.sdk.chat.completions.create(**asked(talk, {"stream": True}))
        with pytest.raises(openai.APIError) as caught:
            got.extend(chunk.choices[0].delta.content for chunk in stream)
        assert got == ["", "One"]
        assert message is None or caught.value.message == message
    assert talk.list_active_replies() == []


@both_dialects
def test_the_sdk_retries_and_memory_has_the_turn_once(talk: ModeWorld) -> None:
    refused = talk.make_error(429, "Slow down.", code="slow", headers={"retry-after-ms": "1"})
    talk.upstream.queue(refused, refused, say("At last."))
    client = talk.sdk.with_options(max_retries=2)
    assert client.chat.completions.create(**asked(talk, {})).choices[0].message.content == "At last."
    counts = [request.headers.get("x-stainless-retry-count") for request in talk.upstream.chats]
    assert counts == ["0", "1", "2"]
    assert len(talk.list_active_replies()) == (0 if talk.mode.name == "off" else 1)


@both_dialects
def test_a_conversation_is_remembered_only_where_memory_is_on(talk: ModeWorld) -> None:
    """The modes are what they are called; without this the others would prove little."""
    talk.sdk.chat.completions.create(
        model=talk.mode.model, messages=[{"role": "user", "content": "My cat is called Miso."}]
    )
    talk.world.settle()
    talk.sdk.chat.completions.create(
        model=talk.mode.model, messages=[{"role": "user", "content": "What is my cat called?"}]
    )
    assert ("Miso" in talk.upstream.last.body.decode()) is (talk.mode.name != "off")
