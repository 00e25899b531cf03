"""Real clients through the gateway, without memory, with it and as an agent: each passes the same checks.

They send requests of their own to a strict upstream. What they must see is what they would see without a gateway; and
where the upstream is a Claude, what they would see of OpenAI.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

import pytest

from tests.clients import CANCELLED, CLIENTS, CLOSED, City, Client, make
from tests.doubles.anthropic_upstream import refuse
from tests.doubles.upstream import Call, Gate, Reply, Seen, call_tools, fail, say
from tests.gateway.fidelity.checks import CLAUDE, MODES, Talk, talk_in
from tests.patience import PATIENCE_S

CITY = '{"name":"Oslo","people":717710}'
USAGE = {
    "openai": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    "anthropic": {"input_tokens": 5, "cache_read_input_tokens": 6, "output_tokens": 3},
}
ODD = "Grüße, 世界 👋🏽\n\n\tz\u0301\u2028 \"'\\ <b>&amp;</b> data: [DONE]"


EVERY_MODE = {mode.name: mode for mode in (*MODES, CLAUDE)}
_checks = itertools.count()
_pairs: set[tuple[str, str]] = set()


def pairwise(
    clients: Iterable[str] = CLIENTS, **axes: Sequence[Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Runs a check with every client and every value of the first axis, each in one mode by turns; the SDK in all.

    The next check begins with the next mode, so that every client meets every mode. The values of a second axis take
    turns as the modes do.
    """
    check = next(_checks)
    first, *others = axes.values() or [[None]]
    cases = []
    for number, name in enumerate(clients):
        for turn, value in enumerate(first, check + number):
            modes = [*EVERY_MODE] if name == "openai" else [[*EVERY_MODE][turn % len(EVERY_MODE)]]
            for shift, mode in enumerate(modes):
                further = [axis[(turn + shift) % len(axis)] for axis in others]
                cases.append((mode, name, value, *further)[: 2 + len(axes)])
                _pairs.add((name, mode))
    return pytest.mark.parametrize(("talk", "client", *axes), cases, indirect=["talk", "client"])


def test_every_client_meets_every_mode() -> None:
    assert _pairs == set(itertools.product(CLIENTS, EVERY_MODE))


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Talk]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(talk_in(mode, tmp_path_factory.mktemp(name)))
            for name, mode in EVERY_MODE.items()
        }


@pytest.fixture
def talk(gateways: dict[str, Talk], request: pytest.FixtureRequest) -> Talk:
    talk = gateways[request.param]
    talk.upstream.forget_replies()
    talk.upstream.script = None
    talk.upstream.seen.clear()
    return talk


