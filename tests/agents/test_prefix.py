"""Whatever happens in a stored conversation, what was sent upstream once is the beginning of what is sent next."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import orjson
import pytest

from gateway.agents.core.call_decision import CallDecision
from tests.agents.agent_world import AgentWorld, serve_agent
from tests.agents.test_pauses import WEATHER
from tests.doubles.upstream import Call, Reply, StrictUpstream, call_tools, fail, say


def reply(random: Random) -> Reply:
    n = random.randrange(1000)
    calls = [
        Call("memory_insert", {"label": "human", "new_string": f"Line {n}"}),
        Call("conversation_search", {"query": f"word {n}"}),
        Call("memory_rethink", {"label": "human", "new_memory": f"All anew {n}"}),
        Call("no_such_tool", {"n": n}),
        Call("memory_replace", {"label": "human", "old_string": f"nothing {n}", "new_string": "x"}),
        Call("memory_insert", '{"label": broken'),
    ]
    match random.randrange(8):
        case 0 | 1:
            return call_tools(
                *random.sample(calls, random.randrange(1, 4)), text=random.choice([None, f"So {n}."])
            )
        case 2:
            return call_tools(Call("get_weather", {"n": n}, f"w{n}"), *random.sample(calls[:2], 1))
        case 3:
            return fail(500, f"No {n}.")  # a 400 is a refusal, after which a message is not said
        case 4:
            return say(f"Cut {n}", finish_reason="length")
        case 5:
            return say("", finish_reason="stop")
        case _:
            return say(f"Reply {n}.")


def talk(world: AgentWorld, random: Random) -> None:
    """One send, or something that happens between two."""
    waiting = world.world.query(
        "SELECT s.waiting FROM run_steps s JOIN conversations c ON c.tip = s.exchange WHERE s.waiting IS NOT NULL"
    )
    match random.randrange(6):
        case 0:
            world.write_block(f"Somebody else {random.randrange(1000)}.")
        case 1 if waiting:
            world.send(
                messages=(),
                client_tools=(WEATHER,),
                decisions=(CallDecision(_id(waiting[0]), result={"content": "sunny"}),),
            )
        case 2:
            world.send(f"A message {random.randrange(1000)}", max_steps=2, client_tools=(WEATHER,))
        case _:
            world.send(f"Message {random.randrange(1000)}", client_tools=(WEATHER,))


def _id(waiting: bytes) -> str:
    return next(id for id, kind in orjson.loads(waiting).items() if kind == "client")


@pytest.mark.parametrize("seed", [0, 2, 4, 5])
def test_messages_that_were_sent_do_not_change(upstream: StrictUpstream, tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    with serve_agent(upstream, tmp_path) as world:
        world.send("Hi")
        upstream.script = lambda request: reply(random)
        for _ in range(25):
            talk(world, random)
        bodies = [request.json for request in upstream.chats]
        assert all(request.refusal is None for request in upstream.chats)
    assert len(bodies) > 15
    for before, after in pairwise(bodies):
        assert after["messages"][: len(before["messages"])] == before["messages"]
        assert after["tools"][:6] == before["tools"][:6]
