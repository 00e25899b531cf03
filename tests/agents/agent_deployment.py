"""A gateway of agents that is killed and started again over one SQLite file, with an upstream and a webhook.

with AgentDeployment(tmp_path) as deployment:
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        ...
        gateway.kill()
    with deployment.serve() as gateway:
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from letta_client import Letta

from tests.agents.letta import spoken
from tests.doubles.bell_webhook import RING_SCHEMA, BellWebhook
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.process import Process, serving
from tests.patience import PATIENCE_S, becomes
from tests.stored import shown


@dataclass
class AgentGateway:
    """A gateway in a process of its own, and a client of its agents API."""

    process: Process
    letta: Letta

    def kill(self) -> None:
        self.process.kill()

    def wait_for_run(self, run_id: str) -> Any:
        """Returns a run when it has ended."""

        def find_ended() -> Any:
            run = self.letta.runs.retrieve(run_id)
            return None if run.status in ("created", "running") else run

        return becomes(find_ended)

    def list_messages(self, agent_id: str) -> list[str]:
        """Returns the messages of an agent as "kind: text", oldest first; without a text as "kind"."""
        lines = []
        for message in spoken(self.letta.agents.messages.list(agent_id, order="asc")):
            kind = message.message_type.removesuffix("_message")
            text = getattr(message, "content", None) or getattr(message, "tool_return", None) or ""
            lines.append(f"{kind}: {text}" if text else kind)
        return lines

    def read_run_events(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """Attaches to a run again, and returns its events. after: the number of the last event to leave out."""
        body = orjson.dumps({"starting_after": after, "include_pings": False})
        headers = {"content-type": "application/json"}
        reply = self.process.ask("POST", f"/v1/runs/{run_id}/stream", body, headers)
        assert reply.status == 200, reply.body
        lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: ")]
        return [orjson.loads(line) for line in lines if line != b"[DONE]"]


@dataclass
class AgentDeployment:
    """A SQLite file with agents, the upstream and the webhook of its gateways."""

    # The working directory of the gateways, with the database file `m.db`.
    folder: Path
    # Opened by `release`: replies of a test may wait for it.
    gate: Gate = field(default_factory=Gate)
    # Returns the upstream's reply to a request instead of the usual one (`ring_bells`). None: the usual one.
    intercept: Callable[[UpstreamRequest], Reply | None] = lambda request: None
    webhook: BellWebhook = field(default_factory=BellWebhook)
    # Further settings of the table `tools`.
    tool_settings: str = ""
    upstream: StrictUpstream = field(init=False)

    def __post_init__(self) -> None:
        self.upstream = StrictUpstream(script=self._answer)

    def __enter__(self) -> Self:
        self.upstream.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.open()
        self.upstream.stop()
        self.webhook.close()

    def _answer(self, request: UpstreamRequest) -> Reply:
        return self.intercept(request) or ring_bells(request)

    def release(self) -> None:
        """Gives the usual replies from now on, and answers the calls of all bells."""
        self.intercept = lambda request: None
        self.webhook.held_bells.clear()

    @contextmanager
    def serve(self, kill_point: str = "") -> Iterator[AgentGateway]:
        """Runs a gateway until the block ends.

        kill_point: the transaction before or after which the process kills itself (`kill_process`). Empty: none.
        """
        settings = f'[tools]\nprivate_hosts = ["{self.webhook.url}"]\n{self.tool_settings}'
        arguments = ("--db", str(self.folder / "m.db"), "--upstream", self.upstream.base_url)
        options: dict[str, Any] = {}
        if kill_point:
            options = {"module": "tests.agents.kill_process", "environ": {"KILL": kill_point}}
        with serving(self.folder, *arguments, settings=settings, **options) as process:
            url = f"http://127.0.0.1:{process.port}"
            with Letta(base_url=url, api_key="sk", max_retries=0, timeout=PATIENCE_S) as client:
                yield AgentGateway(process, client)

    def create_agent(self, gateway: AgentGateway) -> str:
        """Creates an agent with the webhook as its tool `ring`. Returns its id."""
        tool = gateway.letta.tools.upsert(
            source_code=f"{self.webhook.url}/ring", source_type="webhook", json_schema=RING_SCHEMA
        )
        assert tool.id is not None
        agent = gateway.letta.agents.create(
            model="openai/m", tool_ids=[tool.id], memory_blocks=[{"label": "human", "value": "Ann"}]
        )
        return agent.id

    def query(self, sql: str) -> list[Any]:
        return shown(self.folder / "m.db", sql)


def ring_bells(request: UpstreamRequest) -> Reply:
    """Returns the usual reply: calls for the bells that a user's message names ("ring a b"), or else a text."""
    last = request.messages[-1]
    if last["role"] == "tool":
        return say("All rang.")
    text = str(last["content"]).rpartition("\n\n")[2]
    if last["role"] == "user" and " ring " in text:
        name, _, bells = text.partition(" ring ")
        return call_tools(
            *(Call("ring", {"bell": bell}, f"{name}-{bell}") for bell in bells.split()), text="I ring."
        )
    return say(f"Heard {text}.", tokens=["Heard ", text, "."])
