"""An import that this process performs: its parameters, its state, and how it is shown."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import IO, Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.run.admin.imports.import_progress import ImportProgress
from storage.records import ImportStatus, Scope


class ImportRequest(Struct, frozen=True):
    """The parameters of an import."""

    # The memory that gets the messages and facts.
    scope: Scope
    # The name of the file's format; None: the format is found by the file's content.
    format: str | None
    # The user of the file with the facts that are read; None: the file's only user.
    source_user: str | None
    # True: the learner reads the imported messages.
    learns: bool
    # True: nothing is written, and the import only counts.
    is_preview: bool


@dataclass(eq=False)
class RunningImport:
    """An import that this process performs, or a preview."""

    # The public id of the import.
    uid: str
    # The request for the import.
    request: ImportRequest
    # The name of the file's format.
    format: str
    # The time at which the import began, in seconds since the epoch.
    created_at: float
    # The counts so far.
    progress: ImportProgress
    # The file, which is closed when the import ends.
    file: IO[bytes]
    # The state of the import.
    status: ImportStatus = "running"
    # The row of the import; 0: the import is a preview, which has none.
    row: int = 0
    # The task that performs the import; None: another process performs it.
    task: asyncio.Task[None] | None = None
    # The keys of the facts that a preview has counted.
    counted_facts: set[str] = field(default_factory=set)

    def note_error(self, reason: str) -> None:
        """Notes the reason for which the import has ended."""
        self.progress = replace(self.progress, error=reason)

    def to_json(self) -> dict[str, Any]:
        """Returns the import as it is shown."""
        return render_import(
            uid=self.uid,
            status=self.status,
            format=self.format,
            scope=self.request.scope,
            created_at=self.created_at,
            progress=self.progress,
        )


def render_import(
    uid: str, status: ImportStatus, format: str, scope: Scope, created_at: float, progress: ImportProgress
) -> dict[str, Any]:
    """Returns an import as it is shown.

    uid: the public id of the import.
    format: the name of the file's format.
    scope: the memory that gets the messages and facts.
    created_at: the time at which the import began, in seconds since the epoch.
    """
    return {
        "id": uid,
        "object": "import",
        "status": status,
        "format": format,
        "project": scope.project,
        "profile": scope.profile,
        "user": scope.subject.removeprefix("user:"),
        "created_at": int(created_at),
        **progress.to_json(),
    }
