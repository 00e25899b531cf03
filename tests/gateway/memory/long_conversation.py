"""A long conversation with recall, memory tools, the client's tools, and edits of blocks by the model and by hand.

The tests of the prompt's prefix use it, and `scripts/bench prefix` measures how much of the prefix providers can cache.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.settings import BlockSettings
from tests.doubles.upstream import Call, UpstreamRequest, call_tools, insert, say
from tests.gateway.sdk import Chat, World, agent, member_bytes, prefix_bytes

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object"}},
}
TOPICS = ("the garden", "a boat trip", "Bach cantatas", "tax forms", "the old bicycle", "sourdough bread")
PROFILE = agent(blocks=(BlockSettings("human"), BlockSettings("plans", "What is planned.", "Nothing yet.")))
# The kinds of turns: with no call, a hidden round, a call of the client's tool, or both calls.
KINDS = ("plain", "plain", "hidden", "client", "mixed")


def mention_topics(world: World) -> None:
    """Mentions each topic in a conversation of its own, which later turns recall."""
    for topic in TOPICS:
        world.chat(user="alice", model="agent/helper").say(f"I often think about {topic}, since childhood.")


def take_turn(world: World, chat: Chat, turn: int, dice: random.Random, kinds: Sequence[str] = KINDS) -> str:
    """Takes one turn of a random kind, and returns the kind. turn: the number of the turn."""
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
    """Takes so many turns. Returns the requests that the upstream got, and event -> how often it happened.

    pause_every: the number of turns between two pauses that are longer than a provider keeps its cache. 0: no pause.
    edits: whether a block is edited by hand now and then.
    """
    dice = random.Random(7)
    counts = Counter[str]()
    chat = world.chat(system="Be brief.", model="agent/helper", user="alice", tools=[WEATHER])
    earlier = len(world.upstream.requests)
    for turn in range(turns):
        if edits and turn % 9 == 4:
            world.write_block("alice", f"Plan of turn {turn}.", "plans")
            counts["edits by hand"] += 1
        kind = take_turn(world, chat, turn, dice, kinds)
        counts["edits by the model"] += kind in ("hidden", "mixed")
        counts["calls of the client's tools"] += kind in ("client", "mixed")
        is_pause = bool(pause_every) and turn % pause_every == pause_every - 1
        world.clock.sleep(400 if is_pause else 20)
    requests = world.upstream.requests[earlier:]
    user_texts = [str(message["content"]) for message in requests[-1].messages if message["role"] == "user"]
    counts["notes"] = sum("<memory " in text for text in user_texts)
    return requests, counts


@dataclass(frozen=True)
class PrefixShare:
    """The share of a conversation's prompts that providers can cache."""

    # Bytes: the prefixes that each prompt but the last one has in common with the next prompt.
    stable: int
    # Bytes: all prompts but the last one.
    total: int
    # The numbers of the requests, from 0, whose prompt does not begin with the whole prompt before it.
    breaks: tuple[int, ...]
    # Bytes: the last prompt.
    last: int

    @property
    def ratio(self) -> float:
        return self.stable / self.total if self.total else float("nan")


def measure_prefix(requests: Sequence[UpstreamRequest]) -> PrefixShare:
    """Compares the prompt of each request with the next one."""
    prompts = [_prompt(request) for request in requests]
    stable = 0
    breaks = []
    for number, (before, after) in enumerate(itertools.pairwise(prompts), 1):
        common = _common_length(before, after)
        stable += common
        if common < len(before):
            breaks.append(number)
    return PrefixShare(stable, sum(map(len, prompts[:-1])), tuple(breaks), len(prompts[-1]))


def _prompt(request: UpstreamRequest) -> bytes:
    """Returns the bytes that a provider's cache compares: the tools, then the messages, as they arrived."""
    return member_bytes(request, "tools") + prefix_bytes(request)


def _common_length(one: bytes, two: bytes) -> int:
    """Returns the length of the common prefix."""
    if two.startswith(one):
        return len(one)
    return next(i for i, (a, b) in enumerate(zip(one, two + b"\0" * len(one), strict=False)) if a != b)
