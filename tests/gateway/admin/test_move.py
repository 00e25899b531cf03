"""A whole store is moved into another, all of it, and once, however often the move is broken off."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from msgspec.structs import replace

from gateway.errors import GatewayError
from gateway.run.admin.transfer.move import Move, MoveOutcome
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.settings import BlockSettings
from storage.forget_commands import ForgetTarget
from storage.records import Agent
from storage.sql.store import Store
from storage.usage_records import COUNTERS, UsageKey, UsageLimit, UsagePart
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.admin.test_transfer_agents import rich, without
from tests.gateway.sdk import agent
from tests.patience import becomes
from tests.stored import open_store, rows

# (tests/gateway/two/test_moving.py moves into PostgreSQL.)
pytestmark = pytest.mark.sqlite
BLOCKS = (BlockSettings("human"), BlockSettings("rules", value="House rules.", shared=True, writable=True))


@pytest.fixture(scope="module")
def lived_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a gateway that was used in all ways and has stopped. Each test moves a copy of its folder."""
    folder = tmp_path_factory.mktemp("lived")
    with (
        StrictUpstream() as upstream,
        letta(upstream, folder, agent("helper", blocks=BLOCKS), admin_token="the-owner") as world,
    ):
        live(world)
    (file,) = folder.glob("*.db")
    assert not file.with_name(f"{file.name}-wal").exists(), "the file has all that was written"
    return file


@pytest.fixture
def lived(lived_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lived_file.parent, tmp_path / "lived")) / lived_file.name


def live(world: LettaWorld) -> None:
    upstream, client = world.upstream, world.letta
    made = rich(world)
    # Each of two agents sees a block of the other's.
    second = client.agents.create(model="openai/m", memory_blocks=[{"label": "task", "value": "Row."}])
    (task,) = client.agents.blocks.list(second.id)
    human = client.agents.blocks.retrieve("human", agent_id=made["agent"])
    client.agents.blocks.attach(task.id, agent_id=made["agent"])
    client.agents.blocks.attach(human.id, agent_id=second.id)
    client.agents.create(model="openai/m", name="dreamer", memory_blocks=[], enable_sleeptime=True)
    client.blocks.create(label="spare", value="Nobody has it.")
    for user in ("ann", "bob"):
        chat = world.world.chat(user=user, model="agent/helper")
        upstream.queue(
            call_tools(
                Call("memory_insert", {"label": "human", "new_string": f"{user} sails."}),
                Call("memory_insert", {"label": "rules", "new_string": f"{user} was here."}),
            ),
            say("Noted."),
        )
        chat.say("I sail.")
        chat.say("Where to?")
        world.world.chat(user=user).say(f"I am {user}.")
    brought = world.world.gateway.ask(
        "POST",
        "/v1/manage/imports?user=carol",
        b"- Likes tea.\n- Sails.\n",
        {"x-mnemogate-admin": "the-owner"},
    )
    assert brought.status == 202
    world.world.settle()
    becomes(lambda: world.world.query("SELECT status FROM imports") == ["done"])
    store = world.world.gateway.app.services.store
    bounds: dict[str, Any] = {"expires": 4e9, "models": ("m*",), "user": "ann"}
    key, _ = world.world.gateway.call(store.keys.create("two", "k", "off", **bounds))
    world.world.gateway.call(store.keys.rotate(key.id, 86_400.0))
    world.world.gateway.call(
        store.limits.add(UsageLimit(0, "two", key.id, "*", "tokens", "day", 5, "refuse"))
    )
    world.world.gateway.call(
        store.limits.add(UsageLimit(0, "two", None, None, "cost", "month", 1.5, "refuse"))
    )
    counters = [*range(1, len(COUNTERS) + 1)]

    async def use() -> None:
        added = [(UsageKey(d, "two", "ann", key.id, "up", "m"), counters) for d in range(1200)]
        await store.usage.add(UsagePart("a test", 1, 0.0, added))

    world.world.gateway.call(use())
    world.world.settle()


