"""A long conversation with recall, memory tools, the client's own tools, and edits of blocks by the model and others.

The tests of the prompt's prefix use it, and `scripts/bench prefix`, which prints how much of the prefix stays.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.settings import BlockSettings
from tests.doubles.upstream import Call, UpstreamRequest, call_tools, say
from tests.gateway.sdk import Chat, World, agent, member_bytes, prefix_bytes

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object"}},
}
TOPICS = ("the garden", "a boat trip", "Bach cantatas", "tax forms", "the old bicycle", "sourdough bread")
PROFILE = agent(blocks=(BlockSettings("human"), BlockSettings("plans", "What is planned.", "Nothing yet.")))
KINDS = ("plain", "plain", "hidden", "theirs", "mixed")


def mention_topics(world: World) -> None:
    """Mentions each topic in a conversation of its own, so that there is something to recall."""
    for topic in TOPICS:
        world.chat(user="alice", model="agent/helper").say(f"I often think about {topic}, since childhood.")


def insert(text: str) -> Call:
    return Call("memory_insert", {"label": "human", "new_string": text})


def drive(world: World, chat: Chat, turn: int, dice: random.Random, kinds: Sequence[str] = KINDS) -> str:
    """Makes one turn: plain, with a hidden round, with the client's own tool, or with both. Returns which."""
    kind = dice.choice(kinds)
    text = f'Turn {turn}: tell me about {dice.choice(TOPICS)}, please. Ünïcode \u2028 "{turn}".'
    stream = dice.random() < 0.5
    match kind:
        case "plain":
            world.upstream.queue(say(f"Answer {turn}."))
            chat.say(text, stream=stream)
        case "hidden":
            world.upstream.queue(call_tools(insert(f"fact {turn}"), text="Noting. "), say(f"Answer {turn}."))
            chat.say(text, stream=stream)
        case _:
            calls = [Call("weather", {"turn": turn})] + ([insert(f"fact {turn}")] if kind == "mixed" else [])
            world.upstream.queue(call_tools(*calls, text=None), say(f"Answer {turn}."))
            chat.say(text, stream=stream)
            for call in chat.messages[-1].get("tool_calls") or []:
                chat.answer(call, f"sunny {turn}")
            chat.go_on(stream=stream)
    return kind


def converse(
    world: World, turns: int, *, kinds: Sequence[str] = KINDS, pause_every: int = 0, edits: bool = True
) -> tuple[list[UpstreamRequest], Counter[str]]:
    """Holds a conversation of so many turns. Returns what the upstream received, and how often which kind of turn came.

    pause_every: after so many turns comes a pause that is longer than a provider keeps its cache.
    """
    dice, done = random.Random(7), Counter[str]()
    chat = world.chat(system="Be brief.", model="agent/helper", user="alice", tools=[WEATHER])
    begun = len(world.upstream.requests)
    for turn in range(turns):
        if edits and turn % 9 == 4:
            world.write_block("alice", f"Plan of turn {turn}.", "plans")
            done["edits from outside"] += 1
        kind = drive(world, chat, turn, dice, kinds)
        done["edits from inside"] += kind in ("hidden", "mixed")
        done["calls of the client's tools"] += kind in ("theirs", "mixed")
        is_pause = bool(pause_every) and turn % pause_every == pause_every - 1
        world.clock.sleep(400 if is_pause else 20)
    seen = world.upstream.requests[begun:]
    done["notes"] = sum("<memory " in text for text in map(str, map(_own_text, seen[-1].messages)))
    return seen, done


def _own_text(message: dict[str, Any]) -> object:
    return message["content"] if message["role"] == "user" else None


@dataclass(frozen=True)
class Share:
    """The share of the prompts that providers can cache.

    stable: bytes of each prompt with which the next one begins. total: all bytes of these prompts.

    breaks: numbers of the requests that do not extend the one before them.
    """

    stable: int
    total: int
    breaks: tuple[int, ...]
    last: int

    @property
    def ratio(self) -> float:
        return self.stable / self.total if self.total else float("nan")


def share_of(request: Sequence[UpstreamRequest]) -> Share:
    prompts = [_prompt(each) for each in request]
    stable, breaks = 0, []
    for number, (before, after) in enumerate(itertools.pairwise(prompts), 1):
        common = _common(before, after)
        stable += common
        if common < len(before):
            breaks.append(number)
    return Share(stable, sum(map(len, prompts[:-1])), tuple(breaks), len(prompts[-1]))


def _prompt(request: UpstreamRequest) -> bytes:
    """Returns the bytes a provider's cache compares: the tools, then the messages, as they arrived."""
    return member_bytes(request, "tools") + prefix_bytes(request)


def _common(one: bytes, two: bytes) -> int:
    """Returns the length of the common prefix."""
    if two.startswith(one):
        return len(one)
    return next(i for i, (a, b) in enumerate(zip(one, two + b"\0" * len(one), strict=False)) if a != b)
