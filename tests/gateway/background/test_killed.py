"""A gateway that is killed while its background model is at work: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.process import Process, serving
from tests.meaning import vector_of
from tests.patience import becomes
from tests.stored import shown

SETTINGS = """\
[memory]
background_model = "small"
learn_every = {learn_every}
recall_tokens = 0

[[upstreams]]
name = "up"
base_url = "{base_url}"
api_key = "none"
context_window = 2000
"""
NOTES = "Notes: they talked of this and that."
FACT = "The cat is called Miso."
# What the job asks the model, and what it leaves: statement, rows.
KINDS: dict[str, tuple[int, Callable[[], Reply], str, list[tuple[Any, ...]]]] = {
    "compaction": (0, lambda: say(NOTES), "SELECT DISTINCT text FROM summaries", [(NOTES,)]),
    "learning": (
        4,
        lambda: call_tools(Call("remember_fact", {"text": FACT}), text=None),
        "SELECT text FROM facts",
        [(FACT,)],
    ),
    "embedding": (0, lambda: say(""), "SELECT seq FROM embedded", [(8,)]),
}
ASKING = ["compaction", "learning"]


class Scene:
    """One user's conversation, through one process after the other."""

    def __init__(self, where: Path, upstream: StrictUpstream, kind: str) -> None:
        self.learn_every, self.answer, self.statement, self.rows = KINDS[kind]
        self.where, self.upstream = where, upstream
        self.asked: list[UpstreamRequest] = []
        self.held: Gate | None = Gate()
        self.embedded: list[str] = []
        self.messages: list[dict[str, Any]] = []
        upstream.script = self._script

    def _script(self, request: UpstreamRequest) -> Reply:
        if request.json["model"] != "small":
            return say("It is noted.")
        self.asked.append(request)
        answer = self.answer()
        return replace(answer, hold_before_headers=self.held)

    def vector_of(self, text: str) -> list[float]:
        """Of what was said; in the server's thread."""
        if text not in BASELINE_TEXTS:
            self.embedded.append(text)
            if self.held is not None:
                self.held.wait_sync()
        return vector_of(text)

    def serving(self) -> Any:
        settings = SETTINGS.format(learn_every=self.learn_every, base_url=self.upstream.base_url)
        return serving(self.where, settings=settings)

    def talk(self, gateway: Process, turns: int) -> None:
        for _ in range(turns):
            n = len(self.messages) // 2
            text = f"Message {n}:" + "".join(f" word{n}x{k}" for k in range(24))
            self.messages.append({"role": "user", "content": text})
            body = {"model": "m", "user": "alice", "max_tokens": 200, "messages": self.messages}
            reply = gateway.ask("POST", "/v1/chat/completions", json.dumps(body).encode())
            assert reply.status == 200, reply.body
            self.messages.append(json.loads(reply.body)["choices"][0]["message"])

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return shown(self.where / "mnemogate.db", statement)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        becomes(condition, explain=lambda: (self.query("SELECT * FROM jobs"), self.asked))

    def is_done(self) -> bool:
        return not self.query("SELECT 1 FROM jobs") and self.query(self.statement) == self.rows

    @property
    def readings(self) -> int:
        """How often the model was asked about the beginning of the conversation."""
        return sum("Message 0:" in seen.messages[1]["content"] for seen in self.asked)


@pytest.mark.parametrize("kind", ASKING)
def test_killed_while_the_background_model_thinks(
    upstream: StrictUpstream, tmp_path: Path, kind: str
) -> None:
    scene = Scene(tmp_path, upstream, kind)
    with scene.serving() as gateway:
        scene.talk(gateway, 3)
        while not scene.asked:
            scene.talk(gateway, 1)
        scene.talk(gateway, 1)  # nobody waits for it
        gateway.kill()
    assert scene.query(scene.statement) == []
    assert scene.query("SELECT 1 FROM jobs")
    scene.held = None
    with scene.serving() as gateway:
        scene.wait_until(scene.is_done)
        scene.talk(gateway, 1)
    assert scene.readings == 2, "what is done stays done"


@pytest.mark.parametrize("kind", ASKING)
def test_killed_about_when_it_has_answered(upstream: StrictUpstream, tmp_path: Path, kind: str) -> None:
    """Before the answer is journaled, after it, or when all is done: wherever the kill falls, it is there once."""
    scene = Scene(tmp_path, upstream, kind)
    with scene.serving() as gateway:
        while not scene.asked:
            scene.talk(gateway, 1)
        assert scene.held is not None
        scene.held.open()
        scene.wait_until(lambda: bool(scene.asked[0].settled.is_open))
        gateway.kill()
    # Stored, or all done (a job that waits by then is the next one).
    journaled = bool(scene.query("SELECT 1 FROM steps")) or scene.query(scene.statement) == scene.rows
    scene.held = None
    with scene.serving():
        scene.wait_until(scene.is_done)
    assert scene.readings == (1 if journaled else 2)


EMBEDDER = """\
[memory]
embedder = "emb/vec"
idle_s = 0.2

[[upstreams]]
name = "up"
base_url = "{base_url}"
api_key = "none"
models = ["m"]

[[upstreams]]
name = "emb"
base_url = "{embedder_url}"
api_key = "none"
"""


@pytest.mark.parametrize("when", ["while it is asked", "about when it has answered"])
def test_killed_while_vectors_are_made(upstream: StrictUpstream, tmp_path: Path, when: str) -> None:
    """What has its vector is not asked for again, and nothing is left out."""
    scene = Scene(tmp_path, upstream, "embedding")
    assert scene.held is not None
    with StrictUpstream() as embedder:
        embedder.endpoints.vector_of = scene.vector_of
        settings = EMBEDDER.format(base_url=upstream.base_url, embedder_url=embedder.base_url)
        with serving(tmp_path, settings=settings) as gateway:
            scene.talk(gateway, 3)
            scene.wait_until(lambda: scene.embedded != [])
            scene.talk(gateway, 1)  # nobody waits for it
            if when == "about when it has answered":
                scene.held.open()
                scene.wait_until(lambda: len(scene.embedded) >= 6)
            gateway.kill()
        done = max((row[0] for row in scene.query("SELECT seq FROM embedded")), default=0)
        scene.held.open()
        begun = len(scene.embedded)
        with serving(tmp_path, settings=settings):
            scene.wait_until(scene.is_done)
    texts = [str(message["content"]) for message in scene.messages]
    assert {*scene.embedded} == {*texts}
    assert not {*scene.embedded[begun:]} & {text for text in texts[:done] if text.startswith("Message")}
