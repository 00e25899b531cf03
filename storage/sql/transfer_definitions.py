"""Exports and imports what only a memory made over the agents API has: definitions, attachments and steps.

Until an import is complete, its definitions and attachments are hidden: the definitions belong to a project without
keys, and the attachments have kinds that no statement looks for. `publish_definitions` gives them to their project.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.errors import NotFound, WriteConflict
from storage.listing import BlockDraft, DefinitionDraft
from storage.records import API_PROFILE, IMPORTING_PREFIX, Agent, Block
from storage.run_records import RunStep, TokenCounts
from storage.sql.agents_api.blocks import add_block
from storage.sql.agents_api.definitions import (
    add_definition,
    find_definition,
    find_definitions_by_name,
    insert_definition,
)
from storage.sql.agents_api.runs import add_step, rate_step
from storage.sql.statements import load

SQL = load("transfer.sql")

# The kinds of attachments that are definitions.
_ATTACHED_DEFINITIONS = (DefinitionKind.TOOL, DefinitionKind.IDENTITY)


class AgentsApiSubject(NamedTuple):
    """The subject of a memory that was made over the agents API, in its two parts."""

    # A `DefinitionKind`: agent, archive or folder.
    kind: str
    # The public id of the memory and of its definition.
    uid: str


def parse_agents_api_subject(agent: Agent) -> AgentsApiSubject | None:
    """Returns the parts of a memory's subject; None: the memory was not made over the agents API."""
    if agent.scope.profile != API_PROFILE:
        return None
    kind, _, uid = agent.scope.subject.removeprefix(IMPORTING_PREFIX).partition(":")
    return AgentsApiSubject(kind, uid)


# -- export


async def read_attachments(
    connection: Connection, agent_row: int, after: int, limit: int
) -> list[tuple[int, dict[str, Any]]]:
    """Returns a page of the objects that are attached to an agent, each with its position, counted from 1.

    The record of an object that is gone meanwhile has its kind alone: a page with fewer records would be taken for the
    last one.

    after: the position of the last object on the previous page; 0: the page is the first.
    limit: the size of a page.
    """
    rows = await connection.fetch_rows(SQL["attached_read"], (agent_row, limit, after))
    return [
        (position, {"kind": kind, **(await _read_attached_object(connection, kind, target) or {})})
        for position, (kind, target) in enumerate(rows, after + 1)
    ]


async def _read_attached_object(connection: Connection, kind: str, target: int) -> dict[str, Any] | None:
    """Returns the fields of an attached object besides its kind; None: the object is gone."""
    # The gateway's own tools have no rows: a negative number names one.
    if kind == DefinitionKind.TOOL and target < 0:
        return {"built_in": -target}
    if kind in _ATTACHED_DEFINITIONS:
        row = await connection.fetch_row(SQL["attached_definition"], (target,))
        if row is None:
            return None
        uid, name, body = row
        return {"uid": uid, "name": name, "body": orjson.loads(body)}
    if kind != DefinitionKind.BLOCK:
        row = await connection.fetch_row(SQL["attached_memory"], (target,))
        return None if row is None else {"uid": row[0]}
    row = await connection.fetch_row(SQL["attached_block"], (target,))
    if row is None:
        return None
    uid, label, description, limit, read_only, value, details = row
    return {
        "uid": uid,
        "label": label,
        "description": description,
        "limit": limit,
        "read_only": bool(read_only),
        "value": value,
        "details": orjson.loads(details or b"{}"),
    }


# -- import


async def import_definition(connection: Connection, agent: Agent, record: Mapping[str, Any]) -> None:
    """Adds the definition of a memory or of one of its conversations. Raises: WriteConflict."""
    kind, uid = DefinitionKind(record["kind"]), record["uid"]
    if kind is not DefinitionKind.CONVERSATION:
        subject = parse_agents_api_subject(agent)
        if subject is None or kind != subject.kind:
            own_subject = agent.scope.subject.removeprefix(IMPORTING_PREFIX)
            raise WriteConflict(f"this is the {kind} {uid!r}, which cannot become {own_subject}")
        uid = subject.uid
    project = IMPORTING_PREFIX + agent.scope.project
    draft = DefinitionDraft(
        project=project,
        kind=kind,
        uid=uid,
        body=record["body"],
        name=str(record["name"]),
        memory_row=agent.id,
    )
    created, updated = float(record["created"]), float(record["updated"])
    if await insert_definition(connection, draft, created=created, updated=updated) is None:
        raise WriteConflict(f"the {kind} {uid!r} is there already")


