"""A gateway that learns from what its user said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.scripted import ScriptedProvider
from adapters.scripted_message import ScriptedCall, ScriptedMessage
from gateway.limits import Limits
from gateway.run.background.learner import LearningService
from storage.job_records import JobState
from storage.records import Fact, Scope
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, agent, are_idle, remember
from tests.server import QUIET

IDLE_S = 200.0


def fact(text: str, **more: Any) -> ScriptedCall:
    return ScriptedCall("remember_fact", json.dumps({"text": text, **more}))


def note(text: str) -> ScriptedCall:
    return ScriptedCall("memory_insert", json.dumps({"label": "human", "new_string": text}))


class Learner:
    """The background model, and what a test asks of the gateway it works for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = ScriptedProvider(script=lambda body: ScriptedMessage("Nothing."))
        app = world.gateway.app
        assert app.services.background.learning is not None
        if app.services.background.model is not None:  # else a rule learns
            app.services.background.model.provider = self.model
        self.learning: LearningService = app.services.background.learning

    def teaches(self, *calls: ScriptedCall) -> None:
        self.model.queue(ScriptedMessage(None, calls))

    @property
    def shown(self) -> list[str]:
        """What the model was asked, call by call."""
        return [body["messages"][1]["content"] for body in self.model.bodies]

    def said(self) -> str:
        """All messages that it was shown."""
        return "\n".join(text.partition("# New messages")[2] for text in self.shown)

    def rest(self, seconds: float = IDLE_S) -> None:
        """Lets time go by, and whatever is due then come to its end."""
        self.world.settle()
        self.world.clock.sleep(seconds)

        async def step() -> None:
            await self.learning.schedule.step()
            self.world.store.jobs.wake()

        self.world.gateway.call(step())
        self.until(are_idle)

    def until(self, holds: Callable[[Mapping[JobState, int]], bool]) -> None:
        self.world.wait_for_jobs(holds)
        self.world.settle()

    def facts(self, user: str = "alice", *, is_all: bool = False, profile: str = "default") -> list[Fact]:
        async def read() -> list[Fact]:
            found = await self.world.store.agents.find(Scope("default", profile, f"user:{user}"))
            return [] if found is None else await self.world.store.facts.list(found.id, is_all=is_all)

        return self.world.gateway.call(read())

    def texts(self, user: str = "alice") -> list[str]:
        return [f.text for f in self.facts(user)][::-1]

    def cursor(self) -> list[int]:
        return self.world.query("SELECT seq FROM readers WHERE reader = 0 ORDER BY memory")

    def recalled(self, question: str, user: str = "alice") -> str:
        """The last message as the upstream had it, in a new conversation."""
        self.world.chat(user=user).say(question)
        content: str = self.world.upstream.last.messages[-1]["content"]
        return content


@contextmanager
def learning(
    upstream: StrictUpstream, tmp_path: Path, limits: Limits = QUIET, **memory: Any
) -> Iterator[Learner]:
    memory = {"background_model": "small", **memory}
    with remember(upstream, tmp_path, agent(), memory=memory, limits=limits) as world:
        yield Learner(world)
