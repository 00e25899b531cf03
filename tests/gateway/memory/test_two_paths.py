"""The plain path decides what the general one would: random traffic through both, compared after every request.

One side is the pure core over records in a dict, which always weighs everything. The other is the real store, with
its bounded look-ups, its skeletons without content, and the plain path wherever it applies.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, make_shown_reply, read_text
from gateway.core.prompt.composition import Composition
from storage.records import Exchange
from storage.sql.store import Store
from tests.core.conversations import (
    GATEWAY_TOOLS,
    IDLE_S,
    Request,
    World,
    assistant,
    call,
    call_name,
    check_columns,
    result,
    user,
    without_numbers,
)
from tests.stored import ALICE, PlannedTurn, Speaker


class Pair:
    """Says everything twice. plain: how many requests took the plain path.

    has_edits: memory is edited; if so idle time never passes, since what it confirms the store settles later.
    """

    def __init__(self, store: Store, *, has_edits: bool) -> None:
        self.has_edits = has_edits
        self.plain = 0
        self.world = World(store.agents.get_draft(ALICE).secret, self._recall)
        self.speaker = Speaker(store, ALICE, lambda: self.world.now, self._recall)
        self.stored: dict[int, PlannedTurn] = {}

    def _recall(self, question: str) -> str:
        # Another note each time: only what is stored is the same when it is asked again.
        return f"<memory a2b3c4d5>as of {self.world.now}</memory>\n" if "where" in question else ""

    def edits(self, id: str) -> list[str]:
        return [f"fact-{id}"] if self.has_edits else []

    async def begin(
        self,
        messages: Sequence[WireMessage],
        key: str | None,
        mode: MemoryUse = MemoryUse.ON,
        has_tools: bool = True,
    ) -> Request:
        offered = GATEWAY_TOOLS if has_tools else frozenset()
        request = self.world.begin(messages, key, mode=mode, tools=offered)
        stored = await self.speaker.begin(messages, key, mode, offered)
        assert request.plan is not None
        for what, a, b in (
            ("parent", _parent(request.plan), _parent(stored.plan)),
            ("fill", _filled(request.composition), _filled(stored.composition)),
            ("notes", request.composition.notes, stored.composition.notes),
            ("replacements", request.composition.replacements, stored.composition.replacements),
            (
                "unrestored rounds",
                request.composition.unrestored_rounds,
                stored.composition.unrestored_rounds,
            ),
            ("own notes", request.notes, stored.notes),
        ):
            assert a == b, f"{what}: {a!r} in general, {b!r} in the store\n{self.world.tree()}\n{messages}"
        self.stored[id(request)] = stored
        self.plain += stored.is_plain
        return request

    async def finish(self, request: Request, full: list[WireMessage], edits: Sequence[str] = ()) -> None:
        self.world.finish(request, full, edits)
        await self._end(request, full, edits, settle.finish)

    async def cancel(self, request: Request, got: list[WireMessage], edits: Sequence[str] = ()) -> None:
        self.world.cancel(request, got, edits)
        await self._end(request, got, edits, settle.cancel)

    async def _end(
        self,
        request: Request,
        full: list[WireMessage],
        edits: Sequence[str],
        how: Callable[[Tree, Plan, RequestEnd], Exchange],
    ) -> None:
        committed = await self.speaker.end(self.stored.pop(id(request)), full, edits, how)
        assert committed.exchange_row == request.exchange_row
        await self._compare()

    async def _compare(self) -> None:
        memory, rows = self.world.memory(), await self.speaker.rows()
        firsts: dict[int, int] = {}
        named = {e.conversation_row for e in rows if memory.is_named(memory.records[e.id])}
        check_columns(rows, memory.hasher, named)
        for row in rows:
            first = firsts.setdefault(row.conversation_row, row.id)
            general = without_numbers(memory.records[row.id])
            row = replace(row, conversation_row=memory.records[first].conversation_row)
            assert without_numbers(row) == general, f"\n{row}\n{general}\n{self.world.tree()}"
        assert len(rows) == len(memory.records)
        _check_runs(rows)
        blocks = await self.speaker.store.blocks.load(self.speaker.agent.id)
        assert [b.value for b in blocks] == [b.value for b in memory.blocks]


def _check_runs(rows: Sequence[Exchange]) -> None:
    """The path of each has all numbers from its run's beginning to its end."""
    on_path: dict[int | None, set[int]] = {None: set()}
    for e in rows:  # parents before their children
        end = e.next_seq
        on_path[e.id] = on_path[e.parent] | set(range(e.seq, end))
        assert e.gapless_from in on_path[e.id]
        assert on_path[e.id].issuperset(range(e.gapless_from, end))


