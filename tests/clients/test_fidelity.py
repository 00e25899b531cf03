"""Real clients pass the same checks through the gateway: without memory, with memory, and with an agent.

The gateway sends their requests to a strict upstream. A client must get the replies that it would get without a
gateway. From a Claude it must get the replies that OpenAI's API would give.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

import pytest

from tests.clients import CANCELLABLE, CLIENTS, CLOSABLE, City, Client, make_client
from tests.doubles.anthropic_upstream import refuse
from tests.doubles.upstream import Call, Gate, Reply, UpstreamRequest, call_tools, fail, say
from tests.gateway.fidelity.checks import CLAUDE, MODES, ModeWorld, serve_mode
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
    """Parametrizes a check with each client and each value of the first axis.

    OpenAI's SDK runs in each mode. Each other case runs in one mode, in rotation. The next check begins its rotation
    with the next mode, so that each client runs in each mode. The values of a second axis rotate as the modes do.

    axes: parameter of the check -> its values.
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


def test_each_client_runs_in_each_mode() -> None:
    assert _pairs == set(itertools.product(CLIENTS, EVERY_MODE))


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModeWorld]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(serve_mode(mode, tmp_path_factory.mktemp(name)))
            for name, mode in EVERY_MODE.items()
        }


@pytest.fixture
def talk(gateways: dict[str, ModeWorld], request: pytest.FixtureRequest) -> ModeWorld:
    talk = gateways[request.param]
    talk.upstream.forget_replies()
    talk.upstream.script = None
    talk.upstream.requests.clear()
    return talk


