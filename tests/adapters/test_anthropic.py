"""The Anthropic provider over real sockets: credentials, versions, what cannot be said, thinking across turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from adapters.anthropic import Anthropic
from adapters.claude.error_form import Untranslatable, translate_error_body
from adapters.claude.events import NamedEventDecoder
from adapters.claude.model_traits import find_max_temperature, get_traits
from adapters.claude.request import translate_request
from adapters.errors import ProviderReplyBroken
from adapters.json_escapes import read_json
from adapters.sse import EventDecoder
from adapters.transport import HttpTransport
from adapters.types import Header, ModelRequest
from tests.doubles.anthropic_rules import sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, message, refuse, think
from tests.doubles.upstream import Call, call_tools, raw, say
from tests.rows import each_row

Json = dict[str, Any]

MODEL = "claude-opus-4-6"
HI = [{"role": "user", "content": "Hi"}]
SAID = {"role": "assistant", "content": "Sun."}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as running:
        yield running


@pytest.fixture
def provider(upstream: StrictAnthropic, transport: HttpTransport) -> Anthropic:
    return Anthropic("claude", upstream.base_url, transport=transport)


def request(*headers: Header, credential: str | None = None, **body: Any) -> ModelRequest:
    body = {"model": MODEL, "messages": HI, **body}
    return ModelRequest(orjson.dumps(body), headers, credential)


async def answer(provider: Anthropic, asked: ModelRequest) -> tuple[int, Json]:
    reply = await provider.send(asked)
    try:
        return reply.status, orjson.loads(await reply.read(1_000_000))
    finally:
        await reply.aclose()


async def stream(provider: Anthropic, asked: ModelRequest) -> list[Json]:
    reply = await provider.send(asked)
    try:
        found = [event.data async for batch in reply.events() for event in batch if event.data]
    finally:
        await reply.aclose()
    return [read_json(data)[0] for data in found if data != b"[DONE]"]


# -- who pays, which version


CREDENTIALS = [
    # own key, the caller's credential, what is sent
    ("sk-ant-own", None, ("sk-ant-own", None)),
    ("sk-ant-own", "Bearer sk-ant-caller", ("sk-ant-own", None)),
    ("sk-ant-oat-own", None, (None, "Bearer sk-ant-oat-own")),  # an OAuth token is no key
    ("other-key", "Bearer sk-ant-caller", ("other-key", None)),
    (None, "Bearer sk-ant-caller", ("sk-ant-caller", None)),
    (None, "bearer sk-ant-caller", ("sk-ant-caller", None)),
    (None, "Bearer sk-ant-oat-caller", (None, "Bearer sk-ant-oat-caller")),
    (None, "Bearer other", (None, "Bearer other")),
    (None, "Basic abc", (None, "Basic abc")),
    (None, None, (None, None)),
]


@pytest.mark.parametrize(("key", "credential", "sent"), CREDENTIALS)
async def test_a_key_goes_where_keys_go(
    transport: HttpTransport, upstream: StrictAnthropic, key: Any, credential: Any, sent: Any
) -> None:
    provider = Anthropic("claude", upstream.base_url, key=key, transport=transport)
    smuggled = ("authorization", "Bearer smuggled")
    assert (await answer(provider, request(smuggled, credential=credential)))[0] == 200
    headers = upstream.last.headers
    assert (headers.get("x-api-key"), headers.get("authorization")) == sent
    assert key is None or "caller" not in str(headers)
    assert "own" not in repr(provider)


@pytest.mark.parametrize("credential", ["Bearer sk-ant-caller", "Bearer caller"])
async def test_a_key_among_the_headers_is_one_too(
    transport: HttpTransport, upstream: StrictAnthropic, credential: str
) -> None:
    provider = Anthropic("claude", upstream.base_url, headers=(("x-api-key", "own"),), transport=transport)
    assert (await answer(provider, request(credential=credential)))[0] == 200
    assert upstream.last.headers["x-api-key"] == "own"
    assert "caller" not in str(upstream.last.headers)


@pytest.mark.parametrize(
    ("headers", "body", "version"),
    [
        ((), {}, "2026-10-21"),
        ((), {"temperature": 0}, "2023-06-01"),  # the newer one takes no such thing
        ((), {"top_k": 3}, "2023-06-01"),
        ((("anthropic-version", "2023-06-01"),), {}, "2023-06-01"),
        ((("Anthropic-Version", "2026-10-21"),), {}, "2026-10-21"),
    ],
)
async def test_the_version_is_the_callers_or_the_newest_that_takes_the_request(
    provider: Anthropic, upstream: StrictAnthropic, headers: Any, body: Json, version: str
) -> None:
    assert (await answer(provider, request(*headers, **body)))[0] == 200
    assert upstream.last.headers["anthropic-version"] == version


async def test_beta_headers_pass_and_those_meant_for_openai_do_not(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    await answer(provider, request(("anthropic-beta", "a-2026,b-2026"), ("openai-organization", "org")))
    assert upstream.last.headers["anthropic-beta"] == "a-2026,b-2026"
    assert "openai-organization" not in upstream.last.headers


async def test_a_bare_host_is_given_the_version_in_its_path(upstream: StrictAnthropic) -> None:
    host = upstream.base_url.removesuffix("/v1")
    for base_url in (host, host + "/", host + "/v1/"):
        provider = Anthropic("claude", base_url)
        assert (await answer(provider, request()))[0] == 200
        await provider.aclose()


# -- requests


UNSAID = [
    ("n", 2),
    ("logprobs", True),
    ("top_logprobs", 3),
    ("frequency_penalty", 0.5),
    ("presence_penalty", -1),
    ("logit_bias", {"1": 2}),
    ("seed", 1),
    ("store", True),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("prediction", {"type": "content"}),
    ("verbosity", "low"),
    ("web_search_options", {}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("service_tier", "flex"),
    ("reasoning_effort", "heroic"),
    ("prompt_cache_retention", "1y"),
    ("response_format", {"type": "grammar"}),
    ("tool_choice", {"type": "allowed_tools"}),
]


@pytest.mark.parametrize(("field", "value"), UNSAID, ids=[field for field, _ in UNSAID])
async def test_the_refusal_of_an_untranslatable_field_names_the_field(
    provider: Anthropic, upstream: StrictAnthropic, field: str, value: Any
) -> None:
    status, body = await answer(provider, request(**{field: value}))
    assert (status, body["error"]["param"]) == (400, field)
    assert body["error"]["type"] == "invalid_request_error"
    assert upstream.requests == []


def assistant(**fields: Any) -> Json:
    return {"role": "assistant", "content": "x", **fields}


def calls(arguments: Any) -> Json:
    return assistant(tool_calls=[{"id": "c", "function": {"name": "f", "arguments": arguments}}])


BROKEN = [
    ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0]"),
    ({"role": "user", "content": [{"text": "x"}]}, "messages[1].content[0].type"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content[0].image_url"),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png"}}]},
        "messages[1].content[0].image_url.url",
    ),
    ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[1].content[0].file"),
    ({"role": "function", "name": "f", "content": "x"}, "messages[1].role"),
    ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
    (calls('{"cut": '), "messages[1].tool_calls[0].function.arguments"),
    (calls("[1]"), "messages[1].tool_calls[0].function.arguments"),
    (assistant(function_call={"name": "f"}), "messages[1].function_call"),
    (assistant(audio={"id": "a"}), "messages[1].audio"),
    (assistant(tool_calls=[{"id": "c", "type": "custom", "custom": {}}]), "messages[1].tool_calls[0]"),
]


@pytest.mark.parametrize(("broken", "param"), BROKEN)
async def test_a_message_that_cannot_be_said_is_found(provider: Anthropic, broken: Json, param: str) -> None:
    status, body = await answer(provider, request(messages=[*HI, broken]))
    assert (status, body["error"]["param"]) == (400, param)


async def test_a_dialogue_answered_late_is_the_callers_own_error(provider: Anthropic) -> None:
    """Calls without results are not repaired: what the upstream says of them is what the caller hears."""
    status, body = await answer(provider, request(messages=[*HI, calls("{}"), *HI]))
    assert status == 400
    assert "tool_result" in body["error"]["message"]


@pytest.mark.parametrize("levels", [300, 1000])
async def test_a_value_that_is_nested_too_deeply_is_refused(provider: Anthropic, levels: int) -> None:
    """Fewer levels are read than a stack is high, and fewer still are written."""
    value = b'{"items":' * levels + b"{}" + b"}" * levels
    schema = b'{"type":"json_schema","json_schema":{"name":"n","schema":%b}}' % value
    body = b'{"model":"claude-opus-4-6","messages":[{"role":"user","content":"Hi"}],"response_format":%b}'
    status, error = await answer(provider, ModelRequest(body % schema))
    assert status == 400
    assert "nested too deep" in error["error"]["message"]


async def test_a_body_that_is_not_json_is_refused(provider: Anthropic) -> None:
    assert (await answer(provider, ModelRequest(b"{")))[0] == 400


ODD: list[Any] = [
    None,
    0,
    -1,
    1.5,
    True,
    False,
    "",
    "x",
    [],
    [1],
    [[]],
    [None],
    {},
    {"type": 1},
    {"type": []},
]
FIELDS = sorted(
    (
        *("max_tokens", "metadata", "output_config", "parallel_tool_calls", "prompt_cache_retention"),
        *(
            "reasoning_effort",
            "response_format",
            "service_tier",
            "stop",
            "stream_options",
            "system",
            "thinking",
        ),
        *("tool_choice", "tools", "user", *(field for field, _ in UNSAID)),
    )
)


@each_row("field", FIELDS)
def test_odd_values_are_refused_or_passed_on_never_a_crash(field: str) -> None:
    for value in ODD:
        try:
            orjson.dumps(translate_request({"model": MODEL, "messages": HI, field: value}))
        except Untranslatable as error:
            assert error.param.partition("[")[0] == field  # noqa: PT017


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_odd_messages_are_refused_or_passed_on_never_a_crash(role: str) -> None:
    keys = (
        *("content", "name", "tool_calls", "tool_call_id", "refusal", "cache_control"),
        *("thinking_blocks", "native_reply"),
    )
    for key in keys:
        values = [
            *ODD,
            *([{"type": kind, kind: odd}] for kind in ("text", "image_url", "file") for odd in ODD),
        ]
        values += [[{"id": odd, "function": odd}] for odd in ODD]
        values += [[{"function": {"name": odd, "arguments": odd}}] for odd in ODD]
        values += [{"content": odd} for odd in ODD]
        for value in values:
            message = {"role": role, "content": "x", "tool_call_id": "c", key: value}
            try:
                orjson.dumps(translate_request({"model": MODEL, "messages": [*HI, message]}))
            except Untranslatable as error:
                assert error.param.startswith("messages[1]")  # noqa: PT017


async def test_an_endpoint_that_anthropic_lacks_is_not_found(provider: Anthropic) -> None:
    status, body = await answer(provider, ModelRequest(b"{}", path="/embeddings"))
    assert (status, body["error"]["type"]) == (404, "not_found_error")


async def test_its_own_dialect_passes_as_bytes(provider: Anthropic, upstream: StrictAnthropic) -> None:
    body = b'{"model": "m",  "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}'
    status, found = await answer(provider, ModelRequest(body, path="/messages"))
    assert (status, found["type"]) == (200, "message")
    assert upstream.last.body == body


# -- the cache


def marks(body: Json) -> list[str]:
    """Where the marks are, as paths."""

    def walk(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, list):
            for i, each in enumerate(value):
                yield from walk(each, f"{path}.{i}")
        elif isinstance(value, dict):
            for key, each in value.items():
                if key == "cache_control":
                    yield path.removeprefix(".")
                else:
                    yield from walk(each, f"{path}.{key}")

    return list(walk(body, ""))


async def test_a_growing_conversation_reads_what_the_turn_before_wrote(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    """Each request's marked prefix is, but for the marks, the beginning of the next request."""
    messages: list[Json] = [{"role": "system", "content": "Be kind."}]
    for turn in range(4):
        messages.append({"role": "user", "content": f"question {turn}"})
        await answer(provider, request(messages=messages, tools=[WEATHER]))
        messages.append({"role": "assistant", "content": f"answer {turn}"})
    bodies = [request.json for request in upstream.requests]
    assert [len(marks(body)) for body in bodies] == [3, 4, 4, 4]
    assert marks(bodies[-1]) == [
        "tools.0",
        "system.0",
        "messages.4.content.0",
        "messages.6.content.0",
    ]
    bare = [
        orjson.loads(orjson.dumps(body).replace(b',"cache_control":{"type":"ephemeral"}', b""))
        for body in bodies
    ]
    for earlier, later in itertools.pairwise(bare):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
        assert (later["tools"], later["system"]) == (earlier["tools"], earlier["system"])


