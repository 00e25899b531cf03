"""A gateway that learns facts from its users' messages, with a scripted background model.

with serve_learner(upstream, tmp_path) as learner:
    learner.world.chat(user="alice").say("I have a cat.")
    learner.queue_calls(fact("The user has a cat."))
    learner.pass_idle_time()
    assert learner.list_texts() == ["The user has a cat."]
"""

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

# Seconds: longer than a conversation rests before it is learned from.
IDLE_S = 200.0


def fact(text: str, **fields: Any) -> ScriptedCall:
    """Returns a call that stores a fact. fields: further arguments."""
    return ScriptedCall("remember_fact", json.dumps({"text": text, **fields}))


def note(text: str) -> ScriptedCall:
    """Returns a call that inserts a text into the block `human`."""
    return ScriptedCall("memory_insert", json.dumps({"label": "human", "new_string": text}))


class Learner:
    """A gateway with its background model."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = ScriptedProvider(script=lambda body: ScriptedMessage("Nothing."))
        app = world.gateway.app
        assert app.services.background.learning is not None
        if app.services.background.model is not None:  # without a model, rules learn
            app.services.background.model.provider = self.model
        self.learning: LearningService = app.services.background.learning

    def queue_calls(self, *calls: ScriptedCall) -> None:
        """Queues a reply of the background model with these calls."""
        self.model.queue(ScriptedMessage(None, calls))

    @property
    def prompts(self) -> list[str]:
        """The user message of each request to the background model."""
        return [body["messages"][1]["content"] for body in self.model.bodies]

    def list_new_messages(self) -> str:
        """Returns the new messages of all prompts."""
        return "\n".join(prompt.partition("# New messages")[2] for prompt in self.prompts)

    def pass_idle_time(self, seconds: float = IDLE_S) -> None:
        """Moves the clock, and waits until the jobs that are due then have ended."""
        self.world.settle()
        self.world.clock.sleep(seconds)

        async def step() -> None:
            await self.learning.schedule.perform_due()
            self.world.store.jobs.wake()

        self.world.gateway.call(step())
        self.wait_for_jobs(are_idle)

    def wait_for_jobs(self, condition: Callable[[Mapping[JobState, int]], bool]) -> None:
        """Waits until the numbers of jobs by state meet a condition, and all turns are written."""
        self.world.wait_for_jobs(condition)
        self.world.settle()

    def list_facts(
        self, user: str = "alice", *, includes_ended: bool = False, profile: str = "default"
    ) -> list[Fact]:
        async def read() -> list[Fact]:
            stored_agent = await self.world.store.agents.find(Scope("default", profile, f"user:{user}"))
            return (
                []
                if stored_agent is None
                else await self.world.store.facts.list_page(stored_agent.id, includes_ended=includes_ended)
            )

        return self.world.gateway.call(read())

    def list_texts(self, user: str = "alice") -> list[str]:
        """Returns the texts of a user's facts, oldest first."""
        return [fact.text for fact in self.list_facts(user)][::-1]

    def list_cursors(self) -> list[int]:
        """Returns for each memory the position up to which it was learned from."""
        return self.world.query("SELECT seq FROM readers WHERE reader = 0 ORDER BY memory")

    def ask_in_new_chat(self, question: str, user: str = "alice") -> str:
        """Asks in a new conversation. Returns the question as the upstream got it, with its note."""
        self.world.chat(user=user).say(question)
        content: str = self.world.upstream.last.messages[-1]["content"]
        return content


@contextmanager
def serve_learner(
    upstream: StrictUpstream, tmp_path: Path, limits: Limits = QUIET, **memory: Any
) -> Iterator[Learner]:
    """Serves a gateway until the block ends. memory: settings of the table `memory`."""
    memory = {"background_model": "small", **memory}
    with remember(upstream, tmp_path, agent(), memory=memory, limits=limits) as world:
        yield Learner(world)
