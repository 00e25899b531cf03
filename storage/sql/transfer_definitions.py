"""The parts of an exported memory that only what was made over REST has: definitions, attached things, tags, runs.

While an import grows they are hidden: they belong to a project without keys, and are attached under kinds that nothing
looks for. `publish_definitions` gives them to their project.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from storage.database import Connection
from storage.errors import NotFound, WriteConflict
from storage.listing import DefinitionDraft
from storage.records import (
    API_PROFILE,
    IMPORTING,
    Agent,
    Block,
    DefinitionKind,
    RunState,
    RunStep,
    TokenCounts,
)
from storage.sql.agents_api import definitions
from storage.sql.agents_api.blocks import add_block
from storage.sql.agents_api.definitions import add_definition, find_definition
from storage.sql.agents_api.runs import add_step
from storage.sql.statements import load

SQL = load("transfer.sql")

# What an agent has attached that is a definition, made where it is not there.
_DEFINED = (DefinitionKind.TOOL, DefinitionKind.IDENTITY)
_ENDED = (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED)


def own_uid(agent: Agent) -> str | None:
    """Returns the public name that a memory made over REST has by its subject; None for a user's."""
    return agent.scope.subject.rpartition(":")[2] if agent.scope.profile == API_PROFILE else None


def kind_of(agent: Agent) -> str:
    """Returns the kind of a memory made over REST by its subject: agent, archive or folder."""
    return agent.scope.subject.removeprefix(IMPORTING).partition(":")[0]


# -- export


async def read_attached(
    connection: Connection, agent: int, after: int, limit: int
) -> list[tuple[int, dict[str, Any]]]:
    """Returns a page of what an agent has attached, each with its place. What is gone meanwhile is left out."""
    rows = await connection.rows(SQL["attached_read"], (agent, limit, after))
    found = []
    for n, (kind, target) in enumerate(rows, after + 1):
        fields = await _attached_fields(connection, kind, target)
        # A page must not end where something was left out.
        found.append((n, {"kind": kind, **(fields or {})}))
    return found


async def _attached_fields(connection: Connection, kind: str, target: int) -> dict[str, Any] | None:
    if kind == DefinitionKind.TOOL and target < 0:
        return {"built_in": -target}
    if kind in _DEFINED:
        row = await connection.row(SQL["attached_definition"], (target,))
        return None if row is None else {"uid": row[0], "name": row[1], "body": orjson.loads(row[2])}
    if kind != DefinitionKind.BLOCK:
        row = await connection.row(SQL["attached_memory"], (target,))
        return None if row is None else {"uid": row[0]}
    row = await connection.row(SQL["attached_block"], (target,))
    if row is None:
        return None
    names = ("uid", "label", "description", "limit", "read_only", "value", "details")
    fields = dict(zip(names, row, strict=True))
    return {**fields, "read_only": bool(row[4]), "details": orjson.loads(row[6] or b"{}")}


# -- import


async def put_definition(connection: Connection, agent: Agent, record: Mapping[str, Any]) -> None:
    """Adds what is defined of a memory. Raises: WriteConflict."""
    kind, uid = DefinitionKind(record["kind"]), record["uid"]
    if kind is not DefinitionKind.CONVERSATION:
        own = own_uid(agent)
        if own is None or kind != kind_of(agent):
            raise WriteConflict(
                f"this is the {kind} {record['uid']!r}, which cannot become {agent.scope.subject}"
            )
        uid = own
    values = (
        uid, IMPORTING + agent.scope.project, kind, agent.id, float(record["created"]), float(record["updated"]),
        str(record["name"]),
    )  # fmt: skip
    id = await connection.value(SQL["definition_put"], values)
    if id is None:
        raise WriteConflict(f"the {kind} {uid!r} is there already")
    text = (id, 1, float(record["updated"]), orjson.dumps(dict(record["body"])))
    await connection.run(
        definitions.SQL["point"], (await connection.value(definitions.SQL["text_insert"], text), id)
    )


async def put_attached(connection: Connection, agent: Agent, record: Mapping[str, Any], at: float) -> None:
    """Attaches something, and makes what `find_target` makes. What cannot be found is left out."""
    target = await find_target(connection, agent.scope.project, record, at)
    if target is not None:
        await connection.run(SQL["attached_put"], (agent.id, IMPORTING + record["kind"], target))


