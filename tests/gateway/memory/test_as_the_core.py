"""The gateway does what the pure core would: random traffic over sockets, compared with the core after every request.

tests/gateway/memory/test_two_paths.py compares how turns are planned and stored; here are the requests as clients send
them, with all that stands between a socket and a row, and what the upstream receives.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.wire_message import WireMessage
from tests.core.conversations import World as Core
from tests.core.conversations import assistant, user
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.sdk import CHAT, World, remember
from tests.stored import ALICE, Speaker

EXAMPLES = [user("Example: red"), assistant("Colour: red."), user("Example: two"), assistant("Number: 2.")]


@dataclass
class Client:
    key: str | None
    append: bool
    keeps: int
    messages: list[WireMessage] = field(default_factory=list)

    def listed(self, messages: list[WireMessage]) -> list[WireMessage]:
        return messages[-1:] if self.append else messages[-self.keeps :]

    def headers(self, mode: MemoryUse = MemoryUse.ON, *, retry: bool = False) -> dict[str, str]:
        found = {"x-mnemogate-memory": mode.value}
        if self.key is not None:
            found["x-mnemogate-conversation"] = self.key
        if self.append:
            found["x-mnemogate-history"] = "append"
        if retry:
            found["x-stainless-retry-count"] = "1"
        return found


class Both:
    """Says everything twice."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.core = Core(world.gateway.call(self._secret()))

    async def _secret(self) -> bytes:
        return self.world.store.agents.get_draft(ALICE).secret

    def say(
        self,
        client: Client,
        messages: list[WireMessage],
        reply: str,
        mode: MemoryUse = MemoryUse.ON,
        *,
        retry: bool = False,
    ) -> None:
        listed = client.listed(messages)
        self.world.clock.sleep(1)
        request = self.core.begin(listed, client.key, mode=mode, append=client.append, retry=retry)
        self.core.finish(request, reply)
        self.world.upstream.queue(say(reply))
        got = self.world.post(listed, client.headers(mode, retry=retry), user="alice")
        assert (got.status, got.headers.get("x-mnemogate-durable")) == (200, None)
        sent = [
            (m["role"], m["content"].split("</memory>\n\n")[-1]) for m in self.world.upstream.last.messages
        ]
        assert sent == [(m["role"], m["content"]) for _, m in request.sent]
        self._compare()

    def cancel(self, client: Client, messages: list[WireMessage], got: str) -> None:
        """got: what the client has of the reply when it leaves."""
        listed, count = client.listed(messages), len(self.world.upstream.requests)
        self.world.clock.sleep(1)
        request = self.core.begin(listed, client.key, append=client.append)
        self.core.cancel(request, [assistant(got)] if got else [])
        if got:
            whole = say(f"{got} and more", tokens=[got, " and more"], hold_after={2: Gate()})
        else:
            whole = say("", hold_before_headers=Gate())
        self.world.upstream.queue(whole)
        body = json.dumps({"model": "m", "user": "alice", "stream": True, "messages": listed}).encode()
        with self.world.gateway.connect() as connection:
            connection.request("POST", CHAT, body, client.headers())
            self.world.upstream.request_gate(count + 1).wait_sync()
            if got:
                connection.read_until(got.encode())
        self.world.upstream.requests[count].gone.wait_sync()
        self._compare()

    def rest(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.core.wait(seconds)

    def _compare(self) -> None:
        self.world.clock.sleep(1)
        self.world.settle()
        stored = Core(self.core.memory().hasher.secret)

        async def read() -> None:
            stored.memory().records = {e.id: e for e in await Speaker(self.world.store, ALICE).rows()}

        self.world.gateway.call(read())
        assert stored.tree() == self.core.tree()
        assert stored.active() == self.core.active()


@pytest.fixture
def both(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Both]:
    with remember(upstream, tmp_path) as world:
        yield Both(world)


def live(both: Both, client: Client, dice: random.Random, number: int) -> None:
    """A turn, with what may go wrong in it."""
    question = dice.choice(["Hi", "go on", f"tell me about {number}", f"what of number {number}"])
    reply = dice.choice(["Ok.", "Hello!", f"This is the answer {number}, and it is a long one."])
    asked, kind, mode = [*client.messages, user(question)], dice.randrange(12), MemoryUse.ON
    if kind == 0:
        both.cancel(client, asked, dice.choice(["", f"Well, this is {number}"]))
    elif kind == 1 and not client.append:
        # (A request that is off goes as it was sent; the core knows nothing of that.)
        mode = MemoryUse.READ if client.keeps < 99 else dice.choice([MemoryUse.OFF, MemoryUse.READ])
    both.say(client, asked, reply, mode)
    if kind == 2:
        reply = f"Rather: {reply}"
        both.say(client, asked, reply)
    elif kind == 3 and not client.append:
        both.say(client, asked, reply, retry=True)
    elif kind == 4 and not client.append:
        asked = [*asked[:-1], user(f"{question} and more")]
        both.say(client, asked, reply)
    client.messages = [*asked, assistant(reply)]
    if kind == 5:
        client.messages[-1] = assistant(reply[: max(2, len(reply) // 2)])
    elif kind == 6 and len(client.messages) > 4 and not client.append:
        client.messages = client.messages[:-2]


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5, 6, 7])
def test_the_gateway_stores_and_sends_what_the_core_decides(both: Both, seed: int) -> None:
    dice = random.Random(seed)
    clients: list[Client] = []
    for number in range(25):
        if not clients or dice.random() < 0.15:
            key = f"c{len(clients)}" if dice.random() < 0.5 else None
            client = Client(key, key is not None and dice.random() < 0.4, dice.choice([99, 99, 5]))
            if not client.append:
                client.messages = EXAMPLES[: dice.choice([0, 0, 0, 2, 4])]
            clients.append(client)
        if dice.random() < 0.07:
            both.rest(300)
        live(both, dice.choice(clients), dice, number)
