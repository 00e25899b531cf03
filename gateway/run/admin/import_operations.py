"""Imports of what a person brings along from another application: begun, looked at before, shown, undone.

A file is read in a thread, and written by the store's bulk transactions, one for a conversation. Between two steps it
rests for longer than the last one took, so that turns have the processor. The id is made of the file and the memory:
the same file goes on where a process that ended has left it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.conversation.canonical import Canon
from gateway.core.imports.exchanges import ImportDraft, draft, import_write
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable
from gateway.core.memory.learn import fact_key
from gateway.errors import BadRequest, Conflict, GatewayError, UnknownId
from gateway.run.admin.import_file import FORMATS, Source, find_format, read_file
from gateway.run.admin.import_progress import ImportCounts, ImportProgress, load_progress
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
# A step of the reading thread: so many messages, and so many conversations and facts.
_MOST_MESSAGES: Final = 32
_MOST_ITEMS: Final = 16
# After so many messages the search index follows.
_INDEXED: Final = 1_000
# An import that has not written for so long has been stopped, where another process may perform it.
_SILENT_S: Final = 60.0
# While a file is read in a process that serves, a thread gives way after so long.
_SWITCH_S: Final = 0.0005
# After a step an import rests so many times as long as that took: turns have the processor meanwhile.
_RESTS: Final = 3
_PIECE: Final = 1 << 20
_DAY_S: Final = 86_400.0

# Returns the agent of a profile; None: there is none.
SpecOf = Callable[[str], AgentSpec | None]
_Prepared = tuple[Source, ImportDraft | None]


class ImportRequest(Struct, frozen=True):
    """The parameters of an import."""

    scope: Scope
    format: str | None
    # The only user of the source whose facts are read.
    source_user: str | None
    learns: bool
    is_preview: bool


class Survey(NamedTuple):
    """The content of a file, counted before anything of it is written."""

    format: str
    progress: ImportProgress


@dataclass(eq=False)
class RunningImport:
    """An import that this process performs, or a preview."""

    uid: str
    request: ImportRequest
    format: str
    created: float
    progress: ImportProgress
    file: IO[bytes]
    status: str = "running"
    row: int = 0
    task: asyncio.Task[None] | None = None
    # The facts that a preview has seen.
    seen: set[str] = field(default_factory=set)

    def shown(self) -> dict[str, Any]:
        scope = self.request.scope
        return _shown(self.uid, self.status, self.format, scope, self.created, self.progress)


@dataclass(eq=False)
class ImportOperations:
    """Imports files, lists imports and undoes them."""

    store: Store
    # Seconds since the epoch.
    now: Callable[[], float]
    spec_of: SpecOf
    defaults: Defaults = NO_DEFAULTS
    # By project, how long messages are retained.
    days: Mapping[str, float | None] = field(default_factory=dict)
    # Kinds of the jobs that follow, and of the one that learns.
    then: Sequence[str] = ()
    learning: Sequence[str] = ()
    # Requests are served meanwhile.
    gives_way: bool = True
    _running: dict[str, RunningImport] = field(default_factory=dict)
    _undoing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _beginning: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- asked for

    def read(self, raw: RawArguments, *, project: str | None = None) -> ImportRequest:
        """Reads what is asked. project: the only one in which something may be imported. Raises: BadRequest."""
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
        """Begins an import, or returns the one that is under way. It closes the file.

        Raises: BadRequest; Conflict: what it has added is being taken away.
        """
        try:
            uid = await asyncio.to_thread(_uid_of, file, request)
            survey = await self._aside(_survey, file, request)
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
        """Begins an import; one without a task goes on elsewhere."""
        running = RunningImport(uid, request, survey.format, self.now(), survey.progress, file)
        if request.is_preview:
            running.task = asyncio.create_task(self._run(running, await self._find(request.scope)))
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
                if self._is_elsewhere(before):
                    return running
        running.row = await self.store.imports.begin(
            agent, uid, survey.format, running.progress.dump(), self.now(), learns=request.learns
        )
        self._running[uid] = running
        running.task = asyncio.create_task(self._run(running, agent))
        return running

    async def begin_file(self, raw: RawArguments) -> dict[str, Any]:
        """Begins to import a file of this machine, for the command line. Returns the object."""
        given = dict(raw)
        path = given.pop("path", None)
        request = self.read(given)
        running = await self.begin(open_file(path), request)
        if request.is_preview:
            self._running[f"{running.uid} preview"] = running
        return running.shown()

    async def show(self, uid: str, *, project: str | None = None) -> dict[str, Any]:
        """Returns an import. Raises: UnknownId."""
        running = self._running.get(uid)
        if running is not None and project in (None, running.request.scope.project):
            return running.shown()
        return self._shown(await self._stored(uid, project))

    async def show_named(self, raw: RawArguments) -> dict[str, Any]:
        """Returns the import `import`, or with `preview` what was looked at of it."""
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
        """Takes away what an import has added. wait_s: answers after so long at the latest. Raises: UnknownId."""
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
        """Undoes the import `import`."""
        return await self.undo(Arguments(raw).text("import"), wait_s=20.0)

    async def aclose(self) -> None:
        """Ends what is under way: an import goes on when its file comes again, an undoing with the next start."""
        tasks = [*self._undoing.values(), *(r.task for r in self._running.values() if r.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- performed

    async def _undo(self, stored: StoredImport) -> None:
        await self.store.imports.stop(stored.id)
        await self.store.forgetting.finish(
            await self.store.forgetting.begin(stored.agent, ForgetTarget(imported=stored.id))
        )

    async def _run(self, running: RunningImport, agent: Agent | None) -> None:
        """Performs an import to its end, or looks at what it would do. agent: the memory; None: it has none yet."""
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
        source = _Reader(running, canon, self.now(), oldest)
        try:
            begun = time.monotonic()
            while page := await self._aside(source.next_page):
                for each, made in page:
                    if isinstance(each, Unreadable):
                        self._skip(running, each.why, each.messages)
                    elif made is not None:
                        unindexed += await self._put(running, agent, made, each)
                facts = [each for each, _ in page if isinstance(each, SourceFact)]
                if facts:
                    unindexed += len(facts)
                    await self._put_facts(running, agent, facts, oldest)
                begun = await self._rest(begun)
                if agent is not None and unindexed >= _INDEXED and not request.is_preview:
                    unindexed = 0
                    await self._index(agent)
                    begun = time.monotonic()
        except GatewayError:
            await self._note(running, "failed")
            raise
        if agent is not None and not request.is_preview:
            await self._note(running, "done")
            await self._follow(agent, learns=request.learns)

    async def _follow(self, agent: Agent, *, learns: bool) -> None:
        """Has done what follows messages that came."""
        await self._index(agent)
        if not learns:
            await self.store.imports.pass_over(agent.id, self.now())
        for kind in (*self.then, *(self.learning if learns else ())):
            await self.store.jobs.enqueue(kind, agent.id, kind)

    async def _index(self, agent: Agent) -> None:
        begun = time.monotonic()
        while await self.store.recall.index(agent.id):
            begun = await self._rest(begun)

    async def _rest(self, begun: float) -> float:
        """Leaves turns the processor and the writer after a step. Returns when the next one begins."""
        if self.gives_way:
            await asyncio.sleep(_RESTS * (time.monotonic() - begun))
        return time.monotonic()

    async def _put(
        self, running: RunningImport, agent: Agent | None, made: ImportDraft, source: Source
    ) -> int:
        """Writes a conversation, or looks at it. Returns how many of its messages are new."""
        assert isinstance(source, SourceConversation)
        of = agent or Agent(0, "", running.request.scope, b"", 0)
        canon = Canon(of.secret)
        learns, uid = running.request.learns, uuid.uuid4().hex
        write = import_write(made, of, canon, running.row, uid, learns=learns, skipped=source.skipped)
        before = running.progress

        def after(change: ImportChange) -> ImportProgress:
            return _with_conversation(before, change, made.chars)

        def note(change: ImportChange) -> ImportNote:
            return ImportNote(running.row, "running", self.now(), after(change).dump())

        if running.request.is_preview:
            change = await self.store.imports.look(write)
        else:
            change = await self.store.imports.write(write, note)
        running.progress = after(change)
        return change.new

    async def _put_facts(
        self, running: RunningImport, agent: Agent | None, facts: Sequence[SourceFact], oldest: float
    ) -> None:
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
            fresh = [each for each in drafts if each.key not in running.seen]
            keys = list({each.key for each in fresh})
            running.seen.update(keys)
            known = 0 if agent is None else await self.store.imports.known_facts(agent, keys)
            running.progress = after(len(keys) - known)
        else:
            running.progress = after(
                await self.store.imports.write_facts(agent, running.row, drafts, now, note)
            )

    def _skip(self, running: RunningImport, why: str, messages: int) -> None:
        p = running.progress
        is_facts = running.format in ("list", "mem0")
        what = "Line or fact" if is_facts else "Conversation"
        p = p.warn(f"{what} {p.position + 1} was skipped: {why}.")
        if is_facts:
            p = replace(p, facts=p.facts.with_more(skipped=1))
        else:
            p = replace(
                p,
                conversations=p.conversations.with_more(skipped=1),
                messages=p.messages.with_more(skipped=messages),
            )
        running.progress = replace(p, position=p.position + 1)

    async def _note(self, running: RunningImport, status: str) -> None:
        if not running.request.is_preview:
            note = ImportNote(running.row, status, self.now(), running.progress.dump())
            await self.store.imports.note(note)

    async def _aside(self, function: Callable[..., Any], *given: Any) -> Any:
        """Runs in a thread, which gives way to the loop's soon."""
        if not self.gives_way:
            return await asyncio.to_thread(function, *given)
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, _SWITCH_S))
        try:
            return await asyncio.to_thread(function, *given)
        finally:
            sys.setswitchinterval(before)

    # -- found

    def _oldest(self, project: str) -> float:
        days = self.days.get(project)
        return float("-inf") if days is None else self.now() - days * _DAY_S

    async def _find(self, scope: Scope) -> Agent | None:
        return await self.store.agents.find(scope)

    async def _agent(self, scope: Scope) -> Agent:
        spec = self.spec_of(scope.profile)
        assert spec is not None  # it was looked at with the arguments
        return await self.store.agents.find_or_begin(scope, spec.own_blocks, spec.shared_blocks, self.now())

    async def _stored(self, uid: str, project: str | None) -> StoredImport:
        found = await self.store.imports.find(uid, project)
        if found is None:
            raise UnknownId(f"There is no import {uid!r}.")
        return found

    def _is_elsewhere(self, stored: StoredImport) -> bool:
        """Returns whether another process performs it, as far as its last write shows."""
        is_running = stored.status == "running" and self.store.database.is_shared
        return is_running and abs(self.now() - stored.touched) < _SILENT_S

    def _shown(self, stored: StoredImport) -> dict[str, Any]:
        status = stored.status
        if stored.uid in self._undoing:
            status = "running"
        elif status == "running" and not self._is_elsewhere(stored):
            status = "stopped"
        progress = load_progress(stored.data)
        return _shown(stored.uid, status, stored.format, stored.scope, stored.created, progress)


