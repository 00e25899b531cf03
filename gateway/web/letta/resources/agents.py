"""Agents: made, listed, changed, deleted; their blocks, and what stands in their context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from gateway.core import ids
from gateway.core.definition import AgentDefinition
from gateway.core.turn.guide import StopReason
from gateway.dialects.letta.body import given
from gateway.dialects.letta.message import Showing
from gateway.dialects.letta.query import AgentQuery, AgentsQuery, RecompileQuery
from gateway.dialects.letta.resources.agent import (
    CreateAgent,
    UpdateAgent,
    agent_json,
    changed,
    definition_of,
)
from gateway.dialects.letta.resources.block import block_of
from gateway.dialects.letta.resources.context import context_json
from gateway.dialects.letta.resources.folder import folder_json
from gateway.dialects.letta.resources.identity import identity_json
from gateway.run.agents.messages import AgentMessages
from gateway.run.agents.registry import AgentEdit, AgentView, NewAgent
from gateway.run.agents.run import RunRequest
from gateway.run.agents.system_message import system_id
from gateway.run.memory.prompt import Prompt
from gateway.web.letta.api import AgentsApi, given_or_none, uid_or_none
from gateway.web.letta.exchanges import Exchanges
from gateway.web.letta.resources.tools import show_tool
from gateway.web.letta.routes import AgentsRoute, Asked, uid_in
from storage.listing import AgentFilter
from storage.records import DEFAULT, RunStep


class AgentRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def rows(self) -> list[AgentsRoute]:
        one = "/v1/agents/{agent_id}"
        return [
            AgentsRoute(
                "GET", "/v1/agents", self.index, "List agents, users' memories among them.", query=AgentsQuery
            ),
            AgentsRoute("POST", "/v1/agents", self.create, "Make an agent.", body=CreateAgent),
            AgentsRoute("GET", "/v1/agents/count", self.count, "Count agents.", query=AgentsQuery),
            AgentsRoute("GET", one, self.retrieve, "Return an agent.", query=AgentQuery),
            AgentsRoute("PATCH", one, self.update, "Change an agent.", body=UpdateAgent),
            AgentsRoute("DELETE", one, self.delete, "Delete an agent, and forget all that it knew."),
            AgentsRoute(
                "GET", f"{one}/context", self.context, "Return what goes to the model, and what it takes up."
            ),
            AgentsRoute(
                "POST",
                f"{one}/recompile",
                self.recompile,
                "Render the memory section anew.",
                query=RecompileQuery,
            ),
        ]

    async def index(self, asked: Asked) -> Any:
        query: AgentsQuery = asked.query
        views = await self._api.registry.list(
            asked.project,
            replace(_wanted(query), order=query.sorting),
            after=uid_or_none("agent", query.after),
            before=uid_or_none("agent", query.before),
            limit=query.size(),
            newest_first=query.newest_first(),
        )
        return await self._api.all_shown(views)

    async def count(self, asked: Asked) -> Any:
        return await self._api.registry.count(asked.project, _wanted(asked.query))

    async def create(self, asked: Asked) -> Any:
        create: CreateAgent = asked.body
        sent = given(create)
        definition = definition_of(create)
        if definition.model is None:
            definition = replace(definition, model=self._api.first_model())
        new = NewAgent(
            definition,
            name=sent.get("name"),
            own=[block_of(block) for block in sent.get("memory_blocks") or ()],
            blocks=[uid_in("block", each) for each in sent.get("block_ids") or ()],
            tools=sent.get("tools") or (),
            tool_uids=[uid_in("tool", each) for each in sent.get("tool_ids") or ()],
            tags=sent.get("tags") or (),
            folders=_folders(sent) or (),
            identities=_identities(sent) or (),
            base_tools=sent.get("include_base_tools") is not False,
            base_rules=sent.get("include_base_tool_rules"),
            multi_agent_tools=sent.get("include_multi_agent_tools") is True,
            sleeptime=sent.get("enable_sleeptime") is True,
        )
        return await self._api.shown(await self._api.registry.create(asked.project, new))

    async def retrieve(self, asked: Asked) -> Any:
        return await self._api.shown(await self._api.view(asked))

    async def update(self, asked: Asked) -> Any:
        update: UpdateAgent = asked.body
        sent = given(update)

        def edit(definition: AgentDefinition) -> AgentDefinition:
            return changed(definition, update)

        blocks, tools = sent.get("block_ids"), sent.get("tool_ids")
        change = AgentEdit(
            name=sent.get("name"),
            edit=edit,
            blocks=None if blocks is None else [uid_in("block", each) for each in blocks],
            tools=None if tools is None else [uid_in("tool", each) for each in tools],
            tags=sent.get("tags"),
            multi_agent_tools=sent.get("include_multi_agent_tools"),
            sleeptime=sent.get("enable_sleeptime"),
            folders=_folders(sent),
            identities=_identities(sent),
        )
        uid = asked.uid("agent", "agent_id")
        return await self._api.shown(await self._api.registry.change(asked.project, uid, change))

    async def delete(self, asked: Asked) -> Any:
        agent = (await self._api.entry(asked)).agent
        await self._api.registry.delete(asked.project, agent.uid)
        self._api.runs.stop_deleted(agent.id)
        self._api.background.let_go_of(agent.uid)
        return {"message": "The agent is deleted, and what it knew is forgotten."}

    async def context(self, asked: Asked) -> Any:
        view, prompt = await self._api.view(asked), await self._prompt(asked)
        agent, shown = view.agent, await self._api.shown(view)
        return context_json(
            orjson.loads(prompt.body()),
            window=prompt.target.context_window or shown["llm_config"]["context_window"],
            system=AgentDefinition.of(view.definition.body).system,
            section=prompt.section.text,
            summary=prompt.window.summary,
            passages=await self._api.store.passages.count(agent.id),
            recalled=await self._api.store.overview.messages(agent.id),
        )

    async def recompile(self, asked: Asked) -> Any:
        query: RecompileQuery = asked.query
        agent = (await self._api.entry(asked)).agent
        if not query.dry_run:
            await self._api.store.blocks.render_anew(agent.id)
        return (await self._prompt(asked)).system

    async def _prompt(self, asked: Asked) -> Prompt:
        found = await self._api.registry.agent(asked.project, asked.uid("agent", "agent_id"))
        return await self._api.runs.preview(RunRequest(found.spec, found.scope))


def _wanted(query: AgentsQuery) -> AgentFilter:
    """Returns the agents that a query asks for, in any order."""
    return AgentFilter(
        name=given_or_none(query.name),
        text=given_or_none(query.query_text),
        tags=given_or_none(query.tags) or (),
        all_tags=query.match_all_tags,
        stop=given_or_none(query.last_stop_reason),
        identity=uid_or_none("identity", query.identity_id),
        identity_keys=given_or_none(query.identifier_keys) or (),
        hidden=query.show_hidden_agents is True,
    )


def _identities(sent: dict[str, Any]) -> list[str] | None:
    named = sent.get("identity_ids")
    return None if named is None else [uid_in("identity", each) for each in named]


def _folders(sent: dict[str, Any]) -> list[str] | None:
    """Returns the folders that a body names, under either name; None: it names none."""
    named = [each for name in ("folder_ids", "source_ids") for each in sent.get(name) or ()]
    is_named = any(sent.get(name) is not None for name in ("folder_ids", "source_ids"))
    return [uid_in("source", each) for each in named] if is_named else None


async def show_agents(api: AgentsApi, views: Sequence[AgentView]) -> list[dict[str, Any]]:
    """Returns agents as they are shown. Raises: StoreError."""
    numbers = await AgentMessages(api.store, api.now).numbers_of([view.agent for view in views])
    paused = await api.store.runs.paused([view.agent.id for view in views], DEFAULT)
    return [
        _agent_json(api, view, numbers[view.agent.id], await _pending(api, view, paused.get(view.agent.id)))
        for view in views
    ]


def _agent_json(
    api: AgentsApi, view: AgentView, numbers: Sequence[int], pending: dict[str, Any] | None
) -> dict[str, Any]:
    agent = view.agent
    return agent_json(
        view.definition,
        [(entry.block, entry.details) for entry in view.blocks],
        [show_tool(tool) for tool in view.tools],
        view.tags,
        window=api.registry.context_window(view.definition),
        message_ids=[system_id(agent), *(ids.placed("message", agent.uid, seq) for seq in numbers)],
        pending=pending,
        last_run=view.last_run,
        readers=view.readers,
        folders=list(map(folder_json, view.folders)),
        identities=list(map(identity_json, view.identities)),
    )


async def _pending(api: AgentsApi, view: AgentView, own: RunStep | None) -> dict[str, Any] | None:
    """Returns the message with the calls that wait for an answer.

    own: the step that waits in the agent's own conversation; None: that of its newest run may, wherever it is.
    """
    agent, last, runs = view.agent, view.last_run, api.store.runs
    step = own
    if step is None and last is not None and last.stop == StopReason.REQUIRES_APPROVAL:
        step = await runs.waiting(agent.id, last.conversation)
    run = None if step is None else await runs.load(agent.id, step.run)
    e = None if step is None else await api.store.turns.exchange(agent, step.exchange)
    if run is None or e is None:
        return None
    shown = await Exchanges(api.store, agent, Showing()).of_run(run, [e], with_input=False)
    return next((each for each in shown if each["message_type"] == "approval_request_message"), None)
