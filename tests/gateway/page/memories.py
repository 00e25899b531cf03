"""Memories for tests of the page: a full one, and a hostile one."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.memory.fact_words import make_fact_key
from storage.commands import LearnedFact
from storage.reader_commands import LearnedChanges
from storage.records import Agent, Scope
from tests.doubles.upstream import say
from tests.gateway.sdk import World

# A name in which no line breaks by itself.
LONG_NAME = "W" * 150
# Markup, a line that is turned around, a line of 200 kB, and twenty languages.
HOSTILE = (
    '<script>alert(1)</script><img src=x onerror=alert(1)> "quoted" \' & {{ 7*7 }} </textarea></pre>',
    "\u202egnp.exe\u202c is \u2066turned\u2069 around \x07\x1b[31m",
    "x" * 200_000,
    "English Deutsch français español português italiano polski čeština Türkçe Ελληνικά русский українська עברית "
    "العربية हिन्दी বাংলা ไทย 中文 日本語 한국어",
    "[a link](https://example.org) ![image](https://example.org/x.png) https://example.org javascript:alert(1)",
)


def memory_of(world: World, user: str = "alice") -> Agent:
    """Returns the memory of a user."""

    async def find() -> Agent:
        found = await world.store.agents.find(Scope("default", "default", f"user:{user}"))
        assert found is not None
        return found

    world.settle()
    return world.gateway.call(find())


def speak(world: World, *texts: str, user: str = "alice", talk: str | None = None) -> Agent:
    """Has a user speak in one conversation. Returns the memory."""
    headers = {"x-mnemogate-user": user, **({"x-mnemogate-conversation": talk} if talk else {})}
    chat = world.chat(headers=headers)
    for text in texts:
        chat.say(text)
        world.clock.sleep(1)
    return memory_of(world, user)


def learn(
    world: World, agent: Agent, *texts: str, block: str | None = None, always: bool = False
) -> Sequence[int]:
    """Stores facts of the memory's first exchange, and a value of its first block. Returns their numbers, in order.

    always: the facts always hold.
    """
    (row,) = world.query(f"SELECT min(id) FROM exchanges WHERE agent = {agent.id}")
    facts = [
        LearnedFact(text, "alice", make_fact_key(text), world.clock(), row, [row], standing=always)
        for text in texts
    ]

    async def write() -> list[int]:
        blocks = await world.store.blocks.load(agent.id)
        writes = [(blocks[0], block, [row])] if block is not None else []
        learned = LearnedChanges(writes=writes, facts=facts)
        effect = world.store.facts.make_learn_effect(agent, 0, 1, world.clock(), lambda _: learned)
        await world.store.database.write(effect)
        listed = await world.store.facts.list_page(agent.id, limit=len(texts))
        return [fact.seq for fact in reversed(listed)]

    return world.gateway.call(write())


def plan_trip(world: World) -> tuple[Agent, int]:
    """Has Alice speak of a trip, and stores facts of it. Returns her memory, and the number of the last fact."""
    world.upstream.queue(
        say("Have a good trip! Shall I remind you to pack?"),
        say("That is kind of her. I hope there is no thunder."),
        say("Your passport, and Miso's food."),
    )
    agent = speak(
        world,
        "My train to Lyon leaves on 4 May at nine, and I have not packed yet.",
        "Miso, my cat, stays with my sister until I am back.\n\nShe hates thunderstorms.",
        "What should I not forget?",
        talk="conv-19",
    )
    facts = (
        "Alice has a cat called Miso.",
        "Alice's train to Lyon leaves on 4 May.",
        "Alice's sister looks after the cat while she is away.",
    )
    *_, seq = learn(world, agent, *facts, block="Name: Alice.\nCat: Miso, grey, hates thunderstorms.")
    return agent, seq