async def test_a_callers_own_mark_is_the_only_one(provider: Anthropic, upstream: StrictAnthropic) -> None:
    part = {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    messages = [{"role": "system", "content": [part]}, *HI]
    assert (await answer(provider, request(messages=messages, tools=[WEATHER])))[0] == 200
    assert marks(upstream.last.json) == ["system.0"]


# -- thinking


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_thinking_comes_back_in_front_of_the_call_it_led_to(
    provider: Anthropic, upstream: StrictAnthropic, streamed: bool
) -> None:
    """The strict upstream refuses a call without its thought, and a thought that was touched."""
    redacted = {"type": "redacted_thinking", "data": "opaque"}
    thought = {"type": "thinking", "thinking": "Where is it?", "signature": sign("Where is it?")}
    upstream.queue(
        Message(text="Let me look.", calls=[Call("weather", {"city": "Rome"})], blocks=[thought, redacted])
    )
    options: Json = {"tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 2000}}
    if streamed:
        chunks = await stream(provider, request(stream=True, **options))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(d.get("reasoning_content") or "" for d in deltas) == "Where is it?"
        head = next(d["tool_calls"][0] for d in deltas if "tool_calls" in d)
        reply: Json = {
            "role": "assistant",
            "content": "Let me look.",
            "thinking_blocks": [block for d in deltas for block in d.get("thinking_blocks", ())],
            "tool_calls": [{**head, "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}],
        }
    else:
        reply = (await answer(provider, request(**options)))[1]["choices"][0]["message"]
        assert reply["reasoning_content"] == "Where is it?"
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "sun"}
    status, body = await answer(provider, request(messages=[*HI, reply, result], **options))
    assert status == 200, body
    assert upstream.last.json["messages"][1]["content"][:2] == [thought, redacted]

    del reply["thinking_blocks"]
    loop = [*HI, reply, result]
    for messages, is_sent in ((loop, False), ([*loop, *HI], False), ([*loop, SAID, *HI], True)):
        status, body = await answer(provider, request(messages=messages, **options))
        assert status == 200, body
        assert ("thinking" in upstream.last.json) is is_sent, "it thinks again once the call is answered"


async def test_thoughts_of_replies_in_a_row_do_not_look_like_one(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    first = think("One.", calls=[Call("weather")])
    upstream.queue(first, think("Two.", text="So."))
    options: Json = {"tools": [WEATHER], "thinking": {"type": "adaptive"}}
    reply = (await answer(provider, request(**options)))[1]["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "sun"}
    more = await stream(provider, request(stream=True, messages=[*HI, reply, result], **options))
    blocks = [b for chunk in more for b in chunk["choices"][0]["delta"].get("thinking_blocks", ())]
    assert [block["index"] for block in (*reply["thinking_blocks"], *blocks)] == [0, 1]


async def message_of(provider: Anthropic, asked: ModelRequest, *, streamed: bool) -> Json:
    """Returns the message of a reply with all its fields; of a stream, its deltas joined."""
    if not streamed:
        found: Json = (await answer(provider, asked))[1]["choices"][0]["message"]
        return found
    body = {**orjson.loads(asked.body), "stream": True}
    reply: Json = {"role": "assistant", "content": None, "tool_calls": []}
    for chunk in await stream(provider, asked._replace(body=orjson.dumps(body))):
        for key, value in chunk["choices"][0]["delta"].items():
            if key == "tool_calls":
                (piece,) = value
                if piece["index"] == len(reply[key]):
                    reply[key].append(piece)
                else:
                    reply[key][piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
            elif isinstance(value, list):
                reply[key] = [*reply.get(key, []), *value]
            elif isinstance(value, str):
                reply[key] = value if key == "role" else (reply.get(key) or "") + value
    return reply


def thought(text: str) -> Json:
    return {"type": "thinking", "thinking": text, "signature": sign(text)}


def called(id: str) -> Json:
    return {"type": "tool_use", "id": id, "name": "weather", "input": {"city": "Rome"}}


def text_block(text: str) -> Json:
    return {"type": "text", "text": text}


SEARCH = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
]
FOUND = SEARCH[1]["type"]
REDACTED = {"type": "redacted_thinking", "data": "opaque"}
IN_ORDER = [
    [thought("a"), called("t1"), thought("b"), called("t2"), REDACTED, called("t3")],
    [thought("a"), text_block("Ümlaut. "), thought("b"), text_block("More."), called("t1")],
    [
        text_block("First. "),
        thought("a"),
        text_block(" Then. "),
        REDACTED,
        called("t1"),
        thought("b"),
        called("t2"),
    ],
    [thought("a"), *SEARCH, thought("b"), text_block("Found."), called("t1")],
    [
        text_block("I look. "),
        *SEARCH,
        text_block("Found. "),
        thought("a"),
        called("t1"),
        thought("b"),
        called("t2"),
    ],
    [thought("a"), SEARCH[0], called("t1")],
    [thought(""), text_block("x"), thought(""), called("t1")],
]


@pytest.mark.parametrize("model", [MODEL, "claude-opus-5-5"])
@pytest.mark.parametrize("blocks", IN_ORDER, ids=range(len(IN_ORDER)))
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_blocks_go_back_in_their_order(
    provider: Anthropic, upstream: StrictAnthropic, streamed: bool, blocks: list[Json], model: str
) -> None:
    """Claude thinks between its calls and its words, and its thoughts are refused at any other place."""
    upstream.queue(message(*blocks, finish_reason="tool_calls"))
    options: Json = {"tools": [WEATHER], "thinking": {"type": "adaptive"}, "model": model}
    reply = await message_of(provider, request(**options), streamed=streamed)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in reply["tool_calls"]]
    status, body = await answer(provider, request(messages=[*HI, reply, *results], **options))
    assert status == 200, body
    back = upstream.last.json["messages"][1]["content"]
    assert [block["type"] for block in back] == [block["type"] for block in blocks]
    assert [block.get("text") for block in back] == [block.get("text") for block in blocks]
    assert [block.get("id") for block in back] == [block.get("id") for block in blocks]


@pytest.mark.parametrize(
    "content",
    [
        "One two.",
        [text_block("One "), {**text_block("two."), "cache_control": {"type": "ephemeral"}}],
        "One",
        "",
        None,
    ],
)
async def test_places_that_are_no_longer_there(
    provider: Anthropic, upstream: StrictAnthropic, content: Any
) -> None:
    """A client may have cut the text, or made parts of it."""
    blocks = [{**thought("a"), "index": 0}, {**thought("b"), "index": 2, "start_index": 6, "call_index": 3}]
    messages = [*HI, {"role": "assistant", "content": content, "thinking_blocks": blocks}, *HI]
    status, body = await answer(provider, request(messages=messages))
    assert status == 200, body
    assert upstream.last.body.count(b'"cache_control"') <= 2


class Counted(str):
    """A text that counts the characters of its parts, and of their parts."""

    copied = 0

    def __getitem__(self, key: Any) -> Counted:
        part = Counted(super().__getitem__(key))
        Counted.copied += len(part)
        return part


def test_a_text_with_many_places_is_copied_once() -> None:
    """A client may send ten thousand blocks, each at a place of its own, and all other requests would wait."""
    text = Counted("x" * 1_000)
    blocks = [{"type": "other", "index": n, "start_index": n} for n in range(1, 1_000)]
    reply = {"role": "assistant", "content": [{"type": "text", "text": text}], "provider_blocks": blocks}
    sent = translate_request({"model": MODEL, "messages": [*HI, reply, *HI]})["messages"][1]["content"]
    assert [block["type"] for block in sent] == ["text", "other"] * 999 + ["text"]
    assert "".join(block.get("text", "") for block in sent) == text
    assert Counted.copied == 1_000


async def test_a_reply_that_only_thought_does_not_lock_the_conversation(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    """Its limit came first. The API refuses a message that ends with a thought."""
    upstream.queue(message(thought("Long"), text=None, finish_reason="length"))
    reply = (await answer(provider, request()))[1]["choices"][0]["message"]
    assert (reply["content"], len(reply["thinking_blocks"])) == (None, 1)
    status, body = await answer(provider, request(messages=[*HI, reply, *HI]))
    assert status == 200, body
    assert [turn["role"] for turn in upstream.last.json["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("replies", "later", "left"),
    [
        ([[thought("a"), SEARCH[0]]], [], [["thinking", "server_tool_use"]]),
        ([[thought("a"), SEARCH[0]]], HI, [["text"]]),
        ([[text_block("x"), SEARCH[0]]], HI, [["text"]]),
        ([[text_block("x"), SEARCH[0], thought("b"), text_block("y")]], HI, [["text", "text"]]),
        (
            [[SEARCH[0], called("t1")], [SEARCH[1], text_block("y")]],
            HI,
            [["server_tool_use", "tool_use"], [FOUND, "text"]],
        ),
        ([[SEARCH[0], called("t1")]], [], [["server_tool_use", "tool_use"]]),
        ([[SEARCH[0], called("t1")]], HI, [["tool_use"]]),
        ([[SEARCH[0], called("t1")], [text_block("y")]], HI, [["tool_use"], ["text"]]),
    ],
)  # fmt: skip
async def test_calls_of_its_own_tools_without_a_result(
    provider: Anthropic, upstream: StrictAnthropic, replies: list[list[Json]], later: list[Json], left: Any
) -> None:
    """They go on where that is possible. Elsewhere they would be refused with every further request."""
    messages = [*HI]
    for blocks in replies:
        upstream.queue(message(*blocks, text=None))
        reply = await message_of(provider, request(tools=[WEATHER]), streamed=True)
        results = [
            {"role": "tool", "tool_call_id": each["id"], "content": "sun"} for each in reply["tool_calls"]
        ]
        messages += [reply, *results]
    status, body = await answer(provider, request(messages=[*messages, *later], tools=[WEATHER]))
    assert status == 200, body
    turns = [turn["content"] for turn in upstream.last.json["messages"] if turn["role"] == "assistant"]
    assert [[block["type"] for block in turn] for turn in turns] == left


@pytest.mark.parametrize(
    "block", [SEARCH[0], thought("a"), REDACTED], ids=["server_tool_use", "thinking", "redacted_thinking"]
)
async def test_a_user_says_nothing_that_only_claude_can(
    provider: Anthropic, upstream: StrictAnthropic, block: Json
) -> None:
    """The API says so itself, whatever somebody else's client puts into a user's message."""
    messages = [{"role": "user", "content": [block]}]
    asked = request(model="claude-sonnet-5-5", thinking={"type": "between_tools"}, messages=messages)
    status, body = await answer(provider, asked)
    assert (status, block["type"] in body["error"]["message"]) == (400, True)


def an_object(*required: str, **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": [*required]}


ANY: Json = {}
A, B = {"const": "a"}, {"const": "b"}
# Names within names; one of them means itself.
NESTED = {
    "P": {"$ref": "#/$defs/Q"},
    "Q": {"oneOf": [{"$ref": "#/$defs/R"}, an_object("x", x=B)]},
    "R": {"allOf": [an_object("x", x=A), {"$ref": "#/$defs/R"}]},
}


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"oneOf": [{"required": ["x"]}, {"required": ["y"]}]}, {"type": "object", "properties": {}}),
        (
            {**an_object("z", x=ANY, y=ANY, z=ANY), "anyOf": [{"required": ["x"]}, {"required": ["y"]}]},
            an_object("z", x=ANY, y=ANY, z=ANY),
        ),
        (
            {"anyOf": [an_object("kind", "x", kind=A, x=ANY), an_object("kind", "y", kind=B, y=ANY)]},
            an_object("kind", kind={"anyOf": [A, B]}, x=ANY, y=ANY),
        ),
        ({"allOf": [an_object("x", x=ANY), an_object("y", y=ANY)]}, an_object("x", "y", x=ANY, y=ANY)),
        (
            {"oneOf": [{"$ref": "#/$defs/P"}, {"$ref": "#/$defs/Q"}], "$defs": {"P": an_object("x", x=A)}},
            {"type": "object", "properties": {"x": A}, "$defs": {"P": an_object("x", x=A)}},
        ),
        (
            {"anyOf": [{**an_object(x=ANY), "additionalProperties": False}]},
            {"type": "object", "properties": {"x": ANY}, "additionalProperties": False},
        ),
        (
            {
                "anyOf": [an_object(x=True), an_object(x=A), {"properties": 5, "required": "x", "$ref": 7}],
                "oneOf": 5,
            },
            {"type": "object", "properties": {"x": {"anyOf": [True, A]}}},
        ),
        (
            {"anyOf": [{"anyOf": [an_object("x", x=ANY)]}, "odd"]},
            {"type": "object", "properties": {"x": ANY}},
        ),
        (
            {"oneOf": [an_object("kind", kind={"const": each}) for each in "abc"]},
            an_object("kind", kind={"anyOf": [A, B, {"const": "c"}]}),
        ),
        (
            {"anyOf": [{"$ref": "#/$defs/P"}, an_object("x", y=ANY)], "$defs": NESTED},
            {
                "type": "object",
                "properties": {"x": {"anyOf": [A, B]}, "y": ANY},
                "required": ["x"],
                "$defs": NESTED,
            },
        ),
        # RFC 6901 writes "~" as "~0" and "/" as "~1"; in a URI any character may be percent-encoded.
        (
            {"anyOf": [{"$ref": "#/$defs/%5BP%5D~1~01"}], "$defs": {"[P]/~1": an_object("x", x=A)}},
            {**an_object("x", x=A), "$defs": {"[P]/~1": an_object("x", x=A)}},
        ),
        (an_object("x", x={"anyOf": [A, B]}), an_object("x", x={"anyOf": [A, B]})),
    ],
)
async def test_a_union_at_the_top_of_a_tool_is_merged(
    provider: Anthropic, upstream: StrictAnthropic, schema: Json, sent: Json
) -> None:
    """MCP servers have such tools, and one of them would fail every request."""
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    status, body = await answer(provider, request(tools=[tool]))
    assert status == 200, body
    assert upstream.last.json["tools"][0]["input_schema"] == sent


async def test_names_that_stand_twice_in_each_other_are_merged_once(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    """A hundred of them stand for more branches than anybody could count."""
    named = {
        f"D{n}": {
            "anyOf": [
                {"anyOf": [{"$ref": f"#/$defs/D{n + 1}"}, an_object("x", x={"const": f"{side}{n}"})]}
                for side in "ab"
            ]
        }
        for n in range(100)
    }
    schema = {"anyOf": [{"$ref": "#/$defs/D0"}], "$defs": named}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert (await answer(provider, request(tools=[tool])))[0] == 200
    assert len(upstream.last.json["tools"][0]["input_schema"]["properties"]["x"]["anyOf"]) == 200


def test_definitions_that_name_each_other_block_no_request() -> None:
    """Each has the properties of all. Those of 300 kB held everybody up for eight seconds."""
    others = [{"$ref": f"#/$defs/D{n}"} for n in range(80)]
    named = {
        f"D{n}": {"anyOf": [*others, an_object(**{f"x{n}_{m}": ANY for m in range(80)})]} for n in range(80)
    }
    schema = {"anyOf": [{"$ref": "#/$defs/D0"}], "$defs": named}
    tools = [WEATHER, {"type": "function", "function": {"name": "f", "parameters": schema}}]
    with pytest.raises(Untranslatable) as caught:
        translate_request({"model": MODEL, "messages": HI, "tools": tools})
    assert caught.value.param == "tools[1].function.parameters"


def test_a_chain_of_definitions_that_is_too_long_is_named() -> None:
    """The error said that the request is nested too deep, though its JSON is not."""
    named: Json = {f"D{n}": {"anyOf": [{"$ref": f"#/$defs/D{n + 1}"}]} for n in range(5_000)}
    schema = {"anyOf": [{"$ref": "#/$defs/D0"}], "$defs": {**named, "D5000": an_object("x", x=ANY)}}
    tools = [WEATHER, {"type": "function", "function": {"name": "f", "parameters": schema}}]
    with pytest.raises(Untranslatable) as caught:
        translate_request({"model": MODEL, "messages": HI, "tools": tools})
    assert caught.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize("ids", [("a", "a_2", "a"), ("a", "a_1", "a_2", "a", "a"), ("a", "a", "a_1", "a_1")])
async def test_the_new_id_of_a_call_is_no_other_call_s(
    provider: Anthropic, upstream: StrictAnthropic, ids: tuple[str, ...]
) -> None:
    """Of calls with the same id the later ones get another, which a call of the client's may have already."""
    calls = [{"id": id, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for id in ids]
    results = [{"role": "tool", "tool_call_id": id, "content": "Sun"} for id in ids]
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    status, body = await answer(provider, request(messages=messages, tools=[WEATHER]))
    assert status == 200, body
    _, called, answered = upstream.last.json["messages"]
    sent = [block["id"] for block in called["content"]]
    assert len({*sent}) == len(ids)
    assert [block["tool_use_id"] for block in answered["content"]] == sent


@pytest.mark.parametrize("content", ["", " ", [], [{"type": "text", "text": ""}], None])
async def test_an_error_of_a_tool_has_words(
    provider: Anthropic, upstream: StrictAnthropic, content: Any
) -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "t1", "content": content}
    for more in ({}, {"is_error": True}, {"is_error": False}):
        messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}, {**result, **more}]
        status, body = await answer(provider, request(messages=messages, tools=[WEATHER]))
        assert status == 200, body


BETA = "thinking-binding-controls-2026-08-01"
DROPS = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
OWN = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "error"}}


