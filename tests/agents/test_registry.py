"""The registry: agents with what belongs to them, tools, and what a name stands for after anything has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.agents.core.kinds import BUILT_IN_UIDS, KINDS, MULTI_AGENT_TOOLS
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.registry.conversation_registry import AgentConversations, read_conversation_definition
from gateway.agents.registry.registry import AgentEdit, NewAgent, Registry
from gateway.core import ids
from gateway.core.agent import AgentSpec
from gateway.core.definition import AgentDefinition, ConversationDefinition, ToolDefinition
from gateway.core.memory.builtin import BUILT_IN_TOOLS
from gateway.core.memory.memory_tools import MEMORY_TOOLS
from gateway.errors import BadRequest, Conflict
from gateway.settings import ModelSettings, ProfileSettings, Settings, UpstreamSettings
from storage.errors import NotFound, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import AgentFilter, BlockDraft, Page
from storage.records import Block
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.doubles.statements import counting
from tests.stored import Speaker, open_store, rows

PROJECT = "default"
HUMAN = Block(0, "human", "Who", "Unknown.", 100)
NEWEST_FIRST: Page[str] = Page()
HELPER = AgentSpec("helper", system="Help.", model="m", offers_tools=True)
SETTINGS = Settings(
    upstreams=(
        UpstreamSettings("main", kind="openai", models=("gpt-*", "meta/*")),
        UpstreamSettings("claude", kind="anthropic", models=("claude-*",)),
        UpstreamSettings("google", kind="gemini", models=("gemini-*",)),
    ),
    profiles=(ProfileSettings("helper"),),
    models=(ModelSettings("openai/alias", "gpt-x"),),
)


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, SETTINGS, [HELPER], lambda: 1000.0)


def new(name: str = "ann", kind: str = "letta_v1_agent", **more: Any) -> NewAgent:
    fields = {
        key: more.pop(key) for key in list(more) if key in ("system", "model", "rules", "most_messages")
    }
    return NewAgent(AgentDefinition(kind, **fields), name=name, **more)


def names(agent: AgentView) -> list[str]:
    return [tool.name for tool in agent.tools]


# -- making agents


def test_the_gateways_own_tools_have_names_that_never_change() -> None:
    assert BUILT_IN_UIDS["memory_insert"] == "e53d047551e52415f2ca63feead013af"
    assert len(set(BUILT_IN_UIDS.values())) == len(BUILT_IN_TOOLS)
    # Attachments in databases out there hold these numbers.
    assert tuple(BUILT_IN_TOOLS)[:4] == (
        "send_message",
        "conversation_search",
        "archival_memory_insert",
        "archival_memory_search",
    )
    # The memory of a profile's user shows them, and each has to be found by its id.
    assert set(MEMORY_TOOLS) <= set(BUILT_IN_TOOLS)
    assert {tool for kind in KINDS.values() for tool in kind.tools} <= set(BUILT_IN_TOOLS)


@pytest.mark.parametrize(
    ("kind", "style", "tools", "rules"),
    [
        ("letta_v1_agent", "reply", "conversation_search memory_insert memory_replace", 0),
        ("react_agent", "reply", "", 0),
        (
            "memgpt_agent",
            "message",
            "send_message conversation_search core_memory_append core_memory_replace",
            4,
        ),
        ("memgpt_v2_agent", "message", "send_message conversation_search memory_insert memory_replace", 4),
        ("workflow_agent", "message", "", 0),
        ("voice_convo_agent", "reply", "search_memory", 0),
    ],
)
async def test_an_agent_begins_with_what_its_kind_has(
    registry: Registry, kind: str, style: str, tools: str, rules: int
) -> None:
    made = await registry.create(PROJECT, new(kind=kind))
    assert " ".join(names(made)) == tools
    definition = AgentDefinition.of(made.definition.body)
    assert len(definition.rules) == rules
    assert definition.clears == (kind == "workflow_agent")
    assert (definition.most_messages, definition.least_messages) == (
        (30, 15) if "voice" in kind else (None, None)
    )
    resolved = await registry.resolver.resolve(PROJECT, "ann")
    assert resolved is not None
    assert (resolved.spec.style, len(resolved.spec.tools)) == (style, len(names(made)))


async def test_the_requested_values_outrank_those_of_the_kind(registry: Registry) -> None:
    rule = {"type": "exit_loop", "tool_name": "conversation_search"}
    mine = await registry.tools.create(PROJECT, "mine", ToolDefinition({"name": "mine"}))
    made = await registry.create(
        PROJECT,
        new(
            kind="memgpt_agent",
            rules=(rule,),
            tool_names=["memory", "mine"],
            tools=[mine.uid, BUILT_IN_UIDS["memory"]],
        ),
    )
    assert names(made) == ["memory", "mine", *KINDS["memgpt_agent"].tools]
    rules = AgentDefinition.of(made.definition.body).rules
    assert [(r["tool_name"], r["type"]) for r in rules] == [
        ("conversation_search", "exit_loop"),
        ("memory", "continue_loop"),
        ("send_message", "exit_loop"),
        ("core_memory_append", "continue_loop"),
        ("core_memory_replace", "continue_loop"),
    ]
    bare = await registry.create(PROJECT, new("bob", "memgpt_agent", has_base_tools=False))
    assert (names(bare), bare.definition.body["rules"]) == ([], [])
    ruled = await registry.create(PROJECT, new("cara", has_base_rules=True))
    assert [r["type"] for r in ruled.definition.body["rules"]] == ["continue_loop"] * 3
    dora = await registry.create(PROJECT, new("dora", "react_agent", has_multi_agent_tools=True))
    assert names(dora) == [*MULTI_AGENT_TOOLS]
    without = await registry.change(PROJECT, dora.agent.uid, AgentEdit(has_multi_agent_tools=False))
    assert names(without) == []
    memory = [BUILT_IN_UIDS["memory"]]
    both = AgentEdit(tools=memory, has_multi_agent_tools=True)
    for _ in range(2):
        assert names(await registry.change(PROJECT, dora.agent.uid, both)) == ["memory", *MULTI_AGENT_TOOLS]
    added = await registry.change(PROJECT, bare.agent.uid, AgentEdit(has_multi_agent_tools=True))
    assert names(added) == [*MULTI_AGENT_TOOLS]
    voice = await registry.create(PROJECT, new("dan", "voice_convo_agent", most_messages=7))
    assert (voice.definition.body["most_messages"], voice.definition.body["least_messages"]) == (7, 3)


async def test_an_agent_is_made_with_blocks_and_tags_or_not_at_all(registry: Registry, store: Store) -> None:
    house = await store.named_blocks.create(
        PROJECT, BlockDraft(replace(HUMAN, label="house")), at=1.0, origin="api"
    )
    made = await registry.create(
        PROJECT,
        new(
            own_blocks=[BlockDraft(HUMAN, {"metadata": {"k": 1}})], blocks=[house.block.uid], tags=["b", "a"]
        ),
    )
    assert [(e.block.label, e.details) for e in made.blocks] == [
        ("human", {"metadata": {"k": 1}}),
        ("house", {}),
    ]
    assert (list(made.tags), made.last_run) == (["a", "b"], None)
    assert made == await registry.get(PROJECT, made.agent.uid)
    for broken, error in (
        (new("bob", tool_names=["nothing"]), BadRequest),
        (new("bob", tools=["nothing"]), NotFound),
        (new("bob", blocks=["nothing"]), NotFound),
    ):
        with pytest.raises(error, match="nothing"):
            await registry.create(PROJECT, broken)
    with pytest.raises(Conflict, match="'helper' is a profile"):
        await registry.create(PROJECT, new("helper"))
    assert [a.definition.name for a in await registry.list_page(PROJECT, AgentFilter(), Page())] == ["ann"]
    assert len((await registry.create(PROJECT, NewAgent(AgentDefinition("react_agent")))).definition.name) > 6


# -- what a name stands for


async def test_a_name_stands_for_the_agent_as_it_is_now(registry: Registry, store: Store) -> None:
    made = await registry.create(PROJECT, new(system="Old.", model="main/gpt-x", tool_names=["memory"]))
    uid = made.agent.uid
    by_name = await registry.resolver.resolve(PROJECT, "ann")
    assert by_name is not None
    assert by_name.scope == made.agent.scope
    spec = by_name.spec
    assert (spec.uid, spec.system, spec.upstream, spec.model) == (uid, "Old.", "main", "gpt-x")
    assert spec.tools[0].name == "memory"
    assert by_name == await registry.resolver.resolve(PROJECT, ids.make_id("agent", uid))
    assert await registry.resolver.resolve("elsewhere", "ann") is None
    assert await registry.resolver.resolve(PROJECT, ids.make_id("agent", ids.new_uid())) is None

    async def resolved() -> AgentSpec:
        found = await registry.resolver.resolve(PROJECT, ids.make_id("agent", uid))
        assert found is not None
        return found.spec

    await registry.change(
        PROJECT, uid, AgentEdit(name="bea", edit_definition=lambda d: replace(d, system="New."))
    )
    assert ((await resolved()).name, (await resolved()).system) == ("bea", "New.")
    assert await registry.resolver.resolve(PROJECT, "ann") is None
    mine = await registry.tools.create(PROJECT, "mine", ToolDefinition({"name": "mine"}))
    await registry.attach_tool(PROJECT, uid, mine.uid)
    assert (await resolved()).tools[-1].definition == ToolDefinition({"name": "mine"})
    after = ToolDefinition({"name": "mine"}, needs_approval=True)
    await registry.tools.change(PROJECT, mine.uid, lambda _: ("yours", after))
    assert ((await resolved()).tools[-1].name, (await resolved()).tools[-1].definition) == ("yours", after)
    await registry.tools.delete(PROJECT, mine.uid)
    assert (await resolved()).tools[-1].name == "memory_replace"
    await registry.detach_tool(PROJECT, uid, BUILT_IN_UIDS["memory_replace"])
    assert (await resolved()).tools[-1].name == "memory_insert"
    await registry.delete(PROJECT, uid)
    assert await registry.resolver.resolve(PROJECT, "bea") is None
    with pytest.raises(NotFound):
        await registry.get(PROJECT, uid)


async def test_two_of_a_name_are_distinguished_by_id(registry: Registry) -> None:
    first, second = await registry.create(PROJECT, new()), await registry.create(PROJECT, new())
    with pytest.raises(BadRequest) as raised:
        await registry.resolver.resolve(PROJECT, "ann")
    assert all(ids.make_id("agent", each.agent.uid) in raised.value.message for each in (first, second))
    await registry.delete(PROJECT, first.agent.uid)
    found = await registry.resolver.resolve(PROJECT, "ann")
    assert found is not None
    assert found.spec.uid == second.agent.uid


async def test_a_known_name_takes_no_statement_and_what_is_gone_is_not_found(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await registry.create(PROJECT, new())
    first = await registry.resolver.resolve(PROJECT, "ann")

    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a statement")

    with monkeypatch.context() as patched:
        patched.setattr(store.database, "read", refuse)
        assert await registry.resolver.resolve(PROJECT, "ann") is first
    # The operator forgets it, past the registry.
    await store.forgetting.begin(made.agent.id, ForgetTarget(is_all=True))
    assert await registry.resolver.resolve(PROJECT, "ann") is None


async def test_a_definition_that_was_read_before_a_change_is_not_cached_after_it(
    registry: Registry, store: Store
) -> None:
    made = await registry.create(PROJECT, new(system="Old."))
    targets = store.attached.load_targets

    async def slow(*args: Any) -> Any:
        await registry.change(
            PROJECT, made.agent.uid, AgentEdit(edit_definition=lambda d: replace(d, system="New."))
        )
        return await targets(*args)

    store.attached.load_targets = slow  # type: ignore[method-assign, assignment]
    await registry.resolver.resolve(PROJECT, "ann")
    store.attached.load_targets = targets  # type: ignore[method-assign]
    found = await registry.resolver.resolve(PROJECT, "ann")
    assert found is not None
    assert found.spec.system == "New."


@pytest.mark.parametrize(
    ("said", "upstream", "model"),
    [
        (None, None, None),
        ("gpt-x", None, "gpt-x"),
        ("main/gpt-x", "main", "gpt-x"),
        ("openai/gpt-x", "main", "gpt-x"),
        ("anthropic/claude-x", "claude", "claude-x"),
        ("google_ai/gemini-x", "google", "gemini-x"),
        ("openai/alias", None, "openai/alias"),
        ("meta/llama", None, "meta/llama"),
    ],
)
async def test_an_upstreams_name_or_kind_is_taken_off_a_model(
    registry: Registry, said: str | None, upstream: str | None, model: str | None
) -> None:
    await registry.create(PROJECT, new(model=said))
    found = await registry.resolver.resolve(PROJECT, "ann")
    assert found is not None
    assert (found.spec.upstream, found.spec.model) == (upstream, model)


# -- changes


async def test_changes_side_by_side_are_all_made(registry: Registry) -> None:
    made = await registry.create(PROJECT, new())

    def adds(key: str) -> AgentEdit:
        return AgentEdit(edit_definition=lambda d: replace(d, metadata={**d.metadata, key: 1}))

    await asyncio.gather(*(registry.change(PROJECT, made.agent.uid, adds(f"k{n}")) for n in range(4)))
    found = await registry.get(PROJECT, made.agent.uid)
    assert found.definition.body["metadata"] == {f"k{n}": 1 for n in range(4)}


async def test_changes_of_a_tool_and_of_a_conversation_side_by_side_are_all_made(
    registry: Registry, store: Store
) -> None:
    tool = await registry.tools.create(PROJECT, "search", ToolDefinition({}))
    made = await registry.create(PROJECT, new())
    conversations = AgentConversations(store, lambda: 1.0)
    talk = (await conversations.create(made.agent, ConversationDefinition())).conversation.uid

    def tags(n: int) -> Callable[[ToolDefinition], tuple[str | None, ToolDefinition]]:
        return lambda d: (None, replace(d, tags=(*d.tags, f"t{n}")))

    def summary(n: int) -> Callable[[ConversationDefinition], ConversationDefinition]:
        return lambda d: replace(d, summary=f"{d.summary or ''}{n}")

    await asyncio.gather(
        *(registry.tools.change(PROJECT, tool.uid, tags(n)) for n in range(4)),
        *(conversations.change(PROJECT, talk, summary(n)) for n in range(4)),
    )
    now = (await registry.tools.get(PROJECT, tool.uid)).definition
    assert now is not None
    assert sorted(now.body["tags"]) == ["t0", "t1", "t2", "t3"]
    assert sorted(
        read_conversation_definition(await store.conversations.get(PROJECT, talk)).summary or ""
    ) == [
        "0",
        "1",
        "2",
        "3",
    ]


async def test_lists_replace_what_an_agent_has(registry: Registry, store: Store) -> None:
    made = await registry.create(PROJECT, new(own_blocks=[BlockDraft(HUMAN, {})], tags=["a"]))
    house = await store.named_blocks.create(
        PROJECT, BlockDraft(replace(HUMAN, label="house")), at=1.0, origin="api"
    )
    edit = AgentEdit(blocks=[house.block.uid], tools=[BUILT_IN_UIDS["memory"]], tags=["b"])
    changed = await registry.change(PROJECT, made.agent.uid, edit)
    assert [e.block.label for e in changed.blocks] == ["house"]
    assert (names(changed), list(changed.tags)) == (["memory"], ["b"])
    other = await store.named_blocks.create(
        PROJECT, BlockDraft(replace(HUMAN, label="house")), at=1.0, origin="api"
    )
    with pytest.raises(WriteConflict, match="'house'"):
        await registry.change(
            PROJECT, made.agent.uid, AgentEdit(blocks=[house.block.uid, other.block.uid], tags=["c"])
        )
    assert list((await registry.get(PROJECT, made.agent.uid)).tags) == ["b"]
    with pytest.raises(Conflict, match="profile"):
        await registry.change(PROJECT, made.agent.uid, AgentEdit(name="helper"))


async def test_a_users_memory_is_an_agent_whose_configuration_is_the_profiles(
    registry: Registry, store: Store
) -> None:
    alice = Speaker(store)
    await alice.say([user("one")], assistant("First."), "c1")
    await rows(store, "UPDATE agents SET profile = 'helper'")
    uid = alice.agent.uid
    found = await registry.get(PROJECT, uid)
    assert (found.definition.name, list(found.tags)) == ("helper alice", ["profile:helper", "user:alice"])
    definition = AgentDefinition.of(found.definition.body)
    assert (definition.system, definition.model, definition.learns) == ("Help.", "m", True)
    assert "memory_insert" in names(found)
    assert [e.block.label for e in found.blocks] == ["human"]
    for attempt in (
        lambda: registry.change(PROJECT, uid, AgentEdit(name="x")),
        lambda: registry.attach_tool(PROJECT, uid, BUILT_IN_UIDS["memory"]),
        lambda: registry.detach_tool(PROJECT, uid, BUILT_IN_UIDS["memory"]),
    ):
        with pytest.raises(Conflict, match="settings file"):
            await attempt()
    assert await registry.resolver.resolve(PROJECT, ids.make_id("agent", uid)) is None, (
        "its profile's name finds it, with a user"
    )


# -- tools


async def test_tools_are_listed_after_the_gateways_own(registry: Registry) -> None:
    made = [await registry.tools.create(PROJECT, f"t{n}", ToolDefinition({})) for n in range(3)]

    async def listed(page: Page[str] = NEWEST_FIRST, **names: str) -> list[str]:
        return [tool.name async for tool in registry.tools.select(PROJECT, page, **names)]

    oldest_first = [*BUILT_IN_TOOLS, "t0", "t1", "t2"]
    assert await listed(Page(newest_first=False)) == oldest_first
    assert await listed() == oldest_first[::-1]
    for newest_first in (True, False):
        tools = [tool async for tool in registry.tools.select(PROJECT, Page(newest_first=newest_first))]
        for count, tool in enumerate(tools, 1):
            later = [each.name for each in tools[count:]]
            assert await listed(Page(after=tool.uid, newest_first=newest_first)) == later
    assert await listed(name="t1") == ["t1"]
    assert await listed(name="memory") == ["memory"]
    assert await listed(name_part="CORE_MEM") == ["core_memory_replace", "core_memory_append"]
    assert await listed(Page(before=made[1].uid)) == ["t2"]
    with pytest.raises(NotFound):
        await registry.tools.get("elsewhere", made[0].uid)


async def test_a_tool_is_put_by_its_name_and_the_gateways_own_stay(registry: Registry) -> None:
    made = await registry.tools.put(PROJECT, "mine", ToolDefinition({"v": 1}))
    again = await registry.tools.put(PROJECT, "mine", ToolDefinition({"v": 2}))
    assert made.uid == again.uid
    assert again.definition is not None
    assert again.definition.body["schema"] == {"v": 2}
    with pytest.raises(WriteConflict):
        await registry.tools.create(PROJECT, "mine", ToolDefinition({}))
    own = BUILT_IN_UIDS["memory"]
    for attempt in (
        lambda: registry.tools.put(PROJECT, "memory", ToolDefinition({})),
        lambda: registry.tools.change(PROJECT, own, lambda d: (None, d)),
        lambda: registry.tools.change(PROJECT, made.uid, lambda d: ("memory", d)),
        lambda: registry.tools.delete(PROJECT, own),
    ):
        with pytest.raises(Conflict, match="gateway's own"):
            await attempt()


@pytest.mark.sqlite
async def test_a_page_of_agents_takes_a_few_statements_however_many_they_are(tmp_path: Path) -> None:
    statements: list[str] = []
    opened = await open_store(tmp_path / "counted.db", factory=counting(statements.append))
    registry = Registry(opened, SETTINGS, [HELPER], lambda: 1000.0)
    mine = await registry.tools.create(PROJECT, "mine", ToolDefinition({"name": "mine"}))
    counts = set()
    for size in (1, 9):
        while await opened.defined_agents.count(PROJECT, AgentFilter()) < size:
            await registry.create(
                PROJECT, new(own_blocks=[BlockDraft(HUMAN, {})], tool_names=["mine"], tags=["a"])
            )
        statements.clear()
        assert len(await registry.list_page(PROJECT, AgentFilter(), Page())) == size
        counts.add(len([each for each in statements if "sqlite_master" not in each]))
    assert counts == {9}, "agents, tags, tools, what they are, folders, identities, blocks, runs, readers"
    uid = (await registry.list_page(PROJECT, AgentFilter(), Page()))[0].agent.uid
    await registry.resolver.resolve(PROJECT, ids.make_id("agent", uid))
    await registry.tools.change(PROJECT, mine.uid, lambda d: (None, d))  # nothing is cached beyond a change
    statements.clear()
    for _ in range(3):
        await registry.resolver.resolve(PROJECT, ids.make_id("agent", uid))
    assert len(statements) == 3, "definition, attachments, tools; the memory is at hand since it was made"
    await opened.close()
