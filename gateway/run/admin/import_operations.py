"""Imports of conversations and facts that a user has exported from another application.

An import can be previewed, begun, listed and undone. Its file is read in a thread, and written by the store's bulk
transactions, one for each conversation. After each page it rests for longer than the page took, so that turns have the
processor. Its id is made of the file and the memory, so the same file continues an import that another process left.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.conversation.canonical import Canon
from gateway.core.imports.exchanges import ImportDraft, import_write
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable
from gateway.core.memory.learn import fact_key
from gateway.errors import BadRequest, Conflict, GatewayError, UnknownId
from gateway.run.admin.import_file import FORMATS, Source
from gateway.run.admin.import_progress import ImportProgress, load_progress
from gateway.run.admin.import_reading import FACT_FORMATS, ImportReader, Survey, import_uid, survey_file
from gateway.run.admin.operation_arguments import (
    NO_DEFAULTS,
    Arguments,
    Defaults,
    RawArguments,
    page_json,
    read_page,
)
from storage.commands import ForgetTarget, ImportChange, ImportNote, LearnedFact
from storage.errors import NotFound, StoreError
from storage.listing import StoredImport
from storage.records import Agent, Scope
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

NAMES: Final = ("user", "project", "profile", "format", "source_user", "learn", "preview")
# The search index follows after so many new messages and facts. No measurement.
_INDEX_EVERY: Final = 1_000
# Where another process may perform an import, one that has not written for so long counts as stopped.
_STOPPED_AFTER_S: Final = 60.0
# The switch interval of threads while a file is read in a process that serves, in place of Python's 5 ms.
_SWITCH_S: Final = 0.0005
# How long an import rests after a page, in times of what the page took.
_REST_FACTOR: Final = 3
_UNDO_WAIT_S: Final = 20.0
_DAY_S: Final = 86_400.0

# Returns the agent of a profile; None: there is none.
SpecOf = Callable[[str], AgentSpec | None]


class ImportRequest(Struct, frozen=True):
    """The parameters of an import."""

    # The memory that it goes into.
    scope: Scope
    # None: it is found out from the file.
    format: str | None
    # The only user of the source whose facts are read.
    source_user: str | None
    # The learner reads the imported messages.
    learns: bool
    # Nothing is written: the import only counts what it would write.
    is_preview: bool


@dataclass(eq=False)
class RunningImport:
    """An import that this process performs, or a preview."""

    uid: str
    request: ImportRequest
    format: str
    created: float
    progress: ImportProgress
    # The import closes it when it ends.
    file: IO[bytes]
    status: str = "running"
    # The import's row; 0: it is a preview.
    row: int = 0
    # None: another process performs it.
    task: asyncio.Task[None] | None = None
    # The keys of the facts that a preview has counted.
    counted: set[str] = field(default_factory=set)

    def shown(self) -> dict[str, Any]:
        scope = self.request.scope
        return _shown(self.uid, self.status, self.format, scope, self.created, self.progress)


@dataclass(eq=False)
class ImportOperations:
    """Begins, performs, lists and undoes imports."""

    store: Store
    # Seconds since the epoch.
    now: Callable[[], float]
    spec_of: SpecOf
    defaults: Defaults = NO_DEFAULTS
    # How long messages are retained, by project; None: for ever.
    retention_days: Mapping[str, float | None] = field(default_factory=dict)
    # The kinds of the jobs that follow an import, and of those that follow one with `learns`.
    jobs_after: Sequence[str] = ()
    learning_jobs: Sequence[str] = ()
    # The process serves requests meanwhile, so that imports rest between pages.
    gives_way: bool = True
    # By id; the previews of the command line by id and " preview".
    _running: dict[str, RunningImport] = field(default_factory=dict)
    _undoing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _beginning: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- operations

    def read(self, raw: RawArguments, *, project: str | None = None) -> ImportRequest:
        """Reads the parameters of an import. Raises: BadRequest, UnknownId.

        project: the only one that may be imported into; None: any.
        """
        for name in raw:
            if name not in NAMES:
                raise BadRequest(f"There is no parameter {name!r}: there are {', '.join(NAMES)}.", param=name)
        arguments = Arguments(raw)
        user = arguments.optional_text("user") or self.defaults.user
        if user is None:
            raise BadRequest("Say whose memory it is for: user (--user).", param="user")
        named = arguments.optional_text("project") or project or "default"
        if project not in (None, named):
            raise UnknownId(f"There is no project {named!r} here.")
        profile = arguments.optional_text("profile") or self.defaults.profile(named)
        format = arguments.optional_text("format")
        if format not in (None, *FORMATS):
            raise BadRequest(f"format must be one of {', '.join(FORMATS)}, saw {format!r}.", param="format")
        if self.spec_of(profile) is None:
            raise BadRequest(f"There is no profile {profile!r}.", param="profile")
        return ImportRequest(
            Scope(named, profile, f"user:{user}"),
            format,
            arguments.optional_text("source_user"),
            arguments.flag("learn"),
            arguments.flag("preview"),
        )

    async def begin(self, file: IO[bytes], request: ImportRequest) -> RunningImport:
        """Begins an import, or returns the one of the same file that is under way.

        The file is closed when the import has ended, or at once where none begins here.

        Raises: BadRequest; Conflict: that import is being undone.
        """
        try:
            uid = await asyncio.to_thread(import_uid, file, request.scope, request.source_user)
            survey = await self._in_thread(survey_file, file, request.format, request.source_user)
            async with self._beginning:
                running = await self._begin(uid, survey, file, request)
        except BaseException:
            file.close()
            raise
        if running.task is None:
            file.close()
        return running

    async def _begin(
        self, uid: str, survey: Survey, file: IO[bytes], request: ImportRequest
    ) -> RunningImport:
        """Begins an import; one without a task is performed by another process."""
        running = RunningImport(uid, request, survey.format, self.now(), survey.progress, file)
        if request.is_preview:
            running.task = asyncio.create_task(
                self._run(running, await self.store.agents.find(request.scope))
            )
            return running
        under_way = self._running.get(uid)
        if under_way is not None:
            file.close()
            return under_way
        if uid in self._undoing:
            raise Conflict(f"The import {uid} is being undone. Send the file again later.")
        agent = await self._agent(request.scope)
        before = await self.store.imports.find(uid)
        if before is not None:
            running.created = before.created
            if before.status in ("running", "stopped") and before.format == survey.format:
                running.progress = load_progress(before.data)
                if self._is_performed_elsewhere(before):
                    return running
        running.row = await self.store.imports.begin(
            agent, uid, survey.format, running.progress.dump(), self.now(), learns=request.learns
        )
        self._running[uid] = running
        running.task = asyncio.create_task(self._run(running, agent))
        return running

    async def begin_file(self, raw: RawArguments) -> dict[str, Any]:
        """Begins to import the file at `path` on this machine, for the command line. Returns the import as JSON."""
        given = dict(raw)
        path = given.pop("path", None)
        request = self.read(given)
        running = await self.begin(open_file(path), request)
        if request.is_preview:
            self._running[f"{running.uid} preview"] = running
        return running.shown()

    async def show(self, uid: str, *, project: str | None = None) -> dict[str, Any]:
        """Returns an import as JSON. Raises: UnknownId."""
        running = self._running.get(uid)
        if running is not None and project in (None, running.request.scope.project):
            return running.shown()
        return self._shown(await self._stored(uid, project))

    async def show_named(self, raw: RawArguments) -> dict[str, Any]:
        """Returns the import that `import` names, or with `preview` its preview, once more after that has ended."""
        arguments = Arguments(raw)
        uid = arguments.text("import")
        if not arguments.flag("preview"):
            return await self.show(uid)
        running = self._running.get(f"{uid} preview")
        if running is None:
            raise UnknownId(f"There is no import {uid!r}.")
        if running.task is not None and running.task.done():
            del self._running[f"{uid} preview"]
        return running.shown()

    async def show_all(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns a page of imports, the newest first."""
        wanted = read_page(raw, project)
        found = await self.store.imports.list(wanted.project, before=wanted.after, limit=wanted.limit + 1)
        return page_json(found, wanted.limit, self._shown_now)

    def _shown_now(self, stored: StoredImport) -> dict[str, Any]:
        running = self._running.get(stored.uid)
        return self._shown(stored) if running is None else running.shown()

    async def undo(
        self, uid: str, *, project: str | None = None, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Forgets what an import has added. Returns the import as JSON. Raises: UnknownId.

        wait_s: the undoing is waited for this long, and goes on after it; None: until it is done.
        """
        stored = await self._stored(uid, project)
        running = self._running.get(uid)
        if running is not None and running.task is not None:
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)
        if stored.status != "undone":
            task = self._undoing.get(uid)
            if task is None:
                task = self._undoing[uid] = asyncio.create_task(self._undo(stored))
                task.add_done_callback(lambda _: self._undoing.pop(uid, None))
            await asyncio.wait([task], timeout=wait_s)
            if task.done():
                task.result()
        return self._shown(await self._stored(uid, project))

    async def undo_named(self, raw: RawArguments) -> dict[str, Any]:
        """Undoes the import that `import` names."""
        return await self.undo(Arguments(raw).text("import"), wait_s=_UNDO_WAIT_S)

    async def aclose(self) -> None:
        """Cancels what is under way. An import continues when its file is sent again, an undoing at the next start."""
        tasks = [*self._undoing.values(), *(r.task for r in self._running.values() if r.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- an import as it is performed

    async def _undo(self, stored: StoredImport) -> None:
        await self.store.imports.stop(stored.id)
        await self.store.forgetting.finish(
            await self.store.forgetting.begin(stored.agent, ForgetTarget(imported=stored.id))
        )

    async def _run(self, running: RunningImport, agent: Agent | None) -> None:
        """Performs an import or a preview to its end. agent: its memory; None: a preview, and it has none yet."""
        try:
            await self._perform(running, agent)
            running.status = "preview" if running.request.is_preview else "done"
        except GatewayError as error:
            self._fail(running, error.message)
        except NotFound as error:
            self._fail(running, f"{error.message[0].upper()}{error.message[1:]}.")
        except StoreError as error:
            _log.warning("import %s: %s", running.uid, error.message)
            self._fail(running, "The store does not work. Send the file again.")
        except Exception:
            _log.exception("import %s failed, by a fault in the gateway", running.uid)
            self._fail(running, "The gateway failed; its log says more.")
        finally:
            running.file.close()
            if not running.request.is_preview:
                del self._running[running.uid]

    def _fail(self, running: RunningImport, why: str) -> None:
        running.status = "failed"
        running.progress = replace(running.progress, error=why)

    async def _perform(self, running: RunningImport, agent: Agent | None) -> None:
        request = running.request
        oldest = self._oldest(request.scope.project)
        canon = Canon(agent.secret if agent is not None else secrets.token_bytes(16))
        unindexed = 0
        position = running.progress.position
        reader = ImportReader(
            running.file, running.format, request.source_user, position, canon, self.now(), oldest
        )
        try:
            begun = time.monotonic()
            while page := await self._in_thread(reader.next_page):
                for item, made in page:
                    if isinstance(item, Unreadable):
                        self._skip(running, item.why, item.messages)
                    elif made is not None:
                        unindexed += await self._write_conversation(running, agent, made, item)
                facts = [item for item, _ in page if isinstance(item, SourceFact)]
                if facts:
                    unindexed += len(facts)
                    await self._write_facts(running, agent, facts, oldest)
                begun = await self._rest(begun)
                if agent is not None and unindexed >= _INDEX_EVERY and not request.is_preview:
                    unindexed = 0
                    await self._index(agent)
                    begun = time.monotonic()
        except GatewayError:
            await self._store_status(running, "failed")
            raise
        if agent is not None and not request.is_preview:
            await self._store_status(running, "done")
            await self._finish(agent, learns=request.learns)

    async def _finish(self, agent: Agent, *, learns: bool) -> None:
        """Indexes the last messages, moves readers past those that are not to be learned from, and enqueues jobs."""
        await self._index(agent)
        if not learns:
            await self.store.imports.pass_over(agent.id, self.now())
        for kind in (*self.jobs_after, *(self.learning_jobs if learns else ())):
            await self.store.jobs.enqueue(kind, agent.id, kind)

    async def _index(self, agent: Agent) -> None:
        begun = time.monotonic()
        while await self.store.recall.index(agent.id):
            begun = await self._rest(begun)

    async def _rest(self, begun: float) -> float:
        """Leaves the processor and the writer to turns after a page. Returns when the next one begins (monotonic)."""
        if self.gives_way:
            await asyncio.sleep(_REST_FACTOR * (time.monotonic() - begun))
        return time.monotonic()

    async def _write_conversation(
        self, running: RunningImport, agent: Agent | None, made: ImportDraft, source: Source
    ) -> int:
        """Writes a conversation, or for a preview only counts it. Returns how many of its messages are new."""
        assert isinstance(source, SourceConversation)
        memory = agent or Agent(0, "", running.request.scope, b"", 0)
        canon = Canon(memory.secret)
        learns, uid = running.request.learns, uuid.uuid4().hex
        write = import_write(made, memory, canon, running.row, uid, learns=learns, skipped=source.skipped)
        before = running.progress

        def after(change: ImportChange) -> ImportProgress:
            return _with_conversation(before, change, made.chars)

        def note(change: ImportChange) -> ImportNote:
            return ImportNote(running.row, "running", self.now(), after(change).dump())

        if running.request.is_preview:
            change = await self.store.imports.preview(write)
        else:
            change = await self.store.imports.write(write, note)
        running.progress = after(change)
        return change.new

    async def _write_facts(
        self, running: RunningImport, agent: Agent | None, facts: Sequence[SourceFact], oldest: float
    ) -> None:
        """Writes facts, or for a preview only counts them."""
        now, before = self.now(), running.progress
        drafts = [
            LearnedFact(each.text, "", fact_key(each.text), min(now, each.at or now), None, ())
            for each in facts
            if (each.at or now) >= oldest
        ]
        old = len(facts) - len(drafts)

        def after(new: int) -> ImportProgress:
            counts = before.facts.with_more(new=new, known=len(drafts) - new, skipped=old)
            return replace(before, facts=counts, position=before.position + len(facts))

        def note(new: int) -> ImportNote:
            return ImportNote(running.row, "running", self.now(), after(new).dump())

        if running.request.is_preview or agent is None:
            fresh = [each for each in drafts if each.key not in running.counted]
            keys = list({each.key for each in fresh})
            running.counted.update(keys)
            known = 0 if agent is None else await self.store.imports.known_facts(agent, keys)
            running.progress = after(len(keys) - known)
        else:
            running.progress = after(
                await self.store.imports.write_facts(agent, running.row, drafts, now, note)
            )

    def _skip(self, running: RunningImport, why: str, messages: int) -> None:
        """Counts an unreadable item as skipped, with a warning. messages: how many it has."""
        before = running.progress
        is_fact = running.format in FACT_FORMATS
        what = "Line or fact" if is_fact else "Conversation"
        after = before.warn(f"{what} {before.position + 1} was skipped: {why}.")
        if is_fact:
            after = replace(after, facts=before.facts.with_more(skipped=1))
        else:
            after = replace(
                after,
                conversations=before.conversations.with_more(skipped=1),
                messages=before.messages.with_more(skipped=messages),
            )
        running.progress = replace(after, position=before.position + 1)

    async def _store_status(self, running: RunningImport, status: str) -> None:
        if not running.request.is_preview:
            note = ImportNote(running.row, status, self.now(), running.progress.dump())
            await self.store.imports.note(note)

    async def _in_thread(self, function: Callable[..., Any], *given: Any) -> Any:
        """Calls a function in a thread that holds back the event loop's for `_SWITCH_S` at most."""
        if not self.gives_way:
            return await asyncio.to_thread(function, *given)
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, _SWITCH_S))
        try:
            return await asyncio.to_thread(function, *given)
        finally:
            sys.setswitchinterval(before)

    # -- stored

    def _oldest(self, project: str) -> float:
        """Returns the time before which messages of a project are not retained."""
        days = self.retention_days.get(project)
        return float("-inf") if days is None else self.now() - days * _DAY_S

    async def _agent(self, scope: Scope) -> Agent:
        spec = self.spec_of(scope.profile)
        assert spec is not None  # `read` has checked that
        return await self.store.agents.find_or_begin(scope, spec.own_blocks, spec.shared_blocks, self.now())

    async def _stored(self, uid: str, project: str | None) -> StoredImport:
        found = await self.store.imports.find(uid, project)
        if found is None:
            raise UnknownId(f"There is no import {uid!r}.")
        return found

    def _is_performed_elsewhere(self, stored: StoredImport) -> bool:
        """Returns whether another process performs an import, as far as its last write shows."""
        is_running = stored.status == "running" and self.store.database.is_shared
        return is_running and abs(self.now() - stored.touched) < _STOPPED_AFTER_S

    def _shown(self, stored: StoredImport) -> dict[str, Any]:
        status = stored.status
        if stored.uid in self._undoing:
            status = "running"
        elif status == "running" and not self._is_performed_elsewhere(stored):
            status = "stopped"
        progress = load_progress(stored.data)
        return _shown(stored.uid, status, stored.format, stored.scope, stored.created, progress)


def open_file(path: object) -> IO[bytes]:
    """Opens a file that the command line names. Raises: BadRequest."""
    if not isinstance(path, str) or not path:
        raise BadRequest("Name a file.", param="file")
    try:
        return open(path, "rb")  # the import closes it
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.", param="file") from error


def _with_conversation(before: ImportProgress, change: ImportChange, chars: int) -> ImportProgress:
    kind = "new" if change.new else "known" if change.known else "skipped"
    messages = {"new": change.new, "known": change.known, "skipped": change.skipped}
    retained = max(1, change.new + change.known)
    return replace(
        before,
        conversations=before.conversations.with_more(**{kind: 1}),
        messages=before.messages.with_more(**messages),
        chars=before.chars + chars * change.new // retained,
        position=before.position + 1,
    )


def _shown(
    uid: str, status: str, format: str, scope: Scope, created: float, progress: ImportProgress
) -> dict[str, Any]:
    return {
        "id": uid,
        "object": "import",
        "status": status,
        "format": format,
        "project": scope.project,
        "profile": scope.profile,
        "user": scope.subject.removeprefix("user:"),
        "created_at": int(created),
        **progress.shown(),
    }
