"""Two gateways over one PostgreSQL send the same requests as one gateway over SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.run.background import tasks
from gateway.run.background.indexing import IndexingService
from gateway.settings import BlockSettings
from storage.errors import StoreTimeout, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.sql.default_blocks import DefaultBlocks
from tests.agents.random_agents import RandomAgents
from tests.doubles.upstream import StrictUpstream, fail
from tests.gateway.memory.random_users import RandomUsers
from tests.gateway.sdk import Clock, World, agent, remember
from tests.patience import becomes


@contextmanager
def gateways(upstream: StrictUpstream, url: str, profile: str = "helper") -> Iterator[list[World]]:
    clock = Clock()
    with ExitStack() as stack:
        yield [stack.enter_context(remember(upstream, url, agent(profile), clock=clock)) for _ in range(2)]


@pytest.fixture
def no_indexing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories that passages bring are not indexed by the clock.

    A search weighs what the request shows already otherwise once that is indexed, so its hits would depend on how busy
    the machine is.
    """
    monkeypatch.setattr(IndexingService, "add_unchecked", lambda _, agent: None)


@pytest.mark.usefixtures("no_indexing")
@pytest.mark.parametrize("seed", [0, 1])  # with 1 each kind of step occurs
def test_two_gateways_send_what_one_does(
    upstream: StrictUpstream, url: str, tmp_path: Path, seed: int
) -> None:
    with gateways(upstream, url) as worlds:
        two = RandomUsers(worlds, seed).run()
    with remember(upstream, tmp_path, agent()) as world:
        one = RandomUsers([world], seed).run()
    assert two == one


@pytest.mark.usefixtures("no_indexing")
@pytest.mark.parametrize("seed", [4])  # with this seed each act occurs
def test_agents_of_two_gateways_are_those_of_one(
    upstream: StrictUpstream, url: str, tmp_path: Path, seed: int
) -> None:
    with gateways(upstream, url) as worlds:
        two, sent_by_two = RandomAgents(worlds, seed).run()
    with remember(upstream, tmp_path, agent()) as world:
        one, sent_by_one = RandomAgents([world], seed).run()
    assert two == one
    assert sent_by_two == sent_by_one


def test_a_database_that_is_busy_at_the_start_has_new_blocks_of_the_settings_later(
    upstream: StrictUpstream, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    human, goals = BlockSettings("human"), BlockSettings("goals", value="Learn Greek.")
    monkeypatch.setattr(tasks, "RETRY_START_S", 0.01)
    follow, tries, followed = DefaultBlocks.follow, list[int](), list[int]()

    async def follow_later(*arguments: Any, **options: Any) -> None:
        tries.append(1)
        if len(tries) % 3:
            raise StoreTimeout("no connection was free in time")
        await follow(*arguments, **options)
        followed.append(1)

    for count, where in enumerate((tmp_path, url), 1):
        with remember(upstream, where, agent(blocks=(human,))) as world:
            world.chat(user="alice", model="agent/helper").say("Hello.")
        with monkeypatch.context() as busy:
            busy.setattr(DefaultBlocks, "follow", follow_later)
            with remember(upstream, where, agent(blocks=(human, goals))) as world:
                becomes(lambda count=count: len(followed) == count)  # type: ignore[misc]
                assert world.block("alice", "goals").value == "Learn Greek."


def test_blocks_that_could_not_follow_the_settings_follow_at_the_next_start(
    upstream: StrictUpstream, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    human, goals = BlockSettings("human"), BlockSettings("goals", value="Learn Greek.")

    async def refuse(*arguments: Any, **options: Any) -> None:
        raise WriteConflict("the block is written by another")

    with remember(upstream, url, agent(blocks=(human,))) as world:
        world.chat(user="alice", model="agent/helper").say("Hello.")
    with monkeypatch.context() as failing:
        failing.setattr(DefaultBlocks, "follow", refuse)
        with remember(upstream, url, agent(blocks=(human, goals))):
            pass
    with remember(upstream, url, agent(blocks=(human, goals))) as world:
        assert world.block("alice", "goals").value == "Learn Greek."


def test_a_response_continues_at_another_gateway(upstream: StrictUpstream, url: str) -> None:
    previous = None
    with gateways(upstream, url) as worlds:
        for n in range(4):
            client = worlds[n % 2].sdk.responses
            response = client.create(
                model="agent/helper", user="alice", input=f"Say {n}", previous_response_id=previous
            )
            previous = response.id
    contents = [message["content"] for message in upstream.last.messages if message["role"] == "user"]
    assert contents == [f"Say {n}" for n in range(4)]


def test_a_first_request_that_fails_leaves_an_empty_memory(upstream: StrictUpstream, url: str) -> None:
    upstream.queue(fail(400))
    with gateways(upstream, url) as (world, _):
        assert world.post([{"role": "user", "content": "Hello."}], user="alice").status == 400
        assert world.query("SELECT subject, next_seq FROM agents") == [("user:alice", 1)]
        assert world.query("SELECT count(*) FROM conversations") == [0]


def test_a_forgotten_response_is_at_no_gateway(upstream: StrictUpstream, url: str) -> None:
    options: Any = {"model": "agent/helper", "user": "alice"}
    with gateways(upstream, url) as worlds:
        one, two = (world.sdk.responses for world in worlds)
        old = one.create(input="One", **options)
        old = two.create(input="Two", previous_response_id=old.id, **options)

        async def forget() -> None:
            found = await worlds[0].store.agents.find(Scope("default", "helper", "user:alice"))
            assert found is not None
            await worlds[0].store.forgetting.forget(found.id, ForgetTarget(is_all=True))

        worlds[0].gateway.call(forget())
        for client in (one, two):
            with pytest.raises(openai.BadRequestError, match="not found"):
                client.create(input="Three", previous_response_id=old.id, **options)
        new = one.create(input="New", **options)
        two.create(input="Newer", previous_response_id=new.id, **options)
    assert [m["content"] for m in upstream.last.messages if m["role"] == "user"] == ["New", "Newer"]
