"""Identities: users or organisations of an application, each under the application's own key, to which agents belong.

They sort agents and protect nothing: the key of a request alone decides what may be read. What is known of a user of a
profile is a memory, and no identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._query import AgentsOfQuery, PageQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi, sent_or_none
from gateway.agents.wire.struct_fields import (
    MAX_PARTS,
    ONE_PROJECT,
    Body,
    Entry,
    Maybe,
    check_size,
    convert,
    parse,
    refused,
    sent_fields,
)
from gateway.core import ids
from gateway.core.definition import IdentityDefinition
from gateway.run.store_errors import retry_overtaken
from storage.errors import WriteConflict
from storage.listing import DefinitionDraft, Page
from storage.records import Agent, Definition, DefinitionKind

_Text = Annotated[str, Meta(min_length=1, max_length=200)]
_Type = Literal["org", "user", "other"]
_ATTACH = refused("Attach it to each agent: agents.identities.attach, or identity_ids of the agent.")
NO_BLOCKS = "An identity has agents alone. Blocks have tags, and can be attached to its agents."
_NO_BLOCKS = refused(NO_BLOCKS)


class PropertyBody(Entry):
    """A property of an identity."""

    key: _Text
    value: str | int | float | bool | dict[str, Any]
    type: Literal["string", "number", "boolean", "json"]


_Properties = Annotated[list[PropertyBody], MAX_PARTS]


class UpdateIdentity(Body):
    """A change of an identity; what is left out or null stays, and so does a property that is not sent."""

    identifier_key: Maybe[_Text] = UNSET
    name: Maybe[_Text] = UNSET
    identity_type: Maybe[_Type] = UNSET
    properties: Maybe[_Properties] = UNSET
    agent_ids: Annotated[list[str] | None, _ATTACH] | UnsetType = UNSET
    block_ids: Annotated[list[str] | None, _NO_BLOCKS] | UnsetType = UNSET


class CreateIdentity(UpdateIdentity):
    """A new identity. identifier_key: the application's own name for it, which a project has once."""

    identifier_key: _Text
    name: _Text
    identity_type: _Type
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


class PropertiesBody(Body):
    """All properties that an identity has then."""

    properties: _Properties


class IdentitiesQuery(PageQuery):
    """A page of identities."""

    # The name and the key must be equal to those of an identity.
    name: Maybe[str] = UNSET
    identifier_key: Maybe[str] = UNSET
    identity_type: Maybe[_Type] = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET

    def takes(self, identity: Definition) -> bool:
        """Returns whether an identity matches the filters, its key aside."""
        definition = IdentityDefinition.of(identity.body)
        filters = ((self.name, definition.name), (self.identity_type, definition.type))
        return all(not isinstance(value, str) or value == has for value, has in filters)


def properties_of(properties: list[PropertyBody]) -> tuple[dict[str, Any], ...]:
    """Returns properties as they are stored, the last one of each key."""
    return tuple({each.key: msgspec.to_builtins(each) for each in properties}.values())


def apply_update(definition: IdentityDefinition, update: UpdateIdentity) -> IdentityDefinition:
    """Returns an identity after an update: a property takes the place of the one that has its key.

    Raises: Unprocessable if the properties take too much together.
    """
    sent = {name: value for name, value in sent_fields(update).items() if value is not None}
    before = {each["key"]: each for each in definition.properties}
    after = {each["key"]: each for each in properties_of(sent.get("properties") or [])}
    properties = [*{**before, **after}.values()]
    if after:
        check_size(properties, ("body", "properties"))
    return replace(
        definition,
        name=sent.get("name", definition.name),
        type=sent.get("identity_type", definition.type),
        properties=tuple(properties),
    )


def identity_json(identity: Definition) -> dict[str, Any]:
    """Returns an identity. Letta's server leaves the older lists of agents and blocks empty as well."""
    definition = IdentityDefinition.of(identity.body)
    return {
        "id": ids.id_of("identity", identity.uid),
        "identifier_key": identity.name,
        "name": definition.name,
        "identity_type": definition.type,
        "properties": list(definition.properties),
        "project_id": None,
        "organization_id": None,
        "agent_ids": [],
        "block_ids": [],
    }


IDENTITY: Final = DefinitionKind.IDENTITY
_READ = 200  # identities at least that are read at once: few of them may be asked for


