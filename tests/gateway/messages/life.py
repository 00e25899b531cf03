"""A long talk with Claude, marked as Claude Code marks it: notes, edits of blocks, rounds of both kinds of tools.

`scripts/bench prefix` measures with it, too.
"""

from __future__ import annotations

from typing import Any

from tests.doubles.anthropic_rules import PromptCache, sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, think
from tests.doubles.upstream import Call
from tests.gateway.messages.sdk import WEATHER, Talk, calls_of, sent_again
from tests.gateway.sdk import World

MARK = {"type": "ephemeral"}
FACTS = ("My cat is called Miso.", "My dog is called Bello.", "I live in Bern.")
TOPICS = ("my cat Miso", "my dog Bello", "Bern, where I live")


def converse(world: World, upstream: StrictAnthropic, turns: int) -> None:
    """Has a conversation of so many turns after some facts were given; the upstream's cache has it alone."""
    for fact in FACTS:
        Talk(world, model="agent/helper").say(fact)
    world.pass_time(1000)
    upstream.cache = PromptCache()
    talk = Talk(
        world,
        model="agent/helper",
        stream=True,
        options={
            "tools": [{**WEATHER, "cache_control": MARK}],
            "system": [{"type": "text", "text": "You code.", "cache_control": MARK}],
        },
    )
    for number in range(turns):
        if number % 10 == 6:
            world.write_block("alice", f"Edited outside, before turn {number}.")
        upstream.queue(*_rounds(number))
        _say_marked(talk, f"Tell me of {TOPICS[number % 3]}, number {number}.")


def _rounds(number: int) -> list[Message]:
    words = f"Thought {number}."
    thought: dict[str, Any] = {"type": "thinking", "thinking": words, "signature": sign(words)}
    if number % 9 == 4:
        edit = Call("memory_insert", {"label": "human", "new_string": f"Turn {number}. "})
        return [
            Message(blocks=[thought], text="A moment.", calls=[edit]),
            think(f"Noted {number}.", text="Done."),
        ]
    if number % 7 == 3:
        call = Call("weather", {"city": f"Bern {number}"})
        return [Message(text=None, blocks=[thought], calls=[call]), Message(text="It rains.")]
    return [think(words, text=f"Reply {number}.")]


def _say_marked(talk: Talk, words: str) -> None:
    """Says something as Claude Code does: the newest block has a mark, and comes back as a text without."""
    talk.messages.append(
        {"role": "user", "content": [{"type": "text", "text": words, "cache_control": MARK}]}
    )
    reply = talk.complete()
    talk.messages[-1]["content"] = words
    talk.messages.append({"role": "assistant", "content": sent_again(reply)})
    for call in calls_of(reply):
        talk.answer(call, "Rain")
        (result,) = talk.messages[-1]["content"]
        result["cache_control"] = MARK
        talk.go_on()
        del result["cache_control"]