@pytest.fixture
async def source(lived: Path) -> AsyncIterator[Store]:
    store = await open_store(lived)
    yield store
    await store.close()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Store]:
    store = await open_store(tmp_path / "target.db")
    yield store
    await store.close()


async def everybody(store: Store) -> list[Agent]:
    return await store.move_source.list_agents(0)


async def export(store: Store, agent: Agent) -> list[Any]:
    """The lines of a memory, without what is another in each store."""
    operations = TransferOperations(store)
    found: list[Any] = []
    lines, at = await operations.read_page(agent)
    while True:
        found += [
            line for line in orjson.loads(orjson.dumps(lines)) if line.keys() != {"attached"} or "uid" in line
        ]
        if at is None:
            return without(found, {"last_at", "updated"})
        lines, at = await operations.read_page(agent, at)


async def contents(store: Store) -> dict[str, Any]:
    """All that a store holds, by the names that it has everywhere."""
    found: dict[str, Any] = {}
    for each in await everybody(store):
        found[f"{each.scope}"] = await export(store, each)
        links = await store.move_source.load_links(each.id)
        found[f"attached {each.scope}"] = list(links.attached)
        found[f"readers {each.scope}"] = list(links.readers)
    found["keys"] = await store.move_source.list_keys()
    names = {id: digest for digest, id in (await store.keys.load_numbers()).items()}
    found["limits"] = [
        (each.project, names.get(each.key_id or 0), each.user, each.unit, each.per, each.most, each.then)
        for each in await store.limits.list()
    ]
    found["usage"] = []
    after = UsageKey(-1, "", "", -1, "", "")
    while page := await store.move_source.list_usage(after):
        found["usage"] += [(key._replace(key=0), names.get(key.key), counters) for key, counters in page]
        after, _ = page[-1]
    found["definitions"] = sorted(each[1:6] for each in await store.move_source.list_definitions(0))
    blocks = [replace(block, id=0) for block in await store.move_source.list_blocks(0)]
    found["blocks"] = sorted(blocks, key=lambda block: block.uid)
    return found


async def test_everything_is_moved(source: Store, target: Store) -> None:
    done = await Move(source, target).run()
    assert done.refused == []
    assert done.moved == len(await everybody(source)) > 8
    there, here = await contents(target), await contents(source)
    assert there.keys() == here.keys()
    for name, value in here.items():
        assert there[name] == value, name
    assert len(here["keys"]) == 1
    assert len(here["limits"]) == 2
    assert len([key for key, digest, _ in here["usage"] if key.user == "ann" and digest]) == 1200
    assert {kind for _, kind, *_ in here["definitions"]} == {"tool", "identity"}
    assert any(here[name] for name in here if name.startswith("readers"))
    (brought,) = [
        lines for lines in here.values() if any("import" in line for line in lines if isinstance(line, dict))
    ]
    assert sum("imported_fact" in line for line in brought) == 2
    assert [block.label for block in here["blocks"]].count("rules") == 1
    # The shared block names the turns that it comes from by their rows here.
    sources = await rows(
        target,
        "SELECT a.subject FROM blocks b JOIN block_history h ON h.block = b.id JOIN exchanges e ON e.id = h.exchange "
        "JOIN agents a ON a.id = e.agent WHERE b.label = 'rules' ORDER BY 1",
    )
    assert sources == [("user:ann",), ("user:bob",)]


async def test_usage_and_limits_are_of_a_key_that_has_another_number_there(
    source: Store, target: Store
) -> None:
    await target.keys.create("other", "theirs")
    for _ in range(2):  # begun again, nothing is there twice
        await Move(source, target).run()
    there, here = await contents(target), await contents(source)
    assert (there["usage"], there["limits"]) == (here["usage"], here["limits"])


