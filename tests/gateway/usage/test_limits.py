"""Limits hold under storms, and a request that they turn away leaves nothing."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import letta_client
import openai
import pytest
from letta_client import Letta

from gateway.core.json_limits import MAX_LEVELS
from gateway.core.prompt.summary_source import PART_TOKENS
from gateway.core.usage.limit_rules import list_limits
from gateway.limits import Limits
from gateway.run.tools.memory import MemoryTools
from gateway.run.usage import limit_buckets, limit_table, meter
from gateway.settings import ModelSettings, PriceSettings, UpstreamSettings
from storage.errors import StoreError, StoreFailed
from storage.sql.limits import UsageLimits
from storage.usage_records import FORGOTTEN_USER, UsageKey, UsageLimit, UsageQuery
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.responses.socket_client import SocketClient, open_socket
from tests.gateway.sdk import CHAT, Clock, World, agent, remember
from tests.patience import PATIENCE_S, becomes
from tests.rows import each_row
from tests.server import chat_upstreams

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
MODELS = (
    ModelSettings("m", "m", "up", price=PriceSettings(input=1.0, output=1.0)),
    ModelSettings("small", "small", "up"),
)
ASK = [{"role": "user", "content": "Hi"}]
PICTURE = "data:image/png;base64," + base64.b64encode(random.randbytes(1_000_000)).decode()
LOOK: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]


def limited(upstream: StrictUpstream, folder: Path, **options: Any) -> AbstractContextManager[World]:
    upstream.script = lambda request: say("Hello.", usage=USAGE)
    takes: Any = {"responses": "stored", "stream_usage": True}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes),)
    given: dict[str, Any] = {"upstreams": upstreams, "models": MODELS, "admin_token": "the-owner"}
    return remember(upstream, folder, agent(), **{**given, **options})


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with limited(upstream, tmp_path) as made:
        yield made


def leave(world: World) -> None:
    """Asks, and leaves when the upstream has the request."""
    arrived = world.upstream.request_gate(len(world.upstream.requests) + 1)
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({"model": "m", "messages": ASK, "user": "alice"}).encode())
        arrived.wait_sync()
    world.upstream.last.gone.wait_sync()


def under_way(world: World) -> float:
    """Returns what is used of the only limit, with what is under way."""
    (state,) = world.gateway.call(world.gateway.app.services.accounting.limiter.list_states("default", 0, ""))
    return state.used


def used(world: World) -> float:
    """Returns what is used of the only limit, when all has ended."""
    world.settle()
    return under_way(world)


def storm(world: World, count: int, **body: Any) -> list[int]:
    """Sends many requests at once, and returns their statuses."""

    async def ask() -> list[int]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(limits=limits, timeout=PATIENCE_S) as client:
            url = f"{world.gateway.url}/v1/chat/completions"
            data = {"model": "m", "messages": ASK, "user": "alice", **body}
            replies = await asyncio.gather(*(client.post(url, json=data) for _ in range(count)))
            return [reply.status_code for reply in replies]

    return asyncio.run(ask())


@contextmanager
def reply_under_way(world: World, **body: Any) -> Iterator[None]:
    """Has a request of alice under way meanwhile, which is answered afterwards."""
    hold = Gate()
    world.upstream.queue(say("A", usage=USAGE, hold_before_headers=hold))
    arrived = world.upstream.request_gate(len(world.upstream.requests) + 1)
    data = {"model": "m", "messages": ASK, "user": "alice", **body}
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(data).encode())
        arrived.wait_sync()
        yield
        hold.open()
        assert client.read_reply().status == 200


@pytest.mark.both(per=["month"])
@pytest.mark.parametrize("per", ["minute", "day", "month"])
def test_a_storm_of_requests_gets_as_many_in_as_are_allowed(world: World, per: str) -> None:
    world.limit("requests", per, 7)
    statuses = storm(world, 60)
    assert (statuses.count(200), statuses.count(429)) == (7, 53)
    assert len(world.upstream.chats) == 7


@pytest.mark.both(unit=["cost"])
@pytest.mark.parametrize(("unit", "most"), [("tokens", 100), ("cost", 100 / 1e6)])
def test_a_storm_exceeds_by_no_more_than_its_requests_used(world: World, unit: str, most: float) -> None:
    """Each reserves more than it uses, so that what is let in fits."""
    world.limit(unit, "day", most)
    statuses = storm(world, 60, max_tokens=20)
    used = 15 * len(world.upstream.chats)
    assert statuses.count(200) == len(world.upstream.chats) > 0
    assert used < 100 + 15
    while world.post(ASK, user="alice", max_tokens=1).status == 200:
        used += 15
    assert 100 <= used < 100 + 15


def test_a_picture_reserves_no_more_than_pictures_use(world: World) -> None:
    world.limit("tokens", "minute", 5_000)
    with reply_under_way(world, messages=LOOK):
        assert world.post(ASK, user="bob").status == 200


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_picture_whose_tokens_no_upstream_has_counted_costs_what_pictures_use(
    world: World, memory: str
) -> None:
    world.limit("tokens", "day", 1_000_000)
    hold = Gate()
    world.upstream.queue(say("Hello there.", tokens=["Hello ", "there."], hold_after={2: hold}))
    stream = world.sdk.chat.completions.create(
        model="m", stream=True, messages=LOOK, extra_headers={"x-mnemogate-memory": memory}
    )
    next(chunk for chunk in stream if chunk.choices[0].delta.content)
    stream.close()
    world.upstream.last.gone.wait_sync()
    hold.open()
    assert 0 < used(world) < 5_000


def test_a_request_reserves_no_more_output_than_replies_have(world: World) -> None:
    world.limit("tokens", "day", 10_000)
    with reply_under_way(world, max_tokens=128_000):
        assert world.post(ASK, user="bob", max_tokens=128_000).status == 200


def test_reservations_of_running_requests_are_not_reported_as_used_up(world: World) -> None:
    world.limit("cost", "day", 5_000 / 1e6)
    with reply_under_way(world, max_tokens=4_000):
        reply = world.post(ASK, user="bob", max_tokens=4_000)
        assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
        assert (reply.headers["retry-after"], reply.headers.get("x-should-retry")) == ("1", None)
        assert "Requests under way have reserved what is left." in reply.error["message"]
    world.settle()
    assert world.post(ASK, user="bob", max_tokens=4_000).status == 200


@pytest.mark.parametrize("user", ["alice", openai.omit])
def test_a_response_that_an_upstream_makes_in_the_background_counts_once(world: World, user: Any) -> None:
    world.limit("tokens", "day", 1_000_000, user="*")
    made = world.sdk.responses.create(model="m", input="Hi", background=True, user=user)
    becomes(lambda: world.sdk.responses.retrieve(made.id).status == "completed")
    usage = world.sdk.responses.retrieve(made.id).usage
    assert usage is not None
    world.settle()
    list_states = world.gateway.app.services.accounting.limiter.list_states
    (state,) = world.gateway.call(list_states("default", 0, "alice" if user == "alice" else ""))
    assert state.used == usage.total_tokens


@pytest.mark.both
def test_a_response_that_ends_after_its_user_is_forgotten_has_no_name(world: World) -> None:
    made = world.sdk.responses.create(model="m", input="Hi", background=True, user="alice")
    world.settle()
    world.gateway.call(world.store.usage.forget_user("default", "alice"))
    becomes(lambda: world.sdk.responses.retrieve(made.id).status == "completed")
    world.settle()
    world.gateway.call(world.gateway.app.services.accounting.meter.write())
    counted = "SELECT \"user\", output_tokens > 0 FROM usage WHERE model = 'm'"
    assert [(name, bool(has_output)) for name, has_output in world.query(counted)] == [(FORGOTTEN_USER, True)]


def test_a_bound_below_zero_gives_nothing_back(world: World) -> None:
    world.limit("tokens", "day", 10)
    assert [world.post(ASK, user="alice", max_tokens=most).status for most in (1, -1_000_000)] == [200, 429]


def test_only_so_many_are_under_way(world: World) -> None:
    world.limit("concurrent", None, 2)
    hold = Gate()
    world.upstream.script = lambda request: say("Hello.", usage=USAGE, hold_before_headers=hold)
    world.settle()

    async def ask() -> list[int]:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            url = f"{world.gateway.url}/v1/chat/completions"
            data = {"model": "m", "messages": ASK, "user": "alice"}
            tasks = [asyncio.create_task(client.post(url, json=data)) for _ in range(8)]
            refused = []
            for each in asyncio.as_completed(tasks):
                reply = await each
                refused.append(reply)
                if len(refused) == 6:
                    hold.open()
            return [reply.status_code for reply in refused]

    assert sorted(asyncio.run(ask())) == [200] * 2 + [429] * 6
    assert world.post(ASK, user="alice").status == 200


@pytest.mark.parametrize(
    ("unit", "per", "most"), [("concurrent", None, 1), ("tokens", "day", 1500), ("cost", "minute", 0.0015)]
)
@pytest.mark.parametrize("is_searching", [False, True])
def test_a_request_that_interrupts_a_reply_takes_its_place(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    unit: str,
    per: str | None,
    most: float,
    *,
    is_searching: bool,
) -> None:
    """The gateway learns of both at once: the end of one connection, and the request on the other."""
    world.limit(unit, per, most)
    both_sent, begun = threading.Event(), Gate()

    async def search(tools: MemoryTools, call: Any) -> Any:
        if call.call_id == "call_2":
            begun.open()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(Gate().wait(), Gate().wait())

    monkeypatch.setattr(MemoryTools, "run", search)
    calls = [Call("conversation_search", {"query": "boat"}, f"call_{n}") for n in (1, 2)]
    held = say("Hello.", usage=USAGE, hold_after={2: Gate()})
    world.upstream.queue(call_tools(*calls, text="Let me look.") if is_searching else held)
    body = {"model": "agent/helper" if is_searching else "m", "messages": ASK, "user": "alice"}
    with world.gateway.connect() as caller, world.gateway.connect() as other:
        other.request("GET", "/health")
        assert other.read_reply().status == 200
        caller.request("POST", CHAT, json.dumps({**body, "stream": True}).encode())
        caller.read_head()
        caller.read_chunk()
        if is_searching:
            begun.wait_sync()
        world.gateway.loop.call_soon_threadsafe(both_sent.wait)
        caller.socket.close()
        other.request("POST", CHAT, json.dumps(body).encode())
        both_sent.set()
        assert other.read_reply().status == 200


def test_a_reply_that_the_client_has_makes_room_for_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upstream may take a moment more to end the body."""
    world.limit("concurrent", None, 1)
    monkeypatch.setattr("gateway.run.turn.LAST_BYTES_S", PATIENCE_S)
    last_bytes = Gate()
    # Three events of the text, the end, the usage and [DONE]; the gate holds what follows.
    world.upstream.queue(say("Hello there.", hold_after={6: last_bytes}))
    body = {"model": "m", "messages": ASK, "user": "alice"}
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**body, "stream": True}).encode())
        client.read_until(b"[DONE]")
        client.read_until(b"0\r\n\r\n")
        assert world.post(ASK, user="alice").status == 200
        assert not world.upstream.requests[0].settled.is_open
        last_bytes.open()


