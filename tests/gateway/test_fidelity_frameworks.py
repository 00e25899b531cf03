"""Frameworks through the gateway, without memory, with it and as an agent: their everyday, in one conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.gateway.fidelity import MODES, Mode, Talk, talk_in
from tests.gateway.frameworks import FRAMEWORKS, City, Framework
from tests.upstream import Call, Reply, Seen, call_tools, fail, say

CITY = '{"name":"Oslo","people":717710}'


@pytest.fixture(params=MODES, ids=[mode.name for mode in MODES], scope="module")
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    mode: Mode = request.param
    with talk_in(mode, tmp_path_factory.mktemp("shared")) as made:
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
    results = [m["content"] for m in talk.upstream.last.messages if m["role"] == "tool"]
    assert results == ["Rain in Oslo.", "Rain in Rome."]
    assert conversations(talk, request) == 1 or talk.mode.memory == "off"


async def test_a_structured_answer(talk: Talk, framework: Framework) -> None:
    """As `response_format` or as a call of a tool that only takes the answer: each as the framework does."""

    def answer(seen: Seen) -> Reply:
        if "response_format" in seen.json:
            return say(CITY)
        return call_tools(Call(seen.tool_names[-1], CITY))

    talk.upstream.script = answer
    assert await framework.structured("Tell me of Oslo.") == City(name="Oslo", people=717710)


async def test_an_error(talk: Talk, framework: Framework) -> None:
    talk.upstream.queue(fail(429, "Slow down.", code="rate_limit_exceeded", retry_after="3"))
    with pytest.raises(framework.error, match=r"Slow down\.") as caught:
        await framework.chat("Hi")
    assert caught.value.status_code == 429  # type: ignore[attr-defined]
