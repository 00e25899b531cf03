"""Groups: an agent with those that read what is said to it."""

from __future__ import annotations

from typing import Any

from gateway.core.definition import AgentDefinition
from gateway.dialects.letta.body import given
from gateway.dialects.letta.resources.group import UpdateGroup, config_of, edited, group_json
from gateway.errors import UnknownId
from gateway.run.agents.registry import AgentEdit, AgentView
from gateway.web.letta.api import AgentsApi
from gateway.web.letta.routes import AgentsRoute, Asked
from storage.errors import NotFound


class GroupRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def rows(self) -> list[AgentsRoute]:
        one = "/v1/groups/{group_id}"
        return [
            AgentsRoute("GET", one, self.retrieve, "Return an agent's group of sleeptime agents."),
            AgentsRoute("PATCH", one, self.update, "Say how often they read.", body=UpdateGroup),
        ]

    async def retrieve(self, asked: Asked) -> Any:
        return _shown(asked, await self._view(asked))

    async def update(self, asked: Asked) -> Any:
        config, view = config_of(asked.body), await self._view(asked)
        _shown(asked, view)
        if config is not None:
            edit = AgentEdit(edit=lambda definition: edited(definition, given(config)))
            view = await self._api.registry.change(asked.project, view.agent.uid, edit)
        return _shown(asked, view)

    async def _view(self, asked: Asked) -> AgentView:
        try:
            return await self._api.registry.get(asked.project, asked.uid("group", "group_id"))
        except NotFound as error:
            raise _unknown(asked) from error


def _shown(asked: Asked, view: AgentView) -> dict[str, Any]:
    """Returns the group as it is shown. Raises: UnknownId: the agent has none."""
    group = group_json(view.agent.uid, AgentDefinition.of(view.definition.body), view.readers)
    if group is None:
        raise _unknown(asked)
    return group


def _unknown(asked: Asked) -> UnknownId:
    return UnknownId(f"There is no group {asked.path['group_id']!r}.")