class IdentityRoutes:
    """The routes of identities."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._definitions = api.store.definitions
        self._attached = api.store.attached

    def routes(self) -> list[AgentsRoute]:
        all_, one, of = "/v1/identities", "/v1/identities/{identity_id}", "/v1/agents/{agent_id}/identities"
        return [
            AgentsRoute("GET", all_, self.index),
            AgentsRoute("POST", all_, self.create),
            AgentsRoute("PUT", all_, self.put),
            AgentsRoute("GET", f"{all_}/count", self.count),
            AgentsRoute("GET", one, self.retrieve),
            AgentsRoute("PATCH", one, self.update),
            AgentsRoute("DELETE", one, self.delete),
            AgentsRoute("PUT", f"{one}/properties", self.describe, reads_body=True),
            AgentsRoute("GET", f"{one}/agents", self.agents),
            AgentsRoute("PATCH", f"{of}/attach/{{identity_id}}", self.attach),
            AgentsRoute("PATCH", f"{of}/detach/{{identity_id}}", self.detach),
        ]

    async def index(self, request: ApiRequest, query: IdentitiesQuery) -> list[dict[str, Any]]:
        """List identities."""
        page = await self._api.definition_page(request.project, IDENTITY, "identity", query)
        key = sent_or_none(query.identifier_key)
        identities: list[Definition] = []
        size, after = max(page.limit, _READ), page.after
        while len(identities) < page.limit:
            following = Page(after, page.before, size, page.newest_first)
            rows = await self._definitions.list(request.project, IDENTITY, following, name=key)
            identities += filter(query.takes, rows)
            if len(rows) < size:
                break
            after = rows[-1].id
        return list(map(identity_json, identities[: page.limit]))

    async def create(self, request: ApiRequest, create: CreateIdentity) -> dict[str, Any]:
        """Make an identity."""
        body = apply_update(IdentityDefinition(create.name), create).body()
        draft = DefinitionDraft(request.project, IDENTITY, ids.new_uid(), body, create.identifier_key)
        return identity_json(await self._definitions.add(draft, at=self._api.now()))

    async def put(self, request: ApiRequest, create: CreateIdentity) -> dict[str, Any]:
        """Make an identity, or change the one of its key.

        Programs name their users so at each start.
        """
        name = (request.project, IDENTITY, create.identifier_key, 1)
        named = await self._definitions.find_by_name(*name)
        if not named:
            try:
                return await self.create(request, create)
            except WriteConflict:
                named = await self._definitions.find_by_name(*name)
                if not named:
                    raise
        # The properties that are sent are all, and without any it keeps its own.
        is_all = isinstance(create.properties, list)

        def edit(definition: IdentityDefinition) -> IdentityDefinition:
            return apply_update(replace(definition, properties=()) if is_all else definition, create)

        return await self._change(request.project, named[0].uid, edit)

    async def count(self, request: ApiRequest) -> int:
        """Count identities."""
        return await self._definitions.count(request.project, IDENTITY)

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return an identity."""
        return identity_json(await self._named(request))

    async def update(self, request: ApiRequest, update: UpdateIdentity) -> dict[str, Any]:
        """Change an identity."""
        return await self._change(
            request.project,
            request.uid("identity", "identity_id"),
            lambda definition: apply_update(definition, update),
            sent_or_none(update.identifier_key),
        )

    async def describe(self, request: ApiRequest) -> dict[str, Any]:
        """Replace its properties: a list."""
        sent = convert({"properties": parse(request.data)}, PropertiesBody, ("body",))
        new = properties_of(sent.properties)
        uid = request.uid("identity", "identity_id")
        return await self._change(
            request.project, uid, lambda definition: replace(definition, properties=new)
        )

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete an identity; its agents stay."""
        await self._api.store.attached.delete(await self._named(request), at=self._api.now())
        return {"message": "The identity is deleted; its agents stay."}

    async def agents(self, request: ApiRequest, query: AgentsOfQuery) -> list[dict[str, Any]]:
        """List its agents."""
        rows = await self._attached.agents_with(request.project, IDENTITY, (await self._named(request)).id)
        return await self._api.agents_page(request.project, rows, query)

    async def attach(self, request: ApiRequest) -> None:
        """Give an agent an identity."""
        agent, identity = await self._pair(request)
        await self._attached.attach(agent.id, IDENTITY, identity.id, at=self._api.now())

    async def detach(self, request: ApiRequest) -> None:
        """Take an identity from it."""
        agent, identity = await self._pair(request)
        await self._attached.detach(agent.id, IDENTITY, identity.id, at=self._api.now())

    async def _pair(self, request: ApiRequest) -> tuple[Agent, Definition]:
        """Returns the agent and the identity in a path. Raises: Conflict for a profile's memory; NotFound."""
        entry = await self._api.agent_entry(request)
        self._api.registry.require_definition(entry)
        return entry.agent, await self._named(request)

    async def _named(self, request: ApiRequest) -> Definition:
        return await self._definitions.get(request.project, IDENTITY, request.uid("identity", "identity_id"))

    async def _change(
        self,
        project: str,
        uid: str,
        edit: Callable[[IdentityDefinition], IdentityDefinition],
        key: str | None = None,
    ) -> dict[str, Any]:
        """Changes an identity as it is now. key: the new one, or None. Raises: WriteConflict if it is taken."""

        async def change() -> Definition:
            stored = await self._definitions.get(project, IDENTITY, uid)
            body = edit(IdentityDefinition.of(stored.body)).body()
            return await self._definitions.change(stored, body, at=self._api.now(), name=key)

        return identity_json(await retry_overtaken(change))
