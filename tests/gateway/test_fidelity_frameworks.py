"""Frameworks through the gateway, without memory, with it and as an agent: their everyday, in one conversation.

They speak OpenAI's dialect, whatever the model behind the gateway speaks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.gateway.fidelity import KINDS, MODES, Kind, Mode, Talk, talk_in
from tests.gateway.frameworks import FRAMEWORKS, City, Framework
from tests.upstream import Call, Reply, Seen, call_tools, say

CITY = '{"name":"Oslo","people":717710}'


WAYS = [(mode, kind) for kind in KINDS for mode in MODES]


@pytest.fixture(params=WAYS, ids=[f"{kind}-{mode.name}" for mode, kind in WAYS], scope="module")
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    mode: Mode
    kind: Kind
    mode, kind = request.param
    with talk_in(mode, tmp_path_factory.mktemp("shared"), kind=kind) as made:
        yield made


@pytest.fixture
def talk(gateway: Talk) -> Talk:
    gateway.upstream.forget_replies()
    gateway.upstream.script = None
    gateway.upstream.seen.clear()
    return gateway


@pytest.fixture(params=FRAMEWORKS)
async def framework(talk: Talk, request: pytest.FixtureRequest) -> AsyncIterator[Framework]:
    headers = {**talk.mode.headers, "x-mnemogate-user": request.node.name}
    made = FRAMEWORKS[request.param](talk.url, talk.mode.model, headers)
    yield made
    await made.aclose()


def conversations(talk: Talk, request: pytest.FixtureRequest) -> int:
    """How many there are of this test's user."""
    found: int = talk.world.query(
        "SELECT count(DISTINCT e.conversation) FROM exchanges e JOIN agents a ON a.id = e.agent "
        "WHERE a.subject = ? AND e.standing",
        f"user:{request.node.name}",
    )[0]
    return found


async def test_a_chat(talk: Talk, framework: Framework, request: pytest.FixtureRequest) -> None:
    talk.upstream.queue(say("Hello, Ann."), say("Ann."))
    assert await framework.chat("I am Ann.", "Who am I?") == ["Hello, Ann.", "Ann."]
    assert talk.world.gateway.last_line()["memory"] == talk.mode.memory
    assert [m["role"] for m in talk.upstream.last.messages][-3:] == ["user", "assistant", "user"]
    assert conversations(talk, request) == 1 or talk.mode.memory == "off"


async def test_a_stream(talk: Talk, framework: Framework) -> None:
    talk.upstream.queue(say("One two three", tokens=["One", " two", " three"]))
    assert await framework.stream("Count.") == ["One", " two", " three"]


async def test_a_tool_round_trip(talk: Talk, framework: Framework, request: pytest.FixtureRequest) -> None:
    calls = (Call("get_weather", {"city": "Oslo"}), Call("get_weather", {"city": "Rome"}))
    talk.upstream.queue(call_tools(*calls), say("It rains."))
    said, cities = await framework.tool("How is the weather?")
    assert (said, cities) == ("It rains.", ["Oslo", "Rome"])
    assert talk.calls(talk.upstream.last) == [(call.name, call.arguments) for call in calls]
    results = [result for _, result in talk.results(talk.upstream.last)]
    assert results == ["Rain in Oslo.", "Rain in Rome."]
    assert conversations(talk, request) == 1 or talk.mode.memory == "off"


async def test_a_structured_answer(talk: Talk, framework: Framework) -> None:
    """As `response_format` or as a call of a tool that only takes the answer: each as the framework does."""

    def answer(seen: Seen) -> Reply:
        if talk.has_schema(seen):
            return say(CITY)
        return call_tools(Call(talk.tools(seen)[-1], CITY))

    talk.upstream.script = answer
    assert await framework.structured("Tell me of Oslo.") == City(name="Oslo", people=717710)


async def test_an_error(talk: Talk, framework: Framework) -> None:
    talk.upstream.queue(talk.refuse(429, "Slow down.", code="rate_limit_exceeded"))
    with pytest.raises(framework.error, match=r"Slow down\.") as caught:
        await framework.chat("Hi")
    assert caught.value.status_code == 429  # type: ignore[attr-defined]
