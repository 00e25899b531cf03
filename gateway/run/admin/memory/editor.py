"""The parties that change a memory by hand, and the audit's notes of their changes."""

from __future__ import annotations

from msgspec import Struct

from gateway.run.admin.audited_parts import AuditedFact, AuditedVersion
from storage.operator_records import AuditAction
from storage.sql.store import Store

# The command line as an actor in the audit.
COMMAND = "command line"
# A person with a link as an actor in the audit.
LINK = "link"


class Editor(Struct, frozen=True):
    """The party that changes a memory."""

    # The name in the audit.
    actor: str
    # The only project that the party sees; None: all projects.
    project: str | None = None
    # The origin of the texts that it writes: operator, person, or an origin that `describe_mcp_origin` reads. Only
    # operators change shared blocks.
    origin: str = "operator"


async def note_edit(
    store: Store,
    at: float,
    editor: Editor,
    action: AuditAction,
    uid: str,
    what: str | AuditedFact | AuditedVersion,
) -> None:
    """Notes a change in the audit. uid: the uid of the memory."""
    await store.audit.add(at, editor.actor, action, uid, str(what))
