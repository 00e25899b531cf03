"""Forgetting: of messages, exchanges, conversations, whole memories, and of content that has grown too old.

The target is written down first (`forgetting`), and the epoch raised, so that turns under way can no longer commit.
Then the target is erased in short transactions, phase by phase (`storage/sql/erase.py`). Each can be repeated, so a
forgetting goes on after its process has died.

A memory that is forgotten as a whole first loses its row in `agents`, and with it its secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from storage.database import FORGOTTEN, Connection, Database
from storage.forget_commands import ForgetTarget
from storage.records import Block
from storage.sql.additions import ErasedPartReading, find_erased_part
from storage.sql.agents import Agents, find_agent_by_id, find_or_create_with_blocks, pause_agent
from storage.sql.agents_api.agents import remove_tags
from storage.sql.agents_api.definitions import remove_definitions
from storage.sql.agents_api.sleeptime_agents import end_readings
from storage.sql.default_blocks import load_default_blocks
from storage.sql.erase import list_phases, wipe_shared
from storage.sql.erasing_work import ErasingWork, StoredTarget
from storage.sql.fact_writes import detach_facts
from storage.sql.group import StoreGroup, bulk_writes, reads
from storage.sql.job_rows import forget_jobs, raise_epoch
from storage.sql.memory_cache import MemoryCache
from storage.sql.readers import load_sleeptime_agents
from storage.sql.snapshot_cache import SnapshotCache
from storage.sql.statements import load, load_column
from storage.sql.usage import Usage, anonymize_user_rows
from storage.store_rules import Rules

SQL = load("forget.sql")


class _Cursor(NamedTuple):
    """The point at which a forgetting goes on."""

    # The name of the phase.
    phase: str
    # The position of the next page, as an `ErasingPhase` gets it.
    position: int


class _Interruption(NamedTuple):
    """The state with which an interrupted forgetting goes on."""

    # The point at which the forgetting goes on.
    cursor: _Cursor
    # The marks of the erased content that the forgetting has read.
    reading: ErasedPartReading


class _StepOutcome(NamedTuple):
    """The outcome of one transaction of a forgetting."""

    # The point at which the next transaction begins; None: everything is erased.
    cursor: _Cursor | None
    # The row of the memory; 0: another process has ended the forgetting.
    agent_row: int


class _ForgottenUser(NamedTuple):
    """A user whose last memory is forgotten."""

    project: str
    name: str


class _BegunForgetting(NamedTuple):
    """A forgetting that was begun."""

    # The row of the forgetting.
    id: int
    # The rows of the forgettings that run before it.
    prerequisites: list[int]
    # The user who has lost the last memory, so that usage no longer names the user; None: there is no such user.
    user: _ForgottenUser | None


class Forgetting(StoreGroup):
    """Forgets in two steps: `begin` writes the target down, and `run` erases it, also after a crash in between."""

    def __init__(
        self,
        database: Database,
        agents: Agents,
        now: Callable[[], float],
        memories: MemoryCache,
        snapshots: SnapshotCache,
        wake: Callable[[], None],
        rules: Rules,
        usage: Usage,
    ) -> None:
        """Makes the group.

        agents, memories, snapshots: the caches that are cleared with each forgetting.
        now: a function that returns the time, in seconds since the epoch.
        wake: a function that is called after a forgetting, since its jobs have to end or may begin again.
        rules: the rules that decide whether a text quotes erased content.
        usage: the records of use, which no longer name a user without a memory.
        """
        super().__init__(database)
        self._usage = usage
        self._rules = rules
        self._agents = agents
        self.now = now
        self._memories = memories
        self._wake = wake
        self._forget_listeners = [agents.clear, memories.clear, snapshots.clear]
        database.add_listener(FORGOTTEN, lambda _: self._call_listeners())
        # The forgettings that `run` has interrupted, by their rows.
        self._interruptions: dict[int, _Interruption] = {}
        # A file that was restored may have another forgetting of that number.
        database.add_recovery_listener(self._interruptions.clear)
        # The forgettings of sleeptime agents' memories, which are run first, by the forgetting of the memory they read.
        self._prerequisites: dict[int, list[int]] = {}

    @reads
    async def list_unfinished(self, connection: Connection) -> list[int]:
        """Returns the forgettings that were begun and have not ended, also those of an earlier process."""
        return await load_column(connection, SQL["unfinished"])

    async def begin(
        self,
        agent_row: int,
        target: ForgetTarget,
        *,
        keeps_pause: bool = False,
        retained_facts: Sequence[int] = (),
    ) -> int:
        """Writes the target down, after which no turn under way commits. Returns the forgetting's row, for `run`.

        Jobs end, and begin again after the forgetting, so that no model is asked about the target.

        keeps_pause: True if an empty, paused memory takes the place of a paused memory that is forgotten as a whole.
        retained_facts: the numbers of facts that stay though they came from the target; they lose their sources.

        Raises: WriteConflict: one of these facts is gone or no longer true. Nothing is written.
        """
        beginning = self._begin(
            agent_row, target, self.now(), keeps_pause=keeps_pause, retained_facts=retained_facts
        )

        def notify_begun() -> None:
            self._agents.clear()
            self._wake()
            self._database.notify(FORGOTTEN)
            if not beginning.cancelled() and beginning.exception() is None:
                user = beginning.result().user
                if user is not None:
                    self._usage.notify_forgotten(*user)

        forgetting = await self._await_write(beginning, notify_begun)
        self._prerequisites[forgetting.id] = forgetting.prerequisites
        return forgetting.id

    @bulk_writes
    async def _begin(
        self,
        connection: Connection,
        agent_row: int,
        target: ForgetTarget,
        now: float,
        *,
        keeps_pause: bool,
        retained_facts: Sequence[int],
    ) -> _BegunForgetting:
        """Writes a target down. The parameters are as in `begin`."""
        await connection.lock_sharers(agent_row)
        await detach_facts(connection, agent_row, retained_facts)
        user = await _find_forgotten_user(connection, agent_row) if target.is_all else None
        if user is not None:
            await anonymize_user_rows(connection, *user)
        forgotten_agent = None
        blocks: list[Block] = []
        if keeps_pause and target.is_all:
            forgotten_agent = await find_agent_by_id(connection, agent_row)
            blocks = await load_default_blocks(connection, agent_row)
        *prerequisites, forgetting_row = await begin_forgetting(connection, agent_row, target, now)
        if forgotten_agent is not None and forgotten_agent.paused_at is not None:
            empty_agent = await find_or_create_with_blocks(
                connection, self._agents.make_draft(forgotten_agent.scope), blocks, (), now
            )
            await pause_agent(connection, empty_agent.id, forgotten_agent.paused_at)
        return _BegunForgetting(forgetting_row, prerequisites, user)

    async def forget(self, agent_row: int, target: ForgetTarget) -> None:
        """Forgets a part of a memory, or all of it, at once."""
        await self.finish(await self.begin(agent_row, target))

    async def finish(self, forgetting_row: int) -> None:
        """Runs to the end, and removes forgotten content from the database's own old copies.

        A copy that is still read stays until a later sweep. A caller that must know calls `run` and `sweep` itself.
        """
        await self.run(forgetting_row)
        await self.sweep()

    async def wipe(self, agent_row: int) -> None:
        """Forgets a whole memory, and leaves old copies of it to the next sweep."""
        await self.run(await self.begin(agent_row, ForgetTarget(is_all=True)))

    async def forget_project(self, project: str) -> None:
        """Deletes a project's shared blocks and its definitions. Its memories must be forgotten before."""
        while await self._database.bulk_write(lambda connection: wipe_shared(connection, project)):
            pass

    async def run(self, forgetting_row: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Runs a forgetting to its end, unless `until` interrupts it. Returns whether everything is erased.

        until: a function that is called after each transaction, and returns whether the forgetting is interrupted.
        """
        for prerequisite in self._prerequisites.get(forgetting_row, ()):
            if not await self.run(prerequisite, until):
                return False
        self._prerequisites.pop(forgetting_row, None)
        cursor: _Cursor | None
        cursor, reading = self._interruptions.pop(forgetting_row, (None, ErasedPartReading()))
        while True:
            step = partial(
                _run_step,
                forgetting_row=forgetting_row,
                rules=self._rules,
                cursor=cursor,
                now=self.now(),
                reading=reading,
            )
            outcome = await self._database.bulk_write(step)
            cursor = outcome.cursor
            self._memories.drop(outcome.agent_row)
            self._agents.clear()  # epochs may have risen, also of agents that share a block with this one
            if cursor is None:
                break
            if cursor == _Cursor("additions", 0):
                # Reading a large part takes long. Within a transaction turns would wait for it.
                reading.part = await self._database.long_read(
                    partial(find_erased_part, agent_row=outcome.agent_row)
                )
            if until():
                self._interruptions[forgetting_row] = _Interruption(cursor, reading)
                return False
        self._wake()
        self._call_listeners()
        self._database.notify(FORGOTTEN)
        return True

    def _call_listeners(self) -> None:
        """Has this process drop its caches, since something was forgotten, or may have been."""
        for listener in self._forget_listeners:
            listener()

    async def pause(self, agent_row: int, since: float | None) -> bool:
        """Pauses a memory, or resumes it.

        Turns that were planned before are not committed, and every process reads the memory again.

        since: the time of the pause, in seconds since the epoch; None: the memory is resumed.

        Returns False if that changes nothing, or the memory is gone.
        """

        async def write(connection: Connection) -> bool:
            await connection.lock(agent_row)
            is_changed = await pause_agent(connection, agent_row, since)
            if is_changed:
                await raise_epoch(connection, agent_row)
            return is_changed

        def notify_paused() -> None:
            self._call_listeners()
            self._database.notify(FORGOTTEN)

        return await self._await_write(self._database.write(write), notify_paused)

    def add_forget_listener(self, listener: Callable[[], None]) -> None:
        """Registers a function that is called at the end of each forgetting and each pause, in any process.

        A forgetting that another process begins calls it as well.
        """
        self._forget_listeners.append(listener)

    async def sweep(self, wait_ms: int = 1000) -> bool:
        """Removes forgotten content from the database's old copies. Returns False if one of these is still read."""
        return await self._database.sweep(wait_ms=wait_ms)


async def begin_forgetting(
    connection: Connection, agent_row: int, target: ForgetTarget, now: float
) -> list[int]:
    """Writes a target down. With a whole memory its sleeptime agents are forgotten too.

    Returns the forgettings in the order for `Forgetting.run`: the forgetting of the memory is the last.
    """
    sleeptime_agents = await load_sleeptime_agents(connection, agent_row) if target.is_all else []
    return [
        await _write_target(connection, memory_row, target, now)
        for memory_row in (*sleeptime_agents, agent_row)
    ]


async def _find_forgotten_user(connection: Connection, agent_row: int) -> _ForgottenUser | None:
    """Returns the user who has this memory alone; None: the user has another memory, or the memory has no user."""
    row = await connection.fetch_row(SQL["only_memory"], (agent_row,))
    return None if row is None else _ForgottenUser(*row)


async def _write_target(connection: Connection, agent_row: int, target: ForgetTarget, now: float) -> int:
    """Writes a target down, and ends the work that may write it again. Returns the forgetting's row."""
    await connection.lock_sharers(agent_row)
    await end_readings(connection, agent_row, now)
    stored_target: object = target
    if target.is_all:
        project, profile = await connection.fetch_row(SQL["agent_delete"], (agent_row,)) or ("", "")
        await remove_definitions(connection, agent_row)  # so that the memory is not found by its name either
        await remove_tags(connection, agent_row)
        await connection.run(SQL["imports_unname"], (agent_row,))
        stored_target = {"all": [project, profile]}
        await forget_jobs(connection, agent_row)
    else:
        for file_row in target.file_rows:
            await connection.run(SQL["file_erase"], (file_row, agent_row))
        if target.import_row is not None:
            await connection.run(SQL["import_stop"], (target.import_row,))
        await raise_epoch(connection, agent_row)
    return await connection.fetch_value(SQL["intend"], (agent_row, msgspec.json.encode(stored_target)))


async def _run_step(
    connection: Connection,
    forgetting_row: int,
    rules: Rules,
    cursor: _Cursor | None,
    now: float,
    reading: ErasedPartReading,
) -> _StepOutcome:
    """Runs one transaction of a forgetting.

    cursor: the end of the transaction before; None: this is the first one.
    """
    row = await connection.fetch_row(SQL["intended"], (forgetting_row,))
    if row is None:  # another process has ended it
        return _StepOutcome(None, agent_row=0)
    agent_row, target = row
    work = ErasingWork(
        id=forgetting_row,
        agent_row=agent_row,
        target=msgspec.json.decode(target, type=StoredTarget),
        rules=rules,
        now=now,
        reading=reading,
    )
    phases = list_phases(work.target)
    await connection.lock_sharers(work.agent_row)
    # If the file was restored meanwhile, the number may belong to another forgetting, with other phases.
    if cursor is None or cursor.phase not in phases:
        cursor = _Cursor(next(iter(phases)), 0)
    next_position = await phases[cursor.phase](connection, work, cursor.position)
    if next_position is not None:
        return _StepOutcome(cursor._replace(position=next_position), work.agent_row)
    phase_names = list(phases)
    later_phases = phase_names[phase_names.index(cursor.phase) + 1 :]
    if later_phases:
        return _StepOutcome(_Cursor(later_phases[0], 0), work.agent_row)
    await connection.run(SQL["forgotten"], (forgetting_row,))
    return _StepOutcome(None, work.agent_row)