async def find_target(
    connection: Connection, project: str, record: Mapping[str, Any], at: float
) -> int | None:
    """Returns the row of what is attached; None: it is not found.

    A tool, an identity or a block that is not there is made.
    """
    kind = record["kind"]
    if "built_in" in record:
        return -int(record["built_in"])
    if "uid" not in record:
        return None
    if kind in (DefinitionKind.ARCHIVE, DefinitionKind.FOLDER):
        found = await find_definition(connection, project, DefinitionKind(kind), record["uid"])
        return None if found is None else found.memory
    if kind in _DEFINED:
        return await _find_or_make_definition(connection, project, DefinitionKind(kind), record, at)
    if kind != DefinitionKind.BLOCK:
        raise ValueError(f"nothing of the kind {kind!r} is attached")
    row = await connection.row(SQL["block_of"], (record["uid"], project))
    if row is not None:
        return int(row[0])
    is_taken = await connection.row(SQL["block_taken"], (record["uid"],)) is not None
    uid = "" if is_taken else record["uid"]
    block = Block(
        0,
        record["label"],
        record["description"],
        record["value"],
        int(record["limit"]),
        bool(record["read_only"]),
        uid=uid,
    )
    made = await add_block(connection, project, block, record.get("details") or {}, at=at, origin="import")
    return made.block.id


async def _find_or_make_definition(
    connection: Connection, project: str, kind: DefinitionKind, record: Mapping[str, Any], at: float
) -> int:
    """Returns the row of a tool or an identity: the one of this public name, else of this name, else a new one.

    A new one has another public name where that of the export is one of another project's.
    """
    found = await find_definition(connection, project, kind, record["uid"])
    if found is not None:
        return found.id
    row = await connection.row(definitions.SQL["by_name"], (project, kind, record["name"], 1))
    if row is not None:
        return int(row[0])
    is_taken = await connection.row(SQL["definition_taken"], (record["uid"],)) is not None
    uid = uuid.uuid4().hex if is_taken else record["uid"]
    draft = DefinitionDraft(project, kind, uid, dict(record["body"]), record["name"])
    return (await add_definition(connection, draft, at=at)).id


async def put_run(
    connection: Connection, agent: int, record: Mapping[str, Any], uid: str, conversation: int
) -> None:
    """Adds a run. One that went on when it was exported has failed here."""
    is_over = record["state"] in _ENDED
    state, stop = (RunState(record["state"]), record["stop"]) if is_over else (RunState.FAILED, "error")
    values = (
        agent, uid, conversation, state, stop, int(record["depth"]), int(record["background"]),
        float(record["created"]), record["begun"], record["ended"] if is_over else record["created"],
    )  # fmt: skip
    await connection.run(SQL["run_put"], values)


async def put_step(connection: Connection, agent: int, record: Mapping[str, Any], run: int) -> None:
    """Adds a step of a run, which counts it. exchange: its row."""
    counts = TokenCounts(*(int(record[name]) for name in TokenCounts._fields))
    await add_step(
        connection,
        RunStep(
            record["exchange"], agent, run, int(record["number"]), float(record["begun"]), record["ended"], counts,
            record["stop"], error=record["error"],
        ),
    )  # fmt: skip
    if record["feedback"] is not None:
        await connection.run(SQL["feedback_put"], (record["feedback"], record["exchange"], agent))


async def publish_definitions(connection: Connection, agent: Agent) -> None:
    """Gives what was imported to its project. Raises: NotFound: an agent's definition is missing."""
    defined = (agent.id, kind_of(agent))
    if own_uid(agent) is not None and await connection.row(SQL["definition_of"], defined) is None:
        raise NotFound(f"nothing defines this {kind_of(agent)}")
    project, hidden = agent.scope.project, IMPORTING + agent.scope.project
    await connection.run(SQL["definitions_in"], (project, agent.id, hidden))
    await connection.run(SQL["tags_in"], (project, agent.id, hidden))
    await connection.run(SQL["attached_in"], (len(IMPORTING) + 1, agent.id, IMPORTING))