class _Reader:
    """Reads a file from where its import has come to, in a thread."""

    def __init__(self, running: RunningImport, canon: Canon, now: float, oldest: float) -> None:
        self._items: Iterator[Source] = _wanted(running.file, running.format, running.request.source_user)
        self._left = running.progress.position
        self._canon, self._format, self._now, self._oldest = canon, running.format, now, oldest

    def next_page(self) -> list[_Prepared]:
        """Returns what comes next; [] at the end. Raises: BadRequest."""
        while self._left:
            next(self._items, None)
            self._left -= 1
        page: list[_Prepared] = []
        messages = 0
        while len(page) < _MOST_ITEMS and messages < _MOST_MESSAGES:
            each = next(self._items, None)
            if each is None:
                break
            made: ImportDraft | Unreadable | None = None
            if isinstance(each, SourceConversation):
                made = draft(each, self._format, self._canon, self._now, self._oldest)
                messages += len(each.messages)
            page.append((made, None) if isinstance(made, Unreadable) else (each, made))
        return page


def open_file(path: object) -> IO[bytes]:
    """Opens a file that the command line names. Raises: BadRequest."""
    if not isinstance(path, str) or not path:
        raise BadRequest("Name a file.", param="file")
    try:
        return open(path, "rb")  # closed when the import has ended
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.", param="file") from error


