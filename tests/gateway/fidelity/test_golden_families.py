"""Each family's own way of speaking OpenAI's dialect, through the gateway with memory, and as an agent.

The SDK sees what it sees when it asks the provider itself, and a call of a memory tool is known whatever form it comes
in. Without memory bytes pass: tests/adapters/test_golden_families.py holds every file to that, and here are only those
that are no plain events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Reply, raw, say
from tests.gateway.fidelity.checks import MODES, Mode, ModeWorld, serve_mode
from tests.gateway.upstream.test_capabilities import WEATHER, family
from tests.golden import Golden, find_golden_files

Json = dict[str, Any]

STREAMS, REPLIES, REQUESTS = (
    find_golden_files("streams"),
    find_golden_files("replies"),
    find_golden_files("requests"),
)
GOOD = [each for each in STREAMS if "error" not in each.says]
CALLS = [each for each in (*STREAMS, *REPLIES) if each.status == 200 and each.says["calls"]]
SIGNS = [each for each in STREAMS if any(piece.startswith(b":") for piece in each.pieces)]
ODD = [each for each in STREAMS if each in SIGNS or "error" in each.says]
HI = [{"role": "user", "content": "Hi"}]


def golden(found: list[Golden]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("golden", found, ids=[each.id for each in found])


REMEMBERING = [mode for mode in MODES if mode.memory != "off"]


@pytest.fixture(params=REMEMBERING, ids=[mode.name for mode in REMEMBERING], scope="module")
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModeWorld]:
    mode: Mode = request.param
    with serve_mode(mode, tmp_path_factory.mktemp("golden"), lenient=True) as made:
        yield made


def only(name: str) -> pytest.MarkDecorator:
    modes = [mode for mode in MODES if mode.name == name]
    return pytest.mark.parametrize("gateway", modes, ids=[name], indirect=True, scope="module")


@pytest.fixture
def talk(gateway: ModeWorld, request: pytest.FixtureRequest) -> ModeWorld:
    gateway.upstream.forget_replies()
    gateway.upstream.requests.clear()
    gateway.as_user(request.node.name)
    return gateway


def asked(talk: ModeWorld, *, direct: bool = False, **more: Any) -> Json:
    model = "m" if direct else talk.mode.model
    return {"model": model, "messages": HI, "tools": [WEATHER], **more}


def streamed(golden: Golden) -> Reply:
    return raw(*golden.pieces)


def whole(golden: Golden) -> Reply:
    headers = {"content-type": "application/json", **golden.fields.get("headers", {})}
    return Reply(status=golden.status, headers=headers, body=[golden.body])


# -- streams


@golden(GOOD)
def test_the_sdk_reads_a_stream_as_it_does_without_the_gateway(talk: ModeWorld, golden: Golden) -> None:
    seen = []
    for client, direct in ((talk.sdk, False), (talk.upstream_sdk, True)):
        talk.upstream.queue(streamed(golden))
        ask = asked(talk, direct=direct, stream=True, stream_options={"include_usage": True})
        seen.append([chunk.model_dump(warnings=False) for chunk in client.chat.completions.create(**ask)])
    assert seen[0] == seen[1]


@only("off")
@golden(ODD)
def test_a_stream_without_a_user_passes_byte_by_byte(talk: ModeWorld, golden: Golden) -> None:
    talk.upstream.queue(streamed(golden))
    body = json.dumps(asked(talk, stream=True)).encode()
    reply = talk.world.gateway.ask("POST", "/v1/chat/completions", body)
    assert reply.headers["x-mnemogate-memory"] == "none"
    assert reply.body == b"".join(golden.pieces)


@golden([each for each in STREAMS if "error" in each.says])
def test_an_error_in_the_middle_has_the_providers_words(talk: ModeWorld, golden: Golden) -> None:
    """In whatever form: that of an older vLLM the SDK itself would not know."""
    talk.upstream.queue(streamed(golden))
    got: list[str] = []
    stream = talk.sdk.chat.completions.create(**asked(talk, stream=True))
    with pytest.raises(openai.APIError) as caught:
        got.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert ("".join(got), caught.value.message) == (golden.says["content"], golden.says["error"])


# -- whole replies, errors among them


@golden([each for each in REPLIES if each.status == 200])
def test_the_sdk_reads_a_reply_as_it_does_without_the_gateway(talk: ModeWorld, golden: Golden) -> None:
    seen = []
    for client, direct in ((talk.sdk, False), (talk.upstream_sdk, True)):
        talk.upstream.queue(whole(golden))
        seen.append(client.chat.completions.create(**asked(talk, direct=direct)).model_dump(warnings=False))
    assert seen[0] == seen[1]


@golden([each for each in REPLIES if each.status != 200])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_error_keeps_its_status_body_and_headers(talk: ModeWorld, golden: Golden, stream: bool) -> None:
    # Twice: where it names the context the request is sent again, shorter, before it is handed on. That is learned of
    # the model, so it is one that no other test asks.
    talk.upstream.queue(whole(golden), whole(golden))
    model = talk.mode.model if talk.mode.name == "agent" else golden.id
    with pytest.raises(openai.APIStatusError) as caught:
        talk.sdk.chat.completions.create(**asked(talk, stream=stream, model=model))
    response = caught.value.response
    assert (response.status_code, response.content) == (golden.status, golden.body)
    assert golden.fields.get("headers", {}).items() <= dict(response.headers).items()


# -- gateway calls


@only("agent")
@golden(CALLS)
def test_a_hidden_call_is_known_in_every_form(talk: ModeWorld, golden: Golden) -> None:
    """The model's calls of `weather` become calls of a memory tool: run here, and put back as they were."""
    with_memory_tool = Golden(
        golden.family,
        golden.name,
        json.loads(json.dumps(golden.fields).replace('"weather"', '"conversation_search"')),
    )
    is_stream = golden in STREAMS
    talk.upstream.queue(
        streamed(with_memory_tool) if is_stream else whole(with_memory_tool), say("You like tea.")
    )
    answer: Any = talk.sdk.chat.completions.create(**asked(talk, stream=is_stream))
    if is_stream:
        chunks = list(answer)
        text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
        assert not any(c.delta.tool_calls for chunk in chunks for c in chunk.choices)
        ends = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert ends == ["stop"]
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None
    assert text == "You like tea."
    *_, sent = (m for m in talk.upstream.last.messages if m["role"] == "assistant")
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in sent["tool_calls"]]
    assert calls == [["conversation_search", arguments] for _, arguments in golden.says["calls"]]
    results = [m["tool_call_id"] for m in talk.upstream.last.messages if m["role"] == "tool"]
    assert results == [call["id"] for call in sent["tool_calls"]]
    for key, value in golden.fields.get("keeps", {}).items():
        assert sent["tool_calls"][0][key] == value