async def import_attachment(
    connection: Connection, agent: Agent, record: Mapping[str, Any], at: float
) -> None:
    """Attaches the object of a record to an agent; nothing is attached if `find_or_create_attached` finds none."""
    target = await find_or_create_attached(connection, agent.scope.project, record, at)
    if target is not None:
        await connection.run(SQL["attach_imported"], (agent.id, IMPORTING_PREFIX + record["kind"], target))


async def find_or_create_attached(
    connection: Connection, project: str, record: Mapping[str, Any], at: float
) -> int | None:
    """Returns the row of the object of a record; None: it is not found. A missing tool, identity or block is created.

    record: a record of `read_attachments`.
    """
    kind = record["kind"]
    if "built_in" in record:
        return -int(record["built_in"])
    if "uid" not in record:
        return None
    if kind in (DefinitionKind.ARCHIVE, DefinitionKind.FOLDER):
        definition = await find_definition(connection, project, DefinitionKind(kind), record["uid"])
        return None if definition is None else definition.memory_row
    if kind in _ATTACHED_DEFINITIONS:
        return await _find_or_create_definition(connection, project, DefinitionKind(kind), record, at)
    if kind == DefinitionKind.BLOCK:
        return await _find_or_create_block(connection, project, record, at)
    raise ValueError(f"nothing of the kind {kind!r} is attached")


async def _find_or_create_block(
    connection: Connection, project: str, record: Mapping[str, Any], at: float
) -> int:
    """Returns the row of the project's block with this public id, else of a new block.

    If another project has the public id, the new block gets another one.
    """
    row = await connection.fetch_row(SQL["block_of"], (record["uid"], project))
    if row is not None:
        return int(row[0])
    is_taken = await connection.fetch_row(SQL["block_taken"], (record["uid"],)) is not None
    block = Block(
        id=0,
        label=record["label"],
        description=record["description"],
        value=record["value"],
        limit=int(record["limit"]),
        read_only=bool(record["read_only"]),
        uid="" if is_taken else record["uid"],
    )
    draft = BlockDraft(block, record.get("details") or {})
    entry = await add_block(connection, project, draft, at=at, origin="import")
    return entry.block.id


async def _find_or_create_definition(
    connection: Connection, project: str, kind: DefinitionKind, record: Mapping[str, Any], at: float
) -> int:
    """Returns the row of the project's tool or identity with this public id, else with this name, else of a new one.

    If another project has the public id, the new tool or identity gets another one.
    """
    definition = await find_definition(connection, project, kind, record["uid"])
    if definition is not None:
        return definition.id
    if namesakes := await find_definitions_by_name(connection, project, kind, record["name"]):
        return namesakes[0].id
    is_taken = await connection.fetch_row(SQL["definition_taken"], (record["uid"],)) is not None
    uid = uuid.uuid4().hex if is_taken else record["uid"]
    draft = DefinitionDraft(
        project=project, kind=kind, uid=uid, body=dict(record["body"]), name=record["name"]
    )
    return (await add_definition(connection, draft, at=at)).id


async def import_step(connection: Connection, agent: Agent, record: Mapping[str, Any]) -> None:
    """Adds a step of a run, and its tokens to the run.

    record: the record of the step; its `exchange` and `run` are rows of this database.
    """
    counts = TokenCounts(**{name: int(record[name]) for name in TokenCounts._fields})
    step = RunStep(
        exchange_row=record["exchange"],
        agent_row=agent.id,
        run_row=record["run"],
        number=int(record["number"]),
        begun=float(record["begun"]),
        ended=record["ended"],
        counts=counts,
        stop=record["stop"],
        error=record["error"],
    )
    await add_step(connection, step)
    if record["feedback"] is not None:
        await rate_step(connection, step, record["feedback"])


async def publish_definitions(connection: Connection, agent: Agent) -> None:
    """Gives a memory's imported definitions to its project.

    Raises: NotFound if a memory made over the agents API has no definition.
    """
    subject = parse_agents_api_subject(agent)
    if (
        subject is not None
        and await connection.fetch_row(SQL["definition_of"], (agent.id, subject.kind)) is None
    ):
        raise NotFound(f"nothing defines this {subject.kind}")
    project = agent.scope.project
    hidden_project = IMPORTING_PREFIX + project
    await connection.run(SQL["publish_definitions"], (project, agent.id, hidden_project))
    await connection.run(SQL["publish_tags"], (project, agent.id, hidden_project))
    await connection.run(SQL["publish_attached"], (len(IMPORTING_PREFIX) + 1, agent.id, IMPORTING_PREFIX))
