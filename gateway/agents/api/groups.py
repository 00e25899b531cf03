"""Groups: an agent, the manager, with the sleeptime agents that read its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.core.kinds import VOICE_KIND, choose_kind
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.registry.registry import AgentEdit
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import find_sent, get_sent_fields
from gateway.agents.wire.shown_values import NO_TEMPLATE
from gateway.agents.wire.struct_fields import ONE_PROJECT, Body, Maybe, NoEffect, convert, refused
from gateway.core import ids
from gateway.core.definition import AgentDefinition, Sleeptime
from gateway.errors import BadRequest, UnknownId
from gateway.validation import Fault, Path
from storage.errors import NotFound
from storage.listing import ReaderEntry

_NO_AGENT_IDS = refused("Who is in a group is said with its agent: enable_sleeptime.")
_NO_BLOCK_IDS = refused("The agents of a group share all blocks of its manager.")
_UNSERVED_TYPES = ("round_robin", "supervisor", "dynamic", "swarm")
_CONFIG_PATH = ("body", "manager_config")
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class WindowFields(NamedTuple):
    """The names of two fields of a request that bound a window."""

    # The field with the most messages that the window may have.
    most: str
    # The field with the messages that stay when the oldest leave the window.
    least: str
    # The path of the object that has both fields.
    path: Path


_WINDOW = WindowFields("max_message_buffer_length", "min_message_buffer_length", _CONFIG_PATH)


class UpdateGroup(Body):
    """A change of a group."""

    manager_config: Maybe[dict[str, Any]] = UNSET  # as `_read_config` takes it
    description: NoEffect[str] = UNSET
    agent_ids: Annotated[list[str] | None, _NO_AGENT_IDS] | UnsetType = UNSET
    shared_block_ids: Annotated[list[str] | None, _NO_BLOCK_IDS] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


class SleeptimeConfig(Body):
    """How often the agents of a group read."""

    manager_type: Literal["sleeptime"]
    manager_agent_id: NoEffect[str] = UNSET
    sleeptime_agent_frequency: Maybe[Count] = UNSET  # in turns; null: after each turn


class VoiceSleeptimeConfig(SleeptimeConfig):
    """How often the agents of a group read a voice agent, and the bounds of its window in messages."""

    manager_type: Literal["voice_sleeptime"]  # type: ignore[assignment]
    max_message_buffer_length: Maybe[Count] = UNSET
    min_message_buffer_length: Maybe[Count] = UNSET


def _read_config(config: Mapping[str, Any]) -> SleeptimeConfig | VoiceSleeptimeConfig:
    """Returns the `manager_config` of a request. Raises: BadRequest, Unprocessable."""
    manager_type = config.get("manager_type")
    if manager_type in _UNSERVED_TYPES:
        raise BadRequest(
            f"manager_type {manager_type!r} is not served: agents speak to one another by their tools.",
            param="manager_config",
        )
    if manager_type == "sleeptime":
        return convert(config, SleeptimeConfig, _CONFIG_PATH)
    if manager_type == "voice_sleeptime":
        return convert(config, VoiceSleeptimeConfig, _CONFIG_PATH)
    message = "Input should be 'sleeptime' or 'voice_sleeptime'"
    raise Unprocessable(Fault((*_CONFIG_PATH, "manager_type"), message, "enum", manager_type))


def _with_config(definition: AgentDefinition, fields: Mapping[str, Any]) -> AgentDefinition:
    """Returns a copy of the definition of a group's manager after a change. Raises: Unprocessable.

    fields: the fields of the `manager_config` that were sent.
    """
    if "sleeptime_agent_frequency" in fields and definition.sleeptime is not None:
        sleeptime = replace(definition.sleeptime, frequency=fields["sleeptime_agent_frequency"])
        definition = replace(definition, sleeptime=sleeptime)
    changed = replace(
        definition,
        most_messages=fields.get(_WINDOW.most, definition.most_messages),
        least_messages=fields.get(_WINDOW.least, definition.least_messages),
    )
    check_window(changed, fields, _WINDOW)
    return changed


def check_window(definition: AgentDefinition, fields: Mapping[str, Any], names: WindowFields) -> None:
    """Checks that a window does not retain more messages than it may have.

    definition: the definition after the request.
    fields: the fields that the request has sent. Bounds that it has not sent are not refused.
    names: the names of the fields that bound the window.

    Raises: Unprocessable, which names the field that was sent.
    """
    most = definition.most_messages or choose_kind(definition.kind).most_messages
    least = definition.least_messages
    if most is None or least is None or least <= most:
        return
    if fields.get(names.least):
        message = f"Expected at most {names.most}, {most}"
        raise Unprocessable(Fault((*names.path, names.least), message, value=least))
    if fields.get(names.most):
        message = f"Expected at least {names.least}, {least}"
        raise Unprocessable(Fault((*names.path, names.most), message, value=most))


def render_group(
    uid: str, definition: AgentDefinition, readers: Sequence[ReaderEntry]
) -> dict[str, Any] | None:
    """Returns the JSON of the group that an agent manages; None if the agent has no group.

    uid: the uid of the agent.
    readers: the sleeptime agents that read the agent's messages.
    """
    sleeptime = definition.sleeptime
    if sleeptime is None and not readers:
        return None
    last_read = min((reader.read_seq for reader in readers), default=0)
    is_voice = definition.kind == VOICE_KIND
    return {
        "id": ids.make_id("group", uid),
        "manager_type": "voice_sleeptime" if is_voice else "sleeptime",
        "agent_ids": [ids.make_id("agent", reader.uid) for reader in readers],
        "description": "An agent with those that read what is said to it.",
        "manager_agent_id": ids.make_id("agent", uid),
        "sleeptime_agent_frequency": (sleeptime or Sleeptime()).frequency,
        "turns_counter": max((reader.unread_turns for reader in readers), default=0),
        "last_processed_message_id": ids.make_id_with_seq("message", uid, last_read) if last_read else None,
        "shared_block_ids": [],
        "max_message_buffer_length": definition.most_messages if is_voice else None,
        "min_message_buffer_length": definition.least_messages if is_voice else None,
        "max_turns": None,
        "termination_token": None,
        "hidden": definition.hidden,
        **NO_TEMPLATE,
    }


class GroupRoutes:
    """The routes of groups."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def list_routes(self) -> list[AgentsRoute]:
        path = "/v1/groups/{group_id}"
        return [AgentsRoute("GET", path, self.retrieve), AgentsRoute("PATCH", path, self.update)]

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return an agent's group of sleeptime agents."""
        return _require_group(request, await self._get_manager(request))

    async def update(self, request: ApiRequest, body: UpdateGroup) -> dict[str, Any]:
        """Change how often an agent's sleeptime agents read, and the bounds of a voice agent's window."""
        sent_config = find_sent(body.manager_config)
        config = None if sent_config is None else get_sent_fields(_read_config(sent_config))
        manager = await self._get_manager(request)
        group = _require_group(request, manager)
        if config is None:
            return group
        edit = AgentEdit(edit_definition=lambda definition: _with_config(definition, config))
        manager = await self._api.registry.change(request.project, manager.agent.uid, edit)
        return _require_group(request, manager)

    async def _get_manager(self, request: ApiRequest) -> AgentView:
        """Returns the agent that manages the group in the path. Raises: UnknownId."""
        try:
            return await self._api.registry.get(request.project, request.read_uid("group", "group_id"))
        except NotFound as error:
            raise _make_unknown_group_error(request) from error


def _require_group(request: ApiRequest, manager: AgentView) -> dict[str, Any]:
    """Returns the JSON of the group of an agent. Raises: UnknownId if the agent has no group."""
    group = render_group(manager.agent.uid, AgentDefinition.of(manager.definition.body), manager.readers)
    if group is None:
        raise _make_unknown_group_error(request)
    return group


def _make_unknown_group_error(request: ApiRequest) -> UnknownId:
    return UnknownId(f"There is no group {request.path_params['group_id']!r}.")