@pytest.fixture
async def client(talk: Talk, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    headers = {**talk.mode.headers, "x-mnemogate-user": request.node.name}
    made = make(request.param, talk.url, talk.mode.model, headers)
    yield made
    await made.aclose()


def stored(talk: Talk, request: pytest.FixtureRequest, what: str) -> int:
    """How many of what stands in memory of this test's user."""
    found: int = talk.world.query(
        f"SELECT count({what}) FROM exchanges e JOIN agents a ON a.id = e.agent "
        "WHERE a.subject = ? AND e.active AND e.shown_reply IS NOT NULL",
        f"user:{request.node.name}",
    )[0]
    return found


def assert_one_conversation(talk: Talk, request: pytest.FixtureRequest) -> None:
    expected = 0 if talk.mode.memory == "off" else 1
    assert stored(talk, request, "DISTINCT e.conversation") == expected


def after(talk: Talk, words: int) -> int:
    """How many events of a stream have left when so many words have: the others are its beginning."""
    return words + (3 if talk.mode.speaks == "anthropic" else 1)


async def all_of(client: Client, said: str) -> list[str]:
    async with aclosing(client.pieces(said)) as pieces:  # type: ignore[type-var]
        return [piece async for piece in pieces]


@pairwise()
async def test_a_client_chats_and_sends_its_history_again(
    talk: Talk, client: Client, request: pytest.FixtureRequest
) -> None:
    talk.upstream.queue(say("Hello, Ann."), say("Ann."))
    assert await client.chat("I am Ann.", "Who am I?") == ["Hello, Ann.", "Ann."]
    assert talk.world.gateway.last_line()["memory"] == talk.mode.memory
    assert [m["role"] for m in talk.upstream.last.messages][-3:] == ["user", "assistant", "user"]
    assert_one_conversation(talk, request)


@pairwise()
async def test_a_client_reads_a_stream_piece_by_piece(
    talk: Talk, client: Client, request: pytest.FixtureRequest
) -> None:
    talk.upstream.queue(say("One two three", tokens=["One", " two", " three"]))
    assert await all_of(client, "Count.") == ["One", " two", " three"]
    assert_one_conversation(talk, request)


@pairwise()
async def test_a_stream_comes_as_it_is_said(talk: Talk, client: Client) -> None:
    gate = Gate()
    talk.upstream.queue(say("One two", tokens=["One", " two"], hold_after={after(talk, 1): gate}))
    got = []
    async with aclosing(client.pieces("Count.")) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            got.append(piece)
            gate.open()  # had the first word been held back, this would never come
    assert got == ["One", " two"]


@pairwise(stream=[False, True])
async def test_a_client_reads_the_upstreams_usage(talk: Talk, client: Client, stream: bool) -> None:
    talk.upstream.queue(say("Hi there.", usage=USAGE[talk.mode.speaks]))
    assert await client.usage("Hi", stream=stream) == (11, 3)


@pairwise(stream=[False, True])
async def test_a_tool_round_trip(
    talk: Talk, client: Client, stream: bool, request: pytest.FixtureRequest
) -> None:
    """Two calls at once, run by the client, and what it says of their results."""
    calls = (Call("get_weather", {"city": "Oslo"}), Call("get_weather", {"city": "Rome"}))

    def answer(seen: Seen) -> Reply:
        if not any("Rain in Rome" in str(m.get("content")) for m in seen.messages):
            return call_tools(*calls)
        if "final_answer" in tools_of(seen):  # an agent that ends by calling a tool
            return call_tools(Call("final_answer", {"answer": "It rains."}))
        return say("It rains.")

    talk.upstream.script = answer
    assert await client.tool("How is the weather?", stream=stream) == ("It rains.", ["Oslo", "Rome"])
    assert len(talk.upstream.chats) == 2
    results = [m["content"] for m in talk.upstream.last.messages if m["role"] == "tool"]
    assert results in (["Rain in Oslo.", "Rain in Rome."], [])  # or shown as a user's message
    assert_one_conversation(talk, request)


@pairwise()
async def test_a_structured_answer(talk: Talk, client: Client) -> None:
    """As `response_format` or as a call of a tool that only takes the answer: each as the framework does."""

    def answer(seen: Seen) -> Reply:
        if "response_format" in seen.json or "format" in seen.json.get("output_config", ()):
            return say(CITY)
        return call_tools(Call(tools_of(seen)[-1], CITY))

    talk.upstream.script = answer
    assert await client.structured("Tell me of Oslo.") == City(name="Oslo", people=717710)


@pairwise()
async def test_characters_that_are_easily_broken(talk: Talk, client: Client) -> None:
    """Whole and streamed, both ways; each character a token of its own."""
    talk.upstream.queue(say(ODD), say(ODD, tokens=list(ODD)))
    assert await client.chat(ODD) == [ODD]
    assert "".join(await all_of(client, ODD)) == ODD
    for seen in talk.upstream.chats:
        assert text_of(seen).endswith(ODD)


def text_of(seen: Seen) -> str:
    content = seen.messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def tools_of(seen: Seen) -> list[str]:
    return [tool.get("name") or tool["function"]["name"] for tool in seen.json["tools"]]


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
# status -> Anthropic's type, what it says, and when to come back
REFUSED = {
    400: ("invalid_request_error", "Bad thing.", None),
    401: ("authentication_error", "Incorrect API key provided.", None),
    429: ("rate_limit_error", "Slow down.", "7"),
    503: ("api_error", "Overloaded.", DATE),
}


@pairwise(status=tuple(REFUSED), stream=[False, True])
async def test_an_error(
    talk: Talk, client: Client, stream: bool, status: int, request: pytest.FixtureRequest
) -> None:
    """Before the first byte of a stream as well: status, message and Retry-After as the upstream has them."""
    kind, message, retry_after = REFUSED[status]
    if talk.mode.speaks == "anthropic":
        talk.upstream.queue(refuse(status, kind, message, retry_after=retry_after))
    else:
        talk.upstream.queue(fail(status, message, retry_after=retry_after))
    with pytest.raises(Exception) as caught:
        await (all_of(client, "Hi") if stream else client.chat("Hi"))
    found = client.failure(caught.value)
    assert (found.status, found.retry_after) == (status, retry_after if client.has_retry_after else None)
    assert message in found.message
    assert len(talk.upstream.chats) == 1
    assert stored(talk, request, "*") == 0


@pairwise()
async def test_an_error_in_the_middle_of_a_stream(
    talk: Talk, client: Client, request: pytest.FixtureRequest
) -> None:
    error = {"message": "Overloaded.", "type": "server_error", "code": "overloaded", "param": None}
    talk.upstream.queue(say("One two", tokens=["One", " two"], error_after=(after(talk, 1), error)))
    got = []
    with pytest.raises(Exception) as caught:  # noqa: PT012
        async with aclosing(client.pieces("Count.")) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                got.append(piece)
    assert got == ["One"]
    found = client.failure(caught.value)
    assert "Overloaded." in found.message
    assert stored(talk, request, "*") == 0


@pairwise(CANCELLED, stream=[False, True])
async def test_a_cancel_before_the_answer(
    talk: Talk, client: Client, stream: bool, request: pytest.FixtureRequest
) -> None:
    """While the upstream has not said a word, not even a status."""
    talk.upstream.queue(say("Never.", hold_before_headers=Gate()))
    asking = asyncio.ensure_future(all_of(client, "Hi") if stream else client.chat("Hi"))
    await talk.upstream.arrived(1).wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await talk.upstream.last.gone.wait()
    assert stored(talk, request, "*") == 0


@pairwise([*CANCELLED, *CLOSED])
async def test_a_cancel_in_the_middle_of_a_stream(
    talk: Talk, client: Client, request: pytest.FixtureRequest
) -> None:
    is_closed = request.node.callspec.params["client"] in CLOSED
    talk.upstream.queue(
        say("One two three", tokens=["One", " two", " three"], hold_after={after(talk, 2): Gate()})
    )
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        async with aclosing(client.pieces("Count.")) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                heard.put_nowait(piece)
                if is_closed and piece == " two":
                    return

    listening = asyncio.ensure_future(listen())
    async with asyncio.timeout(PATIENCE_S):
        assert [await heard.get(), await heard.get()] == ["One", " two"]
    if not is_closed:
        listening.cancel()
    await asyncio.wait([listening])
    await talk.upstream.last.gone.wait()
    assert stored(talk, request, "*") == 0
