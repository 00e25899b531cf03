"""Every list of the agents API from page to page, forwards and backwards, by the pager of letta-client.

It goes on `after` the last row of a page, or `before` the first one where it was asked with `before`. So a page that
only `before` bounds has to end at its cursor, whatever the order is, or rows are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.agents.registry.registry import Registry
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say

pytestmark = [pytest.mark.both, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# Returns a page by the client's own arguments.
Lists = Callable[..., Any]
ORDERS = ("asc", "desc")
_ROWS = 7
_LIMIT = 3


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def pages(listed: Lists, **query: Any) -> list[list[Any]]:
    """Returns the ids of a list, page by page, as far as the client goes on.

    Of conversations the client gives a page alone; there the test goes on as its pager does.
    """
    page = listed(**query)
    if not isinstance(page, list):
        return [[each.id for each in page.items] for page in page.iter_pages() if page.items]
    found = []
    while page:
        found.append([each.id for each in page])
        cursor = {"before": found[-1][0]} if "before" in query else {"after": found[-1][-1]}
        page = listed(**{**query, **cursor})
    return found


def joined(found: list[list[str]]) -> list[str]:
    return [id for page in found for id in page]


def check(listed: Lists, whole: list[str], order: str) -> None:
    """Checks that a list is given whole in an order, in both directions, and from its midst."""
    rows = whole if order == "asc" else whole[::-1]
    assert joined(pages(listed, order=order, limit=_LIMIT)) == rows
    assert joined(pages(listed, order=order, limit=_LIMIT, after=rows[1])) == rows[2:]
    backwards = pages(listed, order=order, limit=_LIMIT, before=rows[-1])
    assert joined(backwards[::-1]) == rows[:-1]
    assert [len(page) for page in backwards[:1]] == [min(_LIMIT, len(rows) - 1)]
    # Both cursors: from the first one on.
    both = listed(order=order, limit=1, after=rows[0], before=rows[3])
    assert [each.id for each in getattr(both, "items", both)] == [rows[1]]


def test_agents(world: LettaWorld) -> None:
    made = [world.agent(name=f"a{n}").id for n in range(_ROWS)]
    for order in ORDERS:
        check(world.letta.agents.list, made, order)
    block = world.letta.blocks.create(label="shared", value="x")
    for id in made:
        world.letta.agents.blocks.attach(block.id, agent_id=id)
        world.letta.agents.messages.create(id, input="Hi")

    def by_run(**query: Any) -> Any:
        return world.letta.agents.list(order_by="last_run_completion", **query)

    def of_block(**query: Any) -> Any:
        return world.letta.blocks.agents.list(block.id, **query)

    for order in ORDERS:
        check(by_run, made, order)
        check(of_block, made, order)


def test_a_page_of_those_who_see_a_block_reads_no_others(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = world.letta.blocks.create(label="board", value="x").id
    for _ in range(_ROWS):
        world.agent(memory_blocks=[], block_ids=[block])
    real, read = Registry.load_several, list[int]()

    async def load_several(registry: Registry, project: str, rows: Sequence[int]) -> Any:
        read.append(len(rows))
        return await real(registry, project, rows)

    monkeypatch.setattr(Registry, "load_several", load_several)
    assert len(joined(pages(world.letta.blocks.agents.list, block_id=block, limit=_LIMIT))) == _ROWS
    assert max(read) == _LIMIT


def test_blocks_tools_archives_and_folders(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent(include_base_tools=False, memory_blocks=[])
    blocks = [client.blocks.create(label=f"b{n}", value="x").id for n in range(_ROWS)]
    archives = [client.archives.create(name=f"r{n}").id for n in range(_ROWS)]
    folders = [client.folders.create(name=f"f{n}").id for n in range(_ROWS)]
    for block, archive in zip(blocks, archives, strict=True):
        client.agents.blocks.attach(block, agent_id=agent.id)
        client.agents.archives.attach(archive, agent_id=agent.id)
    tools = [each.id for each in client.tools.list(order="asc")]
    named: list[tuple[Lists, list[Any]]] = [
        (client.blocks.list, blocks),
        (client.tools.list, tools),
        (client.archives.list, archives),
        (client.folders.list, folders),
        (lambda **query: client.agents.blocks.list(agent.id, **query), blocks),
        (lambda **query: client.archives.list(agent_id=agent.id, **query), archives),
    ]
    for listed, whole in named:
        for order in ORDERS:
            check(listed, whole, order)


def test_files_of_an_agent(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent()
    folder = client.folders.create(name="papers")
    files = [
        client.folders.files.upload(folder.id, file=(f"f{n}.txt", b"words", "text/plain")).id
        for n in range(_ROWS)
    ]
    client.agents.folders.attach(folder.id, agent_id=agent.id)
    for order in ORDERS:
        check(lambda **query: client.folders.files.list(folder.id, **query), files, order)
    page = client.agents.files.list(agent.id, order="asc", limit=_LIMIT, before=files[-1])
    backwards = [[each.file_id for each in each.files] for each in page.iter_pages() if each.files]
    names = [each.file_id for each in client.agents.files.list(agent.id, order="asc", limit=100).files]
    assert [id for page in backwards[::-1] for id in page] == names[:-1]


def test_conversations_runs_and_steps(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent()
    conversations = [client.conversations.create(agent_id=agent.id).id for _ in range(_ROWS)]
    for id in conversations:
        list(client.conversations.messages.create(id, input="Hi"))

    def of(method: Lists) -> Lists:
        return lambda **query: method(agent_id=agent.id, **query)

    def newest(**query: Any) -> Any:
        """As the client lists conversations, with `before`, for which its method has no argument."""
        return client.conversations.list(agent_id=agent.id, extra_query=query)

    def spoken(**query: Any) -> Any:
        return newest(order_by="last_message_at", **query)

    runs = [each.id for each in client.runs.list(agent_id=agent.id, order="asc")]
    steps = [each.id for each in client.steps.list(agent_id=agent.id, order="asc")]
    assert len(runs) == len(steps) == _ROWS
    for order in ORDERS:
        check(newest, conversations, order)
        check(spoken, conversations, order)
        check(of(client.runs.list), runs, order)
        check(of(client.steps.list), steps, order)


def test_steps_of_a_run(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(*[call_tools(Call("conversation_search", {"query": "x"})) for _ in range(_ROWS)])
    world.upstream.queue(say("Done."))
    reply = world.letta.agents.messages.create(agent.id, input="Search.")
    run = str(reply.messages[-1].run_id)  # type: ignore[union-attr]
    steps = [each.id for each in world.letta.runs.steps.list(run, order="asc")]
    assert len(steps) == _ROWS + 1
    for order in ORDERS:
        check(lambda **query: world.letta.runs.steps.list(run, **query), steps, order)
    messages = [each.id for each in world.letta.runs.messages.list(run, order="asc")]
    check(lambda **query: world.letta.runs.messages.list(run, **query), messages, "asc")


def test_passages(world: LettaWorld) -> None:
    agent, passages = world.agent(), world.letta.agents.passages
    made = [passages.create(agent.id, text=f"Text {n}")[0].id for n in range(_ROWS)]

    def listed(ascending: bool = True, **query: Any) -> list[str | None]:
        return [each.id for each in passages.list(agent.id, ascending=ascending, limit=_LIMIT, **query)]

    # `after` is newer, `before` is older, in either order; a page adjoins its cursor.
    assert listed(after=made[1]) == made[2:5]
    assert listed(before=made[-1]) == made[-4:-1]
    assert listed(ascending=False, before=made[-1]) == made[-4:-1][::-1]
    assert listed(ascending=False, after=made[1]) == made[2:5][::-1]


def test_messages(world: LettaWorld) -> None:
    client, agent = world.letta, world.agent()
    for n in range(_ROWS):
        client.agents.messages.create(agent.id, input=f"Text {n}")
    lists: tuple[Lists, ...] = (
        lambda **query: client.agents.messages.list(agent.id, **query),
        lambda **query: client.conversations.messages.list(agent.id, **query),
    )
    whole = [each.id for each in lists[0](order="asc", limit=1000).items]
    assert len(whole) >= 2 * _ROWS
    for listed in lists:
        check(listed, whole, "asc")
    # An agent's messages are given oldest first, whatever the order; `after` is newer and `before` is older.
    listed = lists[0]
    back = pages(listed, limit=_LIMIT, before=whole[-1])
    assert joined(back[::-1]) == whole[:-1]
    assert joined(pages(listed, limit=_LIMIT, after=whole[1])) == whole[2:]
    every = client.messages.list
    assert [each.id for each in every(order="asc", limit=_LIMIT, before=whole[-1])] == whole[-1 - _LIMIT : -1]
    # A conversation's messages are given newest first: `before` is older, and `after` goes on in that order.
    assert joined(pages(lists[1], limit=_LIMIT)) == whole[::-1]
    assert [each.id for each in lists[1](limit=_LIMIT, before=whole[-1]).items] == whole[-1 - _LIMIT : -1][
        ::-1
    ]
