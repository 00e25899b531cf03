"""Imports of conversations and facts that a user has exported from another application.

An import can be previewed, begun, listed and undone. Its id is made of the file and the memory, so the same file
continues an import that another process left. gateway/run/admin/imports/import_performer.py writes what the file has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Final

from gateway.core.agent import AgentSpec
from gateway.errors import BadRequest, Conflict, UnknownId
from gateway.run.admin.imports.import_file import FORMATS
from gateway.run.admin.imports.import_performer import ImportPerformer
from gateway.run.admin.imports.import_progress import load_progress
from gateway.run.admin.imports.import_reading import Survey, make_import_uid
from gateway.run.admin.imports.running_import import ImportRequest, RunningImport, render_import
from gateway.run.admin.operation_arguments import (
    NO_DEFAULTS,
    Arguments,
    Defaults,
    RawArguments,
    check_project,
)
from gateway.run.admin.requested_page import read_requested_page, render_page
from gateway.run.memory.memory_agent import check_not_paused
from storage.errors import StoreError, WriteConflict
from storage.forget_commands import ForgetTarget
from storage.listing import LAST_NUMBER
from storage.operator_records import StoredImport
from storage.records import DEFAULT_PROJECT, Agent, Scope
from storage.sql.store import Store

# The parameters of a request to import a file.
PARAMETERS: Final = ("user", "project", "profile", "format", "source_user", "learn", "preview")
# Where processes share a database: how often each notes that its imports go on, and how long after the last note an
# import counts as stopped. Not measured: three notes fit into that time, so that one or two may fail.
_TOUCH_S: Final = 5.0
_STOPPED_AFTER_S: Final = 20.0
# Stored in place of the time of the last note where an import has stopped.
_STOPPED_TIME: Final = 0.0
# The most seconds that one call waits for an undoing, which goes on after that.
UNDO_WAIT_S: Final = 20.0
# The seconds after its end for which the command line may ask for a preview.
_PREVIEW_RETENTION_S: Final = 60.0

# Returns the agent of a profile, or None if there is no such profile.
SpecOf = Callable[[str], AgentSpec | None]


@dataclass(eq=False)
class ImportOperations:
    """Begins, shows, lists and undoes imports."""

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Returns the agent of a profile.
    spec_of: SpecOf
    # Performs imports.
    performer: ImportPerformer
    # The user and the profile of requests that name none.
    defaults: Defaults = NO_DEFAULTS
    # The imports under way, by id.
    _running: dict[str, RunningImport] = field(default_factory=dict, init=False)
    # The previews of the command line, by id.
    _previews: dict[str, RunningImport] = field(default_factory=dict, init=False)
    # The tasks that undo imports, by the ids of the imports.
    _undoing: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    # Held while an import is begun or joined, so that two requests do not begin the same import.
    _beginning: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def read_request(self, raw: RawArguments, *, visible_project: str | None = None) -> ImportRequest:
        """Reads the parameters of an import. Raises: BadRequest, UnknownId.

        visible_project: the only project that the caller sees; None: all projects.
        """
        for name in raw:
            if name not in PARAMETERS:
                raise BadRequest(
                    f"There is no parameter {name!r}: there are {', '.join(PARAMETERS)}.", param=name
                )
        arguments = Arguments(raw)
        user = arguments.read_optional_id("user") or self.defaults.user
        if user is None:
            raise BadRequest("Say whose memory it is for: user (--user).", param="user")
        project = arguments.read_optional_text("project") or visible_project or DEFAULT_PROJECT
        check_project(project, visible_project)
        profile = arguments.read_optional_text("profile") or self.defaults.profile(project)
        format = arguments.read_optional_text("format")
        if format not in (None, *FORMATS):
            raise BadRequest(f"format must be one of {', '.join(FORMATS)}, saw {format!r}.", param="format")
        if self.spec_of(profile) is None:
            raise BadRequest(f"There is no profile {profile!r}.", param="profile")
        return ImportRequest(
            scope=Scope(project, profile, f"user:{user}"),
            format=format,
            source_user=arguments.read_optional_text("source_user"),
            learns=arguments.read_flag("learn"),
            is_preview=arguments.read_flag("preview"),
        )

    async def begin(self, file: IO[bytes], request: ImportRequest) -> RunningImport:
        """Begins an import, or returns the import of the same file that is under way.

        The file is closed when the import has ended, or at once if no import begins here.

        Raises: BadRequest; Conflict: the import of the same file is being undone; NotAllowed: the memory is paused.
        """
        try:
            uid = await asyncio.to_thread(make_import_uid, file, request.scope, request.source_user)
            survey = await self.performer.survey(file, request.format, request.source_user)
            async with self._beginning:
                running = await self._begin_or_join(uid, survey, file, request)
        except BaseException:
            file.close()
            raise
        if running.task is None or running.file is not file:
            file.close()
        return running

    async def _begin_or_join(
        self, uid: str, survey: Survey, file: IO[bytes], request: ImportRequest
    ) -> RunningImport:
        """Begins an import, or returns the import of the same file that is under way.

        The import that is returned has no task if another process performs it.
        """
        running = RunningImport(
            uid=uid,
            request=request,
            format=survey.format,
            created_at=self.now(),
            progress=survey.progress,
            file=file,
        )
        if request.is_preview:
            memory = await self.store.agents.find(request.scope)
            running.task = asyncio.create_task(self.performer.perform(running, memory))
            return running
        under_way = self._running.get(uid)
        if under_way is not None and under_way.task is not None:
            if under_way.status == "running":
                return under_way
            await asyncio.wait([under_way.task])  # it has ended, and stores its status now
        agent = await self._find_or_create_memory(request.scope)
        check_not_paused(agent)
        stored = await self.store.imports.find(uid)
        if stored is not None:
            running.created_at = stored.created
            if stored.status in ("running", "stopped") and stored.format == survey.format:
                running.progress = load_progress(stored.data)
                if self._is_performed_elsewhere(stored):
                    return running
        try:
            running.row = await self.store.imports.begin(
                agent, uid, survey.format, running.progress.dump(), self.now(), learns=request.learns
            )
        except WriteConflict as error:
            raise Conflict(f"The import {uid} is being undone. Send the file again later.") from error
        self._running[uid] = running
        running.task = asyncio.create_task(self._perform(running, agent))
        # A callback, since a task that is cancelled before its first step runs no `finally`.
        running.task.add_done_callback(lambda _: self._running.pop(uid))
        return running

    async def _perform(self, running: RunningImport, agent: Agent) -> None:
        """Performs an import. Notes in a shared database that the import goes on, for other processes."""
        if not self.store.database.is_shared:
            await self.performer.perform(running, agent)
            return
        has_ended = asyncio.Event()
        touching = asyncio.create_task(self._touch(running.row, has_ended))
        try:
            await self.performer.perform(running, agent)
        finally:
            has_ended.set()
            await touching  # a write under way may be done even if it is cancelled, and would come last
            with suppress(StoreError):
                await self.store.imports.touch(running.row, _STOPPED_TIME)

    async def _touch(self, row: int, has_ended: asyncio.Event) -> None:
        """Notes again and again that an import goes on, until it has ended."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TOUCH_S):
                    await has_ended.wait()
                    return
            with suppress(StoreError):  # the import meets the error as well
                await self.store.imports.touch(row, self.now())

    async def begin_file(self, raw: RawArguments) -> dict[str, Any]:
        """Begins to import the file at `path` on this machine, for the command line. Returns the import as JSON."""
        parameters = dict(raw)
        path = parameters.pop("path", None)
        request = self.read_request(parameters)
        running = await self.begin(open_file(path), request)
        if request.is_preview and running.task is not None:
            self._previews[running.uid] = running
            running.task.add_done_callback(
                lambda task: task.get_loop().call_later(_PREVIEW_RETENTION_S, self._drop_preview, running)
            )
        return running.to_json()

    def _drop_preview(self, ended: RunningImport) -> None:
        if self._previews.get(ended.uid) is ended:
            del self._previews[ended.uid]

    async def show(self, uid: str, *, project: str | None = None) -> dict[str, Any]:
        """Returns an import as JSON. Raises: UnknownId."""
        running = self._running.get(uid)
        if running is not None and project in (None, running.request.scope.project):
            return running.to_json()
        return self._render_stored(await self._get(uid, project))

    async def show_named(self, raw: RawArguments) -> dict[str, Any]:
        """Returns the import that `import` names; with `preview`, the last preview with this id."""
        arguments = Arguments(raw)
        uid = arguments.read_text("import")
        if not arguments.read_flag("preview"):
            return await self.show(uid)
        preview = self._previews.get(uid)
        if preview is None:
            raise UnknownId(f"There is no import {uid!r}.")
        return preview.to_json()

    async def show_all(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns a page of imports, the newest first."""
        page = read_requested_page(raw, project)
        before = LAST_NUMBER if page.after is None else page.after
        imports = await self.store.imports.list_page(page.project, before=before, limit=page.limit + 1)
        return render_page(imports, page.limit, self._render_import)

    def _render_import(self, stored: StoredImport) -> dict[str, Any]:
        running = self._running.get(stored.uid)
        return self._render_stored(stored) if running is None else running.to_json()

    async def undo(
        self, uid: str, *, project: str | None = None, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Forgets all that an import has added. Returns the import as JSON. Raises: UnknownId.

        wait_s: the most seconds that the call waits for the undoing, which goes on in any case; None: until it is done.
        """
        stored = await self._get(uid, project)
        running = self._running.get(uid)
        if running is not None and running.task is not None:
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)
        if stored.status != "undone":
            task = self._undoing.get(uid)
            if task is None:
                task = self._undoing[uid] = asyncio.create_task(
                    self.store.forgetting.forget(stored.agent_row, ForgetTarget(import_row=stored.id))
                )
                task.add_done_callback(lambda _: self._undoing.pop(uid, None))
            await asyncio.wait([task], timeout=wait_s)
            if task.done():
                task.result()
        return self._render_stored(await self._get(uid, project))

    async def undo_named(self, raw: RawArguments) -> dict[str, Any]:
        """Undoes the import that `import` names."""
        return await self.undo(Arguments(raw).read_text("import"), wait_s=UNDO_WAIT_S)

    async def aclose(self) -> None:
        """Cancels imports and undoings. Imports continue when their file is sent again, undoings at the next start."""
        imports = (*self._running.values(), *self._previews.values())
        tasks = [*self._undoing.values(), *(each.task for each in imports if each.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find_or_create_memory(self, scope: Scope) -> Agent:
        spec = self.spec_of(scope.profile)
        assert spec is not None  # `read_request` has checked that
        return await self.store.agents.find_or_create(scope, spec.own_blocks, spec.shared_blocks, self.now())

    async def _get(self, uid: str, project: str | None) -> StoredImport:
        stored = await self.store.imports.find(uid, project)
        if stored is None:
            raise UnknownId(f"There is no import {uid!r}.")
        return stored

    def _is_performed_elsewhere(self, stored: StoredImport) -> bool:
        """Returns whether another process performs an import: it has noted lately that the import goes on."""
        is_running = stored.status == "running" and self.store.database.is_shared
        return is_running and abs(self.now() - stored.touched) < _STOPPED_AFTER_S

    def _render_stored(self, stored: StoredImport) -> dict[str, Any]:
        """Returns an import that this process does not perform, as JSON."""
        status = stored.status
        if stored.uid in self._undoing:
            status = "running"
        elif status == "running" and not self._is_performed_elsewhere(stored):
            status = "stopped"
        return render_import(
            uid=stored.uid,
            status=status,
            format=stored.format,
            scope=stored.scope,
            created_at=stored.created,
            progress=load_progress(stored.data),
        )


def open_file(path: object) -> IO[bytes]:
    """Opens a file that the command line names. Raises: BadRequest."""
    if not isinstance(path, str) or not path:
        raise BadRequest("Name a file.", param="file")
    try:
        return open(path, "rb")  # the import closes it
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.", param="file") from error
