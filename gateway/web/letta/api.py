"""The parts of the gateway that the agents API speaks to, and the few things that all its handlers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import UnsetType

from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import definition_of
from gateway.core.turn.guide import StopReason
from gateway.dialects.letta.body import Maybe
from gateway.dialects.letta.message import Showing
from gateway.dialects.letta.query import PageQuery
from gateway.dialects.letta.resources.agent import agent_json
from gateway.dialects.letta.resources.folder import folder_json
from gateway.dialects.letta.resources.identity import identity_json
from gateway.dialects.letta.resources.tool import built_in_json, tool_json
from gateway.errors import BadRequest
from gateway.run.agents.background.accept import BackgroundRuns
from gateway.run.agents.messages import AgentMessages
from gateway.run.agents.registry import AgentView, Registry
from gateway.run.agents.runs import AgentRuns
from gateway.run.agents.system_message import SystemMessages, system_id
from gateway.run.agents.tools import ToolView
from gateway.run.background.batches.accept import BatchRequests
from gateway.run.background.compact import Compactor
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.tools.checked import checked
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from gateway.run.upstream.models import ModelList
from gateway.settings import Settings
from gateway.web.letta.exchanges import Exchanges
from gateway.web.letta.routes import Asked, uid_in
from storage.listing import AgentEntry, Page
from storage.records import DEFAULT, DefinitionKind, RunStep
from storage.sql.store import Store

# Who wrote a value that came over this API.
ORIGIN = "api"


@dataclass(frozen=True, slots=True)
class AgentsApi:
    """The parts of one gateway. send_timeout_s: how long a client may not read.

    ping_s: the silence after which a stream says that it is there.
    """

    settings: Settings
    store: Store
    registry: Registry
    runs: AgentRuns
    background: BackgroundRuns
    batches: BatchRequests
    keeper: MemoryKeeper
    models: ModelList
    compactor: Compactor
    now: Callable[[], float]
    send_timeout_s: float
    ping_s: float

    @property
    def system_messages(self) -> SystemMessages:
        return SystemMessages(self.store, self.registry, self.runs)

    async def entry(self, asked: Asked) -> AgentEntry:
        """Returns the memory and the definition of the agent in the path. Raises: UnknownId, NotFound."""
        return await self.registry.find(asked.project, asked.uid("agent", "agent_id"))

    async def view(self, asked: Asked) -> AgentView:
        """Returns the agent in the path with all that belongs to it. Raises: UnknownId, NotFound."""
        return await self.registry.get(asked.project, asked.uid("agent", "agent_id"))

    async def shown(self, view: AgentView) -> dict[str, Any]:
        """Returns an agent as it is shown."""
        (found,) = await self.all_shown([view])
        return found

    async def all_shown(self, views: Sequence[AgentView]) -> list[dict[str, Any]]:
        numbers = await AgentMessages(self.store, self.now).numbers_of([view.agent for view in views])
        paused = await self.store.runs.paused([view.agent.id for view in views], DEFAULT)
        return [
            self._shown(view, numbers[view.agent.id], await self._pending(view, paused.get(view.agent.id)))
            for view in views
        ]

    def _shown(
        self, view: AgentView, numbers: Sequence[int], pending: dict[str, Any] | None
    ) -> dict[str, Any]:
        agent = view.agent
        return agent_json(
            view.definition,
            [(entry.block, entry.details) for entry in view.blocks],
            [show_tool(tool) for tool in view.tools],
            view.tags,
            window=self.registry.context_window(view.definition),
            message_ids=[system_id(agent), *(ids.placed("message", agent.uid, seq) for seq in numbers)],
            pending=pending,
            last_run=view.last_run,
            readers=view.readers,
            folders=list(map(folder_json, view.folders)),
            identities=list(map(identity_json, view.identities)),
        )

    async def _pending(self, view: AgentView, own: RunStep | None) -> dict[str, Any] | None:
        """Returns the message whose calls wait for an answer, with those that have none yet.

        own: the step that waits in the agent's own conversation; None: that of its newest run may, wherever it is.
        """
        agent, last, runs = view.agent, view.last_run, self.store.runs
        step = own
        if step is None and last is not None and last.stop == StopReason.REQUIRES_APPROVAL:
            step = await runs.waiting(agent.id, last.conversation)
        run = None if step is None else await runs.load(agent.id, step.run)
        e = None if step is None else await self.store.turns.exchange(agent, step.exchange)
        if run is None or e is None:
            return None
        exchanges = Exchanges(self.store, agent, Showing())
        shown = await exchanges.of_run(run, [e], with_input=False)
        return next((each for each in shown if each["message_type"] == "approval_request_message"), None)

    async def called(self, made: ToolDefinition, call: ForeignCall) -> ToolAnswer:
        """Returns the answer to a call that somebody makes by hand. Raises: BadRequest: its arguments are wrong."""
        parameters = made.schema.get("parameters") or {}
        foreign = self.runs.foreign
        meant, wrong = await checked(foreign.children, call.tool, parameters, call.arguments)
        if wrong is not None:
            raise BadRequest(wrong, param="args")
        return await foreign.run(made, replace(call, arguments=meant))

    async def definition_page(
        self, project: str, kind: DefinitionKind, prefix: str, query: PageQuery
    ) -> Page:
        """Returns the page of a list of definitions that a query asks for. prefix: of their ids. Raises: NotFound."""
        places = [
            (await self.store.definitions.get(project, kind, uid_in(prefix, id))).id
            if isinstance(id, str)
            else None
            for id in (query.after, query.before)
        ]
        return page_of(query, *places)

    def first_model(self) -> str:
        """Returns the model of an agent whose maker names none. Raises: BadRequest: nothing is known of any."""
        for entry in self.models.entries:
            if not str(entry["id"]).startswith("agent/"):
                return self.registry.handle(str(entry["id"]))
        raise BadRequest(
            "Name a model, such as 'openai/gpt-4o': the gateway does not know yet which ones its upstream has.",
            param="model",
        )


def show_tool(tool: ToolView) -> dict[str, Any]:
    """Returns a tool as it is shown."""
    if tool.definition is not None:
        return tool_json(tool.definition)
    offered = definition_of(tool.name)
    return built_in_json(tool.uid, {"name": tool.name} if offered is None else offered["function"])


def given_or_none(value: Any) -> Any:
    """Returns a parameter, None where it was not sent."""
    return None if isinstance(value, UnsetType) else value


def uid_or_none(kind: str, id: Maybe[str]) -> str | None:
    """Returns the uid that a parameter names, None where it was not sent. Raises: UnknownId."""
    return uid_in(kind, id) if isinstance(id, str) else None


def page_of(query: PageQuery, after: int | None, before: int | None, *, size: int = 50) -> Page:
    """Returns the page that is asked for. size: where the query names none."""
    return Page(after, before, query.size(size), query.newest_first())