@pytest.fixture
async def client(talk: ModeWorld, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    headers = {**talk.mode.headers, "x-mnemogate-user": request.node.name}
    made = make_client(request.param, talk.url, talk.mode.model, headers)
    yield made
    await made.aclose()


def count_stored(talk: ModeWorld, request: pytest.FixtureRequest, expression: str) -> int:
    """Returns `count(expression)` over the active exchanges of this test's user."""
    count: int = talk.world.query(
        f"SELECT count({expression}) FROM exchanges e JOIN agents a ON a.id = e.agent "
        "WHERE a.subject = ? AND e.active AND e.shown_reply IS NOT NULL",
        f"user:{request.node.name}",
    )[0]
    return count


def assert_one_conversation(talk: ModeWorld, request: pytest.FixtureRequest) -> None:
    expected = 0 if talk.mode.memory == "off" else 1
    assert count_stored(talk, request, "DISTINCT e.conversation") == expected


def events_of(talk: ModeWorld, words: int) -> int:
    """Returns the number of events that the upstream has sent with so many words: a stream begins without a word."""
    return words + (3 if talk.mode.dialect == "anthropic" else 1)


async def read_stream(client: Client, text: str) -> list[str]:
    async with aclosing(client.stream_text(text)) as pieces:  # type: ignore[type-var]
        return [piece async for piece in pieces]


@pairwise()
async def test_a_client_chats_and_sends_its_history_again(
    talk: ModeWorld, client: Client, request: pytest.FixtureRequest
) -> None:
    talk.upstream.queue(say("Hello, Ann."), say("Ann."))
    assert await client.chat("I am Ann.", "Who am I?") == ["Hello, Ann.", "Ann."]
    assert talk.world.gateway.last_line()["memory"] == talk.mode.memory
    assert [m["role"] for m in talk.upstream.last.messages][-3:] == ["user", "assistant", "user"]
    assert_one_conversation(talk, request)


@pairwise()
async def test_a_client_reads_a_stream_piece_by_piece(
    talk: ModeWorld, client: Client, request: pytest.FixtureRequest
) -> None:
    talk.upstream.queue(say("One two three", tokens=["One", " two", " three"]))
    assert await read_stream(client, "Count.") == ["One", " two", " three"]
    assert_one_conversation(talk, request)


@pairwise()
async def test_a_client_gets_each_piece_when_the_upstream_sends_it(talk: ModeWorld, client: Client) -> None:
    gate = Gate()
    talk.upstream.queue(say("One two", tokens=["One", " two"], hold_after={events_of(talk, 1): gate}))
    got = []
    async with aclosing(client.stream_text("Count.")) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            got.append(piece)
            # If the gateway held the first word back, the second one would never come.
            gate.open()
    assert got == ["One", " two"]


@pairwise(stream=[False, True])
async def test_a_client_reads_the_upstreams_usage(talk: ModeWorld, client: Client, stream: bool) -> None:
    talk.upstream.queue(say("Hi there.", usage=USAGE[talk.mode.dialect]))
    assert await client.count_tokens("Hi", stream=stream) == (11, 3)


@pairwise(stream=[False, True])
async def test_a_client_runs_the_calls_of_a_reply(
    talk: ModeWorld, client: Client, stream: bool, request: pytest.FixtureRequest
) -> None:
    """The client runs two calls of one reply, and sends both results."""
    calls = (Call("get_weather", {"city": "Oslo"}), Call("get_weather", {"city": "Rome"}))

    def answer(request: UpstreamRequest) -> Reply:
        if not any("Rain in Rome" in str(m.get("content")) for m in request.messages):
            return call_tools(*calls)
        if "final_answer" in tools_of(request):  # smolagents ends an agent's run by this call
            return call_tools(Call("final_answer", {"answer": "It rains."}))
        return say("It rains.")

    talk.upstream.script = answer
    assert await client.chat_with_tool("How is the weather?", stream=stream) == (
        "It rains.",
        ["Oslo", "Rome"],
    )
    assert len(talk.upstream.chats) == 2
    results = [m["content"] for m in talk.upstream.last.messages if m["role"] == "tool"]
    assert results in (["Rain in Oslo.", "Rain in Rome."], [])  # smolagents sends them as a user's message
    assert_one_conversation(talk, request)


@pairwise()
async def test_a_client_parses_a_structured_reply(talk: ModeWorld, client: Client) -> None:
    """A framework asks for it by `response_format`, or by a tool whose arguments are the reply."""

    def answer(request: UpstreamRequest) -> Reply:
        if "response_format" in request.json or "format" in request.json.get("output_config", ()):
            return say(CITY)
        return call_tools(Call(tools_of(request)[-1], CITY))

    talk.upstream.script = answer
    assert await client.chat_for_city("Tell me of Oslo.") == City(name="Oslo", people=717710)


@pairwise()
async def test_special_characters_stay_as_they_are(talk: ModeWorld, client: Client) -> None:
    """In requests, and in whole and streamed replies; each character of a stream comes in a chunk of its own."""
    talk.upstream.queue(say(ODD), say(ODD, tokens=list(ODD)))
    assert await client.chat(ODD) == [ODD]
    assert "".join(await read_stream(client, ODD)) == ODD
    for request in talk.upstream.chats:
        assert text_of(request).endswith(ODD)


def text_of(request: UpstreamRequest) -> str:
    content = request.messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def tools_of(request: UpstreamRequest) -> list[str]:
    return [tool.get("name") or tool["function"]["name"] for tool in request.json["tools"]]


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
# status -> (Anthropic's type, message, Retry-After)
ERRORS = {
    400: ("invalid_request_error", "Bad thing.", None),
    401: ("authentication_error", "Incorrect API key provided.", None),
    429: ("rate_limit_error", "Slow down.", "7"),
    503: ("api_error", "Overloaded.", DATE),
}


@pairwise(status=tuple(ERRORS), stream=[False, True])
async def test_a_client_reports_an_error(
    talk: ModeWorld, client: Client, stream: bool, status: int, request: pytest.FixtureRequest
) -> None:
    """Status, message and Retry-After are those of the upstream, also before the first byte of a stream."""
    kind, message, retry_after = ERRORS[status]
    if talk.mode.dialect == "anthropic":
        talk.upstream.queue(refuse(status, kind, message, retry_after=retry_after))
    else:
        talk.upstream.queue(fail(status, message, retry_after=retry_after))
    with pytest.raises(Exception) as caught:
        await (read_stream(client, "Hi") if stream else client.chat("Hi"))
    report = client.read_error(caught.value)
    assert (report.status, report.retry_after) == (status, retry_after if client.has_retry_after else None)
    assert message in report.message
    assert len(talk.upstream.chats) == 1
    assert count_stored(talk, request, "*") == 0


@pairwise()
async def test_a_client_reports_an_error_within_a_stream(
    talk: ModeWorld, client: Client, request: pytest.FixtureRequest
) -> None:
    error = {"message": "Overloaded.", "type": "server_error", "code": "overloaded", "param": None}
    talk.upstream.queue(say("One two", tokens=["One", " two"], error_after=(events_of(talk, 1), error)))
    got = []
    with pytest.raises(Exception) as caught:  # noqa: PT012
        async with aclosing(client.stream_text("Count.")) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                got.append(piece)
    assert got == ["One"]
    assert "Overloaded." in client.read_error(caught.value).message
    assert count_stored(talk, request, "*") == 0


@pairwise(CANCELLABLE, stream=[False, True])
async def test_a_cancel_before_the_reply_reaches_the_upstream(
    talk: ModeWorld, client: Client, stream: bool, request: pytest.FixtureRequest
) -> None:
    """The upstream has not sent the status yet."""
    talk.upstream.queue(say("Never.", hold_before_headers=Gate()))
    task = asyncio.ensure_future(read_stream(client, "Hi") if stream else client.chat("Hi"))
    await talk.upstream.request_gate(1).wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await talk.upstream.last.gone.wait()
    assert count_stored(talk, request, "*") == 0


@pairwise([*CANCELLABLE, *CLOSABLE])
async def test_a_cancel_within_a_stream_reaches_the_upstream(
    talk: ModeWorld, client: Client, request: pytest.FixtureRequest
) -> None:
    is_closed = request.node.callspec.params["client"] in CLOSABLE
    talk.upstream.queue(
        say("One two three", tokens=["One", " two", " three"], hold_after={events_of(talk, 2): Gate()})
    )
    received: asyncio.Queue[str] = asyncio.Queue()

    async def read_pieces() -> None:
        async with aclosing(client.stream_text("Count.")) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                received.put_nowait(piece)
                if is_closed and piece == " two":
                    return

    task = asyncio.ensure_future(read_pieces())
    async with asyncio.timeout(PATIENCE_S):
        assert [await received.get(), await received.get()] == ["One", " two"]
    if not is_closed:
        task.cancel()
    await asyncio.wait([task])
    await talk.upstream.last.gone.wait()
    assert count_stored(talk, request, "*") == 0