def _uid_of(file: IO[bytes], request: ImportRequest) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    names = "\0".join((*request.scope, request.source_user or ""))
    return f"import-{hashlib.sha256(digest.digest() + names.encode()).hexdigest()[:32]}"


def _wanted(file: IO[bytes], format: str, source_user: str | None) -> Iterator[Source]:
    """Yields what is in a file, of facts those of one user."""
    for each in read_file(file, format):
        if not (isinstance(each, SourceFact) and source_user is not None and each.user != source_user):
            yield each


def _survey(file: IO[bytes], request: ImportRequest) -> Survey:
    """Reads a whole file, and counts what it has. Raises: BadRequest."""
    format = request.format or find_format(file)
    conversations = messages = facts = 0
    users: set[str | None] = set()
    first, last = float("inf"), 0.0
    for each in _wanted(file, format, request.source_user):
        if isinstance(each, SourceFact):
            facts += 1
            users.add(each.user)
            times = [each.at]
        elif isinstance(each, SourceConversation):
            conversations, messages = conversations + 1, messages + len(each.messages) + each.skipped
            times = [each.at if m.at is None else m.at for m in each.messages]
        else:
            is_fact = format in ("list", "mem0")
            facts, conversations = facts + is_fact, conversations + (not is_fact)
            messages, times = messages + each.messages, []
        for at in times:
            if at is not None:
                first, last = min(first, at), max(last, at)
    if len(users) > 1:
        raise BadRequest("The file has facts of several users; name one by source_user.", param="source_user")
    if not conversations and not facts:
        raise BadRequest("This file cannot be imported: there is nothing in it.", param="file")
    counts = (ImportCounts(conversations), ImportCounts(messages), ImportCounts(facts))
    return Survey(format, ImportProgress(*counts, None if not last else first, last or None))


def _with_conversation(before: ImportProgress, change: ImportChange, chars: int) -> ImportProgress:
    kind = "new" if change.new else "known" if change.known else "skipped"
    messages = {"new": change.new, "known": change.known, "skipped": change.skipped}
    spoken = max(1, change.new + change.known)
    return replace(
        before,
        conversations=before.conversations.with_more(**{kind: 1}),
        messages=before.messages.with_more(**messages),
        chars=before.chars + chars * change.new // spoken,
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
