"""Sleeptime: the job that has sleeptime agents read the new messages of a memory, and edit its blocks.

Each batch of unread messages is a run of a sleeptime agent (agent_runs.py). Each step writes its edits into the blocks,
and the last step moves the agent's cursor. So an interrupted run goes on from its steps, and a failed run leaves the
cursor where it was. A run that is due because of a turn was stored with that turn; this job finds the runs that are due
because the memory was idle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import orjson
from msgspec.structs import replace

from gateway.agents.core.sleeptime_agent import SLEEP_JOB
from gateway.agents.registry.registry import Registry
from gateway.agents.runs.reading_run import LIMITS, ReadingRun, ReadingServices, UnreadBatch, read_unread
from gateway.agents.runs.run import make_reading_command
from gateway.core.definition import SLEEP_EVERY, Sleeptime
from gateway.core.memory.transcript import clean_messages
from gateway.run.background.job_context import JobContext
from gateway.run.background.learner import BATCH_CHARS, MARGIN_S
from gateway.run.background.schedule import Schedule
from gateway.run.background.worker import Worker
from storage.errors import NotFound
from storage.listing import OpenReading, ReaderEntry
from storage.records import Agent
from storage.run_commands import ReadSpan
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The most ended readings that are emptied at a time.
_PAGE = 16


def make_schedule(store: Store, idle_s: float, now: Callable[[], float], profiles: Sequence[str]) -> Schedule:
    """Returns the schedule that makes runs of sleeptime agents due.

    idle_s: the seconds without a turn after which a memory is read.
    now: the clock that dates turns, in seconds since the epoch.
    profiles: the names of the settings' profiles with `sleeptime`.
    """
    return Schedule(
        "sleeptime", SLEEP_JOB, store.jobs, lambda limit: store.readers.load_unslept(limit, profiles),
        every=SLEEP_EVERY, idle_s=idle_s + MARGIN_S, now=now, leaves_out_last=True,
    )  # fmt: skip


class SleeptimeJobs:
    """Finds the runs of sleeptime agents that are due, and has them performed."""

    def __init__(
        self, services: ReadingServices, registry: Registry, count_outcome: Callable[[str, str], None]
    ) -> None:
        """Makes the worker of readings.

        count_outcome: the function to call with the kind and the outcome of each attempt.
        """
        self._store = services.keeper.store
        self._now = services.keeper.now
        self._services = services
        self._registry = registry
        self.worker = Worker(services.keeper.store.jobs, {SLEEP_JOB: self.handle}, LIMITS, count_outcome)

    async def handle(self, job: JobContext) -> None:
        """Has each agent that reads a memory read its next batch. Raises: JobFailed, JobPostponed, StoreError."""
        memory = await self._store.agents.find_by_id(job.agent_row)
        if memory is None or memory.paused_at is not None:
            return
        if (sleeptime := await self._find_sleeptime(memory)) is None:
            return
        # A run that was cancelled while it waited for its next attempt has left its texts.
        await self._store.sleeptime_agents.empty_readings(memory.id, _PAGE)
        # The memory is read now up to the message with this number, even if no reading is due; 0: only if one is due.
        upto = orjson.loads(job.payload).get("upto", 0)
        batches: list[UnreadBatch] = []
        for reader in await self._find_or_create_readers(memory, sleeptime, upto):
            reading = await self._find_or_accept_run(job, memory, sleeptime, reader, upto)
            if reading is None:
                continue
            resolved = await self._registry.resolver.resolve_uid(memory.scope.project, reader.uid)
            run = ReadingRun(self._services, job, memory, reader, resolved, reading)
            if (batch := await run.perform()) is not None:
                batches.append(batch)
        is_more = any(batch.is_more for batch in batches)
        readers = (await self._store.readers.load_by_memory([memory.id]))[memory.id] if batches else []
        # Messages that came while the agents read may have made another run due.
        if is_more or any(_is_due(reader, sleeptime) for reader in readers):
            # Enqueued before this job ends, so that a crash in between leaves nothing unread.
            payload = orjson.dumps({"upto": (upto or memory.next_seq - 1) if is_more else 0})
            await self._store.jobs.enqueue(SLEEP_JOB, job.agent_row, SLEEP_JOB, payload)

    async def _find_sleeptime(self, memory: Agent) -> Sleeptime | None:
        with suppress(NotFound):
            agent = await self._registry.resolver.resolve_uid(memory.scope.project, memory.uid)
            return agent.spec.sleeptime
        return None

    async def _find_or_create_readers(
        self, memory: Agent, sleeptime: Sleeptime, upto: int
    ) -> Sequence[ReaderEntry]:
        """Returns the agents that read a memory. If no agent reads it, one is created once a run is due."""
        readers = await self._store.readers.load_by_memory([memory.id])
        if memory.scope.is_person and readers[memory.id]:
            # The settings may have given the memory further blocks.
            await self._store.sleeptime_agents.share_blocks(memory.id)
        if not readers[memory.id]:
            # No reader has counted the turns of the memory yet; each turn has taken two numbers at least.
            is_due = 0 < sleeptime.every <= (memory.next_seq - 1) // 2
            if not (is_due or upto or await self._is_idle(memory)):
                return ()
            entry = await self._store.defined_agents.get(memory.scope.project, memory.uid)
            await self._registry.sleeptime_agents.turn_on(entry)
            readers = await self._store.readers.load_by_memory([memory.id])
        return readers[memory.id]

    async def _find_or_accept_run(
        self, job: JobContext, memory: Agent, sleeptime: Sleeptime, reader: ReaderEntry, upto: int
    ) -> OpenReading | None:
        """Returns a reader's open run, or a new run if one is due; None if no run is due."""
        if (reading := await self._store.sleeptime_agents.find_reading(reader.agent_row)) is not None:
            return reading
        is_due = _is_due(reader, sleeptime) or reader.read_seq < upto or await self._is_idle(memory)
        if not is_due or not await self._skip_messages_without_words(job, memory, reader):
            return None
        command = replace(make_reading_command(reader.agent_row, memory.id, self._now()), kind="")
        await job.commit(self._store.sleeptime_agents.make_accept_effect(command))
        return await self._store.sleeptime_agents.find_reading(reader.agent_row)

    async def _skip_messages_without_words(self, job: JobContext, memory: Agent, reader: ReaderEntry) -> bool:
        """Marks messages without words as read. Returns whether a message with words follows."""
        is_more = True
        while is_more:
            unread = await read_unread(self._services.keeper, memory, reader, BATCH_CHARS)
            if clean_messages(unread.messages):
                return True
            span = ReadSpan(memory.id, reader.agent_row, unread.cursor, unread.upto)
            await job.commit(self._store.sleeptime_agents.make_advance_effect(span, self._now()))
            is_more = unread.is_more and unread.upto > unread.cursor
        return False

    async def _is_idle(self, memory: Agent) -> bool:
        last_at = await self._store.readers.find_last_at(memory.id)
        return last_at is not None and abs(self._now() - last_at) >= self._services.keeper.settings.idle_s


def _is_due(reader: ReaderEntry, sleeptime: Sleeptime) -> bool:
    return 0 < sleeptime.every <= reader.unread_turns
