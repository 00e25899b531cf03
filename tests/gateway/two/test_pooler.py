"""A PgBouncer in transaction mode between gateways and PostgreSQL: a transaction may get any session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.open_database import check_database, open_database
from gateway.settings import DatabaseSettings, Settings
from tests.doubles.upstream import StrictUpstream
from tests.gateway.two.pooler import Pooler, find_binaries, read_version
from tests.patience import PATIENCE_S, becomes
from tests.server import RawReply, RunningGateway, serve, settings_for

# Each of these, at both gateways in turn.
PEOPLE, TURNS = 8, 6
JSON = {"content-type": "application/json"}

pytestmark = pytest.mark.skipif(not find_binaries(), reason="PgBouncer is not installed")


def ways() -> list[Any]:
    """Each PgBouncer without prepared statements, and with them if it carries them."""
    found = []
    for binary in find_binaries():
        major, minor = read_version(binary)
        found.append(pytest.param(binary, 0, id=f"{major}.{minor}"))
        if (major, minor) >= (1, 21):
            found.append(pytest.param(binary, 1000, id=f"{major}.{minor}-prepared"))
    return found


@dataclass
class World:
    pooler: Pooler
    settings: Settings
    gateways: list[RunningGateway]
    upstream: StrictUpstream

    def ask(self, number: int, method: str, path: str, body: Any) -> tuple[int, Any]:
        gateway = self.gateways[number % len(self.gateways)]
        reply = gateway.ask(method, path, json.dumps(body).encode(), JSON)
        return reply.status, json.loads(reply.body)

    def chat(self, number: int, user: str, messages: list[dict[str, str]], **headers: str) -> RawReply:
        gateway = self.gateways[number % len(self.gateways)]
        return gateway.post({"model": "m", "user": user, "messages": messages}, headers)

    def are_ready(self) -> bool:
        return all(each.ask("GET", "/health/ready").json["status"] == "ok" for each in self.gateways)


@contextmanager
def pooled(upstream: StrictUpstream, url: str, binary: str, prepared: int) -> Iterator[World]:
    with Pooler(binary, url, prepared=prepared) as pooler, ExitStack() as stack:
        database = DatabaseSettings(url=pooler.url, pooled=True, pooler_prepares=prepared > 0, listen_url=url)
        settings = settings_for(upstream, database=database)
        served = [stack.enter_context(serve(settings, lambda: open_database(settings))) for _ in range(2)]
        yield World(pooler, settings, served, upstream)


@pytest.mark.parametrize(("binary", "prepared"), ways())
def test_memory_works_through_a_pooler_that_is_killed_once(
    upstream: StrictUpstream, url: str, binary: str, prepared: int
) -> None:
    with pooled(upstream, url, binary, prepared) as world, ThreadPoolExecutor(PEOPLE) as threads:

        def talk(person: int) -> None:
            """Resends its list; nothing of it may be left out, whichever gateway is asked."""
            messages: list[dict[str, str]] = []
            for turn in range(TURNS):
                messages.append({"role": "user", "content": f"Item {person}x{turn} is packed."})
                reply = world.chat(person + turn, f"user{person}", messages)
                assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on"), reply
                assert "x-mnemogate-durable" not in reply.headers
                messages.append(
                    {"role": "assistant", "content": reply.json["choices"][0]["message"]["content"]}
                )

        def run(person: int) -> str:
            """Sends to an agent of its own, which keeps its conversation itself."""
            blocks = [{"label": "human", "value": "Name: Ann"}]
            status, made = world.ask(
                person, "POST", "/v1/agents/", {"model": "up/m", "memory_blocks": blocks}
            )
            assert status == 200, made
            for turn in range(TURNS):
                path = f"/v1/agents/{made['id']}/messages"
                status, sent = world.ask(person + turn, "POST", path, {"input": f"Send {person}x{turn}."})
                assert status == 200, sent
            return str(made["id"])

        for each in [threads.submit(talk, n) for n in range(PEOPLE)]:
            each.result(PATIENCE_S)
        # The first alone: msgspec reads a struct's fields when it is first used, and two threads at once crash it.
        agents = [run(0)]
        agents += [each.result(PATIENCE_S) for each in [threads.submit(run, n) for n in range(1, 4)]]
        for each in world.gateways:
            assert each.app.services.store.health.error is None, each.app.services.store.health

        world.pooler.kill()
        hello = [{"role": "user", "content": "Item 9 is lost."}]
        assert world.chat(0, "user0", hello).headers["x-mnemogate-memory"] == "unavailable"
        world.pooler.start()
        becomes(world.are_ready)

        for n in range(PEOPLE):
            asked = [{"role": "user", "content": f"Where is item {n}x2 packed?"}]
            reply = world.chat(n, f"user{n}", asked)
            assert reply.headers["x-mnemogate-memory"] == "on"
            assert f"Item {n}x2 is packed." in str(world.upstream.last.messages)
        for n, agent in enumerate(agents):
            status, sent = world.ask(n + 1, "POST", f"/v1/agents/{agent}/messages", {"input": "And now?"})
            assert status == 200, sent
            contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "user"]
            assert [text[-9:] for text in contents[:TURNS]] == [
                f"Send {n}x{turn}."[-9:] for turn in range(TURNS)
            ]


@pytest.mark.parametrize(("binary", "prepared"), ways())
def test_changes_are_notified_past_the_pooler(
    upstream: StrictUpstream, url: str, binary: str, prepared: int
) -> None:
    with pooled(upstream, url, binary, prepared) as world:
        findings = check_database(world.settings)
        assert findings.warnings == ()
        assert "notifications between gateways arrive" in findings.notes
        _, made = world.ask(0, "POST", "/v1/agents/", {"name": "first", "model": "up/m"})
        send = f"/v1/agents/{made['id']}/messages"
        assert world.ask(1, "POST", send, {"input": "Hi"})[0] == 200
        assert world.ask(0, "PATCH", f"/v1/agents/{made['id']}", {"system": "You are a heron."})[0] == 200
        # The other gateway believes what it read for as long as no notification comes.
        becomes(lambda: world.ask(1, "POST", send, {"input": "Hi"})[0] == 200 and _is_heron(world))


def _is_heron(world: World) -> bool:
    return "You are a heron." in str(world.upstream.last.messages[0])


@pytest.mark.parametrize("binary", [each for each in find_binaries() if read_version(each) < (1, 21)])
def test_check_config_reports_a_setting_that_fails_with_a_pooler(url: str, binary: str) -> None:
    with Pooler(binary, url) as pooler:
        through = DatabaseSettings(url=pooler.url, pooled=True, listen_url=pooler.url)
        prepares = replace(through, pooler_prepares=True, listen_url=url)
        heard, carried = (check_database(Settings(database=each)) for each in (through, prepares))
    # It is remembered, and seen by others some seconds later.
    (warning,) = heard.warnings
    assert "do not arrive" in warning
    assert "database.listen_url name the server itself" in warning
    (fault,) = carried.warnings
    assert fault.startswith("nothing would be remembered")
    assert "without database.pooler_prepares" in fault