def _filled(composition: Composition) -> list[WireMessage]:
    return [each.message for each in composition.inserted]


def _parent(plan: Plan) -> int | None:
    return None if plan.exchange is None else plan.exchange.parent


# -- traffic


class Client:
    """One chat of a client that behaves: what it sends is what it was shown, or as much of it as it keeps."""

    def __init__(self, pair: Pair, dice: random.Random, number: int) -> None:
        self.pair = pair
        self.dice = dice
        self.key = f"chat {number}" if dice.random() < 0.5 else None
        self.keeps = dice.choice([1000, 1000, 3, 5])
        self.has_tools = dice.random() < 0.8
        self.has_template = dice.random() < 0.15
        self.messages: list[WireMessage] = []
        self.number = number
        self.count = 0
        self.calls = 0

    async def begin(self, messages: Sequence[WireMessage], mode: MemoryUse = MemoryUse.ON) -> Request:
        listed = list(messages)
        if self.has_template and listed[-1]["role"] == "user":
            listed[-1] = user(f"Documents: some {self.count}. Question: {read_text(listed[-1])}")
        return await self.pair.begin(listed[-self.keeps :], self.key, mode, self.has_tools)

    def question(self) -> WireMessage:
        self.count += 1
        if self.count == 1 and self.dice.random() < 0.5:
            return user("Hi")
        return user(
            self.dice.choice(
                [
                    f"where is thing {self.count} of chat {self.number}",
                    f"I would like number {self.count} of chat {self.number}",
                    f"tell me about {self.count}",
                    "go on",
                ]
            )
        )

    def reply(self) -> tuple[list[WireMessage], list[str]]:
        """All messages of a reply, and the memory edits in it."""
        text = self.dice.choice(
            ["Ok.", "Hello! How can I help?", f"This is the answer {self.count} of chat {self.number}."]
        )
        if self.has_tools and self.dice.random() < 0.2:
            self.calls += 1
            id = f"m{self.number}-{self.calls}"
            before = self.dice.choice(["", "One moment. "])
            hidden = [assistant(before, call(id, "memory_insert", "{}")), result(id, "done")]
            return [*hidden, assistant(text)], self.pair.edits(id)
        return [assistant(text)], []

    async def turn(self) -> None:
        asked = [*self.messages, self.question()]
        ways = [self.plain] * 6 + [
            self.regenerated,
            self.grown,
            self.barged_in,
            self.cancelled,
            self.parallel,
            self.off,
            self.with_tools,
            self.vanished,
            self.edited,
        ]
        way: Callable[[list[WireMessage]], Awaitable[None]] = self.dice.choice(ways)
        await way(asked)

    async def answered(self, request: Request, asked: list[WireMessage]) -> None:
        full, new = self.reply()
        await self.pair.finish(request, full, new)
        ours = {c["id"] for m in full for c in m.get("tool_calls") or [] if call_name(c) in GATEWAY_TOOLS}
        self.messages = [*asked, make_shown_reply(full, ours)]

    async def plain(self, asked: list[WireMessage]) -> None:
        await self.answered(await self.begin(asked), asked)

    async def regenerated(self, asked: list[WireMessage]) -> None:
        for _ in range(self.dice.randint(2, 3)):
            await self.answered(await self.begin(asked), asked)

    async def edited(self, asked: list[WireMessage]) -> None:
        await self.plain(asked)
        await self.plain([*asked[:-1], user(f"rather {self.count} of chat {self.number}")])

    async def grown(self, asked: list[WireMessage]) -> None:
        words = read_text(asked[-1]).split()
        for n in range(1, len(words)):
            request = await self.begin([*asked[:-1], user(" ".join(words[:n]))])
            if self.dice.random() < 0.5:
                await self.pair.cancel(request, [])
            else:
                await self.pair.finish(request, [assistant(f"too early {n}")])
        await self.plain(asked)

    async def barged_in(self, asked: list[WireMessage]) -> None:
        await self.plain(asked)
        if self.has_template:
            # With question and answer both changed there is nothing to look a stored turn up by: the core alone, which
            # sees all there is, may guess better than the store or worse.
            return
        spoken = read_text(self.messages[-1])
        self.messages[-1] = assistant(spoken[: self.dice.randint(min(6, len(spoken)), len(spoken))])

    async def cancelled(self, asked: list[WireMessage]) -> None:
        request = await self.begin(asked)
        full, new = self.reply()
        if self.dice.random() < 0.5:
            await self.pair.cancel(request, [])
        else:
            await self.pair.cancel(request, full, new)
        await self.plain(asked)

    async def vanished(self, asked: list[WireMessage]) -> None:
        await self.plain(asked)
        await self.plain([*asked, self.question()])

    async def parallel(self, asked: list[WireMessage]) -> None:
        other = [*self.messages, user(f"drawer {self.count} of chat {self.number}")]
        lists = self.dice.choice([[asked, other], [asked, asked], [asked, other, asked]])
        requests = [await self.begin(messages) for messages in lists]
        order = list(range(len(lists)))
        self.dice.shuffle(order)
        for i in order:
            await self.answered(requests[i], lists[i])

    async def off(self, asked: list[WireMessage]) -> None:
        mode = self.dice.choice([MemoryUse.OFF, MemoryUse.READ])
        request = await self.begin(asked, mode)
        await self.pair.finish(request, [assistant(f"secret {self.count}")])
        self.messages = [*asked, assistant(f"secret {self.count}")]

    async def with_tools(self, asked: list[WireMessage]) -> None:
        for _ in range(self.dice.randint(1, 3)):
            self.calls += 1
            id = f"t{self.number}-{self.calls}"
            said = assistant(
                self.dice.choice([None, "Let me look."]), call(id, arguments=f'{{"n":{self.calls}}}')
            )
            if self.dice.random() < 0.1:
                await self.pair.cancel(await self.begin(asked), [])
            request = await self.begin(asked)
            # Gateway calls in the same round are not shown to the client.
            if self.has_tools and self.dice.random() < 0.5:
                ours = call("m" + id, "memory_insert", "{}")
                both = {**said, "tool_calls": [ours, *said["tool_calls"]]}
                await self.pair.finish(request, [both, result("m" + id, "done")], self.pair.edits(id))
                said = make_shown_reply([both], {"m" + id})
            else:
                await self.pair.finish(request, [said])
            asked = [*asked, said, result(id, f"sunny {self.calls}")]
        await self.plain(asked)


