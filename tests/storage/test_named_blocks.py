"""Blocks that agents share: labels, limits, who sees them, what becomes of them when an agent or a block goes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from storage.errors import LimitExceeded, NotFound, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import AgentChange, AgentEntry, AgentFilter, BlockChange, BlockDraft, BlockFilter, Page
from storage.records import Block, SentSection
from storage.sql.default_blocks import ensure_shared_blocks
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.storage.api import PROJECT, api_scope, make_agent
from tests.storage.conftest import Holds
from tests.stored import Speaker, forget, keeps_emptied_rows, rows

HUMAN = Block(0, "human", "Who", "Unknown.", 20)
HOUSE = Block(0, "house", "Of the house", "Be brief.", 20)


async def make_block(store: Store, block: Block = HOUSE, project: str = PROJECT, **details: Any) -> str:
    return (
        await store.named_blocks.create(project, BlockDraft(block, details), at=1.0, origin="api")
    ).block.uid


async def labels(store: Store, agent: AgentEntry) -> list[str]:
    """The labels that an agent sees, the same on every way."""
    id = agent.agent.id
    found = [b.label for b in await store.blocks.load(id)]
    assert [e.block.label for e in (await store.named_blocks.load_visible([id]))[id]] == found
    snapshot = await store.turns.find_snapshot(agent.agent, None, None)
    assert snapshot is not None
    assert [b.label for b in snapshot.blocks] == found
    own = await store.stored_paths.load_path(agent.agent, "default", None)
    assert own is not None
    assert [b.label for b in own.snapshot.blocks] == found
    return found


async def test_a_block_is_attached_seen_by_all_and_detached(store: Store) -> None:
    ann, bob = await make_agent(store, "ann", own=[HUMAN]), await make_agent(store, "bob")
    house, news = await make_block(store), await make_block(store, replace(HOUSE, label="news"))
    assert await labels(store, ann) == ["human"]
    for uid in (news, house):  # in the order in which they are attached
        await store.named_blocks.attach(ann.agent, uid)
    await store.named_blocks.attach(bob.agent, house)
    await store.named_blocks.attach(bob.agent, house)
    assert await labels(store, ann) == ["human", "news", "house"]
    assert await labels(store, bob) == ["house"]
    entry = await store.named_blocks.get_labelled(bob.agent.id, "house")
    assert (entry.block.uid, entry.owner, entry.profile) == (house, None, "")
    assert await store.named_blocks.load_agents_seeing(entry.block.id) == [ann.agent.id, bob.agent.id]
    await store.named_blocks.change(PROJECT, house, BlockChange(value="Be kind."), at=2.0, origin="api")
    for agent in (ann, bob):
        assert (await store.named_blocks.get_labelled(agent.agent.id, "house")).block.value == "Be kind."
    await store.named_blocks.detach(ann.agent, house)
    assert await labels(store, ann) == ["human", "news"]
    assert await labels(store, bob) == ["house"]
    with pytest.raises(NotFound):
        await store.named_blocks.detach(ann.agent, house)
    # Its own block is nobody's then, and goes with nobody.
    own = (await store.named_blocks.get_labelled(ann.agent.id, "human")).block.uid
    assert (await store.named_blocks.detach(ann.agent, own)).owner is None
    assert await labels(store, ann) == ["news"]
    await store.named_blocks.attach(bob.agent, own)
    assert await labels(store, bob) == ["house", "human"]


async def test_another_projects_block_is_not_found(store: Store) -> None:
    ann = await make_agent(store, "ann")
    theirs = await make_block(store, project="elsewhere")
    for attempt in (
        lambda: store.named_blocks.attach(ann.agent, theirs),
        lambda: store.named_blocks.detach(ann.agent, theirs),
        lambda: store.named_blocks.change(PROJECT, theirs, BlockChange(value="x"), at=1.0, origin="api"),
        lambda: store.named_blocks.delete(PROJECT, theirs),
        lambda: store.named_blocks.undo(PROJECT, theirs, at=1.0),
        lambda: store.named_blocks.get(PROJECT, theirs),
    ):
        with pytest.raises(NotFound):
            await attempt()
    assert await store.named_blocks.list_page(PROJECT, BlockFilter(), Page()) == []


async def test_a_label_is_there_once_for_every_sharer(store: Store) -> None:
    ann, bob = await make_agent(store, "ann", own=[HUMAN]), await make_agent(store, "bob")
    house, other = await make_block(store), await make_block(store, replace(HOUSE, value="Other."))
    await store.named_blocks.attach(ann.agent, house)
    with pytest.raises(WriteConflict, match="'house'"):
        await store.named_blocks.attach(ann.agent, other)
    await store.named_blocks.attach(bob.agent, other)
    # Renamed for one, it would be there twice for another.
    third = await make_block(store, replace(HOUSE, label="third"))
    for agent in (ann, bob):
        await store.named_blocks.attach(agent.agent, third)
    with pytest.raises(WriteConflict, match="'human'"):
        await store.named_blocks.change(PROJECT, third, BlockChange(label="human"), at=2.0, origin="api")
    with pytest.raises(WriteConflict, match="'house'"):
        await store.named_blocks.change(PROJECT, third, BlockChange(label="house"), at=2.0, origin="api")
    with pytest.raises(WriteConflict, match="'human'"):
        await store.named_blocks.create(PROJECT, BlockDraft(HUMAN), at=2.0, origin="api", owner=ann.agent.id)
    renamed = await store.named_blocks.change(
        PROJECT, third, BlockChange(label="rules"), at=2.0, origin="api"
    )
    assert renamed.block.label == "rules"
    assert await labels(store, ann) == ["human", "house", "rules"]
    assert await labels(store, bob) == ["house", "rules"]


async def test_a_profiles_user_sees_own_shared_and_attached_blocks(store: Store) -> None:
    alice = Speaker(store)
    await alice.say([user("one")], assistant("First."), "c1")
    await store.database.write(
        lambda c: ensure_shared_blocks(c, PROJECT, "default", [replace(HOUSE, label="shared")], 1.0)
    )
    entry = await store.defined_agents.get(PROJECT, alice.agent.uid)
    house = await make_block(store)
    await store.named_blocks.attach(alice.agent, house)
    assert await labels(store, entry) == ["human", "shared", "house"]
    with pytest.raises(WriteConflict):
        await store.named_blocks.change(PROJECT, house, BlockChange(label="shared"), at=2.0, origin="api")
    shared = (await store.named_blocks.get_labelled(alice.agent.id, "shared")).block
    with pytest.raises(WriteConflict, match="settings"):
        await store.named_blocks.delete(PROJECT, shared.uid)
    learned = {b.label: b.read_only for b in await store.facts.load_blocks(alice.agent.id)}
    assert learned == {"human": False, "shared": True, "house": True}, "what one says is not for the others"
    # The settings give the profile a block of a label that one of its users has attached already.
    news = [replace(HOUSE, label="house", value="Of all.")]
    await store.database.write(lambda c: ensure_shared_blocks(c, PROJECT, "default", news, 3.0))
    assert await labels(store, entry) == ["human", "shared", "house"]
    assert (await store.named_blocks.get_labelled(alice.agent.id, "house")).block.value == "Of all."


async def test_limits_hold_whoever_writes(store: Store) -> None:
    ann = await make_agent(store, "ann", own=[HUMAN])
    block = (await store.named_blocks.get_labelled(ann.agent.id, "human")).block
    long = "x" * 21
    with pytest.raises(LimitExceeded, match="20 characters at most, not 21"):
        await store.named_blocks.change(PROJECT, block.uid, BlockChange(value=long), at=2.0, origin="api")
    with pytest.raises(LimitExceeded):
        await store.blocks.write(block.id, 1, long, at=2.0, origin="tool")
    with pytest.raises(LimitExceeded):
        await make_block(store, replace(HOUSE, value=long))
    with pytest.raises(LimitExceeded):
        await make_agent(store, "bob", own=[replace(HUMAN, value=long)])
    with pytest.raises(LimitExceeded, match="8 characters, more than a limit of 5"):
        await store.named_blocks.change(PROJECT, block.uid, BlockChange(limit=5), at=2.0, origin="api")
    both = BlockChange(limit=30, value=long)
    changed = await store.named_blocks.change(PROJECT, block.uid, both, at=2.0, origin="api")
    assert (changed.block.limit, changed.block.value, changed.block.version) == (30, long, 2)
    await store.named_blocks.change(
        PROJECT, block.uid, BlockChange(value="short", limit=6), at=3.0, origin="api"
    )
    with pytest.raises(LimitExceeded):
        await store.named_blocks.undo(PROJECT, block.uid, at=4.0)
    # A limit that the settings lowered: what is longer may get shorter.
    await rows(store, "UPDATE blocks SET lim = 2 WHERE id = ?", (block.id,))
    assert (await store.blocks.write(block.id, 3, "shor", at=5.0, origin="tool")).value == "shor"


async def test_a_change_is_compare_and_set_where_a_version_is_given_and_can_be_undone(store: Store) -> None:
    uid = await make_block(store, tags=["a"])
    changed = await store.named_blocks.change(
        PROJECT, uid, BlockChange(value="New."), at=2.0, origin="api", version=1
    )
    with pytest.raises(WriteConflict, match="version 2, not 1"):
        await store.named_blocks.change(
            PROJECT, uid, BlockChange(value="Late."), at=3.0, origin="api", version=1
        )
    assert [r.value for r in await store.blocks.list_revisions(changed.block.id)] == ["New.", "Be brief."]
    undone = await store.named_blocks.undo(PROJECT, uid, at=4.0)
    assert (undone.block.value, undone.block.version, undone.details) == ("Be brief.", 3, {"tags": ["a"]})
    said = BlockChange(description="D", read_only=True, details={"metadata": {"k": 1}})
    same = await store.named_blocks.change(PROJECT, uid, said, at=5.0, origin="api")
    assert (same.block.version, same.block.description, same.block.read_only) == (3, "D", True)
    assert same.details == {"tags": ["a"], "metadata": {"k": 1}}


async def test_blocks_are_listed_by_what_they_say_and_who_has_them(store: Store) -> None:
    ann, bob = await make_agent(store, "ann", own=[HUMAN]), await make_agent(store, "bob")
    house = await make_block(store, tags=["a", "b"], name="template")
    news = await make_block(store, Block(0, "news", "100% true", "Rain", 20), tags=["b"])
    await make_block(store, replace(HOUSE, label="secret"), hidden=True)
    for agent in (ann, bob):
        await store.named_blocks.attach(agent.agent, house)

    async def listed(page: Page[int] | None = None, **wanted: Any) -> str:
        found = await store.named_blocks.list_page(PROJECT, BlockFilter(**wanted), page or Page())
        return " ".join(e.block.label for e in found)

    assert await listed() == "news house human"
    assert await listed(includes_hidden=True) == "secret news house human"
    assert await listed(Page(newest_first=False, limit=2)) == "human house"
    found = await store.named_blocks.get(PROJECT, house)
    assert await listed(Page(after=found.block.id)) == "human"
    assert (
        await listed(label="news")
        == await listed(label_text="EW")
        == await listed(value_text="rain")
        == "news"
    )
    assert await listed(description_text="100%") == "news"
    assert await listed(tags=["a", "b"]) == "news house"
    assert await listed(tags=["a", "b"], needs_all_tags=True) == await listed(name="template") == "house"
    assert await listed(min_agents=2) == "house"
    assert await listed(max_agents=0) == "news"
    assert await listed(min_agents=1, max_agents=1) == "human"
    assert (await store.named_blocks.get(PROJECT, news)).details == {"tags": ["b"]}


async def test_an_agent_is_given_other_blocks_at_once(store: Store) -> None:
    ann = await make_agent(store, "ann", own=[HUMAN])
    house, news = await make_block(store), await make_block(store, replace(HOUSE, label="human"))
    own = (await store.named_blocks.get_labelled(ann.agent.id, "human")).block.uid
    ann = await store.defined_agents.change(ann, AgentChange(blocks=[house, own]), at=2.0)
    assert await labels(store, ann) == ["human", "house"]
    # One that takes the label of another, which goes.
    ann = await store.defined_agents.change(ann, AgentChange(blocks=[news]), at=3.0)
    assert await labels(store, ann) == ["human"]
    assert (await store.named_blocks.get_labelled(ann.agent.id, "human")).block.uid == news
    assert (await store.named_blocks.get(PROJECT, own)).owner is None


async def test_a_deleted_block_is_gone_with_its_values_and_from_the_sections_that_show_it(
    store: Store, holds: Holds
) -> None:
    ann = Speaker(store, api_scope("ann"))
    made = await make_agent(store, "ann")
    uid = await make_block(store, replace(HOUSE, value="zqfirstx"), tags=["zqtagx"])
    await store.named_blocks.attach(made.agent, uid)
    await store.named_blocks.change(PROJECT, uid, BlockChange(value="zqsecondx"), at=2.0, origin="api")
    turn = await ann.begin([user("one")], "c1")
    shown = SentSection(0, "house: zqsecondx", {"blocks": {"house": "d"}, "tools": {}, "epoch": 0})
    await ann.end(turn, [assistant("First.")], section=shown)
    await store.named_blocks.delete(PROJECT, uid)
    assert await labels(store, made) == []
    assert await keeps_emptied_rows(store) is not store.database.is_shared
    await store.database.sweep(1000)
    assert not [w for w in ("first", "second", "tag") if holds(f"zq{w}x".encode())]
    with pytest.raises(NotFound):
        await store.named_blocks.get(PROJECT, uid)


async def test_forgetting_a_message_reaches_the_blocks_that_its_agent_shares(
    store: Store, holds: Holds
) -> None:
    ann, bob = Speaker(store, api_scope("ann")), await make_agent(store, "bob")
    made = await make_agent(store, "ann")
    uid = await make_block(store)
    for agent in (made, bob):
        await store.named_blocks.attach(agent.agent, uid)
    await ann.say([user("zqsaidx")], assistant("First."), "c1")
    (e,) = await ann.rows()
    block = (await store.named_blocks.get(PROJECT, uid)).block
    await store.blocks.write(
        block.id, 1, "Brief. zqsaidx", at=2.0, origin="tool:1", exchange_row=e.id, sources=[e.id]
    )
    before = await store.agents.find(bob.agent.scope)
    assert before is not None
    await forget(store, made.agent, ForgetTarget(exchange_rows=[e.id]))
    assert not holds(b"zqsaidx")
    for agent in (made, bob):
        assert (await store.named_blocks.get_labelled(agent.agent.id, "house")).block.value == "Be brief."
    now = await store.agents.find(bob.agent.scope)
    assert now is not None
    assert now.epoch > before.epoch, "whoever saw it takes a new section"


async def test_a_deleted_agent_leaves_what_it_wrote_to_those_who_see_it_and_nothing_else(
    store: Store, holds: Holds
) -> None:
    speaker = Speaker(store, api_scope("ann"))
    own = Block(0, "zqlabelx", "d", "zqownx", 20)
    ann = await make_agent(store, "ann", own=[HUMAN, own], tags=["zqtagx"], system="zqsystemx")
    bob = await make_agent(store, "bob")
    uid = await make_block(store)
    for agent in (ann, bob):
        await store.named_blocks.attach(agent.agent, uid)
    lent = (await store.named_blocks.get_labelled(ann.agent.id, "human")).block
    await store.named_blocks.attach(bob.agent, lent.uid)
    private = (await store.named_blocks.get_labelled(ann.agent.id, "zqlabelx")).block
    details = BlockChange(details={"metadata": "zqdetailx"})
    await store.named_blocks.change(PROJECT, private.uid, details, at=2.0, origin="api")
    await speaker.say([user("zqsaidx")], assistant("First."), "c1")
    (e,) = await speaker.rows()
    block = (await store.named_blocks.get(PROJECT, uid)).block
    for target, version in ((block, block.version), (lent, lent.version)):
        await store.blocks.write(
            target.id, version, "Written.", at=2.0, origin="tool:1", exchange_row=e.id, sources=[e.id]
        )
    id = await store.forgetting.begin(ann.agent.id, ForgetTarget(is_all=True))
    with pytest.raises(NotFound):
        await store.defined_agents.get(PROJECT, ann.agent.uid)
    assert await store.defined_agents.count(PROJECT, AgentFilter()) == 1
    assert [each.name for each in await store.defined_agents.list_newest(PROJECT, 9)] == ["bob"]
    assert await store.forgetting.run(id)
    assert await store.forgetting.sweep()
    assert not [w for w in ("own", "tag", "system", "said", "label", "detail") if holds(f"zq{w}x".encode())]
    assert await labels(store, bob) == ["house", "human"]
    assert (await store.named_blocks.get(PROJECT, lent.uid)).owner is None
    # When a sharer forgets something of its own, what the other one wrote stays.
    other = Speaker(store, api_scope("bob"))
    await other.say([user("one")], assistant("First."), "c1")
    await forget(store, bob.agent, ForgetTarget(exchange_rows=[(await other.rows())[0].id]))
    for label in ("house", "human"):
        assert (await store.named_blocks.get_labelled(bob.agent.id, label)).block.value == "Written."
    assert await rows(store, "SELECT agent FROM attached WHERE agent = ?", (ann.agent.id,)) == []


async def test_the_block_of_an_agent_that_goes_takes_in_nothing_more(store: Store, holds: Holds) -> None:
    for steps in range(1, 24):
        uid = f"{steps:032x}"
        agent = (await make_agent(store, f"ann {steps}", own=[replace(HUMAN, uid=uid)])).agent
        id = await store.forgetting.begin(agent.id, ForgetTarget(is_all=True))
        passed = iter([False] * (steps - 1))
        await store.forgetting.run(id, lambda passed=passed: next(passed, True))  # type: ignore[misc]
        with pytest.raises(NotFound):
            await store.named_blocks.change(PROJECT, uid, BlockChange(value="zqlatex"), at=2.0, origin="api")
        assert await store.forgetting.run(id)
    assert await store.forgetting.sweep()
    assert not holds(b"zqlatex")


async def test_a_part_of_a_value_is_found_however_long_and_with_any_signs(store: Store) -> None:
    long = "É" * 30_000 + "b"
    for value in (f"a{long}", r"100% _sure\ly"):
        await make_block(store, replace(HOUSE, limit=50_000, value=value))

    async def find(part: str) -> list[int]:
        found = await store.named_blocks.list_page(PROJECT, BlockFilter(value_text=part), Page())
        return [len(each.block.value) for each in found]

    assert await find(long) == [30_002]
    assert await find(r"0% _SURE\L") == [13]
    for part in ("1_0", "1%s", "é", "surely"):
        assert await find(part) == []
    assert await find("") == [13, 30_002]
