"""Groups: an agent with the agents that read its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.core.kinds import VOICE_KIND, kind_of
from gateway.agents.registry.registry import AgentEdit, AgentView
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import (
    ONE_PROJECT,
    Body,
    Maybe,
    NoEffect,
    convert,
    refused,
    sent_fields,
)
from gateway.checked import Fault
from gateway.core import ids
from gateway.core.definition import AgentDefinition, Sleeptime
from gateway.errors import BadRequest, UnknownId
from storage.errors import NotFound
from storage.listing import ReaderEntry

_OF_THE_AGENT = refused("Who is in a group is said with its agent: enable_sleeptime.")
_BLOCKS = refused("The agents of a group share all blocks of its manager.")
_NOT_SERVED = ("round_robin", "supervisor", "dynamic", "swarm")
_AT = ("body", "manager_config")
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class UpdateGroup(Body):
    """A change of a group. manager_config: a SleeptimeConfig or a VoiceSleeptimeConfig."""

    manager_config: Maybe[dict[str, Any]] = UNSET
    description: NoEffect[str] = UNSET
    agent_ids: Annotated[list[str] | None, _OF_THE_AGENT] | UnsetType = UNSET
    shared_block_ids: Annotated[list[str] | None, _BLOCKS] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


class SleeptimeConfig(Body):
    """How often the agents of a group read. sleeptime_agent_frequency: turns; null: after each."""

    manager_type: Literal["sleeptime"]
    manager_agent_id: NoEffect[str] = UNSET
    sleeptime_agent_frequency: Maybe[_Count] = UNSET


class VoiceSleeptimeConfig(Body):
    """The bounds of the window of an agent that speaks by voice, and how often others read."""

    manager_type: Literal["voice_sleeptime"]
    manager_agent_id: NoEffect[str] = UNSET
    sleeptime_agent_frequency: Maybe[_Count] = UNSET
    max_message_buffer_length: Maybe[_Count] = UNSET
    min_message_buffer_length: Maybe[_Count] = UNSET


def config_of(update: UpdateGroup) -> SleeptimeConfig | VoiceSleeptimeConfig | None:
    """Returns the settings of a group; None: there are none. Raises: BadRequest, Unprocessable."""
    config = update.manager_config
    if not isinstance(config, dict):
        return None
    kind = config.get("manager_type")
    if kind in _NOT_SERVED:
        raise BadRequest(
            f"manager_type {kind!r} is not served: agents speak to one another by their tools.",
            param="manager_config",
        )
    if kind == "sleeptime":
        return convert(config, SleeptimeConfig, _AT)
    if kind == "voice_sleeptime":
        return convert(config, VoiceSleeptimeConfig, _AT)
    raise Unprocessable(
        [Fault((*_AT, "manager_type"), "Input should be 'sleeptime' or 'voice_sleeptime'", "enum", kind)]
    )


def edited(definition: AgentDefinition, sent: Mapping[str, Any]) -> AgentDefinition:
    """Returns the definition of a group's manager after a change. sent: the fields of its config that were sent.

    Raises: Unprocessable.
    """
    if "sleeptime_agent_frequency" in sent and definition.sleeptime is not None:
        sleeptime = replace(definition.sleeptime, frequency=sent["sleeptime_agent_frequency"])
        definition = replace(definition, sleeptime=sleeptime)
    most, least = "max_message_buffer_length", "min_message_buffer_length"
    made = replace(
        definition,
        most_messages=sent.get(most, definition.most_messages),
        least_messages=sent.get(least, definition.least_messages),
    )
    check_window(made, sent, most, least, _AT)
    return made


def check_window(
    definition: AgentDefinition,
    sent: Mapping[str, Any],
    most: str,
    least: str,
    at: tuple[str, ...] = ("body",),
) -> None:
    """Refuses a window that would retain more messages than it may have.

    most, least: the names of the two fields.

    Raises: Unprocessable: names the field that was sent.
    """
    limit = definition.most_messages or kind_of(definition.kind).most_messages
    retained = definition.least_messages
    if limit is None or retained is None or retained <= limit or not (sent.get(least) or sent.get(most)):
        return
    name, bound = (
        (least, f"at most {most}, {limit}") if sent.get(least) else (most, f"at least {least}, {retained}")
    )
    raise Unprocessable([Fault((*at, name), f"Expected {bound}", "value_error", sent[name])])


def group_json(
    uid: str, definition: AgentDefinition, readers: Sequence[ReaderEntry]
) -> dict[str, Any] | None:
    """Returns the group of an agent; None: it has none. uid: the agent's."""
    sleeptime = definition.sleeptime
    if sleeptime is None and not readers:
        return None
    read = min((reader.seq for reader in readers), default=0)
    is_voice = definition.kind == VOICE_KIND
    return {
        "id": ids.id_of("group", uid),
        "manager_type": "voice_sleeptime" if is_voice else "sleeptime",
        "agent_ids": [ids.id_of("agent", reader.uid) for reader in readers],
        "description": "An agent with those that read what is said to it.",
        "manager_agent_id": ids.id_of("agent", uid),
        "sleeptime_agent_frequency": (sleeptime or Sleeptime()).frequency,
        "turns_counter": max((reader.turns for reader in readers), default=0),
        "last_processed_message_id": ids.id_at("message", uid, read) if read else None,
        "shared_block_ids": [],
        "max_message_buffer_length": definition.most_messages if is_voice else None,
        "min_message_buffer_length": definition.least_messages if is_voice else None,
        "max_turns": None,
        "termination_token": None,
        "hidden": definition.hidden,
        "project_id": None,
        "template_id": None,
        "base_template_id": None,
        "deployment_id": None,
    }


class GroupRoutes:
    """The routes of groups."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def rows(self) -> list[AgentsRoute]:
        one = "/v1/groups/{group_id}"
        return [
            AgentsRoute("GET", one, self.retrieve, "Return an agent's group of sleeptime agents."),
            AgentsRoute("PATCH", one, self.update, "Say how often they read.", body=UpdateGroup),
        ]

    async def retrieve(self, request: ApiRequest) -> Any:
        return _group_json(request, await self._view(request))

    async def update(self, request: ApiRequest) -> Any:
        config, view = config_of(request.body), await self._view(request)
        _group_json(request, view)
        if config is not None:
            edit = AgentEdit(edit=lambda definition: edited(definition, sent_fields(config)))
            view = await self._api.registry.change(request.project, view.agent.uid, edit)
        return _group_json(request, view)

    async def _view(self, request: ApiRequest) -> AgentView:
        try:
            return await self._api.registry.get(request.project, request.uid("group", "group_id"))
        except NotFound as error:
            raise _unknown(request) from error


def _group_json(request: ApiRequest, view: AgentView) -> dict[str, Any]:
    """Returns the group as it is shown. Raises: UnknownId: the agent has none."""
    group = group_json(view.agent.uid, AgentDefinition.of(view.definition.body), view.readers)
    if group is None:
        raise _unknown(request)
    return group


def _unknown(request: ApiRequest) -> UnknownId:
    return UnknownId(f"There is no group {request.path['group_id']!r}.")
