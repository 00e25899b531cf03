"""Performs an import: reads its file page by page, writes new messages and facts, and counts; a preview only counts.

The file is read in a thread, and written by the store's bulk transactions, one for each part of a conversation. After
each step an import pauses (`ImportThrottle`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.json_escapes import REPLACEMENT
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.dates import DAY_S
from gateway.core.imports.exchanges import ImportDraft, make_import_write
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable
from gateway.core.memory.fact_words import make_fact_key
from gateway.errors import GatewayError
from gateway.run.admin.imports.import_file import FACT_FORMATS, Source
from gateway.run.admin.imports.import_progress import ImportProgress
from gateway.run.admin.imports.import_reading import Survey, read_pages, survey_file
from gateway.run.admin.imports.import_throttle import ImportThrottle
from gateway.run.admin.imports.running_import import RunningImport
from storage.commands import LearnedFact
from storage.errors import NotFound, StoreError, WriteConflict
from storage.import_commands import ImportNote, ImportWriting
from storage.records import Agent, ImportStatus
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The number of new messages and facts that are written before they are indexed. Not measured: searches read all that is
# not indexed, and each indexing costs a pass.
_UNINDEXED_ITEMS: Final = 1_000


class ImportPerformer(Struct, frozen=True):
    """Performs imports and previews."""

    # The store of the memories and of the imports.
    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The days for which messages are retained, by project; None: for ever.
    retention_days: Mapping[str, float | None] = {}
    # The kinds of the jobs that follow each import.
    jobs_after: Sequence[str] = ()
    # The kinds of the jobs that also follow an import with `learns`.
    learning_jobs: Sequence[str] = ()
    # Pauses between the steps, so that requests go first.
    throttle: ImportThrottle = ImportThrottle()

    async def survey(self, file: IO[bytes], format: str | None, source_user: str | None) -> Survey:
        """Counts the content of a file. Pauses after each page while a request is being answered. Raises: BadRequest.

        format: the name of the file's format; None: the content shows the format.
        source_user: the only user in the file with facts that count; None: the facts of all users count.
        """
        pages = survey_file(file, format, source_user, self.now())
        while True:
            begun = time.monotonic()
            survey: Survey | None = await asyncio.to_thread(next, pages)
            if survey is not None:
                return survey
            await self.throttle.pause_after_page(time.monotonic() - begun)

    async def perform(self, running: RunningImport, agent: Agent | None) -> None:
        """Performs an import or a preview to its end, and closes its file. An error is shown by its status.

        agent: the memory; None: a preview for a memory that has not begun.
        """
        try:
            await self._write_pages(running, agent)
            running.status = "preview" if running.request.is_preview else "done"
        except GatewayError as error:
            await self._fail_import(running, error.message)
        except (NotFound, WriteConflict) as error:
            await self._fail_import(running, f"{error.message[0].upper()}{error.message[1:]}.")
        except StoreError as error:
            _log.warning(
                "Import %s stopped, since the database could not be used. Send its file again: %s",
                running.uid,
                error.message,
            )
            # The same file continues an import that has stopped, but no preview: of a preview nothing is stored.
            running.status = "failed" if running.request.is_preview else "stopped"
            running.note_error("The store does not work. Send the file again.")
        except Exception:
            _log.exception(
                "Import %s failed by a fault in the gateway. What it has written stays, and can be undone.",
                running.uid,
            )
            await self._fail_import(running, "The gateway failed; its log says more.")
        finally:
            running.file.close()

    async def _fail_import(self, running: RunningImport, reason: str) -> None:
        """Ends an import as failed.

        If the store does not work, the status is not stored, and the import is later shown as stopped.
        """
        running.status = "failed"
        running.note_error(reason)
        with suppress(StoreError):
            await self._store_status(running, "failed")

    async def _write_pages(self, running: RunningImport, agent: Agent | None) -> None:
        """Writes the items of the file after the processed part; a preview only counts them.

        Raises: BadRequest: the file cannot be read further; StoreError and its kinds.
        """
        request = running.request
        oldest = self._choose_oldest_time(request.scope.project)
        hasher = MessageHasher(agent.secret if agent is not None else secrets.token_bytes(16))
        unindexed_count = 0
        pages = read_pages(
            file=running.file,
            format=running.format,
            source_user=request.source_user,
            position=running.progress.processed,
            hasher=hasher,
            now=self.now(),
            oldest=oldest,
        )
        while page := await self.throttle.run_step(asyncio.to_thread(next, pages, [])):
            facts: list[tuple[int, SourceFact]] = []
            for number, (item, draft) in enumerate(page, running.progress.processed + 1):
                if isinstance(item, Unreadable):
                    self._skip_item(running, number, item)
                elif draft is not None:
                    unindexed_count += await self._write_conversation(running, agent, number, item, draft)
                elif isinstance(item, SourceFact):
                    facts.append((number, item))
            if facts:
                unindexed_count += len(facts)
                await self.throttle.run_step(self._write_facts(running, agent, facts, oldest))
            if agent is not None and unindexed_count >= _UNINDEXED_ITEMS and not request.is_preview:
                unindexed_count = 0
                await self._index_messages(agent)
        if agent is not None and not request.is_preview:
            await self._finish_import(agent, learns=request.learns)
            await self._store_status(running, "done")

    async def _finish_import(self, agent: Agent, *, learns: bool) -> None:
        """Indexes the last messages, moves learners past messages that they are not to read, and enqueues jobs."""
        await self._index_messages(agent)
        if not learns:
            await self.store.imports.advance_readers(agent.id, self.now())
        for kind in (*self.jobs_after, *(self.learning_jobs if learns else ())):
            await self.store.jobs.enqueue(kind, agent.id, kind)

    async def _index_messages(self, agent: Agent) -> None:
        """Indexes all messages of a memory that are not indexed yet."""
        while await self.store.search_index.advance(agent.id, self.throttle.pause_between_messages):
            await self.throttle.pause_between_messages()

    async def _write_conversation(
        self, running: RunningImport, agent: Agent | None, number: int, source: Source, draft: ImportDraft
    ) -> int:
        """Writes a conversation, or for a preview only counts it. Returns how many of its messages are new.

        number: the conversation's number in the file.
        """
        assert isinstance(source, SourceConversation)  # nothing else has a draft
        memory = agent or Agent(id=0, uid="", scope=running.request.scope, secret=b"", epoch=0)
        write = make_import_write(draft, memory, running.row, uuid.uuid4().hex, learns=running.request.learns)
        texts = [message.text for message in source.messages]
        earlier_progress = running.progress
        written_count = earlier_progress.partial.exchange_count
        writing = await self.throttle.run_step(self.store.imports.plan(write, written_count))

        def make_progress(writing: ImportWriting) -> ImportProgress:
            progress = running.progress.with_exchanges(writing.change.message_counts, writing.written_count)
            if not writing.is_written:
                return progress
            progress = _with_loss_warning(progress, f"Conversation {number}", texts)
            return progress.with_conversation_ended(source.skipped_count, draft.char_count)

        def make_note(writing: ImportWriting) -> ImportNote:
            return ImportNote(running.row, "running", self.now(), make_progress(writing).dump())

        if running.request.is_preview:
            running.progress = make_progress(
                replace(writing, written_count=len(writing.change.message_counts))
            )
            return 0
        while True:
            writing = await self.throttle.run_step(self.store.imports.write_part(writing, make_note))
            running.progress = make_progress(writing)
            if writing.is_written:
                return running.progress.messages.new - earlier_progress.messages.new

    async def _write_facts(
        self,
        running: RunningImport,
        agent: Agent | None,
        facts: Sequence[tuple[int, SourceFact]],
        oldest: float,
    ) -> None:
        """Writes facts, or for a preview only counts them.

        facts: the facts, each with its number in the file.
        oldest: the time before which facts are skipped, in seconds since the epoch.
        """
        now = self.now()
        progress = running.progress
        for number, fact in facts:
            progress = _with_loss_warning(progress, f"Fact {number}", [fact.text])
        drafts = [_make_fact_draft(fact, now) for _, fact in facts if (fact.at or now) >= oldest]
        old_count = len(facts) - len(drafts)

        def make_progress(new_count: int) -> ImportProgress:
            counts = progress.facts.with_more(new=new_count, known=len(drafts) - new_count, skipped=old_count)
            return replace(progress, facts=counts, processed=progress.processed + len(facts))

        def make_note(new_count: int) -> ImportNote:
            return ImportNote(running.row, "running", self.now(), make_progress(new_count).dump())

        if running.request.is_preview or agent is None:
            new_keys = list({draft.key for draft in drafts} - running.counted_facts)
            running.counted_facts.update(new_keys)
            known_count = 0 if agent is None else await self.store.imports.count_known_facts(agent, new_keys)
            running.progress = make_progress(len(new_keys) - known_count)
        else:
            new_count = await self.store.imports.write_facts(agent, running.row, drafts, now, make_note)
            running.progress = make_progress(new_count)

    def _skip_item(self, running: RunningImport, number: int, item: Unreadable) -> None:
        """Counts an unreadable item as skipped, with a warning. number: the item's number in the file."""
        is_fact = running.format in FACT_FORMATS
        kind = "Line or fact" if is_fact else "Conversation"
        progress = running.progress.with_warning(f"{kind} {number} was skipped: {item.reason}.")
        running.progress = (
            progress.with_fact_skipped()
            if is_fact
            else progress.with_conversation_skipped(item.message_count)
        )

    async def _store_status(self, running: RunningImport, status: ImportStatus) -> None:
        """Stores the status and the progress of an import. Of a preview nothing is stored."""
        if not running.request.is_preview:
            note = ImportNote(running.row, status, self.now(), running.progress.dump())
            await self.store.imports.note_progress(note)

    def _choose_oldest_time(self, project: str) -> float:
        """Returns the time before which messages of a project are not retained, in seconds since the epoch."""
        days = self.retention_days.get(project)
        return float("-inf") if days is None else self.now() - days * DAY_S


def _make_fact_draft(fact: SourceFact, now: float) -> LearnedFact:
    """Returns an imported fact as a fact of no exchange.

    now: the time from which the fact is true if it has no time, or a later one, in seconds since the epoch.
    """
    return LearnedFact(
        fact.text,
        about="",
        key=make_fact_key(fact.text),
        valid_from=min(now, fact.at or now),
        exchange_row=None,
        sources=(),
    )


def _with_loss_warning(progress: ImportProgress, name: str, texts: Sequence[str]) -> ImportProgress:
    """Returns the progress with a warning if texts have unreadable characters.

    name: the name of the conversation or fact with the texts, such as "Fact 3".
    """
    lost_count = sum(text.count(REPLACEMENT) for text in texts)
    if not lost_count:
        return progress
    characters = "1 unreadable character" if lost_count == 1 else f"{lost_count:,} unreadable characters"
    return progress.with_warning(f"{name} has {characters}, shown as U+FFFD.")
