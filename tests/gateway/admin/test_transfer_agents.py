"""What was made over the agents API is carried away as JSON lines, and goes on elsewhere under its ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from letta_client import NotFoundError

from gateway.cli import main
from gateway.errors import BadRequest
from gateway.run.admin.transfer import transfer_operations
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from storage.records import Block
from storage.sql.store import Store
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools
from tests.storage.api import make_agent
from tests.stored import open_store

T = TypeVar("T")
Lines = list[str]
DECLARED = {"name": "look_up", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


@pytest.fixture
def other(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    (tmp_path / "other").mkdir()
    with letta(upstream, tmp_path / "other") as made:
        yield made


def call(world: LettaWorld, coroutine: Coroutine[Any, Any, T]) -> T:
    return world.world.gateway.call(coroutine)


def operations(world: LettaWorld) -> TransferOperations:
    return TransferOperations(world.world.gateway.app.services.store)


def export(world: LettaWorld, id: str) -> Lines:
    lines: Lines = []
    place = None
    while True:
        wanted = {"project": "default", "agent": id, "from": place}
        answer = orjson.loads(orjson.dumps(call(world, operations(world).export(wanted))))
        lines += answer["lines"]
        place = answer["next"]
        if place is None:
            return lines


def restore(world: LettaWorld, id: str, lines: Lines, page: int = 7, project: str = "default") -> None:
    wanted, at = {"project": project, "agent": id}, None
    for start in range(0, len(lines), page):
        piece = {**wanted, "lines": lines[start : start + page], "at": at}
        at = call(world, operations(world).restore(piece))["at"]
    call(world, operations(world).restore({**wanted, "lines": [], "at": at, "end": True}))


def rich(world: LettaWorld) -> dict[str, str]:
    """An agent that has one of everything. Returns ids by what they name."""
    client = world.letta
    folder = client.folders.create(name="notes", instructions="Read them.")
    file = client.folders.files.upload(
        folder.id, file=("a.md", b"# Plan\n\n" + b"A line.\n" * 600, "text/markdown")
    )
    archive = client.archives.create(name="shared")
    client.archives.passages.create(archive.id, text="The boat is red.", tags=["boat"], metadata={"page": 7})
    shared = client.blocks.create(label="team", value="We sail.", metadata={"a": 1})
    client.tools.create(source_code="", source_type="json", json_schema=DECLARED, tags=["t"])
    person = {"identifier_key": "user_1", "name": "Ann", "identity_type": "user"}
    identity = world.ask("POST", "/v1/identities/", person)[1]["id"]
    agent = client.agents.create(
        model="openai/m",
        name="ann",
        agent_type="memgpt_v2_agent",
        description="d",
        tags=["x", "y"],
        memory_blocks=[{"label": "human", "value": "Name: Ann", "metadata": {"b": 2}, "tags": ["z"]}],
        block_ids=[shared.id],
        tools=["look_up"],
        folder_ids=[folder.id],
        identity_ids=[identity],
        tool_rules=[{"type": "max_count_per_step", "tool_name": "look_up", "max_count_limit": 3}],
    )
    client.agents.archives.attach(archive.id, agent_id=agent.id)
    client.agents.passages.create(agent.id, text="She sails.", tags=["boat"])
    conversation = client.conversations.create(agent_id=agent.id, summary="On boats")
    client.conversations.messages.create(conversation.id, input="Hello there", streaming=False)
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Has a boat."})),
        call_tools(Call("send_message", {"message": "Noted."})),
    )
    message: Any = {"role": "user", "content": "I have a boat.", "otid": "o-1"}
    system: Any = {"role": "system", "content": "Be brief."}
    client.agents.messages.create(agent.id, messages=[system, message])
    world.world.settle()
    return {
        "agent": agent.id,
        "folder": folder.id,
        "archive": archive.id or "",
        "block": shared.id,
        "file": file.id,
    }


def test_an_agent_goes_to_another_store_with_all_that_it_has(world: LettaWorld, other: LettaWorld) -> None:
    made = rich(world)
    exported = {name: export(world, made[name]) for name in ("folder", "archive", "agent")}
    kinds = {next(iter(json.loads(line))) for lines in exported.values() for line in lines}
    assert kinds >= {
        "memory", "definition", "conversation", "exchange", "block", "version", "file", "passage", "tag", "attached",
        "run", "step", "end",
    }  # fmt: skip
    shown = world.letta.agents.retrieve(made["agent"])
    messages = [each.model_dump() for each in world.letta.agents.messages.list(made["agent"])]
    runs = [each.model_dump() for each in world.letta.runs.list(agent_id=made["agent"])]
    for name, lines in exported.items():
        restore(other, made[name], lines)
    for name, lines in exported.items():
        assert timeless(export(other, made[name])) == timeless(lines)
    there = other.letta.agents.retrieve(made["agent"])
    left_out = {"created_at", "updated_at"}
    assert without(there.model_dump(), left_out) == without(shown.model_dump(), left_out)
    # Without the system message, which is rendered: the snapshot that it shows is not exported.
    assert [each.model_dump() for each in other.letta.agents.messages.list(made["agent"])][1:] == messages[1:]
    assert [each.model_dump() for each in other.letta.runs.list(agent_id=made["agent"])] == runs
    found = other.letta.agents.passages.search(made["agent"], query="boat").results
    assert {each.content for each in found} == {"The boat is red."}
    (file,) = other.letta.folders.files.list(made["folder"], include_content=True)
    assert (file.id, len(file.content or "")) == (made["file"], 8 + 600 * 8)
    other.upstream.queue(call_tools(Call("send_message", {"message": "Here I am."})))
    reply = other.letta.agents.messages.create(made["agent"], input="Are you there?")
    assert "Here I am." in [getattr(each, "content", None) for each in reply.messages]
    sent = [m["content"] for m in other.upstream.requests[-1].json["messages"] if m["role"] == "user"]
    assert any("I have a boat." in str(text) for text in sent)


@pytest.mark.both
def test_an_agent_that_goes_to_another_project_has_tools_and_identities_of_that_one(
    world: LettaWorld,
) -> None:
    made = rich(world)
    lines = export(world, made["agent"])
    world.letta.agents.delete(made["agent"])
    restore(world, made["agent"], lines, project="elsewhere")
    registry = world.world.gateway.app.services.agents.registry
    there = call(world, registry.get("elsewhere", made["agent"].removeprefix("agent-")))
    defined = [tool.definition for tool in there.tools if tool.definition is not None]
    assert [each.name for each in (*defined, *there.identities)] == ["look_up", "user_1"]
    assert {each.project for each in (*defined, *there.identities)} == {"elsewhere"}
    here = world.ask("GET", "/v1/identities/")[1]
    assert [each["identifier_key"] for each in here] == ["user_1"], "those of its old project stay"
    # One that comes again finds them.
    call(world, world.world.gateway.app.services.store.forgetting.wipe(there.agent.id))
    restore(world, made["agent"], lines, project="elsewhere")
    again = call(world, registry.get("elsewhere", made["agent"].removeprefix("agent-")))
    assert again.identities == there.identities


@pytest.mark.parametrize("order", [("sleeper", "agent"), ("agent", "sleeper")], ids="-".join)
def test_a_sleeptime_agent_edits_the_blocks_of_its_primary_whoever_comes_first(
    world: LettaWorld, other: LettaWorld, order: tuple[str, ...]
) -> None:
    client = world.letta
    agent = world.agent(name="ann", enable_sleeptime=True)
    client.agents.messages.create(agent.id, input="Hello there")
    assert agent.managed_group is not None
    made = {"agent": agent.id, "sleeper": (agent.managed_group.agent_ids or [""])[0]}
    exported = {name: export(world, id) for name, id in made.items()}
    for name in order:
        restore(other, made[name], exported[name])
    # Turned on again, or due: whoever came with it reads it again.
    other.letta.agents.update(agent.id, enable_sleeptime=True)
    blocks: Any = {
        name: {str(block.label): block.id for block in other.letta.agents.retrieve(id).blocks}
        for name, id in made.items()
    }
    assert blocks["sleeper"]["human"] == blocks["agent"]["human"]
    assert len([each for each in other.letta.blocks.list() if each.label == "human"]) == 1
    assert set(blocks["sleeper"]) == {"human", "memory_persona"}


def test_all_tags_of_an_agent_are_exported(world: LettaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = [f"tag {n}" for n in range(9)]
    agent = world.letta.agents.create(model="openai/m", tags=tags)
    monkeypatch.setattr(transfer_operations, "PAGE_LINES", 2)
    lines = map(json.loads, export(world, agent.id))
    assert [line["tag"]["tag"] for line in lines if "tag" in line] == tags


def timeless(lines: Lines) -> list[Any]:
    """The lines, without when a stored conversation was last used: that moves on as its exchanges are added."""
    found = [json.loads(line) for line in lines]
    for each in found:
        each.get("conversation", {}).pop("last_at", None)
    return found


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: without(each, names) for name, each in value.items() if name not in names}
    return [without(each, names) for each in value] if isinstance(value, list) else value


def test_an_agent_that_is_being_imported_is_not_found(world: LettaWorld, other: LettaWorld) -> None:
    made = rich(world)
    lines = export(world, made["agent"])
    wanted = {"project": "default", "agent": made["agent"]}
    at = call(other, operations(other).restore({**wanted, "lines": lines}))["at"]
    client = other.letta
    assert list(client.agents.list()) == []
    assert list(client.tags.list()) == []
    assert other.ask("GET", "/v1/agents/count") == (200, 0)
    assert [each["id"] for each in other.ask("GET", "/v1/models")[1]["data"] if "agent" in each["id"]] == []
    with pytest.raises(NotFoundError):
        client.agents.retrieve(made["agent"])
    call(other, operations(other).restore({**wanted, "lines": [], "at": at, "end": True}))
    assert [each.id for each in client.agents.list()] == [made["agent"]]


def test_an_agent_is_not_written_over_nor_made_of_something_else(
    world: LettaWorld, other: LettaWorld
) -> None:
    made = rich(world)
    lines = export(world, made["agent"])
    with pytest.raises(BadRequest, match="already"):
        restore(world, made["agent"], lines)
    # Under another id it is another agent.
    twin = "agent-" + "0" * 32
    restore(world, twin, lines)
    assert {each.id for each in world.letta.agents.list()} == {made["agent"], twin}
    assert {b.label: b.value for b in world.letta.agents.blocks.list(twin)} == {
        b.label: b.value for b in world.letta.agents.blocks.list(made["agent"])
    }
    with pytest.raises(BadRequest, match="cannot become archive:111"):
        restore(other, "archive-" + "1" * 32, lines)
    with pytest.raises(BadRequest, match="no id"):
        export(world, "user-1")
    with pytest.raises(BadRequest, match="nothing defines"):
        restore(other, twin, [line for line in lines if not line.startswith('{"definition"')])
    assert list(other.letta.agents.list()) == []


@pytest.mark.parametrize("begun", [None, 3.0])
def test_a_run_that_was_open_in_an_export_failed_no_earlier_than_it_began(
    world: LettaWorld, other: LettaWorld, begun: float | None
) -> None:
    agent = world.agent()
    world.letta.agents.messages.create(agent.id, input="Hello there")
    lines = [json.loads(line) for line in export(world, agent.id)]
    (run,) = (line["run"] for line in lines if "run" in line)
    run.update(state="running", stop=None, created=2.0, begun=begun, ended=None)
    restore(other, agent.id, [json.dumps(line) for line in lines])
    (imported,) = (line["run"] for line in map(json.loads, export(other, agent.id)) if "run" in line)
    assert imported == {**run, "state": "failed", "stop": "error", "ended": begun or 2.0}


def test_an_export_of_format_1_is_read(world: LettaWorld, tmp_path: Path) -> None:
    old = [
        {"memory": {"format": 1, "next_seq": 4, "created": 5.0}},
        {"conversation": {"uid": "c1", "key": "k", "begun": 1.0, "last_at": 2.0, "settled_at": 0.0}},
        {"block": {"label": "human", "description": "", "limit": 100, "read_only": False}},
        {"version": {
            "block": "human", "version": 1, "restores": None, "at": 1.0, "origin": "api", "exchange": None,
            "sources": [], "value": "Ann",
        }},
        {"passage": {"seq": 3, "at": 2.0, "exchange": None, "sources": [], "text": "A passage"}},
        {"end": {}},
    ]  # fmt: skip

    async def read() -> Store:
        store = await open_store(tmp_path / "old.db")
        wanted = {"project": "default", "user": "ann"}
        restored = TransferOperations(store).restore
        at = (await restored({**wanted, "lines": [orjson.dumps(each).decode() for each in old]}))["at"]
        await restored({**wanted, "lines": [], "at": at, "end": True})
        answer = await TransferOperations(store).export({**wanted, "profile": "default"})
        assert orjson.loads(answer["lines"][0])["memory"]["format"] == 3
        await store.close()
        return store

    asyncio.run(read())


async def test_an_export_of_format_2_is_read_by_the_former_names_of_its_fields(tmp_path: Path) -> None:
    times = {"begun": 1.0, "touched": 1.0, "ended": 2.0, "stopped": None}
    counts = {"seq": 1, "run": 1, "parent": None, "prior": None, "size": 4, "head": 0}
    flags = {
        "superseded": False,
        "carried": True,
        "standing": True,
        "edits": False,
        "opaque": False,
        "had": True,
    }
    result = {"role": "tool", "tool_call_id": "a", "content": "It is Miso.", "mnemogate": {"said": 5}}
    rounds = {"messages": [{"role": "assistant", "content": "Hi."}, result], "ours": ["a"]}
    conversation = {"uid": "c1", "key": "k", "begun": 1.0, "last_at": 2.0, "settled_at": 0.0, "ours": True}
    exchange = {
        "conversation": "c1", **times, **counts, **flags, "model": "m", "merged": "", "state": "finished",
        "input": [{"role": "user", "content": "hello"}], "said": {"role": "assistant", "content": "Hi."},
        "full": rounds, "notes": {}, "hush": {"0": "u"},
    }  # fmt: skip
    head = {"memory": {"format": 2, "next_seq": 4, "created": 5.0}}
    old = [head, {"conversation": conversation}, {"exchange": exchange}, {"end": {}}]
    store = await open_store(tmp_path / "old.db")
    wanted = {"project": "default", "user": "ann"}
    transfer = TransferOperations(store)
    at = (await transfer.restore({**wanted, "lines": [orjson.dumps(each).decode() for each in old]}))["at"]
    await transfer.restore({**wanted, "lines": [], "at": at, "end": True})
    lines: list[Any] = []
    position: dict[str, Any] = {}
    while position.get("from", True):
        answer = await transfer.export({**wanted, "profile": "default", **position})
        lines += [orjson.loads(each) for each in answer["lines"]]
        position = {"from": answer["next"]}
    await store.close()
    (present,) = [line["exchange"] for line in lines if "exchange" in line]
    assert [line["conversation"]["is_stored"] for line in lines if "conversation" in line] == [True]
    assert present["shown_reply"] == exchange["said"]
    assert present["redactions"] == exchange["hush"]
    assert present["continued"]
    assert present["active"]
    assert present["has_reply"]
    assert present["full"]["gateway_calls"] == ["a"]


@pytest.mark.sqlite
async def test_the_command_line_names_an_agent_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store(tmp_path / "mnemogate.db", now=lambda: 1000.0)
    uid = "a" * 32
    await make_agent(store, uid, own=[Block(0, "human", "", "Ann", 100)], kind="react_agent")
    await store.close()

    async def run(*arguments: str) -> int:
        return await asyncio.to_thread(main, ["memory", *arguments, "--agent", f"agent-{uid}"])

    assert await run("export", "a.jsonl") == 0
    assert await run("import", "a.jsonl", "--db", "b.db") == 0
    assert await run("show", "--db", "b.db") == 0
    assert "Ann" in capsys.readouterr().out
    assert await run("forget", "--yes", "--db", "b.db") == 0
    assert await run("export", "--db", "b.db") == 1
    assert await run("export", "--user", "ann") == 1
