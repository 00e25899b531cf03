"""Users who talk at random, while their memories are edited and forgotten: what the upstream is sent of it.

The same seed asks for the same, whatever the gateways keep and how many of them there are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import BadRequest
from tests.doubles.upstream import call_tools, say
from tests.gateway.admin.test_forget import perform
from tests.gateway.memory.tooled import insert
from tests.gateway.sdk import World, replace_marks

NOUNS = ("cat", "dog", "house", "garden", "violin", "mountain", "tea", "train")
TURNS = 90


@dataclass
class Talk:
    """A client's conversation. appends: it sends its new message alone."""

    user: str
    key: str | None
    model: str
    appends: bool
    messages: list[dict[str, Any]] = field(default_factory=list)


class Gateways:
    """Gateways of which any serves any turn. Their own dice choose: what is asked does not depend on who is asked."""

    def __init__(self, worlds: Sequence[World], seed: int) -> None:
        self.worlds, self.last, self._dice = worlds, worlds[0], random.Random(seed)

    def settle(self) -> None:
        for world in self.worlds:
            world.settle()

    def next(self) -> World:
        """Returns the one that is asked next: mostly the same, which then knows what it cached."""
        if len(self.worlds) > 1:
            self.settle()  # what is still being written is nobody's yet
        if self._dice.random() < 0.4:
            self.last = self._dice.choice(self.worlds)
        return self.last

    def pass_time(self, seconds: float) -> None:
        self.settle()
        self.last.pass_time(seconds)


class Life:
    """Two users in named conversations and others. worlds: the gateways."""

    def __init__(self, worlds: Sequence[World], seed: int, *, is_cold: bool = False) -> None:
        self.gateways, self.is_cold, self.upstream = Gateways(worlds, seed), is_cold, worlds[0].upstream
        self.dice = random.Random(seed)
        self.talks: list[Talk] = []
        self.count = 0
        self.reply = ""

    def sent(self) -> list[bytes]:
        """Lives, and returns what the upstream was sent, without the numbers of its calls and the marks of memories."""
        begin = len(self.upstream.requests)
        for _ in range(TURNS):
            self.turn()
        return [
            replace_marks(re.sub(rb"call_\d+", b"call", request.body))
            for request in self.upstream.requests[begin:]
        ]

    def turn(self) -> None:
        dice = self.dice
        if not self.talks or dice.random() < 0.12:
            key, model = dice.choice((None, None, "k1", "k2")), dice.choice(("m", "agent/helper"))
            appends = key is not None and dice.random() < 0.5
            self.talks.append(Talk(dice.choice(("alice", "bob")), key, model, appends))
        talk = dice.choice(self.talks[-6:])
        self.change(talk)
        self.count += 1
        text = f"My {dice.choice(NOUNS)} number {self.count} likes the {dice.choice(NOUNS)}."
        reply, is_again = f"Reply {self.count} about the {dice.choice(NOUNS)} and nothing else.", False
        if len(talk.messages) > 1 and dice.random() < 0.1:  # regenerated, or sent again
            text, is_again = talk.messages[-2]["content"], True
            del talk.messages[-2:]
            reply = dice.choice((reply, self.reply))
        talk.messages.append({"role": "user", "content": text})
        self.ask(talk, reply, is_again=is_again)
        talk.messages.append({"role": "assistant", "content": reply})
        self.reply = reply

    def ask(self, talk: Talk, reply: str, *, is_again: bool) -> None:
        dice, world, headers = self.dice, self.gateways.next(), dict[str, str]()
        if talk.key is not None:
            headers["x-mnemogate-conversation"] = talk.key
        listed = talk.messages
        if talk.appends:
            headers["x-mnemogate-history"] = "append"
            if is_again:
                headers["x-stainless-retry-count"] = "1"
            listed = talk.messages[-dice.choice((1, 1, 2)) :]  # and what was heard of the last reply
        mode = dice.choices(("on", "off", "read"), (88, 6, 6))[0]
        headers["x-mnemogate-memory"] = mode
        if mode == "on" and talk.model != "m" and dice.random() < 0.3:
            self.upstream.queue(call_tools(insert(f"Likes {dice.choice(NOUNS)}."), text=None))
        self.upstream.queue(say(reply))
        if self.is_cold:
            world.gateway.call(_cool(world))
        streams = {"stream": True} if dice.random() < 0.3 else {}
        answer = world.post(listed, headers, user=talk.user, model=talk.model, **streams)
        assert answer.status == 200, answer.body

    def change(self, talk: Talk) -> None:
        """Changes the client's list, or the memory, between two turns."""
        dice, messages, chance = self.dice, talk.messages, self.dice.random()
        if chance < 0.1 and messages:  # barge-in
            messages[-1] = {**messages[-1], "content": messages[-1]["content"][: dice.choice((9, 28))]}
        elif chance < 0.2:  # an edit, or another branch
            del messages[2 * dice.randrange(len(messages) // 2 + 1) :]
        elif chance < 0.3 and len(messages) > 4:  # a trimmed list
            del messages[:2]
        elif chance < 0.36:
            self.forget(user=talk.user, message=dice.randrange(1, 20))
        elif chance < 0.38:
            self.forget(user=talk.user)
        elif chance < 0.46:
            self.gateways.pass_time(dice.choice((10, 200, 5000)))
        elif chance < 0.56 and self.has_blocks(talk.user):
            self.gateways.next().write_block(talk.user, f"Edited {self.count}.")

    def forget(self, **what: Any) -> None:
        self.gateways.settle()
        with suppress(BadRequest):  # there is no such message
            perform(self.gateways.next(), "memory-forget", **what)

    def has_blocks(self, user: str) -> bool:
        self.gateways.settle()
        made = "SELECT count(*) FROM agents WHERE profile = 'helper' AND subject = ?"
        return self.gateways.next().query(made, f"user:{user}") == [1]


async def _cool(world: World) -> None:
    """Lets a gateway keep nothing of what it has read."""
    world.store.turns._cache.clear()
    world.store.recall._memories.clear()
