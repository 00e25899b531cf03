"""A long conversation with Claude: notes, edits of blocks, and calls of memory tools and of the client's tools.

The client sets cache breakpoints as Claude Code does. `scripts/bench prefix` also measures with this conversation.
"""

from __future__ import annotations

from typing import Any

from tests.doubles.anthropic_rules import PromptCache, sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, think
from tests.doubles.upstream import Call
from tests.gateway.messages.sdk import WEATHER, Talk, calls_of, sent_again
from tests.gateway.sdk import World

# A cache breakpoint.
BREAKPOINT = {"type": "ephemeral"}
FACTS = ("My cat is called Miso.", "My dog is called Bello.", "I live in Bern.")
TOPICS = ("my cat Miso", "my dog Bello", "Bern, where I live")


def converse(world: World, upstream: StrictAnthropic, turns: int) -> None:
    """Takes so many turns after conversations that state some facts. The upstream's cache has only these turns."""
    for fact in FACTS:
        Talk(world, model="agent/helper").say(fact)
    world.pass_time(1000)
    upstream.cache = PromptCache()
    talk = Talk(
        world,
        model="agent/helper",
        stream=True,
        options={
            "tools": [{**WEATHER, "cache_control": BREAKPOINT}],
            "system": [{"type": "text", "text": "You code.", "cache_control": BREAKPOINT}],
        },
    )
    for number in range(turns):
        if number % 10 == 6:
            world.write_block("alice", f"Edited by hand before turn {number}.")
        upstream.queue(*_make_replies(number))
        _say_with_breakpoint(talk, f"Tell me of {TOPICS[number % 3]}, number {number}.")


def _make_replies(number: int) -> list[Message]:
    """Returns the replies of a turn: one, or two with a call between them."""
    thinking = f"Thought {number}."
    thought: dict[str, Any] = {"type": "thinking", "thinking": thinking, "signature": sign(thinking)}
    if number % 9 == 4:
        edit = Call("memory_insert", {"label": "human", "new_string": f"Turn {number}. "})
        return [
            Message(blocks=[thought], text="A moment.", calls=[edit]),
            think(f"Noted {number}.", text="Done."),
        ]
    if number % 7 == 3:
        call = Call("weather", {"city": f"Bern {number}"})
        return [Message(text=None, blocks=[thought], calls=[call]), Message(text="It rains.")]
    return [think(thinking, text=f"Reply {number}.")]


def _say_with_breakpoint(talk: Talk, text: str) -> None:
    """Takes a turn as Claude Code does: the newest message has a breakpoint, and is resent as a text without it."""
    talk.messages.append(
        {"role": "user", "content": [{"type": "text", "text": text, "cache_control": BREAKPOINT}]}
    )
    reply = talk.complete()
    talk.messages[-1]["content"] = text
    talk.messages.append({"role": "assistant", "content": sent_again(reply)})
    for call in calls_of(reply):
        talk.answer(call, "Rain")
        (result,) = talk.messages[-1]["content"]
        result["cache_control"] = BREAKPOINT
        talk.go_on()
        del result["cache_control"]
