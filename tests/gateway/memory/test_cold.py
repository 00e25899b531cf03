"""A gateway that keeps memories between turns sends the bytes of one that reads them anew for each turn."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadRequest
from tests.doubles.upstream import StrictUpstream, call_tools, say
from tests.gateway.admin.test_forget import perform
from tests.gateway.memory.tooled import insert
from tests.gateway.sdk import World, agent, remember

NOUNS = ("cat", "dog", "house", "garden", "violin", "mountain", "tea", "train")


class Life:
    """Two users who talk, in named conversations and others, while their memories are edited and forgotten."""

    def __init__(self, world: World, seed: int, *, is_cold: bool) -> None:
        self.world, self.is_cold = world, is_cold
        self.dice = random.Random(seed)
        self.talks: list[tuple[str, str | None, str, list[dict[str, Any]]]] = []
        self.count = 0

    async def _cool(self) -> None:
        self.world.store.turns._kept.clear()
        self.world.store.recall._memories.clear()

    def forget(self, **what: Any) -> None:
        with suppress(BadRequest):  # there is no such message
            perform(self.world, "memory-forget", **what)

    def change(self, user: str, messages: list[dict[str, Any]]) -> None:
        """Changes the client's list, or the memory, between two turns."""
        dice, chance = self.dice, self.dice.random()
        if chance < 0.15 and messages:  # barge-in
            messages[-1] = {**messages[-1], "content": messages[-1]["content"][:9]}
        elif chance < 0.3:  # an edit, or another branch
            del messages[2 * dice.randrange(len(messages) // 2 + 1) :]
        elif chance < 0.4 and len(messages) > 4:  # a trimmed list
            del messages[:2]
        elif chance < 0.5:
            self.forget(user=user, message=dice.randrange(1, 12))
        elif chance < 0.55:
            self.forget(user=user)
        elif chance < 0.65:
            self.world.pass_time(dice.choice((10, 200, 5000)))
        elif chance < 0.75 and self.has_blocks(user):
            self.world.write_block(user, f"Edited {self.count}.")

    def has_blocks(self, user: str) -> bool:
        self.world.settle()
        made = "SELECT count(*) FROM agents WHERE profile = 'helper' AND subject = ?"
        return self.world.query(made, f"user:{user}") == [1]

    def turn(self) -> None:
        dice, world = self.dice, self.world
        if not self.talks or dice.random() < 0.25:
            key, model = dice.choice((None, None, "k1", "k2")), dice.choice(("m", "agent/helper"))
            self.talks.append((dice.choice(("alice", "bob")), key, model, []))
        user, key, model, messages = dice.choice(self.talks[-6:])
        self.change(user, messages)
        self.count += 1
        text = f"My {dice.choice(NOUNS)} number {self.count} likes the {dice.choice(NOUNS)}."
        if messages and dice.random() < 0.1:  # regenerated
            text = messages[-2]["content"]
            del messages[-2:]
        reply = f"Reply {self.count} about the {dice.choice(NOUNS)} and nothing else."
        if model != "m" and dice.random() < 0.3:
            world.upstream.queue(call_tools(insert(f"Likes {dice.choice(NOUNS)}."), text=None))
        world.upstream.queue(say(reply))
        if self.is_cold:
            world.gateway.call(self._cool())
        messages.append({"role": "user", "content": text})
        headers = {"x-mnemogate-conversation": key} if key else None
        assert world.post(messages, headers, user=user, model=model).status == 200
        messages.append({"role": "assistant", "content": reply})


def sent(upstream: StrictUpstream, path: Path, seed: int, *, is_cold: bool) -> list[bytes]:
    begin = len(upstream.seen)
    path.mkdir()
    with remember(upstream, path, agent()) as world:
        life = Life(world, seed, is_cold=is_cold)
        for _ in range(45):
            life.turn()
    return [re.sub(rb"call_\d+", b"call", seen.body) for seen in upstream.seen[begin:]]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_between_turns_changes_nothing(
    upstream: StrictUpstream, tmp_path: Path, seed: int
) -> None:
    warm = sent(upstream, tmp_path / "warm", seed, is_cold=False)
    cold = sent(upstream, tmp_path / "cold", seed, is_cold=True)
    assert warm == cold
    assert sum(b"<memory>" in body for body in warm) > 5
