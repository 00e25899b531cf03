"""Measures how much of a conversation's prompt the provider's cache can reuse, `scripts/bench prefix`.

Conversations of 60 turns, through the real gateway with OpenAI's SDK and a strict upstream; counted on the bytes that
the upstream received (tools and messages), request by request. The traffic lies in tests/gateway/memory/life.py, where
the tests use it too: recall, memory tools, the client's own tools, edits of blocks by the model and by others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.doubles.upstream import StrictUpstream
from tests.gateway.memory.life import PROFILE, converse, mention_topics, share_of
from tests.gateway.sdk import remember

PAUSE_EVERY = 20
WAYS: dict[str, dict[str, Any]] = {
    "plain talk": {"kinds": ("plain",), "edits": False},
    "tools and edits": {},
    "the same, with pauses": {"pause_every": PAUSE_EVERY},
}


def measure(turns: int, way: dict[str, Any]) -> tuple[str, bool]:
    """Returns the line of the table, and whether every request that breaks the prefix may do so."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StrictUpstream() as upstream,
        remember(upstream, Path(folder), PROFILE) as world,
    ):
        mention_topics(world)
        seen, done = converse(world, turns, **way)
    share = share_of(seen)
    allowed = (turns - 1) // PAUSE_EVERY if "pause_every" in way else 0
    counts = ", ".join(f"{count} {what}" for what, count in done.items() if count)
    line = f"{share.ratio:8.2%}{len(share.breaks):8}{len(seen):10}{share.last:12,}  {counts}"
    return line, len(share.breaks) <= allowed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench prefix", description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    turns = parser.parse_args().turns
    width = max(map(len, WAYS))
    print(f"{turns} turns".ljust(width), "  stable  breaks  requests  last bytes  what was in it", sep="")
    is_right = True
    for name, way in WAYS.items():
        line, is_stable = measure(turns, way)
        print(name.ljust(width), line, "" if is_stable else " !", sep="")
        is_right = is_right and is_stable
    print(
        f"\nPauses are longer than a provider keeps its cache, one after every {PAUSE_EVERY} turns: only there"
    )
    print(
        "the memory section is taken anew. " + ("It is so." if is_right else "Elsewhere a prefix broke (!).")
    )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
