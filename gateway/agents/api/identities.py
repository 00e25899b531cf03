"""Identities: users or organisations of an application, each under the application's own key, to which agents belong.

Identities sort agents and protect nothing: the key of a request alone decides what may be read. A user of a profile has
a memory, and no identity.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.agents.api._query import AgentsOfQuery, PageQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.wire.sent_values import find_sent, get_sent_fields, get_sent_or
from gateway.agents.wire.struct_fields import (
    BOUNDED_LIST,
    ONE_PROJECT,
    Body,
    Entry,
    Maybe,
    Name,
    check_size,
    convert,
    parse,
    refused,
)
from gateway.core import ids
from gateway.core.definition import IdentityDefinition
from gateway.core.json_object import without_none
from gateway.run.store_errors import retry_changed_record
from storage.definition_records import Definition, DefinitionKind
from storage.errors import WriteConflict
from storage.listing import DefinitionDraft
from storage.records import Agent

_Type = Literal["org", "user", "other"]
_ATTACH = refused("Attach it to each agent: agents.identities.attach, or identity_ids of the agent.")
NO_BLOCKS = "An identity has agents alone. Blocks have tags, and can be attached to its agents."
_NO_BLOCK_IDS = refused(NO_BLOCKS)
_KIND: Final = DefinitionKind.IDENTITY


class PropertyBody(Entry):
    """A property of an identity."""

    key: Name
    value: str | int | float | bool | dict[str, Any]
    type: Literal["string", "number", "boolean", "json"]


_Properties = Annotated[list[PropertyBody], BOUNDED_LIST]


class UpdateIdentity(Body):
    """A change of an identity; what is left out or null stays, and so does a property that is not sent."""

    identifier_key: Maybe[Name] = UNSET
    name: Maybe[Name] = UNSET
    identity_type: Maybe[_Type] = UNSET
    properties: Maybe[_Properties] = UNSET
    agent_ids: Annotated[list[str] | None, _ATTACH] | UnsetType = UNSET
    block_ids: Annotated[list[str] | None, _NO_BLOCK_IDS] | UnsetType = UNSET


class CreateIdentity(UpdateIdentity):
    """A new identity. identifier_key: the application's own name for it, which a project has once."""

    identifier_key: Name
    name: Name
    identity_type: _Type
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


class PropertiesBody(Body):
    """All properties that an identity has then."""

    properties: _Properties


class IdentitiesQuery(PageQuery):
    """A page of identities."""

    # A part of the name, in upper or lower case. The key must be equal to that of an identity.
    name: Maybe[str] = UNSET
    identifier_key: Maybe[str] = UNSET
    identity_type: Maybe[_Type] = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET

    def matches(self, identity: Definition) -> bool:
        """Returns whether an identity matches the filters, its key aside."""
        definition = IdentityDefinition.of(identity.body)
        has_name = get_sent_or(self.name, "").casefold() in definition.name.casefold()
        return has_name and get_sent_or(self.identity_type, definition.type) == definition.type


def _read_properties(properties: list[PropertyBody]) -> tuple[dict[str, Any], ...]:
    """Returns properties as they are stored. Of several properties with one key, the last is stored."""
    return tuple({property_.key: msgspec.to_builtins(property_) for property_ in properties}.values())


def with_identity_update(definition: IdentityDefinition, update: UpdateIdentity) -> IdentityDefinition:
    """Returns a copy of an identity after an update, in which a property replaces the property with the same key.

    Raises: Unprocessable if the properties take too much together.
    """
    fields = without_none(get_sent_fields(update))
    before = {property_["key"]: property_ for property_ in definition.properties}
    after = {property_["key"]: property_ for property_ in _read_properties(fields.get("properties") or [])}
    properties = [*{**before, **after}.values()]
    if after:
        check_size(properties, ("body", "properties"))
    return replace(
        definition,
        name=fields.get("name", definition.name),
        type=fields.get("identity_type", definition.type),
        properties=tuple(properties),
    )


def render_identity(identity: Definition) -> dict[str, Any]:
    """Returns the JSON of an identity. Letta's server leaves the older lists of agents and blocks empty as well."""
    definition = IdentityDefinition.of(identity.body)
    return {
        "id": ids.make_id("identity", identity.uid),
        "identifier_key": identity.name,
        "name": definition.name,
        "identity_type": definition.type,
        "properties": list(definition.properties),
        "project_id": None,
        "organization_id": None,
        "agent_ids": [],
        "block_ids": [],
    }


