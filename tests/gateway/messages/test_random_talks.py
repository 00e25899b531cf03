"""Random talks with Claude: hidden rounds, mixed rounds, thoughts, tools of Anthropic's, regenerations and pauses.

The strict upstream refuses a thought that was changed, moved or stands after something else, a call without its result
and a block that is not its own. Clients send a reply back whole, without thoughts, or with its texts joined.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import BlockSettings, UpstreamSettings
from tests.doubles.anthropic_rules import sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic
from tests.doubles.upstream import Call
from tests.gateway.messages.sdk import WEATHER, Talk, calls_of, sent_again
from tests.gateway.sdk import agent, remember

Json = dict[str, Any]
THOUGHTS = ("thinking", "redacted_thinking")
TURNS = 10


class Replies:
    """Makes replies of a random form, each with words of its own."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._numbers = itertools.count()

    def reply(self, kind: str) -> Message:
        """Returns one with calls: of the gateway's tool, the client's, both ("mixed") or none ("end")."""
        chance, blocks = self._chance, []
        if chance.random() < 0.6:
            blocks.append(self._thought())
        if kind == "end" or chance.random() < 0.8:
            blocks += self._texts()
        calls = []
        if kind in ("hidden", "mixed"):
            edit = {"label": "human", "new_string": f"Fact {next(self._numbers)}. "}
            calls.append(Call("memory_insert", edit))
        if kind in ("client", "mixed"):
            calls.append(Call("weather", {"city": f"City {next(self._numbers)}"}))
        chance.shuffle(calls)
        return Message(blocks=blocks, text=None, calls=calls)

    def _thought(self) -> Json:
        words = f"Thought {next(self._numbers)}."
        if self._chance.random() < 0.2:
            return {"type": "redacted_thinking", "data": sign(words)}
        shown = words if self._chance.random() < 0.7 else ""  # display: omitted
        return {"type": "thinking", "thinking": shown, "signature": sign(shown)}

    def _texts(self) -> list[Json]:
        blocks: list[Json] = []
        for _ in range(self._chance.choice((1, 1, 2))):
            words = self._chance.choice(("Well. ", "So it is.", "  indented", "One\n\ntwo"))
            blocks.append({"type": "text", "text": f"{words}{next(self._numbers)}"})
            if self._chance.random() < 0.25:
                id_ = f"srvtoolu_{next(self._numbers)}"
                query = {"type": "server_tool_use", "id": id_, "name": "web_search", "input": {"query": "q"}}
                blocks += [query, {"type": "web_search_tool_result", "tool_use_id": id_, "content": []}]
        return blocks


def whole(content: list[Json]) -> list[Json]:
    return content


def without_thoughts(content: list[Json]) -> list[Json]:
    return [block for block in content if block["type"] not in THOUGHTS]


def joined(content: list[Json]) -> list[Json]:
    text = "".join(block["text"] for block in content if block["type"] == "text") or "..."
    return [{"type": "text", "text": text}, *(block for block in content if block["type"] == "tool_use")]


@pytest.mark.parametrize("again", [whole, without_thoughts, joined])
@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-opus-5-5"], ids=["free", "bound"])
def test_the_upstream_takes_every_list(tmp_path: Path, model: str, again: Any) -> None:
    chance = random.Random(f"0 {model} {again.__name__}")
    replies = Replies(chance)
    with StrictAnthropic() as upstream:
        there = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        profile = agent(model=model, blocks=(BlockSettings("human", limit=100_000),))
        with remember(upstream, tmp_path, profile, upstreams=there) as world:
            for fact in ("My cat is called Miso.", "My dog is called Bello."):
                Talk(world, model="agent/helper").say(fact)
            world.pass_time(1000)
            talk = Talk(world, model="agent/helper", options={"tools": [WEATHER]})
            for turn in range(TURNS):
                _begin(talk, chance, turn)
                has_calls = True
                while has_calls:
                    hidden = [replies.reply("hidden") for _ in range(chance.choice((0, 0, 0, 1, 1, 2)))]
                    last = replies.reply(chance.choice(("end", "end", "client", "mixed")))
                    upstream.queue(*hidden, last)
                    reply = talk.complete()
                    content = again(sent_again(reply)) or [{"type": "text", "text": "..."}]
                    talk.messages.append({"role": "assistant", "content": content})
                    calls = calls_of(reply)
                    assert {call.name for call in calls} <= {"weather"}
                    has_calls = bool(calls)
                    if has_calls:
                        results = [
                            {"type": "tool_result", "tool_use_id": call.id, "content": "Rain"}
                            for call in calls
                        ]
                        talk.messages.append({"role": "user", "content": results})
            assert any(
                b"memory_insert" in request.body and b"tool_result" in request.body
                for request in upstream.chats
            )
            assert [request.refusal for request in upstream.chats if request.refusal] == []


def _begin(talk: Talk, chance: random.Random, turn: int) -> None:
    """Asks something new, or the last question once more, perhaps after a pause."""
    talk.stream = chance.random() < 0.6
    if chance.random() < 0.2:
        talk.world.pass_time(chance.choice((10, 1000)))
    if chance.random() < 0.1 and talk.messages:
        while not isinstance(talk.messages[-1]["content"], str):
            talk.messages.pop()
    else:
        pet = chance.choice(("cat Miso", "dog Bello"))
        talk.messages.append({"role": "user", "content": f"Tell me of my {pet}, {turn}."})