@pytest.mark.parametrize(
    ("model", "thinking", "is_sent", "is_in_reply"),
    [
        ("claude-opus-5-5", None, DROPS, True),
        ("claude-fable-5-2", {"type": "adaptive", "display": "summarized"}, {**DROPS, "display": "summarized"}, True),
        ("claude-sonnet-5-5", {"type": "between_tools"}, {"type": "between_tools"}, False),
        ("claude-haiku-5-5", {"type": "disabled"}, {"type": "disabled"}, False),
        ("claude-opus-5", None, None, True),
        ("claude-fable-5", {"type": "adaptive"}, {"type": "adaptive"}, True),
    ],
)  # fmt: skip
async def test_another_prompt_before_a_thought_fails_no_request(
    provider: Anthropic, upstream: StrictAnthropic, model: str, thinking: Any, is_sent: Any, is_in_reply: bool
) -> None:
    """Memory changes the prompt; newer models refuse thoughts of another one, unless asked to drop them."""
    upstream.queue(message(thought("a"), text="x"))
    options: Json = {"model": model, **({"thinking": thinking} if thinking else {})}
    reply = await message_of(provider, request(**options), streamed=True)
    assert ("anthropic-beta" in upstream.last.headers) is False
    messages = [{"role": "system", "content": "Her cat is grey."}, *HI, reply, *HI]
    status, body = await answer(
        provider, request(("anthropic-beta", "a-1,b-2"), messages=messages, **options)
    )
    assert status == 200, body
    assert upstream.last.json.get("thinking") == is_sent
    has_binding = "block_binding" in (is_sent or {})
    assert upstream.last.headers["anthropic-beta"] == ("a-1,b-2," + BETA if has_binding else "a-1,b-2")
    kinds = [block["type"] for block in upstream.last.json["messages"][1]["content"]]
    assert kinds == (["thinking", "text"] if is_in_reply else ["text"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_forced_call_after_a_thought_fails_no_request(
    provider: Anthropic, upstream: StrictAnthropic, choice: Any
) -> None:
    """To have thoughts dropped is to ask for thinking, and who asks for that may force no call."""
    options: Json = {"model": "claude-haiku-5-5", "tools": [WEATHER]}
    upstream.queue(message(thought("a"), text="x"))
    reply = await message_of(provider, request(**options), streamed=False)
    messages = [{"role": "system", "content": "Other."}, *HI, reply, *HI]
    status, body = await answer(provider, request(messages=messages, tool_choice=choice, **options))
    assert status == 200, body
    assert ("thinking" in upstream.last.json) is False


async def test_a_client_that_wants_the_error_gets_it(provider: Anthropic, upstream: StrictAnthropic) -> None:
    upstream.queue(message(thought("a"), text="x"))
    reply = await message_of(provider, request(model="claude-opus-5-5"), streamed=False)
    messages = [{"role": "system", "content": "Other."}, *HI, reply, *HI]
    status, body = await answer(
        provider, request(("Anthropic-Beta", BETA), model="claude-opus-5-5", thinking=OWN, messages=messages)
    )
    assert (status, upstream.last.headers["anthropic-beta"]) == (400, BETA)
    assert "different conversation" in body["error"]["message"]


async def test_betas_of_the_settings_join_the_gateways_own(
    upstream: StrictAnthropic, transport: HttpTransport
) -> None:
    provider = Anthropic(
        "claude", upstream.base_url, transport=transport, headers=(("Anthropic-Beta", "files"),)
    )
    blocks = [{**thought("a"), "index": 0}]
    messages = [*HI, {"role": "assistant", "content": "x", "thinking_blocks": blocks}, *HI]
    for model, betas in (("claude-opus-5-5", f"files,{BETA}"), (MODEL, "files")):
        asked = request(("anthropic-beta", "theirs"), model=model, messages=messages)
        assert (await answer(provider, asked))[0] == 200
        assert upstream.last.headers["anthropic-beta"] == betas


@pytest.mark.parametrize(
    ("model", "thinking", "effort"),
    [
        ("claude-opus-4-6", "disabled", None),
        ("claude-opus-5", "disabled", None),
        ("claude-haiku-5-5", "disabled", None),
        ("claude-sonnet-5-5", "between_tools", None),
        ("claude-opus-5-5", None, "low"),
        ("claude-fable-5", None, "low"),
        ("claude-mythos-preview", None, "low"),
    ],
)
async def test_as_little_thinking_as_the_model_allows(
    provider: Anthropic, upstream: StrictAnthropic, model: str, thinking: str | None, effort: str | None
) -> None:
    status, body = await answer(provider, request(model=model, reasoning_effort="none"))
    assert status == 200, body
    sent = upstream.last.json
    assert sent.get("thinking", {}).get("type") == thinking
    assert sent.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("model", "options", "thinking", "effort"),
    [
        ("claude-sonnet-4-5", {}, 8_192, None),
        ("claude-opus-4-1", {"reasoning_effort": "high"}, 16_384, None),
        ("claude-haiku-4-5", {"reasoning_effort": "low", "max_completion_tokens": 2_000}, 1_999, None),
        ("claude-haiku-4-5", {"reasoning_effort": "low", "max_completion_tokens": 1_000}, None, None),
        ("claude-opus-4-6", {}, None, "medium"),
    ],
)
async def test_a_model_before_efforts_gets_tokens_to_think(
    provider: Anthropic,
    upstream: StrictAnthropic,
    model: str,
    options: Json,
    thinking: int | None,
    effort: str | None,
) -> None:
    asked = request(model=model, **{"reasoning_effort": "medium", **options})
    status, body = await answer(provider, asked)
    assert status == 200, body
    sent = upstream.last.json
    assert sent.get("thinking", {}).get("budget_tokens") == thinking
    assert sent.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("user", "is_unchanged"),
    [
        ("alice", True),
        ("user_01-Ab", True),
        ("42", True),
        ("a" * 256, True),
        ("ann@example.com", False),
        ("+49 170 1234567", False),
        ("491701234567", False),
        ("Ann Smith", False),
        ("Zoë", False),
        ("a" * 257, False),
    ],
)
@pytest.mark.parametrize("field", ["user", "safety_identifier", "metadata"])
async def test_a_user_is_named_by_an_opaque_id(
    provider: Anthropic, upstream: StrictAnthropic, field: str, user: str, is_unchanged: bool
) -> None:
    """Anthropic refuses addresses and numbers of people. What stands for one is the same each time."""
    ids = []
    for _ in range(2):
        asked: Json = {field: {"user_id": user} if field == "metadata" else user}
        status, body = await answer(provider, request(**asked))
        assert status == 200, body
        ids.append(upstream.last.json["metadata"]["user_id"])
    assert ids[0] == ids[1]
    assert (ids[0] == user) is is_unchanged
    assert is_unchanged or (len(ids[0]) == 64 and user not in ids[0])