class IdentityRoutes:
    """The routes of identities."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._definitions = api.store.definitions
        self._attached = api.store.attached

    def list_routes(self) -> list[AgentsRoute]:
        identities, identity = "/v1/identities", "/v1/identities/{identity_id}"
        agent_identities = "/v1/agents/{agent_id}/identities"
        return [
            AgentsRoute("GET", identities, self.list_identities),
            AgentsRoute("POST", identities, self.create),
            AgentsRoute("PUT", identities, self.create_or_change),
            AgentsRoute("GET", f"{identities}/count", self.count),
            AgentsRoute("GET", identity, self.retrieve),
            AgentsRoute("PATCH", identity, self.update),
            AgentsRoute("DELETE", identity, self.delete),
            AgentsRoute("PUT", f"{identity}/properties", self.replace_properties, reads_body=True),
            AgentsRoute("GET", f"{identity}/agents", self.list_agents),
            AgentsRoute("PATCH", f"{agent_identities}/attach/{{identity_id}}", self.attach),
            AgentsRoute("PATCH", f"{agent_identities}/detach/{{identity_id}}", self.detach),
        ]

    async def list_identities(self, request: ApiRequest, query: IdentitiesQuery) -> list[dict[str, Any]]:
        """List identities."""
        page = await self._api.read_definition_page(request.project, _KIND, "identity", query)
        key = find_sent(query.identifier_key)
        identities = self._definitions.iterate(request.project, _KIND, page, name=key)
        shown: list[dict[str, Any]] = []
        async for identity in identities:
            if query.matches(identity):
                shown.append(render_identity(identity))
            if len(shown) == page.limit:
                break
        return shown

    async def create(self, request: ApiRequest, body: CreateIdentity) -> dict[str, Any]:
        """Make an identity."""
        definition = with_identity_update(IdentityDefinition(body.name), body).dump()
        draft = DefinitionDraft(request.project, _KIND, ids.new_uid(), definition, body.identifier_key)
        return render_identity(await self._definitions.add(draft, at=self._api.now()))

    async def create_or_change(self, request: ApiRequest, body: CreateIdentity) -> dict[str, Any]:
        """Make an identity, or change the one of its key.

        Programs name their users so at each start.
        """
        find = partial(self._definitions.find_by_name, request.project, _KIND, body.identifier_key)
        while not (identities := await find()):
            with suppress(WriteConflict):  # another request has made it meanwhile
                return await self.create(request, body)

        def edit(definition: IdentityDefinition) -> IdentityDefinition:
            # A list of properties replaces the properties of the identity; without a list they stay.
            if find_sent(body.properties) is not None:
                definition = replace(definition, properties=())
            return with_identity_update(definition, body)

        return await self._change(request.project, identities[0].uid, edit)

    async def count(self, request: ApiRequest) -> int:
        """Count identities."""
        return await self._definitions.count(request.project, _KIND)

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return an identity."""
        return render_identity(await self._get_identity(request))

    async def update(self, request: ApiRequest, body: UpdateIdentity) -> dict[str, Any]:
        """Change an identity."""
        uid, key = request.read_uid("identity", "identity_id"), find_sent(body.identifier_key)
        edit = partial(with_identity_update, update=body)
        return await self._change(request.project, uid, edit, key)

    async def replace_properties(self, request: ApiRequest) -> dict[str, Any]:
        """Replace an identity's properties: a list."""
        body = convert({"properties": parse(request.data)}, PropertiesBody, ("body",))
        properties = _read_properties(body.properties)
        uid = request.read_uid("identity", "identity_id")
        return await self._change(request.project, uid, lambda before: replace(before, properties=properties))

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete an identity; its agents stay."""
        await self._api.store.attached.delete(await self._get_identity(request), at=self._api.now())
        return {"message": "The identity is deleted; its agents stay."}

    async def list_agents(self, request: ApiRequest, query: AgentsOfQuery) -> list[dict[str, Any]]:
        """List the agents of an identity."""
        identity = await self._get_identity(request)
        rows = await self._attached.load_agents_with(request.project, _KIND, identity.id)
        return await self._api.agents.list_page(request.project, rows, query)

    async def attach(self, request: ApiRequest) -> None:
        """Give an agent an identity."""
        agent, identity = await self._get_agent_and_identity(request)
        await self._attached.attach(agent.id, _KIND, identity.id, at=self._api.now())

    async def detach(self, request: ApiRequest) -> None:
        """Take an identity from an agent."""
        agent, identity = await self._get_agent_and_identity(request)
        await self._attached.detach(agent.id, _KIND, identity.id, at=self._api.now())

    async def _get_agent_and_identity(self, request: ApiRequest) -> tuple[Agent, Definition]:
        """Returns the agent and the identity in a path. Raises: Conflict for a profile's memory; NotFound."""
        entry = await self._api.agents.get_entry(request)
        self._api.registry.require_definition(entry)
        return entry.agent, await self._get_identity(request)

    async def _get_identity(self, request: ApiRequest) -> Definition:
        uid = request.read_uid("identity", "identity_id")
        return await self._definitions.get(request.project, _KIND, uid)

    async def _change(
        self,
        project: str,
        uid: str,
        edit: Callable[[IdentityDefinition], IdentityDefinition],
        key: str | None = None,
    ) -> dict[str, Any]:
        """Changes an identity. Returns its JSON.

        edit: the function that makes the new definition from the present one. It is called again if another request has
            changed the identity meanwhile.
        key: the application's new key of the identity; None: the key stays.

        Raises: WriteConflict if another identity has the key.
        """

        async def change() -> Definition:
            record = await self._definitions.get(project, _KIND, uid)
            body = edit(IdentityDefinition.of(record.body)).dump()
            return await self._definitions.change(record, body, at=self._api.now(), name=key)

        return render_identity(await retry_changed_record(change))