async def test_a_key_that_was_revoked_or_rotated_since_stays_so_when_it_is_moved_again(
    source: Store, target: Store
) -> None:
    made = {
        name: await source.keys.create("default", name) for name in ("revoked", "rotated", "rotated there")
    }
    await Move(source, target).run()
    usage = (await contents(target))["usage"]
    await source.keys.revoke("revoked")
    _, here = await source.keys.rotate(made["rotated"][0].id, 0.0)
    (moved,) = [key for key in await target.keys.list() if key.name == "rotated there"]
    _, there = await target.keys.rotate(moved.id, 0.0)
    await Move(source, target).run()
    for _, secret in made.values():
        assert await target.keys.find(secret) is None
    for secret, name in ((here, "rotated"), (there, "rotated there")):
        found = await target.keys.find(secret)
        assert found is not None
        assert found.name == name
    assert len(await target.keys.list()) == len(await source.keys.list())
    assert (await contents(target))["usage"] == usage


async def test_a_move_that_is_broken_off_goes_on(source: Store, target: Store) -> None:
    """It is broken off after a transaction of the target's, later each time."""
    dice = random.Random(0)
    done = MoveOutcome()
    for calls in range(1, 400):
        breaking: Any = Breaking(target, dice.randrange(1, 10 + calls))
        with suppress(asyncio.CancelledError):
            done = await asyncio.create_task(Move(source, breaking).run())
            break
    assert calls > 10
    assert done.moved < len(await everybody(source))
    assert done.moved + done.already_there == len(await everybody(source))
    assert await contents(target) == await contents(source)
    assert await rows(target, "SELECT subject FROM agents WHERE subject LIKE 'importing:%'") == []


async def test_a_move_that_was_killed_while_it_took_away_a_half_keeps_every_name(
    source: Store, target: Store
) -> None:
    """What another move has left of a memory is taken away first, and holds its public ids until it is."""
    for calls in range(5, 400, 5):
        with suppress(asyncio.CancelledError):
            await asyncio.create_task(Move(source, cast(Any, Breaking(target, calls))).run())
        hidden = [row[0] for row in await rows(target, _HALF)]
        if hidden:
            break
    await target.forgetting.begin(hidden[0], ForgetTarget(is_all=True))
    await Move(source, target).run()
    assert await contents(target) == await contents(source)


# An import that has a conversation already.
_HALF = (
    """SELECT a.id FROM agents a JOIN conversations c ON c.agent = a.id WHERE a.subject LIKE 'importing:%'"""
)


class Breaking:
    """A store whose user is cancelled before so many calls."""

    def __init__(self, store: Any, calls: int) -> None:
        self._store = store
        self._calls = [calls]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name in ("move_source", "move_target", "transfer"):
            return _BreakingGroup(found, self._calls)
        return found


class _BreakingGroup:
    def __init__(self, group: Any, calls: list[int]) -> None:
        self._group = group
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        self._calls[0] -= 1
        if self._calls[0] < 0:
            raise asyncio.CancelledError
        return getattr(self._group, name)


async def test_what_is_there_is_not_written_over(source: Store, target: Store, tmp_path: Path) -> None:
    await Move(source, target).run()
    await rows(
        source, "UPDATE agents SET next_seq = next_seq + 1 WHERE subject = 'user:ann' AND profile = 'helper'"
    )
    await rows(target, "UPDATE agents SET uid = 'another' WHERE subject = 'user:bob' AND profile = 'helper'")
    before = await contents(target)
    done = await Move(source, target).run()
    assert {line.split(" ")[0] for line in done.refused} == {"user:ann", "user:bob"}
    assert done.moved == 0
    assert await contents(target) == before


@pytest.mark.parametrize("change", ["forget", "forget a fact", "mute a fact", "set a fact", "pause"])
async def test_a_memory_that_was_changed_since_it_was_moved_is_named(
    source: Store, target: Store, change: str
) -> None:
    await Move(source, target).run()
    carol = next(each for each in await everybody(source) if each.scope.subject == "user:carol")
    fact = (await source.facts.list_page(carol.id))[0]
    match change:
        case "forget":
            await source.forgetting.forget(carol.id, ForgetTarget(is_all=True))
        case "forget a fact":
            await source.forgetting.forget(carol.id, ForgetTarget(fact_seqs=[fact.seq]))
        case "mute a fact":
            await source.facts.mute(carol.id, fact.seq, 7.0, is_muted=True)
        case "set a fact":
            await source.facts.set_standing(
                carol.id, fact.seq, is_standing=not fact.standing, replaced_rows=(), at=1.0
            )
        case "pause":
            await source.forgetting.pause(carol.id, 7.0)
    done = await Move(source, target).run()
    (refused,) = done.refused
    assert refused.startswith("user:carol of profile ")
    assert "after it was moved; forget it in the new database" in refused