# -- replies


STREAMS = [
    b'event: ping\ndata: {"a": 1}\n\nevent: x\ndata: {}\n\n',
    b"event: a\ndata: 1\ndata: 2\n\nevent: b\nid: 7\ndata: 3\n\n",
    b"event: a\r\ndata: 1\r\n\r\nevent: b\ndata: 2\n\n",
    b"\xef\xbb\xbfevent: a\ndata: 1\n\n: comment\n\ndata: 2\n\n\n\nevent: c\n\nevent: d\ndata:5\n\n",
    b"data: 1\nevent: a\n\nevent: \xff\ndata: \xc3\xb8\n\n",
]


@pytest.mark.parametrize("given", STREAMS)
def test_named_events_are_read_as_all_others_are(given: bytes) -> None:
    for size in range(1, len(given) + 1):
        plain, named = EventDecoder(), NamedEventDecoder()
        pieces = [given[i : i + size] for i in range(0, len(given), size)]
        wanted = [event for piece in pieces for event in plain.feed(piece)] + plain.finish()
        assert [event for piece in pieces for event in named.feed(piece)] + named.finish() == wanted


async def test_a_stream_cut_anywhere_says_the_same(provider: Anthropic, upstream: StrictAnthropic) -> None:
    reply = think("Hm ø.", text="Höllo you", calls=[Call("weather", {"a": "ü"}), Call("weather")])
    upstream.queue(reply)
    wanted = await stream(provider, request(tools=[WEATHER], stream=True))
    upstream.queue(reply)
    plain = Anthropic("bytes", upstream.base_url)
    body = {"model": MODEL, "max_tokens": 9, "stream": True, "messages": HI}
    native = await plain.send(ModelRequest(orjson.dumps(body), path="/messages"))
    data = await native.read(100_000)
    await native.aclose()
    await plain.aclose()
    for size in (1, 7, 100, len(data)):
        upstream.queue(raw(*[data[i : i + size] for i in range(0, len(data), size)], headers={}))
        found = await stream(provider, request(tools=[WEATHER], stream=True))
        assert [c["choices"][0]["finish_reason"] for c in found][-1] == "tool_calls"
        assert len(found) == len(wanted)


