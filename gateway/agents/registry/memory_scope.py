"""The memories of the agents, archives and folders of the agents API."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.core import ids
from storage.definition_records import DefinitionKind
from storage.records import API_PROFILE, Agent, Scope
from storage.sql.store import Store


def make_scope(project: str, kind: DefinitionKind, uid: str) -> Scope:
    """Returns the scope of the memory of an agent, an archive or a folder of the agents API."""
    return Scope(project, API_PROFILE, f"{kind}:{uid}")


def draft_memory(store: Store, project: str, kind: DefinitionKind) -> Agent:
    """Returns the memory of a new agent, archive or folder, with a new uid. The memory is not stored yet."""
    uid = ids.new_uid()
    return replace(store.agents.get_draft(make_scope(project, kind, uid)), uid=uid)
