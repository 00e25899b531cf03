"""PostgreSQL fails: chat continues without memory and reports it, and memory comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from msgspec.structs import replace

from gateway.open_database import open_database
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.settings import DatabaseSettings, MemorySettings
from storage.errors import StoreError
from storage.records import Scope
from tests.doubles.upstream import StrictUpstream
from tests.gateway.two.proxy import Proxy
from tests.patience import becomes
from tests.postgres import query
from tests.server import RawReply, RunningGateway, serve, settings_for

pytestmark = pytest.mark.usefixtures("own_sessions")

ROLE = "mnemogate_test"
Message = dict[str, str]


def run(url: str, *statements: str) -> None:
    """Runs statements as the server's own user."""

    async def execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            for each in statements:
                await connection.execute(each)
        finally:
            await connection.close()

    asyncio.run(execute())


@dataclass
class World:
    """A gateway that reaches its database through a proxy, and one conversation of one user."""

    gateway: RunningGateway
    upstream: StrictUpstream
    proxy: Proxy
    # The URL of the database without the proxy.
    url: str
    messages: list[Message] = field(default_factory=list)
    # The texts of the user's messages that were answered.
    sent_texts: list[str] = field(default_factory=list)

    def say(self, text: str) -> str:
        """Sends the whole conversation with a new message. Returns the header that says what became of memory."""
        self.messages.append({"role": "user", "content": text})
        reply = self.post(self.messages)
        assert reply.status == 200, reply.body
        content = reply.json["choices"][0]["message"]["content"]
        self.messages.append({"role": "assistant", "content": content})
        self.sent_texts.append(text)
        return reply.headers["x-mnemogate-memory"]

    def post(self, messages: list[Message], **headers: str) -> RawReply:
        """Sends a chat. headers: the values of `x-mnemogate-…` headers by the rest of their names."""
        body = {"model": "m", "user": "ann", "messages": messages}
        return self.gateway.post(body, {f"x-mnemogate-{name}": value for name, value in headers.items()})

    def find_degraded(self) -> RawReply | None:
        """Returns the reply of `/health/ready` if it says that the store does not work."""
        ready = self.gateway.ask("GET", "/health/ready")
        return ready if ready.json["status"] == "degraded" else None

    def wait_until_it_works(self) -> None:
        becomes(lambda: self.gateway.ask("GET", "/health/ready").json["status"] == "ok")

    def export_texts(self) -> list[str]:
        """Returns the texts that the user sent in active turns, as they are exported from the database itself."""

        async def read() -> list[str]:
            store = await open_database(
                replace(self.gateway.app.services.settings, database=DatabaseSettings(url=self.url))
            )
            try:
                operations = TransferOperations(store)
                agent = await store.agents.find(Scope("default", "default", "user:ann"))
                assert agent is not None
                lines, cursor = await operations.read_page(agent)
                while cursor is not None:
                    page, cursor = await operations.read_page(agent, cursor)
                    lines += page
            finally:
                await store.close()
            exchanges = [line["exchange"] for line in lines if "exchange" in line]
            active_inputs = [exchange["input"] for exchange in exchanges if exchange["active"]]
            return [m["content"] for messages in active_inputs for m in messages if m["role"] == "user"]

        return asyncio.run(read())


@contextmanager
def serve_world(upstream: StrictUpstream, url: str) -> Iterator[World]:
    with Proxy(url) as proxy:
        settings = settings_for(
            upstream,
            database=DatabaseSettings(url=proxy.url),
            memory=MemorySettings(recall_deadline_ms=5_000),
        )
        with serve(settings, lambda: open_database(settings)) as gateway:
            yield World(gateway, upstream, proxy, url)


@pytest.fixture
def world(upstream: StrictUpstream, url: str) -> Iterator[World]:
    with serve_world(upstream, url) as world:
        yield world


# -- faults


# Begins a fault, and returns the function that ends it.
Fault = Callable[[World], Callable[[], None]]


def refuse(world: World) -> Callable[[], None]:
    world.proxy.refuse()
    return world.proxy.allow


def stall(world: World) -> Callable[[], None]:
    world.proxy.stall()
    return world.proxy.flow


