"""No word of anybody leaves: every place for words bears a mark, and spans, metrics and log have none.

The places are texts, names of users, keys, agents and conversations, arguments and results of tools, ids, errors, query
strings, paths and models, as clients, models, upstreams and operators give them. `path` and `model` of the access line,
and its `id` where a client has sent its own, are what came, as the documentation says; tools and answering models have
the names under which they were offered.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from mcp import Client, MCPError
from starlette.routing import Route

from gateway.core.memory.mcp_tools import TOOLS
from gateway.log import JsonFormatter
from gateway.settings import SideRequest, UpstreamSettings
from gateway.traces.otlp import OtlpSettings
from tests.agents.letta import LettaWorld, letta
from tests.doubles.collector import StrictCollector
from tests.doubles.upstream import Call, StrictUpstream, call_tools, fail, say
from tests.exports import chatgpt_conversation, zipped
from tests.gateway.background.learner import Learner, fact
from tests.gateway.mcp.client import Tools, session
from tests.gateway.sdk import agent
from tests.patience import PATIENCE_S

MARK = "zq7mark"
HEADERS = {
    "x-mnemogate-user-name": MARK,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": f"vendor={MARK}",
    "baggage": f"user={MARK}",
    "x-title": MARK,
    "http-referer": f"https://{MARK}.example",
    "user-agent": MARK,
    "x-request-id": f"req_{MARK}",
}
OF_THE_CALLER = ("path", "model", "id")


@pytest.fixture
def world(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector, caplog: pytest.LogCaptureFixture
) -> Iterator[LettaWorld]:
    caplog.set_level(logging.DEBUG, "mnemogate")
    takes: Any = {"responses": "stored", "stream_usage": True}
    memory = {
        "background_model": "small",
        "side_requests": (SideRequest(f"{MARK} titles", f"{MARK} title"),),
    }
    profile = agent(system=f"{MARK} system", memory_tools=True)
    with letta(
        upstream,
        tmp_path,
        profile,
        memory=memory,
        upstreams=(UpstreamSettings("up", base_url=upstream.base_url, takes=takes, retries=1),),
        otlp=OtlpSettings(collector.url, delay_s=0.01),
        admin_token="the-owner",
        server={"mcp": True},
    ) as made:
        yield made


@pytest.fixture
def collector() -> Iterator[StrictCollector]:
    with StrictCollector() as found:
        yield found


def talk(world: LettaWorld) -> None:
    """Chats, responses, messages and other endpoints, well and badly, streamed and whole."""
    sdk, upstream = world.world.sdk, world.upstream
    upstream.script = lambda request: say(MARK)
    messages = [{"role": "user", "name": MARK, "content": f"My cat is called {MARK}."}]
    arguments = {"label": "human", "new_string": f"Has a cat, {MARK}."}
    for stream in (False, True):
        options: Any = {
            "stream": stream,
            "user": f"{MARK}-user",
            "extra_headers": HEADERS,
            "extra_query": {"q": MARK},
        }

        def end(reply: Any, stream: bool = stream) -> None:
            if stream:
                list(reply)

        upstream.queue(
            say(f"{MARK}!", headers={"x-note": MARK, "content-type": "text/event-stream"} if stream else {}),
            fail(503, f"{MARK} is down", retry_after="0"),
            call_tools(Call("memory_insert", arguments), Call("memory_insert", {"label": MARK}), text=MARK),
            say(MARK),
        )
        end(sdk.chat.completions.create(model="m", messages=messages, **options))
        end(sdk.chat.completions.create(model="agent/helper", messages=messages, **options))
        end(sdk.chat.completions.create(model="m", messages=messages, metadata={"note": MARK}, stream=stream))
        end(
            sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": f"{MARK} title"}], **options
            )
        )
        for status, tries in ((400, 1), (404, 1), (429, 2), (500, 2)):
            upstream.queue(*[fail(status, f"{MARK} is wrong", code=MARK, retry_after="0")] * tries)
            with pytest.raises(openai.APIStatusError):
                sdk.chat.completions.create(model=f"{MARK}-model", messages=messages, **options)
        end(sdk.responses.create(model="m", input=MARK, instructions=MARK, **options))
        end(sdk.responses.create(model="agent/helper", input=MARK, **options))
        end(sdk.completions.create(model="m", prompt=MARK, **options))
        with anthropic.Anthropic(
            base_url=world.world.gateway.url, api_key=MARK, max_retries=0, timeout=PATIENCE_S
        ) as claude:
            end(
                claude.messages.create(
                    model="m",
                    max_tokens=9,
                    stream=stream,
                    metadata={"user_id": MARK},
                    messages=[{"role": "user", "content": MARK}],
                )
            )
    sdk.embeddings.create(model="m", input=MARK, user=MARK)
    upstream.queue(say(MARK, cut_after=1))
    with suppress(openai.APIError):
        list(sdk.chat.completions.create(model="m", stream=True, messages=messages, user=MARK))  # type: ignore[call-overload]


def use_agents(world: LettaWorld) -> None:
    """An agent with marks in all that it has; it is sent something, in a batch too, and calls tools with marks."""
    agent = world.letta.agents.create(
        name=f"{MARK}-agent",
        model="openai/m",
        description=MARK,
        system=MARK,
        tags=[MARK],
        tools=["core_memory_append"],
        memory_blocks=[{"label": "human", "value": MARK}],
    )
    world.upstream.queue(
        call_tools(Call("core_memory_append", {"label": "human", "content": MARK}), text=MARK),
        call_tools(Call("core_memory_append", {"label": MARK, "content": MARK})),
        say(MARK),
    )
    world.letta.agents.messages.create(agent.id, input=MARK)
    world.upstream.queue(fail(400, MARK))
    with suppress(Exception):
        world.letta.agents.messages.create(agent.id, input=MARK)
    world.letta.agents.messages.create_async(agent.id, input=MARK)
    requests = [{"agent_id": agent.id, "messages": [{"role": "user", "content": MARK}]}]
    world.ask("POST", "/v1/messages/batches", {"requests": requests})


def use_mcp(world: LettaWorld) -> None:
    """Each tool with marks in its arguments, well and badly."""
    mine = Tools(world.world.gateway.url, {**HEADERS, "x-mnemogate-user": f"{MARK}-user"})
    fact = mine.ask("memory_remember", text=f"The dog is called {MARK}.")["id"]
    newer = mine.ask("memory_correct", id=fact, text=f"The hen is called {MARK}.")["id"]
    assert mine.ask("memory_search", query=f"hen {MARK}")["results"]
    assert mine.ask("memory_read")["facts"]
    conversation = mine.ask("conversation_read")["conversations"][0]["id"]
    assert MARK in str(mine.ask("conversation_read", conversation=conversation))
    mine.call("memory_edit_block", label=MARK, value=MARK, version=1)
    word = mine.ask("memory_forget", id=newer)["confirm"]
    assert mine.ask("memory_forget", id=newer, confirm=word)["forgotten"]
    for tool in TOOLS:
        mine.fail(tool, **{MARK: MARK})

    async def ask_none(client: Client) -> None:
        with pytest.raises(MCPError):
            await client.call_tool(MARK, {"text": MARK})

    session(mine.url, mine.headers, ask_none)


def bring_along(world: LettaWorld) -> None:
    """An export with marks in all of it, and files that are refused."""
    talk = chatgpt_conversation(MARK, (f"My goat is called {MARK}.", MARK), title=MARK)
    broken = chatgpt_conversation(f"{MARK}-2", (MARK,))
    broken["mapping"]["root"]["parent"] = "n0"
    for data in (zipped([talk, broken, {MARK: MARK}]), f"- {MARK}\n".encode(), f"[{MARK}".encode()):
        reply = world.world.gateway.ask(
            "POST", f"/v1/manage/imports?user={MARK}-new", data, {"x-mnemogate-admin": "the-owner"}
        )
        assert reply.status in (202, 400)
    wrong = world.world.gateway.ask(
        "POST", f"/v1/manage/imports?user={MARK}&format={MARK}", b"x", {"x-mnemogate-admin": "the-owner"}
    )
    assert wrong.status == 400


def walk(world: LettaWorld) -> int:
    """Asks each route with marks in its path, its query and its body, and paths that are none. Returns how many."""
    names = ("input", "user", "name", "query", "prompt", "id", "text", "agent_id")
    body = {"model": "m", **dict.fromkeys(names, MARK)}  # a model that is answered for has its name in spans
    body = {**body, "messages": [{"role": "user", "content": MARK}]}  # type: ignore[dict-item]
    routes = [each for each in world.world.gateway.app._router.routes if isinstance(each, Route)]
    asked = 0
    with httpx.Client(base_url=world.world.gateway.url, timeout=PATIENCE_S) as client:
        for route in routes:
            path = re.sub(r"\{[^}]*\}", MARK, route.path_format)
            for method in sorted((route.methods or set()) - {"HEAD"}):
                for admin in (
                    {},
                    {"x-mnemogate-admin": "the-owner"} if path.startswith(("/v1/manage", "/ui")) else {},
                ):
                    headers = {**HEADERS, **admin, "content-type": "application/json"}
                    client.request(
                        method,
                        path,
                        params={"q": MARK, "user": MARK},
                        content=json.dumps(body),
                        headers=headers,
                    )
                    asked += 1
        client.post(f"/{MARK}", headers=HEADERS)
        client.get(f"/v1/{MARK}/{MARK}", headers={**HEADERS, "x-mnemogate-upstream": MARK})
        client.post("/v1/chat/completions", content=f'{{"{MARK}": ', headers=HEADERS)
        client.post("/v1/chat/completions", json=body, headers={**HEADERS, f"x-mnemogate-{MARK}": MARK})
        client.request(MARK.upper(), "/v1/models", headers=HEADERS)
    return asked


def marked(text: str) -> list[str]:
    return [line for line in text.splitlines() if MARK in line.lower()]


def test_no_word_leaves(
    world: LettaWorld, collector: StrictCollector, caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner(world.world)
    learner.queue_calls(fact(f"The cat is called {MARK}.", about=MARK))
    talk(world)
    use_agents(world)
    use_mcp(world)
    bring_along(world)
    assert walk(world) > 200
    learner.pass_idle_time()
    world.world.settle()
    tracer = world.world.gateway.app.services.tracer
    assert tracer is not None
    collector.wait_for(tracer._queued_spans)
    names = {span.name for span in collector.spans}
    assert {
        "POST /v1/chat/completions",
        "chat m",
        "chat other",
        "search_memory",
        "upsert_memory",
        "execute_tool memory_insert",
        "execute_tool core_memory_append",
        "invoke_agent",
        "mnemogate.learn",
        "mnemogate.batch",
        "mnemogate.run",
        "POST /v1/responses",
        "POST /v1/messages",
        "POST /mcp",
        "embeddings m",
        "text_completion m",
    } <= names
    spans = "\n".join(str(post) for post in collector.posts)
    assert marked(spans) == []
    assert (
        "memory_insert" in spans
    )  # names that the gateway has offered are there: the search finds what there is
    metrics = world.world.gateway.ask("GET", "/metrics").body.decode()
    assert marked(metrics) == []
    world.world.gateway.flush_log()
    lines = [
        json.dumps({name: value for name, value in line.items() if name not in OF_THE_CALLER})
        for line in world.world.gateway.lines
    ]
    assert len(lines) > 200
    assert marked("\n".join(lines)) == []
    logged = "\n".join(JsonFormatter().format(each) for each in caplog.records if each.name == "mnemogate")
    assert marked(logged) == []