@pytest.mark.both(unit=["tokens"])
@pytest.mark.parametrize(
    ("unit", "per", "most", "meanwhile", "after"),
    [("concurrent", None, 1, 429, 200), ("requests", "day", 1, 429, 429), ("tokens", "day", 20, 200, 429)],
)
def test_a_limit_counts_the_requests_that_were_under_way_when_it_was_made(
    world: World, unit: str, per: str | None, most: int, meanwhile: int, after: int
) -> None:
    with reply_under_way(world):
        made = UsageLimit(0, "default", None, "*", unit, per, most, "refuse")
        world.gateway.call(world.store.limits.add(made))
        assert world.post(ASK, user="alice").status == meanwhile
    world.settle()
    assert world.post(ASK, user="alice").status == after


def ask_while_read(world: World, patches: pytest.MonkeyPatch, change: Coroutine[Any, Any, object]) -> int:
    """Asks, and changes the limits while what was used of one is read. Returns the status of the reply."""
    sums, reads, goes_on = world.store.usage.load_sums, Gate(), Gate()

    async def held(query: UsageQuery, **given: Any) -> Any:
        reads.open()
        await goes_on.wait()
        return await sums(query, **given)

    patches.setattr(world.store.usage, "load_sums", held)
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({"model": "m", "messages": ASK, "user": "alice"}).encode())
        reads.wait_sync()
        world.gateway.call(change)
        world.gateway.call(world.gateway.app.services.accounting.limiter.limits.load())
        goes_on.open()
        return client.read_reply().status


