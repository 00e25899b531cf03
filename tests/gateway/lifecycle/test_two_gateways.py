"""Two gateways over one PostgreSQL: either serves any request, and knows in time what the other has done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from storage.sql.store import Store
from storage.usage_records import UsageLimit
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.patience import PATIENCE_S, becomes
from tests.postgres import empty_database
from tests.server import RawReply, RunningGateway, chat_upstreams, serve, settings_for
from tests.stored import open_store, rows

JSON = {"content-type": "application/json"}
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "one"}


@dataclass
class Two:
    """one, other: the gateways; `other` does no background work in the tests that say so."""

    upstream: StrictUpstream
    one: RunningGateway
    other: RunningGateway
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))

    def chat(self, gateway: RunningGateway, *said: str, user: str = "alice", **headers: str) -> RawReply:
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
        return gateway.post({"model": "m", "user": user, "messages": messages}, headers)

    def ask(self, gateway: RunningGateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        reply = gateway.ask(method, path, data, JSON)
        return reply.status, json.loads(reply.body) if reply.body[:1] in (b"{", b"[") else reply.body

    def agent(self) -> str:
        blocks = [{"label": "human", "value": "Name: Ann"}]
        status, made = self.ask(self.one, "POST", "/v1/agents/", {"model": "up/m", "memory_blocks": blocks})
        assert status == 200, made
        return str(made["id"])

    def send(self, gateway: RunningGateway, agent: str, text: str) -> tuple[int, Any]:
        return self.ask(gateway, "POST", f"/v1/agents/{agent}/messages", {"input": text})

    def prompts(self) -> list[list[str]]:
        """What each call of the model was given, its texts alone."""
        calls = [
            request.json for request in self.upstream.requests if request.path.endswith("/chat/completions")
        ]
        return [[str(m["content"]) for m in call["messages"]] for call in calls]


@contextmanager
def two(
    postgres: str, upstream: StrictUpstream, *, performs_jobs: bool = True, **parts: Any
) -> Iterator[Two]:
    url = empty_database(postgres).url

    async def open_here() -> Store:
        return await open_store(url)

    settings = settings_for(upstream, **parts)
    with serve(settings, open_here, performs_jobs=performs_jobs) as one, serve(settings, open_here) as other:
        made = Two(upstream, one, other)
        try:
            yield made
        finally:
            made.threads.shutdown(cancel_futures=True)


@pytest.fixture
def world(postgres: str, upstream: StrictUpstream) -> Iterator[Two]:
    with two(postgres, upstream) as made:
        yield made


def test_either_gateway_goes_on_with_a_conversation_and_recalls_it(world: Two) -> None:
    said, conversations = list[str](), set[str]()
    for n, gateway in enumerate((world.one, world.other) * 3):
        said.append(f"My {n}. animal is called Miso{n}.")
        world.upstream.queue(say(f"Reply {n}."))
        reply = world.chat(gateway, *said)
        conversations.add(reply.headers["x-mnemogate-conversation"])
        said.append(f"Reply {n}.")
    assert len(conversations) == 1
    for gateway in (world.one, world.other):
        world.chat(gateway, "What is my 3. animal called?")
        assert "Miso3" in world.prompts()[-1][-1]
        world.chat(gateway, "What is my 3. animal called?", user="bob")
        assert "Miso3" not in str(world.prompts()[-1])


@pytest.mark.parametrize(
    ("kind", "is_streamed"), [("named", True), ("alike", False), ("different", True), ("append", False)]
)
def test_first_requests_at_once_name_the_conversations_that_are_stored(
    world: Two, kind: str, is_streamed: bool
) -> None:
    """Their receipts go out before any of them is written."""
    gate = Gate()
    world.upstream.queue(*(say("Hello.", hold_before_headers=gate) for _ in range(8)))

    def ask(number: int) -> str:
        headers = {"x-mnemogate-conversation": "one"} if kind == "named" else {}
        headers = APPEND if kind == "append" else headers
        text = "I like tea." if kind == "alike" else f"I like tea {number}."
        body = {"model": "m", "user": "ann", "messages": [{"role": "user", "content": text}]}
        reply = (world.one, world.other)[number % 2].post({**body, "stream": is_streamed}, headers)
        assert reply.status == 200
        return reply.headers["x-mnemogate-conversation"]

    asked = [world.threads.submit(ask, number) for number in range(8)]
    if kind != "append":  # there one waits for the other
        becomes(lambda: len(world.prompts()) == 8)
    gate.open()
    named = {each.result() for each in asked}
    stored = world.one.call(_read(world.one, "SELECT uid FROM conversations"))
    assert named == {uid for (uid,) in stored}
    assert len(named) == (8 if kind == "different" else 1)


async def _read(gateway: RunningGateway, sql: str) -> list[Any]:
    return await rows(gateway.app.services.store, sql)


def test_first_requests_at_both_are_one_persons(world: Two) -> None:
    gate = Gate()
    world.upstream.queue(*(say("Hello.", hold_before_headers=gate) for _ in range(2)))
    asked = [
        world.threads.submit(world.chat, gateway, f"I like {what}.")
        for gateway, what in ((world.one, "tea"), (world.other, "rain"))
    ]
    becomes(lambda: len(world.prompts()) == 2)
    gate.open()
    replies = [each.result() for each in asked]
    assert len({reply.headers["x-mnemogate-agent"] for reply in replies}) == 1
    world.chat(world.one, "What do I like, tea or rain?")
    (note,) = world.prompts()[-1][-1:]
    assert "I like tea." in note
    assert "I like rain." in note


@pytest.mark.parametrize("mode", ["off", "read"])
def test_what_is_off_the_record_at_first_stays_so_whoever_begins_the_memory(world: Two, mode: str) -> None:
    gate = Gate()
    world.upstream.queue(say("Sorry.", hold_before_headers=gate), say("Hello."))
    off = {"x-mnemogate-memory": mode}
    secret = world.threads.submit(world.chat, world.one, "My diagnosis is X.", **off)
    becomes(lambda: len(world.prompts()) == 1)
    world.chat(world.other, "Good morning.")
    gate.open()
    assert "x-mnemogate-durable" not in secret.result().headers
    assert world.chat(world.other, "My diagnosis is X.", "Sorry.", "What now?").status == 200
    stored = world.one.call(_read(world.one, "SELECT input, shown_reply FROM exchanges"))
    assert "What now?" in str(stored)
    assert "diagnosis" not in str(stored)


def test_a_first_request_that_leaves_nothing_begins_no_memory(world: Two) -> None:
    schema = {"response_format": {"type": "json_object"}}
    body = {
        "model": "m",
        "user": "alice",
        "messages": [{"role": "user", "content": "Is it rude? Say it in JSON."}],
    }
    world.upstream.queue(say("{}"))
    assert world.one.post({**body, **schema}).headers["x-mnemogate-memory"] == "read"
    assert not world.one.call(_read(world.one, "SELECT uid FROM agents"))


def test_appended_requests_at_both_are_answered_in_turn(world: Two) -> None:
    gate = Gate()
    world.upstream.queue(say("First reply.", hold_before_headers=gate), say("Second reply."))
    first = world.threads.submit(world.chat, world.one, "First.", **APPEND)
    becomes(lambda: len(world.prompts()) == 1)
    second = world.threads.submit(world.chat, world.other, "Second.", **APPEND)
    time.sleep(0.2)
    assert len(world.prompts()) == 1, "it waits for the conversation"
    gate.open()
    assert first.result().status == second.result().status == 200
    assert [text for text in world.prompts()[-1] if text in ("First.", "First reply.")] == [
        "First.",
        "First reply.",
    ]


def test_a_key_made_at_one_closes_the_door_of_the_other(world: Two) -> None:
    assert world.chat(world.other, "Hello.").status == 200
    store = world.one.app.services.store
    assert store is not None
    _, plain = world.one.call(store.keys.create("default", "k"))
    becomes(lambda: world.chat(world.other, "Hello.").status == 401)
    assert world.chat(world.other, "Hello.", authorization=f"Bearer {plain}").status == 200
    world.one.call(store.keys.revoke("k"))
    becomes(lambda: world.chat(world.other, "Hello.", authorization=f"Bearer {plain}").status == 401)


def test_an_agent_that_is_changed_or_deleted_at_one_is_that_at_the_other(world: Two) -> None:
    agent = world.agent()
    assert world.send(world.other, agent, "Hello.")[0] == 200
    _, (tool,) = world.ask(world.one, "GET", "/v1/tools/?name=archival_memory_search")
    changes = (
        (f"/v1/agents/{agent}", {"system": "You are a pirate."}, "You are a pirate."),
        (f"/v1/agents/{agent}/tools/attach/{tool['id']}", None, "archival_memory_search"),
    )
    for path, change, shown in changes:
        assert world.ask(world.one, "PATCH", path, change)[0] == 200
        assert world.send(world.other, agent, "Hello.")[0] == 200
        assert shown in world.upstream.last.body.decode()
    assert world.ask(world.one, "DELETE", f"/v1/agents/{agent}")[0] == 200
    assert world.send(world.other, agent, "Hello.")[0] == 404
    assert world.ask(world.other, "GET", f"/v1/agents/{agent}")[0] == 404


def test_a_run_is_cancelled_at_the_other_gateway(world: Two) -> None:
    agent, gate = world.agent(), Gate()
    world.upstream.queue(say("Never said.", hold_before_headers=gate), say("Said."))
    future = world.threads.submit(world.send, world.one, agent, "Wait.")
    becomes(lambda: len(world.prompts()) == 1)
    status, ended = world.ask(world.other, "POST", f"/v1/agents/{agent}/messages/cancel", {})
    assert (status, list(ended.values())) == (200, ["cancelled"])
    status, reply = future.result()
    assert (status, reply["stop_reason"]["stop_reason"]) == (200, "cancelled")
    gate.open()
    status, reply = world.send(world.other, agent, "And now?")
    assert (status, reply["messages"][-1]["content"]) == (200, "Said.")


def test_a_gateway_that_starts_lets_the_runs_of_others_be(postgres: str, upstream: StrictUpstream) -> None:
    url = empty_database(postgres).url

    async def open_here() -> Store:
        return await open_store(url)

    settings = settings_for(upstream)
    with serve(settings, open_here) as one:
        gate = Gate()
        with serve(settings, open_here) as other:
            world = Two(upstream, one, other)
            agent = world.agent()
        upstream.queue(say("Said.", hold_before_headers=gate))
        future = world.threads.submit(world.send, one, agent, "Wait.")
        becomes(lambda: len(world.prompts()) == 1)
        with serve(settings, open_here):
            gate.open()
            status, reply = future.result()
        assert (status, reply["messages"][-1]["content"]) == (200, "Said.")
        world.threads.shutdown()


def test_a_run_in_the_background_is_read_where_it_is_not_performed(
    postgres: str, upstream: StrictUpstream
) -> None:
    with two(postgres, upstream, performs_jobs=False) as world:
        agent, gate = world.agent(), Gate()
        upstream.queue(
            say("A long reply.", tokens=["A long", " reply."], hold_after={2: gate}), say("Behind.")
        )
        path = f"/v1/agents/{agent}/messages"
        options = {"stream_tokens": True, "streaming": True, "background": True, "include_pings": False}
        read = world.threads.submit(world.ask, world.one, "POST", path, {"input": "Work.", **options})
        becomes(lambda: len(world.prompts()) == 1)
        behind = world.threads.submit(world.send, world.one, agent, "And then?")
        runs = world.ask(world.one, "GET", f"/v1/runs/?agent_id={agent}&background=true")[1]
        again = world.threads.submit(
            world.ask, world.other, "POST", f"/v1/runs/{runs[0]['id']}/stream", {"starting_after": 0}
        )
        time.sleep(0.3)
        assert len(world.prompts()) == 1, "what came behind it waits"
        gate.open()
        for reader in (read, again):
            status, body = reader.result()
            assert status == 200
            assert b"A long" in body
            assert body.endswith(b"data: [DONE]\n\n")
        status, reply = behind.result()
        assert (status, reply["messages"][-1]["content"]) == (200, "Behind.")
        assert "A long reply." in str(world.prompts()[-1])


def test_the_reservation_of_a_response_holds_until_another_gateway_has_made_it(
    postgres: str, upstream: StrictUpstream
) -> None:
    with two(postgres, upstream, performs_jobs=False, upstreams=chat_upstreams(upstream)) as world:
        services, gate = world.one.app.services, Gate()
        limiter, drop_ended = services.accounting.limiter, services.background_responses.maker.drop_ended

        def used() -> float:
            world.one.call(drop_ended())
            (state,) = world.one.call(limiter.list_states("default", 0, ""))
            return state.used

        limit = UsageLimit(0, "default", None, None, "tokens", "day", 1_000, "refuse")
        world.one.call(services.store.limits.add(limit))
        upstream.queue(say("Hello.", hold_before_headers=gate))
        body = {"model": "m", "input": "Hi", "background": True, "max_output_tokens": 900}
        made = world.ask(world.one, "POST", "/v1/responses", body)[1]
        becomes(lambda: world.prompts())
        assert used() > 900
        assert world.ask(world.one, "POST", "/v1/responses", body)[0] == 429
        gate.open()
        path = f"/v1/responses/{made['id']}"
        becomes(lambda: world.ask(world.one, "GET", path)[1]["status"] == "completed")
        assert used() < 900


def test_a_send_comes_after_those_that_another_gateway_has_accepted(
    postgres: str, upstream: StrictUpstream
) -> None:
    url = empty_database(postgres).url

    async def open_here() -> Store:
        return await open_store(url)

    settings = settings_for(upstream)
    with (
        serve(settings, open_here, performs_jobs=False) as one,
        serve(settings, open_here, performs_jobs=False) as other,
    ):
        world = Two(upstream, one, other)
        agent = world.agent()
        upstream.queue(say("To the first."), say("To the second."))
        path = f"/v1/agents/{agent}/messages/async"
        assert world.ask(one, "POST", path, {"input": "First."})[0] == 200
        future = world.threads.submit(world.send, other, agent, "Second.")
        time.sleep(0.3)
        assert not world.prompts(), "nobody has performed the first yet"
        with serve(settings, open_here):
            status, reply = future.result()
        assert (status, reply["messages"][-1]["content"]) == (200, "To the second.")
        assert "First." in str(world.prompts()[-1])
        world.threads.shutdown()


def test_no_send_waits_for_a_run_of_a_deleted_agent(postgres: str, upstream: StrictUpstream) -> None:
    with two(postgres, upstream, performs_jobs=False) as world:
        agent, gate = world.agent(), Gate()
        upstream.queue(say("Too late.", tokens=["Too", " late."], hold_after={2: gate}))
        options = {"streaming": True, "stream_tokens": True, "background": True}
        path = f"/v1/agents/{agent}/messages"
        read = world.threads.submit(world.ask, world.one, "POST", path, {"input": "Work.", **options})
        becomes(lambda: len(world.prompts()) == 1)
        time.sleep(0.3)
        assert world.ask(world.one, "DELETE", f"/v1/agents/{agent}")[0] == 200
        _, body = read.result()
        gate.open()
        assert b'"message_type":"ping"' in body, "its log begins with that"
        assert b"deleted" in body


def test_a_gateway_that_stops_begins_no_more_jobs(postgres: str, upstream: StrictUpstream) -> None:
    """They would be cut when it has stopped, and performed again elsewhere."""
    gate = Gate()
    upstream.queue(say("Hello.", hold_before_headers=gate))
    with two(postgres, upstream, performs_jobs=False, upstreams=chat_upstreams(upstream)) as world:
        waiting = world.threads.submit(world.chat, world.other, "Hi")
        upstream.request_gate(1).wait_sync()
        world.other.loop.call_soon_threadsafe(world.other.app.begin_stop, "SIGTERM")
        body = {"model": "m", "input": "Go on.", "background": True}
        status, made = world.ask(world.one, "POST", "/v1/responses", body)
        assert status == 200, made
        time.sleep(0.5)  # who performs jobs is woken when they are enqueued
        assert world.one.call(_read(world.one, "SELECT state, attempt FROM jobs")) == [("pending", 0)]
        gate.open()
        assert waiting.result().status == 200


def test_a_gateway_that_stops_performs_the_runs_that_its_requests_wait_for(
    postgres: str, upstream: StrictUpstream
) -> None:
    """There may be no other gateway; they would be cut at the end of `shutdown_s`, and their runs stay unasked."""
    gate = Gate()
    upstream.queue(say("First.", hold_before_headers=gate), say("Second."), say("Third."))
    with two(postgres, upstream, performs_jobs=False) as world:
        agent, unawaited = world.agent(), world.agent()
        for text in ("One.", "Two."):
            assert (
                world.ask(world.other, "POST", f"/v1/agents/{agent}/messages/async", {"input": text})[0]
                == 200
            )
        upstream.request_gate(1).wait_sync()
        waiting = world.threads.submit(world.send, world.other, agent, "Three.")
        world.other.loop.call_soon_threadsafe(world.other.app.begin_stop, "SIGTERM")
        assert (
            world.ask(world.one, "POST", f"/v1/agents/{unawaited}/messages/async", {"input": "Four."})[0]
            == 200
        )
        gate.open()
        status, reply = waiting.result()
        assert (status, reply["messages"][-1]["content"]) == (200, "Third.")
        assert world.one.call(_read(world.one, "SELECT state, attempt FROM jobs")) == [("pending", 0)]


def test_a_gateway_that_stops_performs_the_run_whose_stream_is_read(
    postgres: str, upstream: StrictUpstream
) -> None:
    gate = Gate()
    upstream.queue(say("First.", hold_before_headers=gate), say("Second."))
    with two(postgres, upstream, performs_jobs=False) as world:
        path = f"/v1/agents/{world.agent()}/messages/async"
        for text in ("One.", "Two."):
            status, run = world.ask(world.other, "POST", path, {"input": text})
            assert status == 200
        upstream.request_gate(1).wait_sync()
        with httpx.stream(
            "POST", f"{world.other.url}/v1/runs/{run['id']}/stream", json={}, timeout=PATIENCE_S
        ) as stream:
            lines = stream.iter_lines()
            assert next(lines) == ":"
            world.other.loop.call_soon_threadsafe(world.other.app.begin_stop, "SIGTERM")
            gate.open()
            assert "Second." in "".join(lines)
