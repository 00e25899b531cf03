"""Blocks and their history, as the agents API takes and shows them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from gateway.core import ids
from gateway.dialects.letta.body import NO_TEMPLATES, ONE_PROJECT, Body, Kept, Maybe, given
from gateway.dialects.letta.shown import time_of
from storage.listing import BlockChange
from storage.records import Block, Revision

# Characters of a block whose maker names no limit; Letta's number.
DEFAULT_LIMIT = 100_000

Label = Annotated[str, Meta(min_length=1, max_length=200)]
_Limit = Annotated[int, Meta(ge=0, le=10_000_000)]


class CreateBlock(Body):
    """A block that is made."""

    label: Label
    value: str
    description: Maybe[str] = UNSET
    limit: Maybe[_Limit] = UNSET
    read_only: Maybe[bool] = UNSET
    metadata: Maybe[dict[str, Any]] = UNSET
    tags: Maybe[list[str]] = UNSET
    hidden: Maybe[bool] = UNSET
    is_template: Annotated[bool | None, NO_TEMPLATES] | UnsetType = UNSET
    template_name: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    base_template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    deployment_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    entity_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET
    preserve_on_migration: Annotated[bool | None, NO_TEMPLATES] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


# Of blocks that nobody describes; as on Letta's server, in words of ours.
_SAID_OF = {
    "human": "What you know of the person you talk with: who they are, what they like, what matters to them.",
    "persona": "Who you are: how you think, speak and act.",
}


class AgentBlock(CreateBlock):
    """A block that is made with an agent. One that a client was given is made anew, as by Letta's server."""

    id: Kept[str] = UNSET
    created_by_id: Kept[str] = UNSET
    last_updated_by_id: Kept[str] = UNSET


class UpdateBlock(CreateBlock):
    """A change of a block; what is left out stays."""

    label: Maybe[Label] = UNSET  # type: ignore[assignment]
    value: Maybe[str] = UNSET  # type: ignore[assignment]


def block_of(create: CreateBlock) -> tuple[Block, dict[str, Any]]:
    """Returns a new block with what else is said of it; its id does not count."""
    made = Block(
        0,
        create.label,
        create.description if isinstance(create.description, str) else _SAID_OF.get(create.label, ""),
        create.value,
        DEFAULT_LIMIT if create.limit is UNSET or create.limit is None else create.limit,
        create.read_only is True,
    )
    return made, details_of(create)


def change_of(update: UpdateBlock, details: dict[str, Any]) -> BlockChange:
    """Returns the change that is asked for. details: what else is said of the block so far."""
    sent = given(update)
    description = sent.get("description")
    return BlockChange(
        value=sent.get("value"),
        label=sent.get("label"),
        description="" if "description" in sent and description is None else description,
        limit=sent.get("limit"),
        read_only=sent.get("read_only"),
        details={**details, **more} if (more := details_of(update)) else None,
    )


def details_of(block: CreateBlock) -> dict[str, Any]:
    """Returns what is said of a block beside what a turn needs of it."""
    sent = given(block)
    return {name: sent[name] for name in ("metadata", "tags", "hidden") if sent.get(name) is not None}


def block_json(block: Block, document: dict[str, Any] | None) -> dict[str, Any]:
    """Returns a block as it is shown. document: its definition's body, with what a turn does not need."""
    more = document or {}
    return {
        "id": ids.named("block", block.uid),
        "label": block.label,
        "value": block.value,
        "limit": block.limit,
        "description": block.description or None,
        "read_only": block.read_only,
        "metadata": more.get("metadata") or {},
        "tags": more.get("tags") or [],
        "hidden": more.get("hidden"),
        "is_template": False,
        "template_name": None,
        "template_id": None,
        "base_template_id": None,
        "deployment_id": None,
        "entity_id": None,
        "preserve_on_migration": False,
        "project_id": None,
        "created_by_id": None,
        "last_updated_by_id": None,
    }


def revision_json(revision: Revision) -> dict[str, Any]:
    """Returns a value that a block had. version counts from 1; an undo names the version that it brought back."""
    return {
        "version": revision.version,
        "value": revision.value,
        "at": time_of(revision.at),
        "origin": revision.origin,
        "restores": revision.restores,
    }