def test_a_limit_that_is_made_while_another_is_read_counts_the_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.limit("requests", "day", 50)
    made = UsageLimit(0, "default", None, None, "requests", "minute", 1, "refuse")
    assert ask_while_read(world, monkeypatch, world.store.limits.add(made)) == 200
    assert world.post(ASK, user="alice").status == 429


def test_a_limit_that_is_changed_while_another_is_read_holds_as_it_is_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.limit("requests", "day", 50)
    changed = world.limit("tokens", "day", 50_000)
    assert ask_while_read(world, monkeypatch, world.store.limits.change(changed.id, 0, "refuse")) == 429


def test_a_request_counts_in_the_minute_in_which_it_is_let_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.limit("requests", "day", 50)
    world.limit("requests", "minute", 1)

    async def pass_minute() -> None:
        world.clock.sleep(60)

    assert ask_while_read(world, monkeypatch, pass_minute()) == 200
    assert world.post(ASK, user="alice").status == 429


def test_users_that_callers_name_do_not_fill_the_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = world.gateway.app.services.accounting.limiter._buckets
    monkeypatch.setattr(limit_buckets, "_MAX_BUCKETS", 10)
    monkeypatch.setattr(buckets, "_drops_at", 10)
    for unit, per, most in (("requests", "day", 2), ("concurrent", None, 1), ("tokens", "month", 1e9)):
        world.limit(unit, per, most, user="*")
    sizes = []
    for n in range(30):
        assert world.post(ASK, user=f"user-{n}").status == 200
        world.settle()
        sizes.append(len(buckets._buckets))
    assert max(sizes) <= 12
    # What is dropped is read again: nobody has more than before.
    assert [world.post(ASK, user="user-0").status for _ in range(2)] == [200, 429]


def test_the_limit_of_a_user_reads_no_counters_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    days_read: list[int] = []

    class WatchedKey(UsageKey):
        @property
        def day(self) -> int:  # type: ignore[override]
            days_read.append(1)
            return self[0]

    monkeypatch.setattr(meter, "UsageKey", WatchedKey)
    for n in range(20):
        world.post(ASK, user=f"user-{n}")
    world.limit("requests", "day", 1, user="*")
    days_read.clear()
    assert world.post(ASK, user="user-7").status == 429
    assert world.post(ASK, user="user-20").status == 200
    assert len(days_read) <= 2 * 2  # of one counter both ends of the period are compared


def test_a_slow_read_of_one_users_limit_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.limit("requests", "day", 1, user="*")
    sums, reads, goes_on = world.store.usage.load_sums, Gate(), Gate()

    async def held(query: UsageQuery, **given: Any) -> Any:
        if ("user", "alice") in query.only:
            reads.open()
            await goes_on.wait()
        return await sums(query, **given)

    monkeypatch.setattr(world.store.usage, "load_sums", held)
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({"model": "m", "messages": ASK, "user": "alice"}).encode())
        reads.wait_sync()
        assert [world.post(ASK, user="bob").status for _ in range(2)] == [200, 429]
        goes_on.open()
        assert client.read_reply().status == 200
    assert world.post(ASK, user="alice").status == 429


def test_a_read_that_hangs_holds_up_no_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.limit("requests", "day", 2)
    assert world.post(ASK, user="alice").status == 200
    world.settle()
    own = world.gateway.app.services.accounting.limiter
    own._buckets._buckets.clear()  # as after a restart
    sums, goes_on = world.store.usage.load_sums, Gate()

    async def held(query: UsageQuery, **given: Any) -> Any:
        await goes_on.wait()
        return await sums(query, **given)

    monkeypatch.setattr(world.store.usage, "load_sums", held)
    monkeypatch.setattr(own, "_read_s", 0.01)
    assert world.post(ASK, user="alice").status == 200
    world.settle()
    goes_on.open()
    assert under_way(world) == 2  # once it is read, all counts
    assert world.post(ASK, user="alice").status == 429


def test_limits_that_cannot_be_read_in_time_hold_up_no_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.limit("requests", "minute", 1)
    own = world.gateway.app.services.accounting.limiter
    world.gateway.call(own.limits.load())
    read, goes_on = world.store.limits.list, Gate()

    async def held() -> Any:
        await goes_on.wait()
        return await read()

    monkeypatch.setattr(world.store.limits, "list", held)
    monkeypatch.setattr(own, "_read_s", 0.01)

    async def change() -> None:
        own.limits._note_change()

    world.gateway.call(change())
    # Until then they hold as they were.
    assert [world.post(ASK, user="alice").status for _ in range(2)] == [200, 429]
    goes_on.open()


def test_failed_requests_are_answered_later_and_the_limit_is_reached_exactly(world: World) -> None:
    """Some of those that are let in fail, and others take their places; each failure has reached the upstream."""
    turns = itertools.count()
    world.upstream.script = lambda request: say("Hello.", usage=USAGE) if next(turns) % 3 else fail(500)
    world.limit("requests", "day", 20)
    statuses = storm(world, 80)
    # The storm's last one may have been refused for the place of one that failed after it.
    while (status := world.post(ASK, user="alice").status) != 429:
        statuses.append(status)
    assert statuses.count(200) == 20
    assert len(world.upstream.chats) == 20 + statuses.count(500)
    assert used(world) == 20