BAD_STREAMS = {
    "ends early": b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"x"}}\n\n',
    "not JSON": b"event: x\ndata: <html>\n\n",
    "no type": b'data: {"said":"Miso"}\n\n',
    "no object": b"data: [1]\n\n",
    "no text": b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta"}}\n\n',
    "arguments are no text": b"""data: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use"}}

data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":5}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":1}}

data: {"type":"message_stop"}

""",
    "no block": b'data: {"type":"content_block_start","index":0,"content_block":[1]}\n\n',
    "empty": b"",
}


@pytest.mark.parametrize("body", BAD_STREAMS.values(), ids=list(BAD_STREAMS))
async def test_a_stream_that_is_none_is_broken(
    provider: Anthropic, upstream: StrictAnthropic, body: bytes
) -> None:
    """Its error quotes nothing, since it may be logged."""
    upstream.queue(raw(body))
    with pytest.raises(ProviderReplyBroken) as broken:
        await stream(provider, request(stream=True))
    assert "Miso" not in str(broken.value)


async def test_an_answer_that_is_no_message_is_broken(provider: Anthropic, upstream: StrictAnthropic) -> None:
    for body in (b"{}", b"<html>", b"[]", b'{"type": "other"}', b'{"type": "message", "content": ["Miso'):
        upstream.queue(raw(body, content_type="application/json"))
        with pytest.raises(ProviderReplyBroken, match=r"is no message$"):
            await answer(provider, request())


