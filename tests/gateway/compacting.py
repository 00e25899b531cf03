"""What tests of compaction share: a model that writes notes, a gateway with a small window, waiting for its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.settings import ProfileSettings, UpstreamSettings
from storage.job_records import JobState
from tests.doubles.upstream import Reply, StrictUpstream, UpstreamRequest, say
from tests.gateway.sdk import World, agent, remember
from tests.patience import PATIENCE_S

CONTEXT = 2000  # tokens


class Notes:
    """The model of an upstream: asked for a summary it writes notes by number, else it says "Ok.".

    asked: the requests for summaries. reply: what it answers to the first one, the second one ...
    """

    def __init__(self, upstream: StrictUpstream) -> None:
        self.asked: list[UpstreamRequest] = []
        self.reply: Callable[[int], Reply] = lambda n: say(f"Notes {n}: they talked of this and that.")
        upstream.script = self._answer

    def _answer(self, request: UpstreamRequest) -> Reply:
        if "<conversation>" not in str(request.messages[-1]["content"]):
            return say("Ok.")
        self.asked.append(request)
        return self.reply(len(self.asked))


def compacting(
    upstream: StrictUpstream,
    tmp_path: Path,
    profile: ProfileSettings | None = None,
    context: int = CONTEXT,
    **memory: Any,
) -> Any:
    """Serves with a window of so many tokens, in which nothing but compaction asks the background model."""
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=context)
    memory = {"background_model": "small", "recall_tokens": 0, "learn_every": 0, **memory}
    return remember(upstream, tmp_path, profile or agent(), upstreams=(small,), memory=memory)


def compacted(world: World) -> None:
    """Waits until no compaction waits or runs."""
    world.settle()
    jobs = world.store.jobs

    async def is_busy() -> bool:
        states = {job.state for job in await jobs.list_newest() if job.kind == "compact"}
        return JobState.RUNNING in states or states == {
            JobState.PENDING
        }  # what failed holds its serial group

    async def wait() -> None:
        changed = asyncio.Event()
        unwatch = jobs.add_listener(changed.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await is_busy():
                    await changed.wait()
                    changed.clear()
        finally:
            unwatch()

    world.gateway.call(wait())


def text_of(n: int, words: int) -> str:
    """Returns the n-th message: so many words that stand in no other."""
    return f"Message {n}:" + "".join(f" word{n}x{k}" for k in range(words))