# -- requests


@golden(REQUESTS)
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "plain"])
def test_a_request_becomes_this_one(tmp_path: Path, golden: Golden, memory: bool) -> None:
    with family(golden.family, tmp_path) as world:
        world.upstream.rules = Rules(
            unknown_parameters=False,
            developer_role=world.upstream.rules.developer_role,
            metadata=world.upstream.rules.metadata,
        )
        who = {"x-mnemogate-user": "alice", "x-mnemogate-memory": "on" if memory else "off"}
        reply = world.gateway.post(golden.fields["in"], who)
        assert reply.status == 200, reply.body
        assert reply.headers["x-mnemogate-memory"] == who["x-mnemogate-memory"]
        assert world.upstream.last.json == golden.fields["out"]
        for name in ("consumed", "adapted"):
            assert reply.headers.get(f"x-mnemogate-{name}") == golden.fields.get(name)


# -- what only its provider can read


KEEPS = [each for each in STREAMS if each.fields.get("keeps")]
DETAILS = [each for each in STREAMS if each.id == "openrouter-comments_reasoning_and_cost"]


@golden([*KEEPS, *DETAILS])
def test_fields_that_the_client_drops_go_back_to_their_provider(tmp_path: Path, golden: Golden) -> None:
    """Gemini refuses a call without its signature; OpenRouter hands thoughts on to who had them. No SDK sends them."""
    with family(golden.family, tmp_path) as world:
        world.upstream.rules = Rules(unknown_parameters=False)
        world.upstream.queue(streamed(golden), say("Ok."))
        chat = world.chat(user="alice", model="m", tools=[WEATHER], stream=True)
        chat.messages.append({"role": "user", "content": "How is the weather in Rome?"})
        list(world.sdk.chat.completions.create(model="m", user="alice", messages=chat.messages, stream=True))
        expected = golden.says
        calls = [
            {"id": f"function-call-{n}", "type": "function", "function": {"name": name, "arguments": text}}
            for n, (name, text) in enumerate(expected["calls"], 1)
        ]
        chat.messages.append(
            {"role": "assistant", "content": expected["content"], **({"tool_calls": calls} if calls else {})}
        )
        for call in calls:
            chat.answer(call, "sun")
        if not calls:
            chat.messages.append({"role": "user", "content": "And tomorrow?"})
        assert chat.go_on() == "Ok."
        (sent,) = (m for m in world.upstream.last.messages if m["role"] == "assistant")
        if calls:
            assert sent["tool_calls"][0]["extra_content"] == golden.fields["keeps"]["extra_content"]
        else:
            assert [each.get("signature") for each in sent["reasoning_details"]] == ["sig"]
            assert sent["reasoning_details"][0]["text"] == expected["reasoning"]


@golden(SIGNS)
def test_signs_of_life_reach_the_client(talk: ModeWorld, golden: Golden) -> None:
    """Comments are for whoever waits; memory does not swallow them."""
    talk.upstream.queue(streamed(golden))
    body = json.dumps(asked(talk, stream=True)).encode()
    reply = talk.world.gateway.ask("POST", "/v1/chat/completions", body, dict(talk.mode.headers))
    comments = [piece for piece in golden.pieces if piece.startswith(b":")]
    assert [line + b"\n\n" for line in reply.body.split(b"\n\n") if line.startswith(b":")] == comments


@golden([each for each in KEEPS if each.family == "gemini"])
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "plain"])
def test_the_sdk_puts_geminis_calls_together(tmp_path: Path, golden: Golden, memory: bool) -> None:
    """By their index, which they get here."""
    with family(golden.family, tmp_path) as world:
        world.upstream.queue(streamed(golden), streamed(golden))
        ask: Json = {
            "model": "m",
            "messages": HI,
            "tools": [WEATHER],
            **({"user": "alice"} if memory else {}),
        }
        with world.sdk.chat.completions.stream(**ask) as stream:
            calls = stream.get_final_completion().choices[0].message.tool_calls or ()
        assembled = [[call.function.name, call.function.arguments] for call in calls]
        assert assembled == golden.says["calls"]
