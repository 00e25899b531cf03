"""The parts of the gateway that handlers of the agents API use, and what several handlers do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from gateway.agents.api._paging import read_page
from gateway.agents.api._query import PageQuery
from gateway.agents.api._route import ApiRequest, uid_in
from gateway.agents.batches.accept import BatchRequests
from gateway.agents.registry.registry import AgentView, Registry
from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.background.background_runs import BackgroundRuns
from gateway.agents.runs.system_message import SystemMessageRenderer
from gateway.agents.tools.argument_check import check_arguments
from gateway.agents.wire.sent_values import sent_or_none
from gateway.agents.wire.struct_fields import Maybe
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.request.identity import AGENT_PREFIX
from gateway.errors import BadRequest
from gateway.run.background.compact import Compactor
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from gateway.run.upstream.model_list import ModelList
from gateway.run.upstream.route import split_model
from gateway.settings import Settings
from gateway.web.middleware import info_of
from storage.listing import AgentEntry, Page
from storage.records import Agent, DefinitionKind
from storage.sql.store import Store

# The author that is recorded for values written by this API.
ORIGIN = "api"


class AgentsApi(Struct, frozen=True):
    """The parts of a gateway that the handlers use."""

    settings: Settings
    store: Store
    registry: Registry
    runs: AgentRuns
    background: BackgroundRuns
    batches: BatchRequests
    keeper: MemoryKeeper
    models: ModelList
    compactor: Compactor
    now: Callable[[], float]  # seconds since the epoch
    send_timeout_s: float  # how long a client may leave a reply unread
    ping_s: float  # the silence after which a stream sends a ping
    # Makes the JSON of agents. Passed in, because the modules that make it import this one.
    make_agents_json: Callable[[AgentsApi, Sequence[AgentView]], Awaitable[list[dict[str, Any]]]]

    @property
    def system_messages(self) -> SystemMessageRenderer:
        return SystemMessageRenderer(self.store, self.registry, self.runs)

    async def get_agent(self, request: ApiRequest) -> Agent:
        """Returns the memory of the agent in the path. Raises: UnknownId, NotFound."""
        return (await self.get_agent_entry(request)).agent

    async def get_agent_entry(self, request: ApiRequest) -> AgentEntry:
        """Returns the memory and the definition of the agent in the path. Raises: UnknownId, NotFound."""
        return await self.registry.get_entry(request.project, request.uid("agent", "agent_id"))

    async def get_agent_by_id(self, project: str, id: str) -> Agent:
        """Returns the memory of the agent with a public id. Raises: UnknownId, NotFound."""
        return (await self.registry.get_entry(project, uid_in("agent", id))).agent

    async def resolve_agent(self, request: ApiRequest) -> ResolvedAgent:
        """Returns the agent in the path as its sends see it. Raises: UnknownId, NotFound."""
        return await self.registry.resolver.resolve_uid(request.project, request.uid("agent", "agent_id"))

    async def get_agent_view(self, request: ApiRequest) -> AgentView:
        """Returns the agent in the path with its tools, blocks and tags. Raises: UnknownId, NotFound."""
        return await self.registry.get(request.project, request.uid("agent", "agent_id"))

    async def agent_json(self, request: ApiRequest) -> dict[str, Any]:
        """Returns the agent in the path as it is shown. Raises: UnknownId, NotFound."""
        return await self.view_json(await self.get_agent_view(request))

    async def view_json(self, view: AgentView) -> dict[str, Any]:
        """Returns an agent as it is shown."""
        (shown,) = await self.agents_json([view])
        return shown

    async def agents_json(self, views: Sequence[AgentView]) -> list[dict[str, Any]]:
        return await self.make_agents_json(self, views)

    async def list_agents_page(
        self, project: str, rows: Sequence[int], query: PageQuery
    ) -> list[dict[str, Any]]:
        """Returns a page of a list of agents as they are shown. rows: the whole list. Raises: UnknownId, NotFound."""

        async def find_row(id: str) -> int:
            return (await self.get_agent_by_id(project, id)).id

        page = await read_page(query, find_row, size=100)
        low, high = page.bounds
        ordered = sorted((row for row in rows if low < row < high), reverse=page.newest_first)
        # The agents of a page come in the order in which they were made.
        shown = await self.agents_json(await self.registry.get_several(project, ordered[: page.limit]))
        return shown[::-1] if page.newest_first else shown

    async def call_by_hand(
        self, request: ApiRequest, name: str, tool: ToolDefinition, view: AgentView | None = None
    ) -> ToolAnswer:
        """Returns the answer to a call of a tool with the request's arguments.

        view: the agent for which the tool is called, if there is one.

        Raises: BadRequest if the arguments are wrong.
        """
        parameters = tool.schema.get("parameters") or {}
        foreign = self.runs.foreign
        arguments, fault = await check_arguments(foreign.children, name, parameters, request.arguments())
        if fault is not None:
            raise BadRequest(fault, param="args")
        call = ForeignCall(
            name,
            arguments,
            call_id="",
            agent="" if view is None else ids.id_of("agent", view.agent.uid),
            run="",
            key=ids.new_uid(),
            agent_name="" if view is None else view.definition.name,
            blocks=() if view is None else [entry.block for entry in view.blocks],
            project=request.project,
        )
        return await foreign.run(tool, call)

    async def read_definition_page(
        self, project: str, kind: DefinitionKind, prefix: str, query: PageQuery
    ) -> Page[int]:
        """Returns the page of a list of definitions that a query selects.

        prefix: of the list's ids.

        Raises: NotFound.
        """

        async def find_row(id: str) -> int:
            return (await self.store.definitions.get(project, kind, uid_in(prefix, id))).id

        return await read_page(query, find_row)

    def check_models(self, request: ApiRequest, models: Iterable[str | None]) -> None:
        """Raises: NotAllowed if the caller's key may not ask for one of these models.

        models: as agents name them, with their upstreams; None stands for a model that is chosen elsewhere. Keys name
            models without upstreams.
        """
        caller = info_of(request.http.scope).caller
        for model in models:
            _, name = split_model(self.settings, model)
            if name is not None:
                caller.check_model(name)

    def choose_first_model(self, request: ApiRequest) -> str:
        """Returns the model of an agent that is created without a model: the first that the caller's key may ask for.

        Raises: BadRequest if no such model is known.
        """
        caller = info_of(request.http.scope).caller
        for name in (str(entry["id"]) for entry in self.models.entries):
            if caller.may_ask(name) and not name.startswith(AGENT_PREFIX):
                return self.registry.resolver.model_handle(name)
        raise BadRequest(
            "Name a model, such as 'openai/gpt-4o': the gateway knows of none yet that this key may ask for.",
            param="model",
        )


def uid_or_none(kind: str, id: Maybe[str]) -> str | None:
    """Returns the uid in a parameter's id, or None if none was sent. Raises: UnknownId."""
    return None if (sent := sent_or_none(id)) is None else uid_in(kind, sent)