async def converse(store: Store, seed: int, turns: int) -> Pair:
    dice = random.Random(seed)
    pair = Pair(store, has_edits=seed % 2 == 0)
    clients = [Client(pair, dice, n) for n in range(3)]
    for _ in range(turns):
        if pair.has_edits and pair.world.now > IDLE_S - 30:
            break
        k = dice.randrange(len(clients))
        if dice.random() < 0.08:
            clients[k] = Client(pair, dice, 10 + pair.plain)
        if not pair.has_edits and dice.random() < 0.05:
            pair.world.now += 2 * IDLE_S
        await clients[k].turn()
    return pair


@pytest.mark.parametrize("seed", [0, 2, 3, 5, 7, 9])
async def test_both_paths_store_and_send_the_same(store: Store, seed: int) -> None:
    await converse(store, seed, 16)


@pytest.mark.parametrize("key", ["c1", None], ids=["named", "found"])
async def test_an_ordinary_chat_takes_the_plain_path(store: Store, key: str | None) -> None:
    pair = Pair(store, has_edits=False)
    messages: list[WireMessage] = []
    for k in range(5):
        messages.append(user(f"where is thing {k}"))
        await pair.finish(await pair.begin(messages, key), [assistant(f"Here, {k}.")])
        messages.append(assistant(f"Here, {k}."))
    assert pair.plain == 4  # all but the first


async def test_results_of_tools_take_it_round_after_round(store: Store) -> None:
    """A user's message after them does not, since it carries all exchanges of the turn."""
    pair = Pair(store, has_edits=False)
    messages = [user("Is it warm?")]
    for k in range(5):
        said = assistant(None, call(f"t{k}"))
        await pair.finish(await pair.begin(messages, "c1"), [said])
        messages += [said, result(f"t{k}", "sunny")]
    assert pair.plain == 4  # all but the first


async def test_two_plain_turns_at_once_are_weighed_when_they_end(store: Store) -> None:
    pair = Pair(store, has_edits=False)
    messages = [user("Hi"), assistant("Hello!")]
    await pair.finish(await pair.begin(messages[:1], "c1"), [assistant("Hello!")])
    requests = [await pair.begin([*messages, user(f"drawer {word}")], "c1") for word in ("one", "two")]
    assert pair.plain == 2
    for request in reversed(requests):
        await pair.finish(request, [assistant("Socks.")])


async def test_a_growing_message_that_ends_out_of_order_is_weighed(store: Store) -> None:
    pair = Pair(store, has_edits=False)
    messages = [user("Hi"), assistant("Hello!")]
    await pair.finish(await pair.begin(messages[:1], None), [assistant("Hello!")])
    requests = [await pair.begin([*messages, user(text)], None) for text in ("I would", "I would like tea")]
    assert pair.plain == 2
    for request in reversed(requests):
        await pair.finish(request, [assistant("Tea.")])
    assert pair.world.active() == ["Hi", "Hello!", "I would like tea", "Tea."]
