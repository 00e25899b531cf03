"""Agents: created, listed, changed and deleted, and the contents of their context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from msgspec.structs import asdict, replace

from gateway.agents.api._paging import read_page_at
from gateway.agents.api._query import AgentQuery, AgentsQuery, RecompileQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.agent_bodies import CreateAgent, UpdateAgent, define_agent, list_models, with_update
from gateway.agents.api.blocks import make_block_draft
from gateway.agents.api.context_json import render_context
from gateway.agents.api.dependencies import AgentsApi, read_sent_uid
from gateway.agents.registry.registry import AgentEdit, AgentParts, NewAgent
from gateway.agents.runs.run import RunRequest
from gateway.agents.wire.sent_values import find_sent, get_sent_fields
from gateway.core.definition import AgentDefinition
from gateway.run.memory.prompt import Prompt
from storage.listing import AgentFilter


class AgentRoutes:
    """The routes of agents."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def list_routes(self) -> list[AgentsRoute]:
        agent = "/v1/agents/{agent_id}"
        return [
            AgentsRoute("GET", "/v1/agents", self.list_agents),
            AgentsRoute("POST", "/v1/agents", self.create),
            AgentsRoute("GET", "/v1/agents/count", self.count),
            AgentsRoute("GET", agent, self.retrieve),
            AgentsRoute("PATCH", agent, self.update),
            AgentsRoute("DELETE", agent, self.delete),
            AgentsRoute("GET", f"{agent}/context", self.retrieve_context),
            AgentsRoute("POST", f"{agent}/recompile", self.recompile),
        ]

    async def list_agents(self, request: ApiRequest, query: AgentsQuery) -> list[dict[str, Any]]:
        """List agents, users' memories among them."""
        agent_filter = replace(_make_filter(query), order=query.sorting)
        page = read_page_at(query, partial(read_uid, "agent"))
        views = await self._api.registry.list_page(request.project, agent_filter, page)
        return await self._api.agents.make_json(views)

    async def count(self, request: ApiRequest, query: AgentsQuery) -> int:
        """Count agents."""
        return await self._api.store.defined_agents.count(request.project, _make_filter(query))

    async def create(self, request: ApiRequest, body: CreateAgent) -> dict[str, Any]:
        """Make an agent."""
        fields = get_sent_fields(body)
        definition = define_agent(body)
        if definition.model is None:
            definition = replace(definition, model=self._api.choose_first_model(request))
        self._api.check_models(request, list_models(definition))
        new = NewAgent(
            definition,
            own_blocks=[make_block_draft(block) for block in fields.get("memory_blocks") or ()],
            tool_names=fields.get("tools") or (),
            has_base_tools=fields.get("include_base_tools") is not False,
            has_base_rules=fields.get("include_base_tool_rules"),
            **asdict(_read_parts(fields)),
        )
        return await self._api.agents.render(await self._api.registry.create(request.project, new))

    async def retrieve(self, request: ApiRequest, _: AgentQuery) -> dict[str, Any]:
        """Return an agent."""
        return await self._api.agents.render_requested(request)

    async def update(self, request: ApiRequest, body: UpdateAgent) -> dict[str, Any]:
        """Change an agent."""

        def edit(definition: AgentDefinition) -> AgentDefinition:
            updated = with_update(definition, body)
            self._api.check_models(request, list_models(updated) - list_models(definition))
            return updated

        change = AgentEdit(edit_definition=edit, **asdict(_read_parts(get_sent_fields(body))))
        uid = request.read_uid("agent", "agent_id")
        return await self._api.agents.render(await self._api.registry.change(request.project, uid, change))

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete an agent, and forget all that it knew."""
        agent = await self._api.agents.get(request)
        await self._api.registry.delete(request.project, agent.uid)
        self._api.agent_runs.live.stop_deleted(agent.id)
        return {"message": "The agent is deleted, and what it knew is forgotten."}

    async def retrieve_context(self, request: ApiRequest) -> dict[str, Any]:
        """Return what goes to the model, and what it takes up."""
        view = await self._api.agents.get_view(request)
        prompt = await self._make_prompt(request)
        agent_json = await self._api.agents.render(view)
        return render_context(
            prompt,
            system=AgentDefinition.of(view.definition.body).system,
            window=prompt.target.context_window or agent_json["llm_config"]["context_window"],
            passage_count=await self._api.store.passages.count(view.agent.id),
            message_count=await self._api.store.overview.count_messages(view.agent.id),
        )

    async def recompile(self, request: ApiRequest, query: RecompileQuery) -> str:
        """Render the memory section again, and return the system prompt."""
        agent = await self._api.agents.get(request)
        if not query.dry_run:
            await self._api.store.sections.empty(agent.id)
        return (await self._make_prompt(request)).system

    async def _make_prompt(self, request: ApiRequest) -> Prompt:
        resolved = await self._api.agents.resolve(request)
        return await self._api.agent_runs.preview(RunRequest(resolved.spec, resolved.scope))


def _make_filter(query: AgentsQuery) -> AgentFilter:
    """Returns the filter by which a query selects agents, without an order. Raises: UnknownId."""
    return AgentFilter(
        name=find_sent(query.name),
        text=find_sent(query.query_text),
        tags=find_sent(query.tags) or (),
        needs_all_tags=query.match_all_tags,
        stop=find_sent(query.last_stop_reason),
        identity=read_sent_uid("identity", query.identity_id),
        identity_keys=find_sent(query.identifier_keys) or (),
        includes_hidden=query.show_hidden_agents is True,
    )


def _read_parts(fields: Mapping[str, Any]) -> AgentParts:
    """Returns the parts of an agent that a body names. Raises: UnknownId."""
    return AgentParts(
        name=fields.get("name"),
        blocks=_read_uids("block", fields.get("block_ids")),
        tools=_read_uids("tool", fields.get("tool_ids")),
        tags=fields.get("tags"),
        folders=_read_folders(fields),
        identities=_read_uids("identity", fields.get("identity_ids")),
        has_multi_agent_tools=fields.get("include_multi_agent_tools"),
        has_sleeptime=fields.get("enable_sleeptime"),
    )


def _read_uids(prefix: str, public_ids: Sequence[str] | None) -> list[str] | None:
    """Returns the uids in ids; None for None. prefix: the prefix of the ids. Raises: UnknownId."""
    return None if public_ids is None else [read_uid(prefix, public_id) for public_id in public_ids]


def _read_folders(fields: Mapping[str, Any]) -> list[str] | None:
    """Returns the uids of the folders in `folder_ids` and `source_ids`; None if a body has neither field."""
    id_lists = [fields[name] for name in ("folder_ids", "source_ids") if fields.get(name) is not None]
    return _read_uids("source", [*chain.from_iterable(id_lists)]) if id_lists else None
