"""Users who chat at random while their memories are edited and forgotten.

A seed decides all requests, however many gateways there are and whatever they have cached. So tests compare the
requests that the upstream gets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import BadRequest
from tests.doubles.upstream import call_tools, insert, say
from tests.gateway.admin.test_forget import perform
from tests.gateway.sdk import World, replace_marks

NOUNS = ("cat", "dog", "house", "garden", "violin", "mountain", "tea", "train")
TURNS = 90


@dataclass
class ClientConversation:
    """A conversation of a client, with the client's own list of messages."""

    user: str
    # The client's id of the conversation. None: it sends none.
    key: str | None
    model: str
    # Whether the client sends its new message alone, in append mode.
    appends: bool
    messages: list[dict[str, Any]] = field(default_factory=list)


class Gateways:
    """Gateways over one database, any of which serves any turn.

    They have a generator of random numbers of their own, so their number does not change the requests.
    """

    def __init__(self, worlds: Sequence[World], seed: int) -> None:
        self.worlds = worlds
        self.last = worlds[0]
        self._dice = random.Random(seed)

    def settle(self) -> None:
        for world in self.worlds:
            world.settle()

    def next(self) -> World:
        """Returns the gateway of the next request: mostly the last one, which has a cache by then."""
        if len(self.worlds) > 1:
            self.settle()  # another gateway does not know of turns that are not written yet
        if self._dice.random() < 0.4:
            self.last = self._dice.choice(self.worlds)
        return self.last

    def pass_time(self, seconds: float) -> None:
        self.settle()
        self.last.pass_time(seconds)


class RandomUsers:
    """Two users, who chat in conversations with and without an id."""

    def __init__(self, worlds: Sequence[World], seed: int, *, is_cold: bool = False) -> None:
        """worlds: the gateways. is_cold: whether a gateway's caches are cleared before each request."""
        self.gateways = Gateways(worlds, seed)
        self.is_cold = is_cold
        self.upstream = worlds[0].upstream
        self.dice = random.Random(seed)
        self.conversations: list[ClientConversation] = []
        # The number of turns so far.
        self.count = 0
        self.last_reply = ""

    def run(self) -> list[bytes]:
        """Takes all turns. Returns the bodies that the upstream got, without ids of calls and marks of memories."""
        earlier = len(self.upstream.requests)
        for _ in range(TURNS):
            self.take_turn()
        return [
            replace_marks(re.sub(rb"call_\d+", b"call", request.body))
            for request in self.upstream.requests[earlier:]
        ]

    def take_turn(self) -> None:
        dice = self.dice
        if not self.conversations or dice.random() < 0.12:
            self.begin_conversation()
        conversation = dice.choice(self.conversations[-6:])
        self.change(conversation)
        self.count += 1
        text = f"My {dice.choice(NOUNS)} number {self.count} likes the {dice.choice(NOUNS)}."
        reply = f"Reply {self.count} about the {dice.choice(NOUNS)} and nothing else."
        messages = conversation.messages
        is_resent = len(messages) > 1 and dice.random() < 0.1
        if is_resent:  # as a retry, or to get another reply
            text = messages[-2]["content"]
            del messages[-2:]
            reply = dice.choice((reply, self.last_reply))
        messages.append({"role": "user", "content": text})
        self.send(conversation, reply, is_resent=is_resent)
        messages.append({"role": "assistant", "content": reply})
        self.last_reply = reply

    def begin_conversation(self) -> None:
        dice = self.dice
        key = dice.choice((None, None, "k1", "k2"))
        model = dice.choice(("m", "agent/helper"))
        appends = key is not None and dice.random() < 0.5
        user = dice.choice(("alice", "bob"))
        self.conversations.append(ClientConversation(user, key, model, appends))

    def send(self, conversation: ClientConversation, reply: str, *, is_resent: bool) -> None:
        """Sends a conversation's messages. reply: the upstream's reply. is_resent: whether they were sent before."""
        dice = self.dice
        world = self.gateways.next()
        headers = dict[str, str]()
        if conversation.key is not None:
            headers["x-mnemogate-conversation"] = conversation.key
        messages = conversation.messages
        if conversation.appends:
            headers["x-mnemogate-history"] = "append"
            if is_resent:
                headers["x-stainless-retry-count"] = "1"
            messages = messages[-dice.choice((1, 1, 2)) :]  # with or without the heard part of the last reply
        mode = dice.choices(("on", "off", "read"), (88, 6, 6))[0]
        headers["x-mnemogate-memory"] = mode
        if mode == "on" and conversation.model != "m" and dice.random() < 0.3:
            self.upstream.queue(call_tools(insert(f"Likes {dice.choice(NOUNS)}."), text=None))
        self.upstream.queue(say(reply))
        if self.is_cold:
            world.gateway.call(_clear_caches(world))
        options = {"stream": True} if dice.random() < 0.3 else {}
        result = world.post(messages, headers, user=conversation.user, model=conversation.model, **options)
        assert result.status == 200, result.body

    def change(self, conversation: ClientConversation) -> None:
        """Changes the client's list or the memory between two turns, or changes nothing."""
        dice = self.dice
        messages = conversation.messages
        chance = dice.random()
        if chance < 0.1 and messages:  # barge-in
            messages[-1] = {**messages[-1], "content": messages[-1]["content"][: dice.choice((9, 28))]}
        elif chance < 0.2:  # an edit, or another branch
            del messages[2 * dice.randrange(len(messages) // 2 + 1) :]
        elif chance < 0.3 and len(messages) > 4:  # a trimmed list
            del messages[:2]
        elif chance < 0.36:
            self.forget(user=conversation.user, message=dice.randrange(1, 20))
        elif chance < 0.38:
            self.forget(user=conversation.user)
        elif chance < 0.46:
            self.gateways.pass_time(dice.choice((10, 200, 5000)))
        elif chance < 0.56 and self.has_blocks(conversation.user):
            self.gateways.next().write_block(conversation.user, f"Edited {self.count}.")

    def forget(self, **options: Any) -> None:
        """Forgets a part of a memory. options: parameters of the operation `memory-forget`."""
        self.gateways.settle()
        with suppress(BadRequest):  # there is no such message
            perform(self.gateways.next(), "memory-forget", **options)

    def has_blocks(self, user: str) -> bool:
        self.gateways.settle()
        query = "SELECT count(*) FROM agents WHERE profile = 'helper' AND subject = ?"
        return self.gateways.next().query(query, f"user:{user}") == [1]


async def _clear_caches(world: World) -> None:
    """Clears the caches of a gateway's memories."""
    world.store.turns._cache.clear()
    world.store.recall._memories.clear()
