"""How voice stacks name an agent: by the model, by Letta's paths. The bodies are those that vendors document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say

pytestmark = pytest.mark.agents


Json = dict[str, Any]
SYSTEM = {"role": "system", "content": "You answer a phone."}
END_CALL: Json = {
    "type": "function",
    "function": {
        "name": "end_call",
        "description": "Ends the call.",
        "parameters": {
            "type": "object",
            "properties": {"reason": {"type": "string"}},
            "required": ["reason"],
        },
    },
}


def vapi(text: str, call: str = "call-1") -> Json:
    """A request to a custom LLM (docs.vapi.ai/customization/custom-llm/using-your-server)."""
    customer = {"number": "+4712345678"}
    number = {"id": "p-1", "orgId": "o-1", "number": "+4787654321", "provider": "twilio"}
    return {
        "model": "agent/vera",
        "messages": [SYSTEM, {"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 250,
        "tools": [END_CALL],
        "stream": True,
        "call": {
            "id": call,
            "orgId": "o-1",
            "type": "inboundPhoneCall",
            "status": "in-progress",
            "customer": customer,
        },
        "phoneNumber": number,
        "customer": customer,
        "metadata": {"n": 1, "deep": {"a": None}},
    }


def elevenlabs(text: str, user: str = "alice") -> Json:
    """A request to a custom LLM (elevenlabs.io/docs/agents-platform/customization/llm/custom-llm)."""
    return {
        "model": "agent/vera",
        "messages": [SYSTEM, {"role": "user", "content": text}],
        "temperature": 0.7,
        "max_tokens": 500,
        "stream": True,
        "tools": [END_CALL],
        "tool_choice": "auto",
        "user_id": user,
        "elevenlabs_extra_body": {"UUID": "123", "tier": "gold"},
    }


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        made.agent(agent_type="voice_convo_agent", name="vera", system="You are Vera.")
        yield made


def id_of(world: LettaWorld) -> str:
    _, found = world.ask("GET", "/v1/agents/")
    return str(found[0]["id"])


def text_in(body: bytes) -> str:
    """The text of a stream."""
    chunks = [orjson.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


def post(world: LettaWorld, path: str, body: Json) -> Any:
    reply = world.world.gateway.ask("POST", path, orjson.dumps(body), {"content-type": "application/json"})
    assert reply.status == 200, reply.body
    return reply


SEARCH = Call("search_memory", {"pre_exec_msg": "One moment.", "convo_keyword_queries": ["boat"]})


@pytest.mark.parametrize("body", [vapi, elevenlabs])
def test_custom_llm_requests_reach_an_agent(world: LettaWorld, body: Any) -> None:
    world.upstream.queue(call_tools(SEARCH), say("You have none."))
    reply = post(world, "/v1/chat/completions", body("Do I have a boat?"))
    assert text_in(reply.body) == "One moment. You have none."
    request = world.upstream.last
    assert "You are Vera." in request.messages[0]["content"]
    assert "You answer a phone." in request.messages[0]["content"]
    assert {"end_call", "search_memory"} == {tool["function"]["name"] for tool in request.json["tools"]}
    # What only the vendor knows stays here; the strict upstream would refuse it.
    assert not request.json.keys() & {
        "call",
        "customer",
        "phoneNumber",
        "metadata",
        "user_id",
        "elevenlabs_extra_body",
    }


def test_two_calls_are_two_conversations_of_one_agent(world: LettaWorld) -> None:
    post(world, "/v1/chat/completions", vapi("My boat is called Albatross.", "call-1"))
    post(world, "/v1/chat/completions", vapi("What about the weather?", "call-2"))
    assert world.world.query("SELECT key FROM conversations ORDER BY id") == ["call-1", "call-2"]
    world.upstream.queue(call_tools(SEARCH), say("It is Albatross."))
    post(world, "/v1/chat/completions", vapi("And what is my boat called?", "call-3"))
    assert "Albatross" in str(world.upstream.last.messages[-1])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fields", [{}, {"model": "gpt-4o"}, {"user": "bob"}])
def test_a_path_names_its_agent(world: LettaWorld, stream: bool, fields: Json) -> None:
    path = f"/v1/voice-beta/{id_of(world)}/chat/completions"
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "I"},
    ]
    reply = post(world, path, {"messages": messages, "stream": stream, **fields})
    text = text_in(reply.body) if stream else orjson.loads(reply.body)["choices"][0]["message"]["content"]
    assert text == "Ok."
    assert "You are Vera." in world.upstream.last.messages[0]["content"]
    assert world.upstream.last.json["model"] == "m"


def test_a_missing_agent_is_reported_in_openais_form(world: LettaWorld) -> None:
    path = f"/v1/voice-beta/agent-{'0' * 32}/chat/completions"
    reply = world.world.gateway.ask(
        "POST", path, orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    )
    assert reply.status == 404
    assert orjson.loads(reply.body)["error"]["code"] == "model_not_found"
    assert world.world.gateway.ask("GET", path).status == 405


@pytest.mark.parametrize("base", ["/v1/chat/completions", "/v1", "/v1/voice-beta/{id}"])
def test_openais_sdk_takes_each_as_its_base_url(world: LettaWorld, base: str) -> None:
    id = id_of(world)
    url = world.world.gateway.url + base.format(id=id)
    with openai.OpenAI(base_url=url, api_key="sk-app", max_retries=0) as client:
        made = client.chat.completions.create(model=id, messages=[{"role": "user", "content": "Hi"}])
    assert made.choices[0].message.content == "Ok."
    assert "You are Vera." in world.upstream.last.messages[0]["content"]
