"""Definitions: versions by compare-and-set, names, lists in every order; agents with what belongs to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from storage.definition_records import DefinitionKind
from storage.errors import NotFound, RecordChanged, WriteConflict
from storage.listing import (
    AgentChange,
    AgentEntry,
    AgentFilter,
    ConversationFilter,
    DefinitionDraft,
    NamedAgent,
    Page,
)
from storage.records import Block
from storage.run_records import Run, RunState
from storage.sql.agents_api import agents
from storage.sql.agents_api.definitions import put_definition, remove_definition
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.api import PROJECT, make_agent
from tests.storage.conftest import Holds, OpenStore
from tests.stored import Speaker, keeps_emptied_rows, put_run, rows

HUMAN = Block(0, "human", "Who", "Unknown.", 100)
TOOL = DefinitionKind.TOOL


def tool_draft(
    uid: str, name: str, body: dict[str, Any] | None = None, project: str = PROJECT
) -> DefinitionDraft:
    return DefinitionDraft(project, TOOL, uid, body or {}, name)


async def test_all_definitions_between_two_are_read_in_order_whatever_their_number(store: Store) -> None:
    drafts = [tool_draft(f"t{n}", f"tool {n}") for n in range(405)]
    made = [await store.definitions.add(draft, at=1.0) for draft in drafts]
    page = Page(after=made[0].id, before=made[-1].id, limit=1, newest_first=False)
    definitions = [definition async for definition in store.definitions.iterate(PROJECT, TOOL, page)]
    assert definitions == made[1:-1]


async def test_a_definition_changes_by_version_and_keeps_its_newest_text_alone(
    store: Store, holds: Holds
) -> None:
    made = await store.definitions.add(tool_draft("t1", "search", {"source": "zqoldx"}), at=1.0)
    assert (made.version, made.body, made.created) == (1, {"source": "zqoldx"}, 1.0)
    changes = [store.definitions.change(made, {"source": f"zqnew{n}x"}, at=2.0) for n in range(4)]
    results = await asyncio.gather(*changes, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Definition", *["RecordChanged"] * 3]
    now = await store.definitions.get(PROJECT, TOOL, "t1")
    assert (now.version, now.created, now.updated) == (2, 1.0, 2.0)
    await store.database.sweep(1000)
    assert not holds(b"zqoldx")
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    assert holds(now.body["source"].encode())
    await store.database.write(lambda c: remove_definition(c, now.id))
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    await store.database.sweep(1000)
    assert not holds(now.body["source"].encode())
    with pytest.raises(NotFound):
        await store.definitions.get(PROJECT, TOOL, "t1")


async def test_a_project_has_a_tool_of_a_name_once_and_agents_as_often_as_it_likes(store: Store) -> None:
    made = await store.definitions.add(tool_draft("t1", "search"), at=1.0)
    with pytest.raises(WriteConflict, match="tool named 'search'"):
        await store.definitions.add(tool_draft("t2", "search"), at=1.0)
    other = await store.definitions.add(tool_draft("t2", "find"), at=1.0)
    with pytest.raises(WriteConflict, match="tool named 'search'"):
        await store.definitions.change(other, {}, at=2.0, name="search")
    assert (await store.definitions.change(other, {"x": 1}, at=2.0, name="look")).name == "look"
    await store.definitions.add(tool_draft("t3", "search", project="elsewhere"), at=1.0)
    assert await store.definitions.find_by_name(PROJECT, TOOL, "search") == [made]
    for _ in range(2):
        await make_agent(
            store, "same" if not await store.defined_agents.count(PROJECT, AgentFilter()) else "same2"
        )
    with pytest.raises(NotFound):
        await store.definitions.get("elsewhere", TOOL, "t1")
    draft = tool_draft("t1", "search", {"y": 2})
    put = await store.database.write(lambda c: put_definition(c, draft, at=3.0))
    assert (put.id, put.version, put.body) == (made.id, 2, {"y": 2})


async def test_a_definition_that_was_read_is_known_to_be_changed_or_deleted(store: Store) -> None:
    one = await store.definitions.add(tool_draft("t1", "search"), at=1.0)
    other = await store.definitions.add(tool_draft("t2", "find"), at=1.0)
    read = {(one.id, one.version), (other.id, other.version)}
    assert await store.definitions.are_current(read)
    now = await store.definitions.change(other, {"x": 1}, at=2.0)
    assert not await store.definitions.are_current(read)
    read = {(one.id, one.version), (now.id, now.version)}
    assert await store.definitions.are_current(read)
    await store.database.write(lambda c: remove_definition(c, one.id))
    assert not await store.definitions.are_current(read)


async def test_definitions_are_listed_by_name_and_page(store: Store) -> None:
    made = [await store.definitions.add(tool_draft(f"t{n}", f"tool_{n}"), at=1.0) for n in range(4)]
    await store.definitions.add(tool_draft("x", "tool_x", project="elsewhere"), at=1.0)
    await store.definitions.add(DefinitionDraft(PROJECT, DefinitionKind.MCP, "m", {}, "tool_m"), at=1.0)

    async def listed(page: Page[int], **wanted: Any) -> list[str]:
        return [d.uid for d in await store.definitions.list_page(PROJECT, TOOL, page, **wanted)]

    assert await listed(Page()) == ["t3", "t2", "t1", "t0"]
    assert await listed(Page(after=made[2].id, limit=1)) == ["t1"]
    assert await listed(Page(after=made[0].id, newest_first=False)) == ["t1", "t2", "t3"]
    assert await listed(Page(), name="tool_2") == ["t2"]
    assert await listed(Page(), name_part="OOL_3") == ["t3"]
    assert await listed(Page(), name_part="o%l") == []


async def test_an_agent_is_made_with_all_that_belongs_to_it(store: Store) -> None:
    tool = await store.definitions.add(tool_draft("t1", "search"), at=1.0)
    made = await make_agent(
        store, "ann", own=[HUMAN], tools=[-3, tool.id, -1, -3], tags=["b", "a"], system="Be kind.", at=5.0
    )
    assert made.definition is not None
    assert (made.name, made.definition.body, made.definition.created) == ("ann", {"system": "Be kind."}, 5.0)
    assert made.definition.uid == made.agent.uid
    assert await store.defined_agents.get(PROJECT, made.agent.uid) == made
    assert [(b.label, b.value) for b in await store.blocks.load(made.agent.id)] == [("human", "Unknown.")]
    assert await store.attached.load_targets(made.agent.id, "tool") == [-3, tool.id, -1]
    assert await store.attached.load_targets_of_agents([made.agent.id, 999], "tool") == {
        made.agent.id: [-3, tool.id, -1],
        999: [],
    }
    assert await store.defined_agents.load_tags([made.agent.id]) == {made.agent.id: ["a", "b"]}
    assert await store.agents.find(made.agent.scope) == made.agent
    with pytest.raises(NotFound):
        await store.defined_agents.get("elsewhere", made.agent.uid)


async def test_an_agent_that_cannot_be_made_wholly_is_not_made(store: Store) -> None:
    with pytest.raises(NotFound):
        await make_agent(store, "ann", own=[HUMAN], blocks=["nowhere"], tags=["a"])
    with pytest.raises(WriteConflict):
        await make_agent(store, "ann", own=[HUMAN, HUMAN])
    assert await store.defined_agents.count(PROJECT, AgentFilter()) == 0
    for table in ("agents", "blocks", "definitions", "tags", "attached"):
        assert await rows(store, f"SELECT * FROM {table}") == []


async def version_of(store: Store, agent: AgentEntry) -> int | None:
    """Returns the version at which the definition of an agent is."""
    entry = await store.defined_agents.get(PROJECT, agent.agent.uid)
    return None if entry.definition is None else entry.definition.version


async def test_an_agent_changes_by_version_and_what_belongs_to_it_raises_that(store: Store) -> None:
    made = await make_agent(store, "ann", tools=[-1], tags=["a"], system="old")
    assert made.definition is not None
    change = AgentChange(name="bea", body={"system": "new"}, tools=[-2, -1], tags=["b"])
    changed = await store.defined_agents.change(made, change, at=2.0)
    assert changed.definition is not None
    assert (changed.name, changed.definition.body, changed.definition.version) == (
        "bea",
        {"system": "new"},
        2,
    )
    assert await store.attached.load_targets(made.agent.id, "tool") == [-2, -1]
    assert await store.defined_agents.load_tags([made.agent.id]) == {made.agent.id: ["b"]}
    with pytest.raises(RecordChanged):
        await store.defined_agents.change(made, AgentChange(tags=["c"]), at=3.0)
    assert await store.defined_agents.load_tags([made.agent.id]) == {made.agent.id: ["b"]}, (
        "nothing of it is written"
    )
    assert await store.attached.attach(made.agent.id, "tool", -5, at=4.0)
    assert not await store.attached.attach(made.agent.id, "tool", -5, at=4.0)
    assert await version_of(store, made) == 3
    assert await store.attached.detach(made.agent.id, "tool", -2, at=5.0)
    assert not await store.attached.detach(made.agent.id, "tool", -2, at=5.0)
    assert await version_of(store, made) == 4
    assert await store.attached.load_targets(made.agent.id, "tool") == [-1, -5]


async def test_a_profiles_memory_is_an_agent_that_the_settings_configure(store: Store) -> None:
    alice = Speaker(store)
    await alice.say([user("one")], assistant("First."), "c1")
    made = await make_agent(store, "ann", tags=["user:alice"])
    found = await store.defined_agents.list_page(PROJECT, AgentFilter(), Page())
    assert [(e.name, e.definition is None) for e in found] == [("ann", False), ("default alice", True)]
    for wanted, names in (
        (AgentFilter(tags=["profile:default"]), ["default alice"]),
        (AgentFilter(tags=["user:alice"]), ["ann", "default alice"]),
        (AgentFilter(tags=["user:alice", "profile:default"], needs_all_tags=True), ["default alice"]),
        (AgentFilter(name="default alice"), ["default alice"]),
        (AgentFilter(text="LICE"), ["default alice"]),
    ):
        assert [e.name for e in await store.defined_agents.list_page(PROJECT, wanted, Page())] == names, (
            wanted
        )
    with pytest.raises(WriteConflict, match="settings"):
        await store.defined_agents.change(found[1], AgentChange(name="x"), at=2.0)
    # A memory of one conversation is nobody's agent.
    await rows(store, "UPDATE agents SET subject = 'conversation:7' WHERE id = ?", (alice.agent.id,))
    assert await store.defined_agents.list_page(PROJECT, AgentFilter(), Page()) == [made]
    with pytest.raises(NotFound):
        await store.defined_agents.get(PROJECT, alice.agent.uid)


async def end_run(store: Store, agent_row: int, stop: str, at: float) -> None:
    run = await put_run(store, Run(0, f"{agent_row} {at}", agent_row, 1, RunState.RUNNING, at))
    await store.runs.end_run(agent_row, run.id, RunState.COMPLETED, stop, at)


async def test_a_count_has_as_many_as_all_pages_of_a_list(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    store = await open_store(note=statements.append)
    monkeypatch.setattr("storage.sql.agents_api.agents._COUNT_PAGE_AGENTS", 2)
    for n in range(5):
        await make_agent(store, f"a{n}", tags=["even"] if n % 2 == 0 else [], hidden=n == 4)
    await make_agent(store, "b", project="elsewhere", tags=["even"])
    for wanted, count in (
        (AgentFilter(), 4),
        (AgentFilter(includes_hidden=True), 5),
        (AgentFilter(tags=["even"]), 2),
        (AgentFilter(name="a3"), 1),
        (AgentFilter(name="b"), 0),
    ):
        assert await store.defined_agents.count(PROJECT, wanted) == count, wanted
    # The last agent of a page may be deleted before the next page is read.
    assert not [name for name in statements if name.startswith("cursor")]


@pytest.mark.parametrize("few_agents", [64, 0])
async def test_agents_are_listed_by_filter_order_and_page(
    store: Store, monkeypatch: pytest.MonkeyPatch, few_agents: int
) -> None:
    monkeypatch.setattr(agents, "_FEW_AGENTS", few_agents)
    a, b, c, d = [
        await make_agent(store, name, tags=tags, at=at, **({"hidden": True} if name == "dan" else {}))
        for name, tags, at in (
            ("ann", ["x"], 1.0),
            ("bob", ["x", "y"], 2.0),
            ("cara", ["y"], 3.0),
            ("dan", [], 4.0),
        )
    ]
    await make_agent(store, "eve", project="elsewhere", tags=["x"])
    await store.defined_agents.change(a, AgentChange(body={}), at=9.0)
    await end_run(store, b.agent.id, "end_turn", 7.0)
    await end_run(store, c.agent.id, "end_turn", 5.0)
    await end_run(store, c.agent.id, "error", 6.0)

    async def listed(wanted: AgentFilter | None = None, **page: Any) -> str:
        found = await store.defined_agents.list_page(PROJECT, wanted or AgentFilter(), Page(**page))
        return " ".join(e.name for e in found)

    assert await listed() == "cara bob ann"
    assert await listed(AgentFilter(includes_hidden=True)) == "dan cara bob ann"
    assert await listed(newest_first=False) == "ann bob cara"
    assert await listed(limit=1, after=c.agent.uid) == "bob"
    assert await listed(after=d.agent.uid) == "cara bob ann"
    assert await listed(before=a.agent.uid) == "cara bob"
    assert await listed(after=a.agent.uid, newest_first=False, limit=1) == "bob"
    assert await listed(AgentFilter(tags=["x", "y"])) == "cara bob ann"
    assert await listed(AgentFilter(tags=["x", "y"], needs_all_tags=True)) == "bob"
    assert await listed(AgentFilter(name="bob")) == await listed(AgentFilter(text="BO")) == "bob"
    assert await listed(AgentFilter(stop="error")) == "cara"
    assert await listed(AgentFilter(stop="end_turn")) == "bob"
    assert await listed(AgentFilter(order="updated")) == "ann cara bob"
    assert await listed(AgentFilter(order="updated"), after=a.agent.uid, limit=1) == "cara"
    assert await listed(AgentFilter(order="updated"), newest_first=False) == "bob cara ann"
    assert await listed(AgentFilter(order="completed")) == "bob cara ann"
    assert await listed(AgentFilter(order="completed"), after=b.agent.uid) == "cara ann"
    assert await listed(AgentFilter(order="completed"), newest_first=False, after=a.agent.uid) == "cara bob"
    with pytest.raises(NotFound):
        await listed(after="nobody")
    assert await store.defined_agents.list_newest(PROJECT, 2) == [
        NamedAgent("dan", d.agent.uid, 4.0),
        NamedAgent("cara", c.agent.uid, 3.0),
    ]
    assert await store.defined_agents.list_tags(PROJECT, Page(newest_first=False)) == ["x", "y"]
    assert await store.defined_agents.list_tags(PROJECT, Page(after="y")) == ["x"]
    assert await store.defined_agents.list_tags(PROJECT, Page(newest_first=False), text="Y") == ["y"]


async def test_few_agents_with_a_name_or_tags_are_not_sought_among_all_people(open_store: OpenStore) -> None:
    statements: list[str] = []
    store = await open_store(note=statements.append)
    draft = DefinitionDraft(PROJECT, DefinitionKind.IDENTITY, "i1", {"name": "Ann"}, "user_1")
    identity = await store.definitions.add(draft, at=1.0)
    await make_agent(store, "ann", tags=["x", "y"], identities=[identity.id])
    await Speaker(store).say([user("one")], assistant("First."), "c1")
    for wanted, name in (
        (AgentFilter(name="ann"), "ann"),
        (AgentFilter(name="default alice"), "default alice"),
        (AgentFilter(tags=["x"], order="updated"), "ann"),
        (AgentFilter(tags=["x", "y"], needs_all_tags=True, order="completed"), "ann"),
        (AgentFilter(tags=["user:alice"]), "default alice"),
        (AgentFilter(identity="i1"), "ann"),
        (AgentFilter(identity_keys=["user_1"]), "ann"),
    ):
        statements.clear()
        (found,) = await store.defined_agents.list_page(PROJECT, wanted, Page())
        assert found.name == name
        assert statements[-1] == f"few_{wanted.order}_down"
        assert f"{wanted.order}_down" not in statements
    statements.clear()
    assert await store.defined_agents.count(PROJECT, AgentFilter(name="ann")) == 1
    assert statements == ["with_name", "few_created_up"]


async def test_a_full_page_ends_where_its_last_row_was_read(open_store: OpenStore) -> None:
    """A second read of the last row would find it moved, or erased meanwhile."""
    statements: list[str] = []
    store = await open_store(note=statements.append)
    entries = [await make_agent(store, f"a{n}") for n in range(20)]
    agent = entries[0].agent
    for n in range(20):
        await store.conversations.create(agent, f"conv-{n}", {}, at=float(n))
    page: Page[str] = Page(limit=20)
    for order in ("created", "updated", "completed"):
        statements.clear()
        assert len(await store.defined_agents.list_page(PROJECT, AgentFilter(order=order), page)) == 20
        assert not [name for name in statements if name.startswith("cursor")]
    for conversation_filter in (
        ConversationFilter(),
        ConversationFilter(agent_row=agent.id),
        ConversationFilter(order="spoken"),
        ConversationFilter(order="completed"),
    ):
        statements.clear()
        assert len(await store.conversations.list_page(PROJECT, conversation_filter, page)) == 20
        assert not [name for name in statements if name.startswith("cursor")]


@pytest.mark.parametrize("few_agents", [64, 0])
async def test_agents_are_found_by_their_identities_within_their_project(
    store: Store, monkeypatch: pytest.MonkeyPatch, few_agents: int
) -> None:
    monkeypatch.setattr(agents, "_FEW_AGENTS", few_agents)
    add = store.definitions.add
    kind = DefinitionKind.IDENTITY
    one = await add(DefinitionDraft(PROJECT, kind, "i1", {"name": "Ann"}, "user_1"), at=1.0)
    two = await add(DefinitionDraft(PROJECT, kind, "i2", {"name": "Bob"}, "user_2"), at=1.0)
    theirs = await add(DefinitionDraft("elsewhere", kind, "i3", {"name": "Eve"}, "user_1"), at=1.0)
    with pytest.raises(WriteConflict, match="an identity named 'user_1'"):
        await add(DefinitionDraft(PROJECT, kind, "i4", {"name": "Dan"}, "user_1"), at=1.0)
    with pytest.raises(WriteConflict, match="an identity named 'user_1'"):
        await store.definitions.change(two, {}, at=2.0, name="user_1")
    a = await make_agent(store, "a", identities=[two.id, one.id])
    await make_agent(store, "b", identities=[one.id])
    await make_agent(store, "c")
    await make_agent(store, "d", project="elsewhere", identities=[theirs.id])

    async def listed(project: str = PROJECT, **wanted: Any) -> str:
        found = await store.defined_agents.list_page(project, AgentFilter(**wanted), Page())
        assert len(found) == await store.defined_agents.count(project, AgentFilter(**wanted))
        return " ".join(e.name for e in found)

    for order in ("created", "updated", "completed"):
        assert await listed(identity_keys=["user_1"], order=order) == "b a"
    assert await listed(identity_keys=["user_2", "nobody"]) == await listed(identity="i2") == "a"
    assert await listed(identity="i3") == await listed(identity="i1", identity_keys=["user_2"]) == ""
    assert await listed("elsewhere", identity_keys=["user_1"]) == "d"
    change = AgentChange(identities=[one.id])
    await store.defined_agents.change(a, change, at=3.0)
    assert await store.attached.load_targets(a.agent.id, kind) == [one.id]
    await store.attached.delete(one, at=4.0)
    assert await listed(identity_keys=["user_1"]) == ""
    assert await store.attached.load_targets(a.agent.id, kind) == []
    assert await listed("elsewhere", identity_keys=["user_1"]) == "d"


async def test_hidden_agents_do_not_make_a_page_short(store: Store) -> None:
    for n in range(30):
        await make_agent(store, f"a{n}", **({"hidden": True} if 2 <= n < 28 else {}))
    found = await store.defined_agents.list_page(PROJECT, AgentFilter(), Page(limit=3))
    assert [e.name for e in found] == ["a29", "a28", "a1"]


async def test_an_agent_that_is_gone_is_not_made_again_by_a_turn(store: Store) -> None:
    made = await make_agent(store, "ann")
    scope = made.agent.scope
    assert await store.agents.find_or_draft(scope, must_exist=True) == made.agent
    await store.forgetting.wipe(made.agent.id)
    with pytest.raises(NotFound):
        await store.agents.find_or_draft(scope, must_exist=True)
    assert (await store.agents.find_or_draft(scope, must_exist=False)).id == 0