@pytest.mark.parametrize("first_block_index", [None, 0], ids=["translated", "native"])
async def test_the_arguments_of_a_call_keep_all_digits(
    provider: Anthropic, upstream: StrictAnthropic, first_block_index: int | None
) -> None:
    """orjson reads an integer beyond 64 bits as a float: an amount in wei, an id of 20 digits."""
    arguments = '{"wei":1234567890123456789012,"of":[-99999999999999999999,18446744073709551615,1.5]}'
    block = b'{"type":"tool_use","id":"toolu_1","name":"pay","input":%b}' % arguments.encode()
    message = (
        b'{"id":"msg_1","type":"message","role":"assistant","model":"claude-opus-4-6","content":[%b],'
        b'"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}' % block
    )
    upstream.queue(raw(message, content_type="application/json"))
    path = "/chat/completions" if first_block_index is None else "/messages"
    reply = await provider.send(
        request(max_tokens=5)._replace(path=path, native_first_block_index=first_block_index)
    )
    body = await reply.read(10_000)
    await reply.aclose()
    (call,) = orjson.loads(body)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == arguments


async def test_an_error_reports_what_anthropic_reported(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    long = "prompt is too long: 201000 tokens > 200000 maximum"
    long_with_reply = (
        "input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000, decrease input length or "
        "`max_tokens` and try again"
    )
    upstream.queue(
        refuse(429, "rate_limit_error", "Slow down.", **{"anthropic-ratelimit-requests-remaining": "0"}),
        refuse(400, "invalid_request_error", long),
        refuse(400, "invalid_request_error", long_with_reply),
        raw(b"<html>bad gateway</html>", content_type="text/html", status=502),
    )
    reply = await provider.send(request())
    found = orjson.loads(await reply.read(10_000))
    await reply.aclose()
    assert found["error"]["type"] == "rate_limit_error"
    assert found["request_id"] == "req_refused"
    headers = dict(reply.headers)
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["request-id"] == "req_refused"
    for words in (long, long_with_reply):
        status, body = await answer(provider, request())
        assert status == 400
        assert (body["error"]["code"], body["error"]["message"]) == ("context_length_exceeded", words)
    page = await provider.send(request())
    assert (page.status, await page.read(1000)) == (502, b"<html>bad gateway</html>")
    await page.aclose()


async def test_a_translated_reply_has_the_content_type_of_its_own_form(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    for streams, kind in ((False, "application/json"), (True, "text/event-stream; charset=utf-8")):
        upstream.queue(message(text="Tea.", headers={"content-type": "text/plain"}))
        reply = await provider.send(request(stream=streams)._replace(wants_stream=streams))
        assert [value for name, value in reply.headers if name == "content-type"] == [kind]
        assert b"Tea." in await reply.read(10_000)
        await reply.aclose()


async def test_blocks_of_its_own_tools_go_and_come_back(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    used = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    upstream.queue(message(used, found, text="Found."))
    reply = (await answer(provider, request()))[1]["choices"][0]["message"]
    await answer(provider, request(messages=[*HI, reply, *HI]))
    assert upstream.last.json["messages"][1]["content"] == [used, found, {"type": "text", "text": "Found."}]


async def test_any_number_of_strict_tools_is_taken(provider: Anthropic, upstream: StrictAnthropic) -> None:
    """OpenAI's Agents SDK makes every tool strict, and Anthropic has room for 20, without bounds."""
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    function = {"strict": True, "parameters": {**schema, "additionalProperties": False}}
    tools = [{"type": "function", "function": {"name": f"f{n}", **function}} for n in range(21)]
    assert (await answer(provider, request(tools=tools)))[0] == 200
    assert upstream.last.json["tools"][0]["input_schema"]["properties"] == schema["properties"]
    own = {"name": "f", "strict": True, "input_schema": {"type": "object", "additionalProperties": False}}
    assert (await answer(provider, request(tools=[own])))[0] == 200
    assert upstream.last.json["tools"][0]["strict"] is True


# -- models


async def test_models_are_listed_as_openai_does_with_their_limits(
    transport: HttpTransport,
) -> None:
    with StrictAnthropic(key="sk-ant-own", models=["claude-new"]) as upstream:
        provider = Anthropic("claude", upstream.base_url, key="sk-ant-own", transport=transport)
        listed = ModelRequest(b"", path="/models", method="GET")
        (model,) = (await answer(provider, listed))[1]["data"]
        assert (model["id"], model["object"], model["created"]) == ("claude-new", "model", 1_792_540_800)
        assert model["max_input_tokens"] == 200_000
        one = ModelRequest(b"", path="/models/claude-new", method="GET")
        assert (await answer(provider, one))[1] == model
        none = ModelRequest(b"", path="/models/nobody", method="GET")
        status, body = await answer(provider, none)
        assert (status, body["error"]["type"]) == (404, "not_found_error")
        await answer(provider, request(model="claude-new"))
        assert upstream.last.json["max_tokens"] == 4242
        await answer(provider, request(model="claude-new", max_tokens=7))
        assert upstream.last.json["max_tokens"] == 7
        keyless = Anthropic("bare", upstream.base_url, transport=transport)
        with_key = listed._replace(credential="Bearer sk-ant-own")
        assert [(await answer(keyless, each))[0] for each in (with_key, listed)] == [200, 401]


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("us.anthropic.claude-opus-5-5", "claude-opus-5-5"),  # Bedrock
        ("bedrock/eu.anthropic.claude-haiku-5-5-v1:0", "claude-haiku-5-5"),
        ("anthropic/claude-sonnet-5.5", "claude-sonnet-5-5"),  # OpenRouter
        ("anthropic/claude-opus-4.8:thinking", "claude-opus-4-8"),
        ("anthropic/claude-opus-4", "claude-opus-4-20250514"),
        ("claude-opus-4-1@20250805", "claude-opus-4-1"),  # Vertex
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet-latest"),
        ("anthropic/claude-opus-5-fast", "claude-opus-5"),  # a way to serve it, and no later version
        ("us.anthropic.claude-opus-5-v1:0", "claude-opus-5"),
        ("claude-sonnet-5-20261101", "claude-sonnet-5"),
        ("claude-opus-5-5-20261101", "claude-opus-5-5"),
        ("not-claude-at-all", "glm-5"),  # whose limits are unknown
        pytest.param("m" * 1_000_000, "glm-5", id="long"),  # in the square of its length that is hours
    ],
)
def test_a_model_is_known_whoever_it_is_asked_from(name: str, same_as: str) -> None:
    assert get_traits(name) == get_traits(same_as)


@pytest.mark.parametrize("body", [b"no", b"[]", b"{}", b'{"data": 1}'])
async def test_an_answer_that_is_no_list_of_models_is_broken(transport: HttpTransport, body: bytes) -> None:
    listed = ModelRequest(b"", path="/models", method="GET")
    with StrictAnthropic(model_list=body) as upstream, pytest.raises(ProviderReplyBroken):
        await answer(Anthropic("claude", upstream.base_url, transport=transport), listed)


async def test_calls_and_text_of_one_reply_end_as_calls(
    provider: Anthropic, upstream: StrictAnthropic
) -> None:
    upstream.queue(call_tools(Call("weather"), text="Look."), say("Done."))
    body = (await answer(provider, request(tools=[WEATHER])))[1]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert (await answer(provider, request()))[1]["choices"][0]["finish_reason"] == "stop"


# -- half a character, as upstreams write that cut texts by tokens

HALF = rb"Fine \ud83d"
WHOLE_MESSAGE = (
    b'{"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", '
    b'"content": [{"type": "text", "text": "%b"}], "usage": {"input_tokens": 1, "output_tokens": 1}}' % HALF
)
STREAMED_MESSAGE = (
    b'event: message_start\ndata: {"type": "message_start", "message": {"id": "msg_1", "model": "m"}}\n\n'
    b'event: content_block_start\ndata: {"type": "content_block_start", "index": 0, '
    b'"content_block": {"type": "text", "text": ""}}\n\n'
    b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, '
    b'"delta": {"type": "text_delta", "text": "%b"}}\n\n'
    b'event: message_stop\ndata: {"type": "message_stop"}\n\n' % HALF
)
natively_too = pytest.mark.parametrize("native_first_block_index", [None, 0])


@natively_too
async def test_half_a_character_breaks_no_message(
    provider: Anthropic, upstream: StrictAnthropic, native_first_block_index: int | None
) -> None:
    upstream.queue(raw(WHOLE_MESSAGE, content_type="application/json"))
    reply = await provider.send(asked_natively(request(max_tokens=10), native_first_block_index))
    body = read_json(await reply.read(1_000_000))[0]
    await reply.aclose()
    assert body["choices"][0]["message"]["content"] == "Fine \ufffd"


@natively_too
async def test_half_a_character_breaks_no_stream(
    provider: Anthropic, upstream: StrictAnthropic, native_first_block_index: int | None
) -> None:
    upstream.queue(raw(STREAMED_MESSAGE))
    asked = asked_natively(request(max_tokens=10, stream=True), native_first_block_index)
    chunks = await stream(provider, asked)
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert "Fine \ufffd" in texts


def asked_natively(asked: ModelRequest, first_block_index: int | None) -> ModelRequest:
    """Returns a request that goes upstream in its own dialect; None: it is translated."""
    if first_block_index is None:
        return asked
    return asked._replace(path="/messages", native_first_block_index=first_block_index)


def test_an_error_with_half_a_character_is_translated() -> None:
    body = b'{"type": "error", "error": {"type": "invalid_request_error", "message": "%b"}}' % HALF
    assert orjson.loads(translate_error_body(body))["error"]["message"] == "Fine \ufffd"


def test_an_error_that_is_nested_too_deep_to_be_written_stays() -> None:
    body = b'{"type": "error", "error": {"message": "Odd.", "details": %b}}' % (b"[" * 400 + b"]" * 400)
    assert translate_error_body(body) == body


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "kimi-k2"])
def test_the_defaults_of_claude_are_left_out_for_claude_alone(model: str) -> None:
    """Servers of other makers speak the dialect, too. Their defaults and bounds are not known."""
    sent = translate_request({"model": model, "messages": HI, "temperature": 1.5, "top_p": 1})
    expected = {} if model.startswith("claude-") else {"temperature": 1.5, "top_p": 1}
    assert {name: sent[name] for name in ("temperature", "top_p") if name in sent} == expected
    assert find_max_temperature(model) == (1 if model.startswith("claude-") else None)