def test_failed_tries_reach_an_upstream_and_take_no_place(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Upstreams see more requests than are let in: each failed try is one more, and so is what a client has left."""
    models = (ModelSettings("m", "m", "up", fallbacks=("n",)), ModelSettings("n", "n", "other"))
    hold = Gate()
    with StrictUpstream(script=lambda request: say("Hello.", usage=USAGE, hold_before_headers=hold)) as other:
        ups = [
            UpstreamSettings(name, base_url=each.base_url)
            for name, each in (("up", upstream), ("other", other))
        ]
        with limited(upstream, tmp_path, upstreams=tuple(ups), models=models) as world:
            upstream.script = lambda request: fail(500)
            world.limit("concurrent", None, 3)

            async def ask() -> list[int]:
                async with httpx.AsyncClient(timeout=PATIENCE_S) as client:

                    def post() -> asyncio.Task[httpx.Response]:
                        data = {"model": "m", "messages": ASK, "user": "alice"}
                        return asyncio.create_task(
                            client.post(f"{world.gateway.url}/v1/chat/completions", json=data)
                        )

                    first = [post() for _ in range(3)]
                    await other.request_gate(3).wait()
                    refused = await asyncio.gather(*(post() for _ in range(40)))
                    for task in first[:2]:
                        task.cancel()
                    while await asyncio.to_thread(under_way, world) > 1:
                        pass
                    later = [post() for _ in range(40)]
                    await other.request_gate(5).wait()
                    done, pending = set(), set(later)
                    while len(done) < 38:
                        more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                        done |= more
                    assert sum(not request.settled.is_open for request in other.chats) == 3
                    hold.open()
                    replies = [*refused, *await asyncio.gather(*first[2:], *later)]
                    return [reply.status_code for reply in replies]

            statuses = asyncio.run(ask())
            assert (statuses.count(200), statuses.count(429)) == (3, 78)
            # Five were let in: three are answered, two were left by their clients.
            assert (len(upstream.chats), len(other.chats)) == (5, 5)
            assert under_way(world) == 0


def test_the_answer_says_what_and_until_when(world: World) -> None:
    limit = world.limit("requests", "day", 1)
    assert world.post(ASK, user="alice").status == 200
    before = len(world.upstream.requests)
    reply = world.post(ASK, user="alice", stream=True)
    assert (reply.status, reply.error["code"], reply.error["type"]) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert f"Limit {limit.id} allows 1 request per day" in reply.error["message"]
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-ratelimit-limit-requests"] == "1"
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(reply.headers["retry-after"]) <= 86_400
    assert len(world.upstream.requests) == before
    world.settle()
    world.gateway.call(world.gateway.app.services.accounting.meter.write())
    assert world.query("SELECT sum(requests), sum(refused) FROM usage") == [(1, 1)]
    assert world.query("SELECT count(*) FROM exchanges") == [1]


def test_a_minutes_limit_is_reported_with_each_reply(world: World) -> None:
    world.limit("requests", "minute", 2)
    world.upstream.script = lambda request: say(
        "Hi.", usage=USAGE, headers={"x-ratelimit-limit-requests": "900", "x-ratelimit-limit-tokens": "9"}
    )
    reply = world.post(ASK, user="alice")
    assert reply.headers["x-ratelimit-limit-requests"] == "2"
    assert reply.headers["x-ratelimit-remaining-requests"] == "1"
    assert reply.headers["x-ratelimit-limit-tokens"] == "9"
    world.post(ASK, user="alice")
    reply = world.post(ASK, user="alice")
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert "x-should-retry" not in reply.headers
    world.clock.sleep(60)
    assert world.post(ASK, user="alice").status == 200


@pytest.mark.parametrize("per", ["minute", "day"])
def test_a_clock_that_was_ahead_and_is_put_right_holds_nobody_back(world: World, per: str) -> None:
    """What was counted in a period of the future does not hold until then."""
    world.limit("requests", per, 1)
    world.clock.sleep(30 * 86_400)
    assert world.post(ASK, user="alice").status == 200
    assert world.post(ASK, user="alice").status == 429
    world.settle()
    world.clock.sleep(-30 * 86_400)
    assert world.post(ASK, user="alice").status == 200
    assert world.post(ASK, user="alice").status == 429


def test_another_model_answers_in_its_place(world: World) -> None:
    limit = world.limit("tokens", "day", 1, then="small")
    assert "x-mnemogate-limit" not in world.post(ASK, user="alice").headers
    for stream in (False, True):
        reply = world.post(ASK, user="alice", stream=stream)
        assert (reply.status, reply.headers["x-mnemogate-limit"]) == (200, str(limit.id))
        assert world.upstream.last.json["model"] == "small"
    with pytest.raises(openai.RateLimitError):
        world.sdk.embeddings.create(model="m", input="a", user="alice")


def limited_with_other(
    upstream: StrictUpstream, other: StrictUpstream, folder: Path
) -> AbstractContextManager[World]:
    """Serves with another upstream that has the model `far`. Neither has a key of its own."""
    takes: Any = {"responses": "stored"}
    upstreams = (
        UpstreamSettings("up", base_url=upstream.base_url, takes=takes),
        UpstreamSettings("other", base_url=other.base_url, takes=takes),
    )
    models = (*MODELS, ModelSettings("far", "far", "other"))
    return limited(upstream, folder, upstreams=upstreams, models=models)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": ASK, "user": "alice"}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi", "user": "alice"}),
    ],
)
def test_another_upstream_gets_no_credential_of_the_callers(
    upstream: StrictUpstream, tmp_path: Path, path: str, fields: dict[str, Any]
) -> None:
    with StrictUpstream() as other, limited_with_other(upstream, other, tmp_path) as world:
        body = json.dumps({"model": "m", **fields}).encode()
        headers = {"authorization": "Bearer sk-callers"}
        assert world.gateway.ask("POST", path, body, headers).status == 200
        assert upstream.last.headers["authorization"] == "Bearer sk-callers"
        limit = world.limit("requests", "day", 0, then="small")
        assert world.gateway.ask("POST", path, body, headers).status == 200
        assert upstream.last.headers["authorization"] == "Bearer sk-callers"  # for this upstream it is
        world.gateway.call(world.store.limits.remove(limit.id))
        world.limit("requests", "day", 0, then="far")
        assert world.gateway.ask("POST", path, body, headers).status == 200
        assert len(other.requests) == 1
        assert "authorization" not in other.last.headers


def test_a_header_that_names_another_upstream_leaves_no_limit_of_cost(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    upstreams = tuple(UpstreamSettings(name, base_url=upstream.base_url) for name in ("up", "other", "free"))
    price = PriceSettings(input=1.0, output=1.0)
    models = (ModelSettings("m", "m", price=price), ModelSettings("mine", "m", "free"))
    with limited(upstream, tmp_path, upstreams=upstreams, models=models) as world:
        world.limit("cost", "day", 0.000_001)

        def ask(name: str) -> int:
            world.settle()
            headers = {"x-mnemogate-upstream": name, "content-type": "application/json"}
            return world.gateway.ask("POST", "/v1/embeddings", b'{"model":"m","input":"Hi"}', headers).status

        # The settings name the last one's model, without a price.
        names = ("free", "free", "other", "up", "other")
        assert [ask(name) for name in names] == [200, 200, 200, 429, 429]


def test_a_response_that_an_upstream_stores_is_answered_by_no_other(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with StrictUpstream() as other, limited_with_other(upstream, other, tmp_path) as world:
        first = world.sdk.responses.create(model="m", input="Hi", user="alice")
        world.limit("requests", "day", 0, then="far")
        with pytest.raises(openai.RateLimitError):
            world.sdk.responses.create(model="m", input="And?", user="alice", previous_response_id=first.id)
        assert other.requests == []


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-user": "alice", "x-mnemogate-memory": "off"}])
def test_another_model_answers_a_response_without_memory(
    upstream: StrictUpstream, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Except for what the upstream that was asked has stored, if the other model is elsewhere."""
    with StrictUpstream() as other, limited_with_other(upstream, other, tmp_path) as world:

        def ask(**fields: Any) -> tuple[int, str | None]:
            body = json.dumps({"model": "m", "input": "Hi", **fields}).encode()
            given = {"content-type": "application/json", **headers}
            reply = world.gateway.ask("POST", "/v1/responses", body, given)
            return reply.status, reply.headers.get("x-mnemogate-limit")

        first = world.sdk.responses.create(model="m", input="Hi")
        near = world.limit("requests", "day", 0, then="small")
        assert ask(previous_response_id=first.id) == (200, str(near.id))
        assert json.loads(upstream.last.body)["model"] == "small"
        world.gateway.call(world.store.limits.remove(near.id))
        far = world.limit("requests", "day", 0, then="far")
        assert ask() == (200, str(far.id))
        assert ask(previous_response_id=first.id) == (429, None)
        assert ask(input=[{"type": "item_reference", "id": first.output[0].id}]) == (429, None)
        assert [json.loads(each.body)["model"] for each in other.requests] == ["far"]


def test_another_model_keeps_the_window_of_an_agent(upstream: StrictUpstream, tmp_path: Path) -> None:
    profile = agent(context_window=4_000)
    talk = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " + "word " * 400} for n in range(21)
    ]
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url),)
    with remember(upstream, tmp_path, profile, upstreams=upstreams, models=MODELS) as world:
        world.limit("requests", "day", 0, then="small")
        assert world.post(talk, user="alice", model="agent/helper").status == 200
        assert world.upstream.last.json["model"] == "small"
        assert len(world.upstream.last.messages) < 12


