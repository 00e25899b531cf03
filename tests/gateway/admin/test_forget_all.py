"""With everything switched on that keeps words somewhere, what is forgotten is nowhere: not in the file nor in its log,
and not after the jobs that were under way have come to their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.prompt.summary_request import INSTRUCTIONS
from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.run.background.retention import Retention
from gateway.settings import UpstreamSettings
from storage.job_records import JobState
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import Chat, World, agent, remember
from tests.meaning import unit_bytes, vector_of
from tests.patience import PATIENCE_S
from tests.reachable import texts_with

IDLE_S = 500.0
WORD = "Zqmisox"
FACT = f"My cat is called {WORD} and she hates thunderstorms."
QUESTION = "What is the name of my cat?"
SAVED = f"A note on {WORD}."
KINDS: dict[str, dict[str, Any]] = {
    "message": {"user": "alice", "profile": "helper", "message": 1},
    "exchange": {"user": "alice", "profile": "helper", "exchange": 1},
    "conversation": {"user": "alice", "profile": "helper", "in": "c1"},
    "agent": {"user": "alice", "profile": "helper"},
    "user": {"user": "alice"},
    "project": {},
    "age": {},
}
PARTS = ("message", "exchange", "conversation", "age")
# Where a word may lie. A step is what a job had done before it failed.
PLACES = {
    "message": "SELECT input FROM exchanges",
    "hidden round": 'SELECT "full" FROM exchanges',
    "note": "SELECT notes FROM exchanges",
    "memory section": "SELECT text FROM sections",
    "edit": "SELECT arguments FROM block_ops",
    "block": "SELECT value FROM block_history",
    "saved note": "SELECT text FROM passages",
    "fact": "SELECT text FROM facts",
    "summary": "SELECT text FROM summaries",
    "step": "SELECT result FROM steps",
}


class Scene:
    """Alice, in conversations with one agent, and Bob, who stays. The background model repeats whatever it reads."""

    def __init__(self, world: World, embedder: StrictUpstream, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.gate: Gate | None = None  # what asks in the background meanwhile waits for it
        self.held: set[str] = set()
        self.breaks = False
        world.upstream.script = self._answer
        embedder.endpoints.vector_of = self._embed
        app = world.gateway.app
        assert app.services.background.learning is not None
        assert app.services.background.embedding is not None
        self.learning, self.embedding = app.services.background.learning, app.services.background.embedding
        self._break_learning()

    def _answer(self, request: UpstreamRequest) -> Reply:
        if request.json["model"] != "small":
            return say("Ok.")
        is_summary = INSTRUCTIONS[:40] in request.messages[0]["content"]
        if self.gate is not None:
            self.held.add("compact" if is_summary else "learn")
        knows = WORD in request.messages[1]["content"]
        if is_summary:
            words = f"There is a cat, {WORD}." if knows else "There is nothing to tell of."
            return say(f"Notes: they talked of this and that. {words}", hold_before_headers=self.gate)
        calls = (
            Call("remember_fact", {"text": f"The cat is called {WORD}."}),
            Call("memory_insert", {"label": "human", "new_string": f"The cat: {WORD}"}),
        )
        return call_tools(*calls if knows else (), text="Done.", hold_before_headers=self.gate)

    def _embed(self, text: str) -> list[float]:
        if self.gate is not None:
            self.held.add("embed")
            self.gate.wait_sync()
        return vector_of(text)

    def _break_learning(self) -> None:
        """While `breaks`, a job that learns fails when its answer has been journaled."""
        facts = self.world.store.facts
        whole = facts.make_learn_effect

        def breaking(*arguments: Any, **named_arguments: Any) -> Any:
            effect = whole(*arguments, **named_arguments)

            async def write(connection: Any) -> None:
                if self.breaks:
                    raise RuntimeError("broken")
                await effect(connection)

            return write

        facts.make_learn_effect = breaking  # type: ignore[method-assign]

    def chat(self, conversation: str) -> Chat:
        headers = {"x-mnemogate-conversation": conversation}
        return self.world.chat(headers=headers, user="alice", model="agent/helper", max_tokens=300)

    def talk(self, chat: Chat, turns: int) -> None:
        for n in range(turns):
            chat.say(f"Entry {n}:" + "".join(f" item{n}x{k}" for k in range(36)))

    def rest(self) -> None:
        """Lets time go by; what is due begins."""
        self.world.pass_time(IDLE_S)

        async def step() -> None:
            await self.learning.schedule.perform_due()
            await self.embedding.schedule.perform_due()
            self.world.store.jobs.wake()

        self.world.gateway.call(step())

    def end(self) -> None:
        """Until no job is on its way (one that has failed may wait)."""
        jobs = self.world.store.jobs

        async def is_busy() -> bool:
            found = await jobs.list_newest()
            waiting = {(job.agent_row, job.kind) for job in found if job.state is JobState.RETRYING}
            return any(
                job.state is JobState.RUNNING
                or (job.state is JobState.PENDING and (job.agent_row, job.kind) not in waiting)
                for job in found
            )

        async def wait() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while await is_busy():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        self.world.gateway.call(wait())

    def _until(self, holds: Callable[[], bool]) -> None:
        async def wait() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not holds():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        self.world.gateway.call(wait())
        self.world.settle()

    def forget(self, kind: str) -> None:
        if kind == "age":
            self.world.clock.sleep(40 * 86_400)
            retention = Retention(self.world.store, {"default": 30}, self.world.clock)
            assert self.world.gateway.call(retention.forget_old()) == 2
            return
        operation = ForgetOperations(self.world.store, self.world.clock).forget

        async def forget() -> None:
            assert (await operation({"project": "default", **KINDS[kind]}))["done"]

        self.world.gateway.call(forget())

    def found(self) -> set[str]:
        """Where the word is."""
        found = {place for place, sql in PLACES.items() if WORD in str(self.world.query(sql))}
        data = self.world.data()
        vectors = [unit_bytes(text) for text in (FACT, SAVED, f"The cat is called {WORD}.")]
        if any(v[:24] in data or v[-24:] in data for v in vectors):
            found.add("vector")
        return found | ({"file"} if WORD.encode() in data else set())


@pytest.fixture
def scene(upstream: StrictUpstream, tmp_path: Path) -> Iterator[Scene]:
    with StrictUpstream(key="sk-emb") as embedder:
        places = (
            UpstreamSettings("up", base_url=upstream.base_url, context_window=2400, models=("m", "small")),
            UpstreamSettings("emb", base_url=embedder.base_url, api_key="sk-emb"),
        )
        memory = {
            "background_model": "small",
            "embedder": "emb/vec",
            "embedder_wait_ms": 10_000,
            "learn_every": 1000,
        }
        with remember(upstream, tmp_path, agent(), upstreams=places, memory=memory) as world:
            yield Scene(world, embedder, tmp_path)


def begin(scene: Scene) -> Chat:
    """The word is said, and stored by the memory tools; enough follows to fill the window."""
    scene.world.chat(user="bob").say("Mine is called Zqbobx.")
    chat = scene.chat("c1")
    edit = Call("memory_insert", {"label": "human", "new_string": f"has a cat, {WORD}"})
    save = Call("archival_memory_insert", {"content": SAVED})
    scene.world.upstream.queue(call_tools(edit, save, text=None), say("Noted."))
    chat.say(FACT)
    scene.talk(chat, 15)
    return chat


def go_on(scene: Scene, chat: Chat, kind: str) -> None:
    """A client that still has it, and everything that is made of what it says."""
    if kind in PARTS:  # the user of a memory that was forgotten as a whole speaks again
        chat.say("So much for that.")
        chat.say("And now?")
    scene.chat("c3").say(QUESTION)
    assert WORD not in scene.world.upstream.last.body.decode()
    for _ in range(2):
        scene.rest()
        scene.end()
    assert scene.world.gateway.call(scene.world.store.jobs.list_newest()) == ()
    assert scene.found() == set()
    left = [row for row in scene.world.query("SELECT input FROM exchanges") if b"Zqbobx" in (row or b"")]
    assert len(left) == (0 if kind in ("project", "age") else 1)


# An exchange is two messages, and an agent or a user is forgotten like each memory of a project.
@pytest.mark.both(kind=["message", "conversation", "project", "age"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_forgotten_is_nowhere_wherever_it_was(scene: Scene, kind: str) -> None:
    chat = begin(scene)
    for _ in range(2):  # what was learned and saved has its vectors after that
        scene.rest()
        scene.end()
    other = scene.chat("c2")
    scene.world.upstream.queue(call_tools(Call("conversation_search", {"query": QUESTION}), text=None))
    other.say(QUESTION)
    scene.breaks = True
    other.say("I see.")
    scene.rest()
    scene.end()
    assert scene.found() == {*PLACES, "vector", "file"}
    scene.forget(kind)
    assert scene.found() == set()
    scene.breaks = False
    go_on(scene, chat, kind)


# Parts of a memory, and all of it: what ends the work under way does not know which part.
@pytest.mark.both(kind=["message", "project"])
@pytest.mark.parametrize("kind", ["message", "conversation", "project", "age"])
def test_work_under_way_brings_nothing_forgotten_back(scene: Scene, kind: str) -> None:
    scene.gate = Gate()
    chat = begin(scene)
    scene.rest()
    scene._until(lambda: scene.held == {"learn", "compact", "embed"})
    scene.forget(kind)
    assert scene.found() == set()
    gate, scene.gate = scene.gate, None
    gate.open()
    scene.end()
    assert scene.found() == set()
    go_on(scene, chat, kind)


@pytest.mark.both
def test_the_process_drops_what_is_forgotten(scene: Scene) -> None:
    """The gateway's caches and tables, and what its clients' idle connections hold."""
    begin(scene)
    for _ in range(2):
        scene.rest()
        scene.end()
    scene.world.upstream.queue(call_tools(Call("conversation_search", {"query": QUESTION}), text=None))
    scene.chat("c2").say(QUESTION)
    scene.world.settle()
    app = scene.world.gateway.app
    assert any(texts_with(WORD, app))
    scene.forget("message")
    scene.world.settle()
    assert [*texts_with(WORD, app)] == []
