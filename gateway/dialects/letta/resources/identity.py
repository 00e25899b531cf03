"""Identities, as the agents API takes and shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.core import ids
from gateway.core.definition import IdentityDefinition
from gateway.dialects.letta.body import ONE_PROJECT, Body, Maybe, given, refused
from gateway.dialects.letta.query import PageQuery
from storage.records import Definition

_Text = Annotated[str, Meta(min_length=1, max_length=200)]
_Type = Literal["org", "user", "other"]
_ATTACH = refused("Attach it to each agent: agents.identities.attach, or identity_ids of the agent.")
NO_BLOCKS = "An identity has agents alone. Blocks have tags, and can be attached to its agents."
_NO_BLOCKS = refused(NO_BLOCKS)


class PropertyBody(Body):
    """Something that is said of an identity."""

    key: _Text
    value: str | int | float | bool | dict[str, Any]
    type: Literal["string", "number", "boolean", "json"]


_Properties = Annotated[list[PropertyBody], Meta(max_length=1_000)]


class UpdateIdentity(Body):
    """A change of an identity; what is left out or null stays, and so does a property whose key is not sent."""

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
    """A page of identities. name, identifier_key: exactly."""

    name: Maybe[str] = UNSET
    identifier_key: Maybe[str] = UNSET
    identity_type: Maybe[_Type] = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET

    def takes(self, identity: Definition) -> bool:
        """Says whether an identity is asked for, its key aside."""
        said = IdentityDefinition.of(identity.body)
        wanted = ((self.name, said.name), (self.identity_type, said.type))
        return all(not isinstance(value, str) or value == has for value, has in wanted)


def properties_of(properties: list[PropertyBody]) -> tuple[dict[str, Any], ...]:
    """Returns properties as they are stored, the last one of each key."""
    return tuple({each.key: msgspec.to_builtins(each) for each in properties}.values())


def edited(said: IdentityDefinition, update: UpdateIdentity) -> IdentityDefinition:
    """Returns an identity after an update: a property takes the place of the one that has its key."""
    sent = {name: value for name, value in given(update).items() if value is not None}
    before = {each["key"]: each for each in said.properties}
    after = {each["key"]: each for each in properties_of(sent.get("properties") or [])}
    return replace(
        said,
        name=sent.get("name", said.name),
        type=sent.get("identity_type", said.type),
        properties=tuple({**before, **after}.values()),
    )


def identity_json(identity: Definition) -> dict[str, Any]:
    """Returns an identity. Letta's server leaves the older lists of agents and blocks empty as well."""
    said = IdentityDefinition.of(identity.body)
    return {
        "id": ids.named("identity", identity.uid),
        "identifier_key": identity.name,
        "name": said.name,
        "identity_type": said.type,
        "properties": list(said.properties),
        "project_id": None,
        "organization_id": None,
        "agent_ids": [],
        "block_ids": [],
    }
