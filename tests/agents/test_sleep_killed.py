"""A gateway that is killed while a sleeptime agent works: the blocks are as if it had run once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.agents.sleeptime import is_sleeptime_request
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.process import Process, serving
from tests.patience import becomes
from tests.stored import shown

SETTINGS = """\
[memory]
recall_tokens = 0

[[upstreams]]
name = "up"
base_url = "{base_url}"
api_key = "none"
models = ["m"]
"""
NOTES = ("One.", "Two.")
CALLS = len(NOTES) + 1


class Scene:
    """One agent with sleeptime, through one process after the other. held: the call whose reply is held back."""

    def __init__(self, where: Path, upstream: StrictUpstream, held: int) -> None:
        self.where, self.upstream, self.held = where, upstream, held
        self.gate = Gate()
        self.asked: list[UpstreamRequest] = []
        upstream.script = self._script

    def _script(self, request: UpstreamRequest) -> Reply:
        if not is_sleeptime_request(request):
            return say("I see.")
        self.asked.append(request)
        done = sum(m["role"] == "tool" for m in request.messages)
        hold = self.gate if done + 1 == self.held else None
        if done < len(NOTES):
            call = Call("memory_insert", {"label": "human", "new_string": NOTES[done]})
            return call_tools(call, hold_before_headers=hold)
        return call_tools(Call("memory_finish_edits"), hold_before_headers=hold)

    def serving(self) -> Any:
        return serving(self.where, settings=SETTINGS.format(base_url=self.upstream.base_url))

    def ask(self, gateway: Process, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else orjson.dumps(body)
        reply = gateway.ask(method, path, data, {"content-type": "application/json"})
        assert reply.status == 200, reply.body
        return orjson.loads(reply.body)

    def begin(self, gateway: Process) -> str:
        """Makes the agent and says something to it. Returns its sleeptime agent's run."""
        blocks = [{"label": "human", "value": "Ann"}]
        body = {"name": "ann", "model": "m", "enable_sleeptime": True, "memory_blocks": blocks}
        agent = self.ask(gateway, "POST", "/v1/agents/", body)
        config = {"manager_type": "sleeptime", "sleeptime_agent_frequency": 1}
        self.ask(gateway, "PATCH", f"/v1/groups/{agent['managed_group']['id']}", {"manager_config": config})
        reply = self.ask(gateway, "POST", f"/v1/agents/{agent['id']}/messages", {"input": "Hello."})
        return str(reply["usage"]["run_ids"][0])

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return shown(self.where / "mnemogate.db", statement)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        becomes(
            condition, explain=lambda: (self.query("SELECT * FROM jobs"), self.query("SELECT * FROM runs"))
        )

    def is_as_if_once(self, run: str) -> None:
        """Waits for the end, and checks what there is then."""
        self.wait_until(lambda: not self.query("SELECT 1 FROM jobs"))
        value = (
            "SELECT h.value FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.label = 'human'"
        )
        assert self.query(value) == [("\n".join(("Ann", *NOTES)),)]
        assert self.query(
            "SELECT count(*) FROM block_history h JOIN blocks b ON b.id = h.block WHERE b.label = 'human'"
        ) == [(1 + len(NOTES),)]
        found = self.query("SELECT r.uid, r.state, r.steps FROM runs r JOIN readers x ON x.reader = r.agent")
        assert found == [(run.removeprefix("run-"), "completed", CALLS)]
        assert self.query("SELECT seq FROM readers WHERE reader <> 0") == [(1,)]
        assert self.query("SELECT 1 FROM exchanges WHERE input LIKE '%not the assistant%'") == []


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_killed_while_the_model_thinks(upstream: StrictUpstream, tmp_path: Path, call: int) -> None:
    scene = Scene(tmp_path, upstream, call)
    with scene.serving() as gateway:
        run = scene.begin(gateway)
        scene.wait_until(lambda: len(scene.asked) == call)
        gateway.kill()
    scene.gate.open()
    with scene.serving():
        scene.is_as_if_once(run)
    assert len(scene.asked) == CALLS + 1, "what is done is not asked for again"


@pytest.mark.parametrize("call", range(1, CALLS + 1))
@pytest.mark.parametrize("later_s", [0.0, 0.003, 0.01])
def test_killed_about_when_it_has_answered(
    upstream: StrictUpstream, tmp_path: Path, call: int, later_s: float
) -> None:
    """Before the answer is stored, between the edit and the next call, or when all is done: it is there once."""
    scene = Scene(tmp_path, upstream, call)
    with scene.serving() as gateway:
        run = scene.begin(gateway)
        scene.wait_until(lambda: len(scene.asked) == call)
        scene.gate.open()
        scene.wait_until(lambda: scene.asked[-1].settled.is_open or len(scene.asked) > call)
        time.sleep(later_s)
        gateway.kill()
    with scene.serving():
        scene.is_as_if_once(run)