async def test_a_shared_block_that_was_changed_since_it_was_moved_is_named(
    source: Store, target: Store
) -> None:
    await Move(source, target).run()
    ((agent, exchange),) = await rows(
        source,
        "SELECT e.agent, e.id FROM block_history h JOIN exchanges e ON e.id = h.exchange "
        "WHERE h.value LIKE '%ann was here.' ORDER BY h.id LIMIT 1",
    )
    await source.forgetting.forget(agent, ForgetTarget(exchange_rows=[exchange]))
    done = await Move(source, target).run()
    # Who sees the block is changed with it.
    names = [line.split(" of ")[0] for line in done.refused]
    assert names == ["user:ann", "user:bob", "block 'rules'"]
    for each in await everybody(target):
        if each.scope.profile == "helper" and each.scope.subject in names:
            await target.forgetting.forget(each.id, ForgetTarget(is_all=True))
    assert (await Move(source, target).run()).refused == []


async def test_who_has_paused_a_memory_has_it_paused_there(source: Store, target: Store) -> None:
    ann = next(each for each in await everybody(source) if each.scope.subject == "user:ann")
    await source.forgetting.pause(ann.id, 7.0)
    await Move(source, target).run()
    moved = await target.agents.find(ann.scope)
    assert moved is not None
    assert moved.paused_at == 7.0
    others = [each for each in await everybody(target) if each.scope != ann.scope]
    assert {each.paused_at for each in others} == {None}


async def test_a_move_that_was_killed_while_it_paused_a_memory_has_it_paused_in_the_end(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(agent_row: int, since: float | None) -> bool:
        raise asyncio.CancelledError

    ann = next(each for each in await everybody(source) if each.scope.subject == "user:ann")
    await source.forgetting.pause(ann.id, 7.0)
    with monkeypatch.context() as patches:
        patches.setattr(target.forgetting, "pause", dies)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(Move(source, target).run())
    await Move(source, target).run()
    moved = await target.agents.find(ann.scope)
    assert moved is not None
    assert moved.paused_at == 7.0


async def test_a_gateway_that_served_there_first_loses_nothing(source: Store, target: Store) -> None:
    """A start has made the settings' shared block there, to which nobody has written."""
    await rows(
        target,
        "INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current) "
        "VALUES (NULL, 'default', 'helper', 'rules', '', 2000, 0, 'mine', 1, 1)",
    )
    values = "(1, 1, NULL, 1, 'settings', NULL, CAST('[]' AS BLOB), 'House rules.')"
    columns = "block, version, restores, at, origin, exchange, sources, value"
    await rows(target, f"INSERT INTO block_history ({columns}) VALUES {values}")
    await Move(source, target).run()
    assert (await contents(target))["blocks"] == (await contents(source))["blocks"]


async def test_a_move_refuses_runs_that_are_not_finished(source: Store, target: Store) -> None:
    await rows(source, "UPDATE runs SET state = 'running' WHERE id = 1")
    with pytest.raises(GatewayError, match="1 runs of agents go on"):
        await Move(source, target).run()
    assert await everybody(target) == []


async def test_it_says_how_far_it_is(source: Store, target: Store) -> None:
    said: list[tuple[int, int]] = []

    def told(done: MoveOutcome, count: int) -> None:
        said.append((done.moved, count))

    await Move(source, target).run(told)
    count = len(await everybody(source))
    assert said == [(n, count) for n in range(1, count + 1)]
