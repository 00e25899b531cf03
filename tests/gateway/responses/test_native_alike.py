"""The same talk by chat completions and by native responses leaves the same memory.

Random talks with edits, regenerations, questions asked twice, replies cut to what was heard, tools and pauses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.doubles.responses_rules import call_item, message_item, reasoning_item
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import World, remember

Json = dict[str, Any]
NOUNS = "cat dog house tree river stone bread salt wind fire moon star boat lamp road hill lake"
WORDS = NOUNS.split()
MOVES = ("say", "say", "say", "say twice", "edit", "regenerate", "hear", "begin anew", "use a tool", "pause")


@dataclass
class ByChat:
    """A client that keeps its list. entries: role -> what it is in the client's dialect, oldest first."""

    world: World
    entries: list[tuple[str, Any]] = field(default_factory=list)

    can_cut = True

    def tell(self, role: str, text: str) -> None:
        self.entries.append((role, {"role": role, "content": text}))

    def answer(self, reply: str, *, calls: bool = False) -> None:
        call = Call("weather", {"of": reply}, id=f"call_{len(self.entries)}")
        self.world.upstream.queue(call_tools(call, text="Let me look.") if calls else say(reply))
        messages = [message for _, message in self.entries]
        made = self.world.sdk.chat.completions.create(model="m", user="alice", messages=messages)
        self.entries.append(("assistant", made.choices[0].message.to_dict()))

    def give_result(self, text: str) -> None:
        [call] = self.entries[-1][1]["tool_calls"]
        self.entries.append(("tool", {"role": "tool", "tool_call_id": call["id"], "content": text}))


class ByItems(ByChat):
    """A client that sends all items again. An entry is the id of a response, where it has one, and its items."""

    def tell(self, role: str, text: str) -> None:
        self.entries.append((role, ("", [{"role": role, "content": text}])))

    def answer(self, reply: str, *, calls: bool = False) -> None:
        call = call_item("weather", orjson.dumps({"of": reply}).decode(), f"call_{len(self.entries)}")
        output = (
            [message_item("Let me look."), call] if calls else [reasoning_item("Hm."), message_item(reply)]
        )
        self.world.upstream.endpoints.responses.outputs.append(output)
        made = self.respond()
        self.entries.append(("assistant", (made.id, [item.to_dict() for item in made.output])))

    def respond(self) -> Any:
        items = [item for _, (_, told) in self.entries for item in told]
        return self.world.sdk.responses.create(model="m", user="alice", input=items, store=False)

    def give_result(self, text: str) -> None:
        call = self.entries[-1][1][1][-1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": text}
        self.entries.append(("tool", ("", [result])))


class ByIds(ByItems):
    """A client that sends its new items after the id of the response before them, and reads a stream."""

    can_cut = False  # the upstream streams its text

    def respond(self) -> Any:
        last = max((n for n, (role, _) in enumerate(self.entries) if role == "assistant"), default=-1)
        items = [item for _, (_, told) in self.entries[last + 1 :] for item in told]
        previous = {"previous_response_id": self.entries[last][1][0]} if last >= 0 else {}
        return self.ask(model="m", user="alice", input=items, **previous)

    def ask(self, **options: Any) -> Any:
        return [*self.world.sdk.responses.create(stream=True, **options)][-1].response


class ByIdsElsewhere(ByIds):
    """The same, whose requests find another process each time."""

    def respond(self) -> Any:
        self.world.gateway.app.services.native_chat._earlier_replies.clear()
        return super().respond()


@dataclass
class ByIdsUnstored(ByIds):
    """The same over a WebSocket, and nobody stores the responses."""

    def __post_init__(self) -> None:
        self.connection = self.world.sdk.responses.connect().enter()

    def ask(self, **options: Any) -> Any:
        self.connection.response.create(store=False, **options)
        for event in self.connection:
            if event.type == "response.completed":
                return event.response
            assert event.type != "error", event
        raise AssertionError("the connection ended")


def play(client: ByChat, seed: int, *, cuts: bool) -> None:
    chance = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(chance.choices(WORDS, k=count)) + chance.choice(".?!")

    def ask(text: str) -> None:
        client.tell("user", text)
        client.answer(words(4))

    ask(words(4))
    for move in chance.choices(MOVES, k=8):
        if move == "say" or (move == "hear" and not cuts):
            ask(words(chance.randint(1, 6)))
        elif move == "say twice":
            text = words(1)
            ask(text)
            ask(text)
        elif move == "regenerate":
            client.entries.pop()
            client.answer(words(4))
        elif move == "edit":
            while client.entries.pop()[0] != "user":
                pass
            ask(words(3))
        elif move == "hear":
            client.entries.pop()
            client.tell("assistant", chance.choice(WORDS))
            ask(words(3))
        elif move == "begin anew":
            client.entries.clear()
            ask(words(3))
        elif move == "use a tool":
            client.tell("user", words(5))
            client.answer(words(2), calls=True)
            client.give_result(words(2))
            client.answer(words(4))
        else:
            client.world.clock.sleep(chance.choice((1, 200, 5000)))


def memory_of(
    kind: type[ByChat], upstream: StrictUpstream, place: Path, seed: int, *, cuts: bool
) -> list[Any]:
    place.mkdir()
    with remember(upstream, place) as world:
        play(client := kind(world), seed, cuts=cuts)
        if isinstance(client, ByIdsUnstored):
            client.connection.close()
        sql = "SELECT conversation, parent, state, active, superseded, input, shown_reply FROM exchanges ORDER BY id"
        return [(*row[:5], *map(told, row[5:])) for row in world.query(sql)]


def told(stored: bytes | None) -> list[Any]:
    """Returns what was said in stored messages, whatever else a dialect has."""
    messages = orjson.loads(stored or b"[]")
    return [
        (
            m["role"],
            m.get("content") or "",
            [call["function"]["arguments"] for call in m.get("tool_calls") or ()],
        )
        for m in (messages if isinstance(messages, list) else [messages])
    ]


@pytest.mark.parametrize("kind", [ByItems, ByIds, ByIdsElsewhere, ByIdsUnstored])
@pytest.mark.parametrize("seed", [2, 38])  # together they make all moves
def test_both_ways_leave_the_same_memory(
    upstream: StrictUpstream, tmp_path: Path, kind: type[ByChat], seed: int
) -> None:
    cuts = kind.can_cut
    by_chat = memory_of(ByChat, upstream, tmp_path / "chat", seed, cuts=cuts)
    assert memory_of(kind, upstream, tmp_path / "native", seed, cuts=cuts) == by_chat
    assert len(by_chat) > 5