def test_another_model_writes_all_of_a_long_summary(upstream: StrictUpstream, tmp_path: Path) -> None:
    with limited(upstream, tmp_path, upstreams=chat_upstreams(upstream, "up")) as world:
        limit = world.limit("requests", "day", 0, then="small")
        talk = [{"role": "user", "content": f"{n} {'word ' * 200}"} for n in range(PART_TOKENS // 125)]
        body = json.dumps({"model": "m", "input": talk}).encode()
        reply = world.gateway.ask("POST", "/v1/responses/compact", body)
        assert (reply.status, reply.headers["x-mnemogate-limit"]) == (200, str(limit.id))
        assert len(upstream.chats) > 1
        assert {each.json["model"] for each in upstream.chats} == {"small"}


def test_an_alias_whose_upstream_has_no_such_endpoint_answers_nothing(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    claude = UpstreamSettings("claude", kind="anthropic", base_url=upstream.base_url)
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url), claude)
    models = (*MODELS, ModelSettings("sonnet", "claude-sonnet-5", "claude"))
    with limited(upstream, tmp_path, upstreams=upstreams, models=models) as world:
        world.limit("requests", "day", 0, then="sonnet")
        with pytest.raises(openai.RateLimitError):
            world.sdk.completions.create(model="m", prompt="Hi")


def test_an_alias_whose_upstream_takes_no_custom_tools_answers_no_request_with_one(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    takes: Any = {"custom_tools": True}
    upstreams = (
        UpstreamSettings("up", base_url=upstream.base_url, takes=takes),
        UpstreamSettings("plain", base_url=upstream.base_url, takes={"custom_tools": False}),
    )
    models = (ModelSettings("m", "m", "up"), ModelSettings("small", "small", "plain"))
    with limited(upstream, tmp_path, upstreams=upstreams, models=models) as world:
        world.limit("requests", "day", 0, then="small")
        tool: Any = {"type": "custom", "name": "py"}
        with pytest.raises(openai.RateLimitError):
            world.sdk.responses.create(model="m", input="Hi", tools=[tool])
        assert upstream.requests == []
        world.sdk.responses.create(model="m", input="Hi")
        assert upstream.last.json["model"] == "small"


@contextmanager
def claude_with_alias(upstream: StrictUpstream, folder: Path) -> Iterator[World]:
    """Serves a model of Claude's in whose place `small` answers, of an upstream of chat completions."""
    with StrictAnthropic() as claude:
        upstreams = (
            UpstreamSettings("claude", "anthropic", claude.base_url),
            *chat_upstreams(upstream, "plain"),
        )
        models = (ModelSettings("m", "claude-x", "claude"), ModelSettings("small", "small", "plain"))
        with limited(upstream, folder, upstreams=upstreams, models=models) as world:
            world.limit("requests", "day", 0, then="small")
            yield world


def test_an_alias_that_does_not_search_the_web_answers_no_request_for_claudes_search(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with claude_with_alias(upstream, tmp_path) as world:
        with pytest.raises(openai.RateLimitError):
            world.sdk.responses.create(model="m", input="Hi", tools=[{"type": "web_search"}])
        assert upstream.requests == []
        world.sdk.responses.create(model="m", input="Hi")
        assert upstream.last.json["model"] == "small"


CLAUDES_SEARCH: Any = {"type": "web_search_20250305", "name": "web_search"}
FILE: Any = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}


@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [CLAUDES_SEARCH]},
        {"mcp_servers": [{"type": "url", "url": "https://mcp.example.com", "name": "one"}]},
        {"container": "container_1"},
        {"messages": [{"role": "user", "content": [FILE, {"type": "text", "text": "What is in it?"}]}]},
    ],
)
def test_an_alias_of_another_dialect_answers_no_message_that_claude_alone_can(
    upstream: StrictUpstream, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with claude_with_alias(upstream, tmp_path) as world:
        message = {"model": "m", "max_tokens": 100, "messages": ASK}
        path, headers = "/v1/messages", {"content-type": "application/json"}
        refused = world.gateway.ask("POST", path, json.dumps({**message, **asked}).encode(), headers)
        assert refused.status == 429
        assert upstream.requests == []
        # What it does not know of the request changes no answer.
        body = json.dumps({**message, "top_k": 5, "service_tier": "auto"}).encode()
        assert world.gateway.ask("POST", path, body, headers).status == 200
        assert upstream.last.json["model"] == "small"


def test_a_message_that_memory_cannot_read_counts_for_the_user_that_claude_code_names(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with StrictAnthropic() as claude:
        upstreams = (UpstreamSettings("claude", "anthropic", claude.base_url),)
        models = (ModelSettings("m", "claude-x", "claude"),)
        with limited(upstream, tmp_path, upstreams=upstreams, models=models) as world:
            world.limit("requests", "day", 1, user="a1")
            asked, schema = [], {"type": "object"}
            for _ in range(MAX_LEVELS):
                schema = {"type": "object", "properties": {"a": schema}}
            deep = {"name": "deep", "input_schema": schema}
            for session in ("s1", "s2"):
                names = {"device_id": "d1", "account_uuid": "a1", "session_id": session}
                body = json.dumps({
                    "model": "m", "max_tokens": 100, "messages": ASK, "tools": [deep],
                    "metadata": {"user_id": json.dumps(names)},
                })  # fmt: skip
                asked.append(
                    world.gateway.ask(
                        "POST", "/v1/messages", body.encode(), {"content-type": "application/json"}
                    )
                )
            assert [reply.status for reply in asked] == [200, 429]


def test_an_alias_that_the_settings_have_lost_answers_nothing(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with limited(upstream, tmp_path) as world:
        world.limit("requests", "day", 0, then="small")
        assert world.post(ASK, user="alice").status == 200
    with limited(upstream, tmp_path, models=MODELS[:1]) as world:
        reply = world.post(ASK, user="alice")
        assert (reply.status, reply.error["code"]) == (429, "insufficient_quota")


@pytest.mark.both
def test_each_user_has_a_limit_and_a_named_one_another(world: World) -> None:
    world.limit("requests", "day", 1, user="*")
    world.limit("requests", "day", 2, user="alice")
    found = {user: [world.post(ASK, user=user).status for _ in range(3)] for user in ("alice", "bob")}
    assert found == {"alice": [200, 200, 429], "bob": [200, 429, 429]}
    assert [world.post(ASK).status for _ in range(2)] == [200, 429]


@pytest.mark.both
def test_limits_of_others_are_not_looked_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = world.gateway.call(world.store.keys.create("default", "app"))
    for n in range(5):
        world.limit("requests", "day", 5, key=100 + n)
        world.limit("requests", "day", 5, user=f"user-{n}")
    own = world.limit("requests", "day", 1, user="*")
    looked: list[list[UsageLimit]] = []

    def noted(limits: Iterable[UsageLimit], key: int, user: str) -> list[UsageLimit]:
        looked.append([*limits])
        return list_limits(looked[-1], key, user)

    monkeypatch.setattr(limit_table, "list_limits", noted)
    bearer = {"authorization": f"Bearer {plain}"}
    assert [world.post(ASK, bearer, user="alice").status for _ in range(2)] == [200, 429]
    assert {each.id for limits in looked for each in limits} == {own.id}


def test_a_request_that_no_model_answered_is_given_back_for_the_day(world: World) -> None:
    world.limit("requests", "day", 1)
    world.upstream.queue(fail(400))
    assert world.post(ASK, user="alice").status == 400
    assert world.post(ASK, user="alice").status == 200
    assert world.post(ASK, user="alice").status == 429


@pytest.mark.both
def test_earlier_use_counts(world: World) -> None:
    assert world.post(ASK, user="alice").status == 200
    world.limit("requests", "month", 1)
    assert world.post(ASK, user="alice").status == 429
    world.limit("requests", "day", 5, user="bob")
    assert world.post(ASK, user="bob").status == 429


@pytest.mark.both
def test_a_forgotten_user_starts_at_zero_and_requests_without_a_user_are_unchanged(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with limited(upstream, tmp_path) as world:
        world.limit("requests", "day", 2, user="*")
        assert [world.post(ASK, user="alice").status for _ in range(3)] == [200, 200, 429]
        world.settle()
        world.gateway.call(world.gateway.app.services.accounting.meter.write())
        world.gateway.call(world.store.usage.forget_user("default", "alice"))
        assert world.post(ASK, user="alice").status == 200
    with limited(upstream, tmp_path) as world:
        assert [world.post(ASK, user="alice").status for _ in range(2)] == [200, 429]
        assert [world.post(ASK).status for _ in range(3)] == [200, 200, 429]


@pytest.mark.both
def test_a_restart_counts_the_same_requests(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Those that broke off count, and those that were refused, left before a reply, or hold to no limit do not."""
    clock = Clock()
    with limited(upstream, tmp_path, clock=clock) as world:
        world.limit("requests", "day", 50)
        hold = Gate()
        upstream.queue(
            say("Hello.", usage=USAGE),
            say("Hello you there.", tokens=["Hello", " you", " there."], cut_after=2),
            fail(400),
            say("Hello.", hold_before_headers=hold),
        )
        assert world.post(ASK, user="alice").status == 200
        with pytest.raises(openai.APIError):
            list(world.sdk.chat.completions.create(model="m", messages=ASK, user="alice", stream=True))  # type: ignore[call-overload]
        assert world.post(ASK, user="alice").status == 400
        leave(world)
        hold.open()
        counts = {"model": "agent/helper", "messages": ASK}
        assert (
            world.gateway.ask("POST", "/v1/messages/count_tokens", json.dumps(counts).encode()).status == 200
        )
        world.sdk.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        world.sdk.responses.create(model="m", input="Hi", user="alice", background=True)
        before = used(world)
    with limited(upstream, tmp_path, clock=clock) as world:
        assert (before, used(world)) == (3, 3)


def test_the_reservation_of_a_background_response_holds_until_its_end(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with limited(upstream, tmp_path, upstreams=chat_upstreams(upstream, "up")) as world:
        world.limit("tokens", "day", 1_000)
        gate = Gate()
        upstream.script = lambda request: say("Hello.", usage=USAGE, hold_before_headers=gate)
        asks: Any = {"model": "m", "input": "Hi", "background": True, "max_output_tokens": 450}
        made = [world.sdk.responses.create(**asks) for _ in range(2)]
        with pytest.raises(openai.RateLimitError):
            world.sdk.responses.create(**asks)
        world.sdk.responses.cancel(made[0].id)
        becomes(lambda: under_way(world) < 500)
        made.append(world.sdk.responses.create(**asks))
        gate.open()
        for each in made:
            becomes(
                lambda each=each: world.sdk.responses.retrieve(each.id).status in ("completed", "cancelled")
            )
        becomes(lambda: under_way(world) == 2 * USAGE["total_tokens"])


def test_a_background_response_that_was_cancelled_while_it_waited_reserves_nothing(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The one before it in its conversation is still made."""
    with limited(upstream, tmp_path, upstreams=chat_upstreams(upstream, "up")) as world:
        world.limit("tokens", "day", 1_000)
        gate = Gate()
        upstream.queue(say("Hello.", usage=USAGE, hold_before_headers=gate))
        conversation = world.sdk.conversations.create().id
        asks: Any = {"model": "m", "input": "Hi", "background": True, "max_output_tokens": 450}
        _, waiting = [world.sdk.responses.create(**asks, conversation=conversation) for _ in range(2)]
        becomes(lambda: upstream.chats)
        world.sdk.responses.cancel(waiting.id)
        world.gateway.call(world.gateway.app.services.background_responses.maker.drop_ended())
        assert 450 <= under_way(world) < 500
        gate.open()


@pytest.mark.both
def test_a_response_in_the_background_is_one_request_of_a_limit_that_is_made_meanwhile(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with limited(upstream, tmp_path, upstreams=chat_upstreams(upstream, "up")) as world:
        gate, arrived = Gate(), upstream.request_gate(1)
        upstream.queue(say("Hello.", usage=USAGE, hold_before_headers=gate))
        made = world.sdk.responses.create(model="m", input="Hi", background=True)
        arrived.wait_sync()
        world.limit("requests", "day", 5)
        before = under_way(world)
        gate.open()
        becomes(lambda: world.sdk.responses.retrieve(made.id).status == "completed")
        assert (before, used(world)) == (1, 1)


@pytest.mark.both(rows=["responses"])
@pytest.mark.parametrize(("rows", "write"), [("agents", "find_or_create"), ("responses", "accept")])
def test_a_background_response_that_could_not_be_accepted_is_given_back(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, write: str
) -> None:
    async def fails(*_: object) -> None:
        raise StoreFailed("It is away.")

    with limited(upstream, tmp_path, upstreams=chat_upstreams(upstream, "up")) as world:
        world.limit("requests", "day", 5)
        with monkeypatch.context() as patch:
            patch.setattr(getattr(world.store, rows), write, fails)
            with pytest.raises(openai.InternalServerError):
                world.sdk.responses.create(model="m", input="Hi", user="alice", background=True)
        assert used(world) == 0
        world.sdk.responses.create(model="m", input="Hi", user="alice", background=True)
        assert used(world) == 1


def test_limits_hold_from_the_first_request_on(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with limited(upstream, tmp_path) as world:
        world.limit("requests", "day", 0)
    read = UsageLimits.list

    async def read_slowly(limits: UsageLimits) -> Any:
        await asyncio.sleep(0.5)
        return await read(limits)

    monkeypatch.setattr(UsageLimits, "list", read_slowly)
    with limited(upstream, tmp_path, limits=Limits(limit_read_s=0.01)) as world:
        assert world.post(ASK, user="alice").status == 429


def test_use_that_is_known_late_is_counted_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.limit("requests", "day", 3)

    async def fails(query: UsageQuery) -> Any:
        raise StoreError("no")

    with monkeypatch.context() as patch:
        patch.setattr(world.store.usage, "load_sums", fails)
        assert world.post(ASK, user="alice").status == 200
    statuses = [world.post(ASK, user="alice").status for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_limit_that_is_removed_holds_no_more(world: World) -> None:
    limit = world.limit("requests", "day", 0)
    assert world.post(ASK, user="alice").status == 429
    world.gateway.call(world.store.limits.change(limit.id, 1, "refuse"))
    assert world.post(ASK, user="alice").status == 200
    assert world.post(ASK, user="alice").status == 429
    world.gateway.call(world.store.limits.remove(limit.id))
    assert world.post(ASK, user="alice").status == 200


def test_every_dialect_is_refused_in_its_own_words(world: World) -> None:
    world.limit("requests", "day", 0)
    sdk = world.sdk
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.responses.create(model="m", input="Hi", stream=stream, user="alice")
        assert refused.value.code == "insufficient_quota"
    for ask in (
        lambda: sdk.completions.create(model="m", prompt="Hi"),
        lambda: sdk.embeddings.create(model="m", input="Hi"),
        lambda: sdk.images.generate(model="m", prompt="A cat"),
    ):
        with pytest.raises(openai.RateLimitError):
            ask()
    claude = anthropic.Anthropic(base_url=world.gateway.url, api_key="sk", max_retries=0)
    with claude, pytest.raises(anthropic.RateLimitError) as limited:
        claude.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
    assert limited.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
    with open_socket(world.gateway) as socket:
        for _ in range(2):  # it stays open
            told = SocketClient(socket).ask(input="Hi")
            assert (told["type"], told["status"], told["error"]["code"]) == (
                "error",
                429,
                "insufficient_quota",
            )
            assert (
                "allows 0 requests per day. Nothing is allowed until it is raised."
                in told["error"]["message"]
            )
    assert sdk.models.list().data
    # Nothing was forwarded, and nothing stored.
    assert [request.path for request in world.upstream.requests if request.method == "POST"] == []
    assert world.query("SELECT count(*) FROM exchanges") == [0]


@pytest.mark.agents
def test_sends_to_agents_are_refused_before_anything_is_stored(world: World) -> None:
    with Letta(base_url=world.gateway.url, api_key="sk", max_retries=0, timeout=PATIENCE_S) as letta:
        agent = letta.agents.create(model="openai/m", memory_blocks=[])
        world.limit("requests", "day", 0)
        with pytest.raises(letta_client.RateLimitError):
            letta.agents.messages.create(agent.id, input="Hi")
        with pytest.raises(letta_client.RateLimitError):
            list(letta.agents.messages.create(agent.id, input="Hi", streaming=True))
        with pytest.raises(letta_client.RateLimitError):
            letta.agents.messages.create_async(agent.id, input="Hi")
        assert letta.runs.list(agent_id=agent.id).items == []
        assert [m.message_type for m in letta.agents.messages.list(agent.id)] in ([], ["system_message"])
    assert [request.path for request in world.upstream.requests if request.method == "POST"] == []


def test_a_client_that_leaves_gives_its_place_back(world: World) -> None:
    world.limit("concurrent", None, 1)
    hold = Gate()
    world.upstream.script = lambda request: say("Hello.", hold_before_headers=hold)
    leave(world)
    world.settle()
    hold.open()
    assert world.post(ASK, user="alice").status == 200


def test_without_limits_a_request_reads_and_writes_nothing_for_them(world: World) -> None:
    def of_usage() -> list[str]:
        world.all_statements_of(lambda: world.post(ASK, user="alice"))
        return [each for each in world.statements if "usage" in each or "limits" in each]

    world.post(ASK, user="alice")
    assert of_usage() == []
    world.limit("requests", "day", 50)
    world.post(ASK, user="alice")  # reads what was used, once
    assert of_usage() == []


OWNER = {"x-mnemogate-admin": "the-owner", "content-type": "application/json"}


def manage(world: World, method: str, path: str, body: Any = None, headers: Any = OWNER) -> Any:
    data = None if body is None else json.dumps(body).encode()
    return world.gateway.ask(method, f"/v1/manage/limits{path}", data, headers)


@pytest.mark.both
def test_a_limit_is_made_changed_and_removed_over_rest(world: World) -> None:
    body = {"user": "*", "unit": "requests", "per": "day", "most": 0}
    reply = manage(world, "POST", "", body)
    assert world.gateway.last_line()["in"] == len(json.dumps(body))
    assert reply.status == 201
    made = reply.json
    assert made == {
        "id": made["id"], "object": "limit", "project": "default", "key": None, "user": "*",
        "unit": "requests", "per": "day", "most": 0, "then": "refuse",
    }  # fmt: skip
    assert world.post(ASK, user="alice").status == 429
    path = f"/{made['id']}"
    assert manage(world, "PATCH", path, {"most": 1, "then": "small"}).json["then"] == "small"
    assert [world.post(ASK, user="alice").headers.get("x-mnemogate-limit") for _ in range(2)] == [
        None,
        str(made["id"]),
    ]
    assert manage(world, "GET", path).json["most"] == 1
    assert [each["id"] for each in manage(world, "GET", "").json["data"]] == [made["id"]]
    assert manage(world, "DELETE", path).json == {"id": made["id"], "object": "limit", "deleted": True}
    assert (manage(world, "GET", path).status, manage(world, "DELETE", path).status) == (404, 404)


def test_a_limit_names_a_user_as_requests_do(world: World) -> None:
    body = {"user": " alice ", "unit": "requests", "per": "day", "most": 0}
    assert manage(world, "POST", "", body).json["user"] == "alice"
    assert world.post(ASK, user="alice").status == 429


@each_row(
    ("change", "param"),
    [
        ({"colour": 1}, "colour"),
        ({"unit": "words"}, "unit"),
        ({"per": None}, "per"),
        ({"unit": "concurrent"}, "per"),
        ({"most": -1}, "most"),
        ({"most": 1.5}, "most"),
        ({"most": "9"}, "most"),
        ({"then": "nothing"}, "then"),
        ({"key": 99}, "key"),
        ({"user": "a" * 257}, "user"),
    ],
)
def test_the_error_of_a_wrong_limit_says_what_is_wrong(world: World, change: Any, param: str) -> None:
    reply = manage(world, "POST", "", {"unit": "requests", "per": "day", "most": 5, **change})
    assert (reply.status, reply.error["param"]) == (400, param)
    assert manage(world, "GET", "").json["data"] == []


@pytest.mark.both
def test_an_operator_sees_and_changes_its_own_project_alone(world: World) -> None:
    limit = world.limit("requests", "day", 5)
    create = world.store.keys.create
    _, other = world.gateway.call(create("elsewhere", "op", None, "operator"))
    _, reader = world.gateway.call(create("default", "op", None, "operator-read"))
    there, reads = ({"authorization": f"Bearer {key}"} for key in (other, reader))
    assert manage(world, "GET", "", headers=there).json["data"] == []
    assert manage(world, "GET", f"/{limit.id}", headers=there).status == 404
    assert manage(world, "DELETE", f"/{limit.id}", headers=there).status == 404
    assert manage(world, "GET", f"/{limit.id}", headers=reads).status == 200
    assert manage(world, "DELETE", f"/{limit.id}", headers=reads).status == 403
    body = {"unit": "requests", "per": "day", "most": 5, "project": "default"}
    assert manage(world, "POST", "", body, there).status == 404