def make_read_only(world: World) -> Callable[[], None]:
    """Makes the database read-only, as an old primary is after a failover."""
    name = urlsplit(world.url).path[1:]
    run(world.url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    world.proxy.cut()
    return lambda: run(
        world.url,
        "SET default_transaction_read_only = off",
        f"ALTER DATABASE {name} RESET default_transaction_read_only",
    )


def fill_disk(world: World) -> Callable[[], None]:
    """Lets no table have room for another row of turns or checks."""
    run(
        world.url,
        "CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
        *(f"CREATE TRIGGER no_room BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no_room()"
          for table in ("exchanges", "probe")),
    )  # fmt: skip
    return lambda: run(world.url, "DROP FUNCTION no_room CASCADE")


def forbid_connections(world: World) -> Callable[[], None]:
    """Leaves no connection to the database for any role but the server's own."""
    name = urlsplit(world.url).path[1:]
    run(world.url, f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    world.proxy.cut()
    return lambda: run(world.url, f"ALTER DATABASE {name} CONNECTION LIMIT -1")


@pytest.fixture
def role(url: str) -> Iterator[str]:
    """Makes a role that is not the server's own, as gateways should have. Yields the URL of the database with it."""
    run(
        url,
        f"DROP ROLE IF EXISTS {ROLE}",
        f"CREATE ROLE {ROLE} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}",
    )
    yield url.replace("//postgres:", f"//{ROLE}:")
    run(url, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")


@pytest.mark.parametrize(
    "fault", [refuse, stall, make_read_only, fill_disk, forbid_connections], ids=lambda fault: fault.__name__
)
def test_chat_continues_without_memory_and_memory_comes_back(
    upstream: StrictUpstream, url: str, role: str, fault: Fault
) -> None:
    with serve_world(upstream, role) as world:
        world.url = url
        assert world.say("My cat is called Miso.") == "on"
        end = fault(world)
        try:
            # The first request during the fault may still read something, or wait for it.
            world.say("Is it so?")
            assert world.say("And now?") == "unavailable"
            # A server that is silent counts as down only after a second wait, `PoolLimits.check_timeout_s`.
            ready = becomes(world.find_degraded)
            assert ready.status == 200
            messages = [{"role": "user", "content": "Only with memory."}]
            assert world.post(messages, memory="strict").status == 503
            assert world.post(messages, conversation="room", history="append").status == 503
        finally:
            end()
        world.wait_until_it_works()
        assert world.say("Are you back?") == "on"
        assert world.say("So it is.") == "on"
        # The client's list had the messages that it sent during the fault.
        stored = world.export_texts()
        assert [text for text in stored if text in world.sent_texts] == world.sent_texts
        messages = [{"role": "user", "content": "What is my cat called?"}]
        assert world.post(messages).headers["x-mnemogate-memory"] == "on"
        assert "Miso" in upstream.last.body.decode()


def test_an_outage_and_its_end_are_shown_without_a_request_that_uses_the_database(world: World) -> None:
    def read_states() -> tuple[str, str, bool]:
        ready = world.gateway.ask("GET", "/health/ready").json
        scraped = world.gateway.ask("GET", "/metrics").body.decode().splitlines()
        return ready["status"], ready["store"], "mnemogate_store_up 1.0" in scraped

    assert read_states() == ("ok", "ok", True)
    world.proxy.refuse()
    becomes(lambda: read_states() == ("degraded", "broken", False))
    world.proxy.allow()
    becomes(lambda: read_states() == ("ok", "ok", True))


def test_a_gateway_that_starts_before_its_database_remembers_later(
    upstream: StrictUpstream, url: str
) -> None:
    with Proxy(url) as proxy:
        proxy.refuse()
        settings = settings_for(upstream, database=DatabaseSettings(url=proxy.url))
        with serve(settings, lambda: open_database(settings)) as gateway:
            world = World(gateway, upstream, proxy, url)
            assert world.say("Is anybody there?") == "unavailable"
            proxy.allow()
            world.wait_until_it_works()
            assert world.say("Now?") == "on"
            assert world.export_texts() == world.sent_texts


@pytest.mark.parametrize("after_reply", [False, True], ids=["never done", "done"])
@pytest.mark.parametrize("turns", [1, 3], ids=["an opening", "a turn"])
def test_a_commit_whose_answer_is_lost_is_written_once(world: World, after_reply: bool, turns: int) -> None:
    for number in range(turns - 1):
        world.say(f"Turn {number}.")
    lost = world.proxy.cut_at("INSERT INTO exchanges", after_reply=after_reply)
    # The client gets its reply in any case. Whether the turn is stored is unknown.
    world.say("Is this stored?")
    lost.wait_sync()
    world.wait_until_it_works()
    assert world.say("Go on.") == "on"
    assert world.say("And on.") == "on"
    assert world.export_texts() == world.sent_texts


@pytest.mark.parametrize("after_reply", [False, True], ids=["never done", "done"])
def test_usage_whose_commit_is_lost_is_counted_once(world: World, after_reply: bool) -> None:
    world.say("First.")
    counter = world.gateway.app.services.accounting.meter
    lost = world.proxy.cut_at("^COMMIT", after_reply=after_reply, within="INSERT INTO usage ")
    with pytest.raises(StoreError):
        world.gateway.call(counter.write())
    lost.wait_sync()
    world.wait_until_it_works()
    world.say("Second.")
    for _ in range(2):
        world.gateway.call(counter.write())
    assert query(world.url, "SELECT sum(requests) FROM usage") == [(2,)]


def test_a_request_that_is_sent_again_after_a_lost_commit_is_one_turn(world: World) -> None:
    world.say("First.")
    before = list(world.messages)
    lost = world.proxy.cut_at("INSERT INTO exchanges", after_reply=True)
    world.say("Second.")
    lost.wait_sync()
    world.wait_until_it_works()
    world.messages[:] = before
    world.sent_texts.pop()
    assert world.say("Second.") == "on"
    assert world.export_texts() == ["First.", "Second."]


def test_connections_that_are_cut_again_and_again_double_nothing(world: World) -> None:
    for number in range(12):
        if number % 3 == 1:
            world.proxy.cut()
        world.say(f"Turn {number}.")
    world.wait_until_it_works()
    world.say("The last one.")
    stored = world.export_texts()
    assert [text for text in stored if text in set(world.sent_texts)] == world.sent_texts
    assert len(set(stored)) == len(stored)


def test_a_slow_database_delays_and_loses_nothing(world: World) -> None:
    world.say("First.")
    world.proxy.slow_down(0.06)
    for number in range(3):
        assert world.say(f"Slow {number}.") == "on"
    world.proxy.slow_down(0.0)
    assert world.say("Last.") == "on"
    assert world.export_texts() == world.sent_texts


def test_the_log_of_a_fault_has_no_text_of_a_message(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.say("My secret is xyzzy.")
    end = fill_disk(world)
    world.say("It is xyzzy still.")
    world.say("And xyzzy again.")
    end()
    world.wait_until_it_works()
    assert "xyzzy" not in caplog.text
    assert "No space left" in str(world.gateway.app.services.store.health.error)
