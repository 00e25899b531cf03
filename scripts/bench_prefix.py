"""Measures how much of a conversation's prompt the provider's cache can reuse, `scripts/bench prefix`.

Conversations of 60 turns go through the real gateway, by OpenAI's SDK, to a strict upstream. The bytes of tools and
messages that it receives are compared, request by request. The traffic has recall, memory tools, the client's own
tools, and edits of blocks by the model and by others; the tests use it too (tests/gateway/memory/life.py).

An agent gets as many messages by the client of the agents API, with memory tools, recall, and a block that another
agent edits meanwhile; a second agent has a window that is cut and summarised.

Last, Claude has a hundred turns in its own dialect, with the cache marks of Claude Code
(tests/gateway/messages/life.py). A double looks prefixes up as Anthropic's cache does. The share of the readable bytes
that it read is printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from gateway.settings import UpstreamSettings
from tests.agents.letta import letta
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, insert, say
from tests.gateway.memory.long_conversation import (
    PROFILE,
    TOPICS,
    PrefixShare,
    converse,
    measure_prefix,
    mention_topics,
)
from tests.gateway.messages.long_claude_conversation import converse as talk_to_claude
from tests.gateway.sdk import agent as helper
from tests.gateway.sdk import remember

PAUSE_EVERY = 20
CLAUDE_TURNS = 100
# The options of `converse`, by the name of a row.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain talk": {"kinds": ("plain",), "edits": False},
    "tools and edits": {},
    "the same, with pauses": {"pause_every": PAUSE_EVERY},
}
# The tokens of an agent's window, by the name of a row.
AGENT_WINDOWS = {"agents": 128_000, "agents, on a window of 16k": 16_000}


class Row(NamedTuple):
    """A row of the table."""

    text: str
    # The prefix broke only where it may.
    is_right: bool


def measure(turns: int, options: dict[str, Any]) -> Row:
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        remember(upstream, Path(folder), PROFILE) as world,
    ):
        mention_topics(world)
        requests, counts = converse(world, turns, **options)
    share = measure_prefix(requests)
    allowed = (turns - 1) // PAUSE_EVERY if "pause_every" in options else 0
    return Row(_row_text(share, len(requests), counts), len(share.breaks) <= allowed)


def _row_text(share: PrefixShare, requests: int, counts: Mapping[str, int]) -> str:
    events = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{share.ratio:8.2%}{len(share.breaks):8}{requests:10}{share.last:12,}  {events}"


def measure_agents(turns: int, window: int) -> Row:
    """Measures an agent. Its prefix may break only where its window is cut."""
    rng, counts = random.Random(7), Counter[str]()
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        letta(upstream, Path(folder), memory={"background_model": "small"}) as fixture,
    ):
        answers, summaries = deque[Reply](), count(1)

        def script(request: UpstreamRequest) -> Reply:
            # The background model may be asked at any time, so it has answers of its own.
            return _summary(next(summaries)) if request.json["model"] == "small" else answers.popleft()

        upstream.script = script
        messages = fixture.letta.agents.messages
        team = fixture.letta.blocks.create(label="team", value="Nothing yet.").id
        agent = fixture.agent(block_ids=[team], context_window_limit=window).id
        other_agent = fixture.agent(model="openai/other", block_ids=[team]).id
        for turn in range(turns):
            if turn % 9 == 4:
                answers += [call_tools(_edit("team", turn)), say("Done.")]
                messages.create(other_agent, input="Tell the team.")
                counts["edits by another agent"] += 1
            edit = rng.choice([None, insert(f"fact {turn}"), _edit("team", turn)])
            if edit is not None:
                answers.append(call_tools(edit))
                counts["edits of its own"] += 1
            answers.append(say(f"Answer {turn}: " + "It goes on like this for a while. " * 20))
            messages.create(agent, input=f"Turn {turn}: tell me about {rng.choice(TOPICS)}, please.")
            fixture.world.clock.sleep(20)
            fixture.world.settle()
        requests = [request for request in upstream.chats if request.json["model"] == "m"]
    share = measure_prefix(requests)
    allowed = 0 if window > 100_000 else len(requests) // 20
    return Row(_row_text(share, len(requests), counts), len(share.breaks) <= allowed)


def measure_claude(turns: int) -> Row:
    """Measures what Anthropic's cache would have read. It has to be 95% of what it could have read."""
    model = "claude-opus-5-5"
    with tempfile.TemporaryDirectory() as folder, StrictAnthropic() as upstream:
        upstreams = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, Path(folder), helper(model=model), upstreams=upstreams) as world:
            talk_to_claude(world, upstream, turns)
        refused = sum(request.refusal is not None for request in upstream.chats)
        requests = len(upstream.cache.reads)
    share = upstream.cache.read / upstream.cache.could_read
    text = f"{turns} turns with Claude: {share:.2%} of {upstream.cache.could_read:,} bytes read"
    return Row(f"{text}, {requests} requests, {refused} refused", share >= 0.95 and not refused)


def _edit(label: str, turn: int) -> Call:
    return Call("memory_insert", {"label": label, "new_string": f"News of turn {turn}."})


def _summary(number: int) -> Reply:
    return say(f"Notes {number}: " + " ".join(f"fact{number}x{n}" for n in range(60)))


def main() -> int:
    """Prints the stability of the prefix for each variant. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench prefix", description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    turns = parser.parse_args().turns
    width = max(map(len, [*VARIANTS, *AGENT_WINDOWS]))
    print(f"{turns} turns".ljust(width), "  stable  breaks  requests  last bytes  what was in it", sep="")
    rows = {name: measure(turns, options) for name, options in VARIANTS.items()}
    rows |= {name: measure_agents(turns, window) for name, window in AGENT_WINDOWS.items()}
    for name, row in rows.items():
        print(name.ljust(width), row.text, "" if row.is_right else " !", sep="")
    print(
        f"\nPauses are longer than a provider keeps its cache, one after every {PAUSE_EVERY} turns. Only there,"
    )
    print("and where a window is cut, the memory section is made again.")
    claude = measure_claude(CLAUDE_TURNS)
    print(claude.text)
    is_right = claude.is_right and all(row.is_right for row in rows.values())
    print("It is so." if is_right else "Elsewhere a prefix broke (!).")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
