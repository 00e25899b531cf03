"""Responses that outlive their requests: responses in the background, and responses that an upstream makes.

Each is a run of no conversation. Its texts are its request, how it is shown, its events, and the names of the turns
that attempts at it have begun.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import orjson

from storage.database import Connection, Database
from storage.job_records import NO_AGENT, Job
from storage.records import Agent
from storage.run_commands import EnqueuedResponse, ResponseEnd
from storage.run_records import Run, RunTextKind
from storage.sql.agents import AGENT_COLUMNS, make_agent_record
from storage.sql.agents_api.run_texts import add_events, add_text, load_texts, replace_text
from storage.sql.agents_api.runs import (
    end_if_open,
    find_or_create_run,
    find_run,
    get_run,
    make_run,
)
from storage.sql.epochs import find_epoch, lock_memory
from storage.sql.group import StoreGroup, bulk_writes, reads, writes
from storage.sql.job_rows import check_attempt
from storage.sql.jobs import Jobs
from storage.sql.statements import load, load_rows

SQL = load("responses.sql")


class ResponseRun(NamedTuple):
    """The run of a response, and the memory that has the response."""

    agent: Agent
    run: Run


class Responses(StoreGroup):
    """Responses, by the public ids of their runs."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs

    async def accept(
        self, draft: Run, project: str, kind: str, key: str, request: bytes, shown: bytes
    ) -> EnqueuedResponse:
        """Accepts a response that is made in the background: stores its run with two texts, and its job.

        kind: the kind of the job.
        key: the key under which the job waits.
        request: the request of the response, as JSON.
        shown: the response as it is shown until it ends, as JSON.

        Returns the run that the project has under the draft's uid.

        Raises: StoreUnavailable; StaleWrite if the memory is gone.
        """

        async def accept(connection: Connection) -> EnqueuedResponse:
            await lock_memory(connection, draft.agent_row)
            row = await connection.fetch_row(SQL["find"], (draft.uid, project))
            if row is not None:
                return EnqueuedResponse(make_run(row[AGENT_COLUMNS:]), is_new=False)
            run = await find_or_create_run(connection, draft)
            await add_text(connection, run.agent_row, run.id, RunTextKind.REQUEST, seq=0, data=request)
            await add_text(connection, run.agent_row, run.id, RunTextKind.RESPONSE, seq=0, data=shown)
            await self.enqueue(connection, kind, key, run.agent_row, [run.id])
            return EnqueuedResponse(run, is_new=True)

        return await self._jobs.write_enqueuing(accept)

    async def enqueue(
        self, connection: Connection, kind: str, key: str, agent_row: int, run_rows: Collection[int]
    ) -> None:
        """Adds runs of responses to the job that waits under a key, or a job for them.

        The job's payload names the memory, the oldest run, and the runs after it. Call `jobs.wake` after the commit.
        """
        payload = _render_payload(agent_row, run_rows)
        await self._jobs.enqueue_in(connection, kind, NO_AGENT, key, payload, merge=_merge_payloads)

    @writes
    async def add_made_upstream(self, connection: Connection, draft: Run, text: bytes, epoch: int) -> None:
        """Stores the run and the text of a response that an upstream makes, unless the memory's epoch has risen.

        epoch: the epoch of the memory when the request was read.

        Raises: WriteConflict as `find_or_create_run` does.
        """
        await connection.lock(draft.agent_row)
        if await find_epoch(connection, draft.agent_row) == epoch:
            run = await find_or_create_run(connection, draft)
            await add_text(connection, run.agent_row, run.id, RunTextKind.RESPONSE, seq=0, data=text)

    @reads
    async def find(self, connection: Connection, project: str, uid: str) -> ResponseRun | None:
        """Returns the run of a response in the background by its public id, and its memory."""
        row = await connection.fetch_row(SQL["find"], (uid, project))
        if row is None:
            return None
        return ResponseRun(make_agent_record(row[:AGENT_COLUMNS]), make_run(row[AGENT_COLUMNS:]))

    @reads
    async def find_open_among(self, connection: Connection, run_rows: Sequence[int]) -> set[int]:
        """Returns the rows of the runs that exist and have not ended. run_rows: the rows of the runs to look for."""
        return {run_row for (run_row,) in await load_rows(connection, SQL["open_among"], run_rows)}

    @reads
    async def load_epoch(self, connection: Connection, agent_row: int) -> int:
        """Returns the epoch of a memory (storage/sql/epochs.py); 0 where the memory is gone."""
        return await find_epoch(connection, agent_row) or 0

    @writes
    async def finish(self, connection: Connection, run: Run, end: ResponseEnd, job: Job | None = None) -> Run:
        """Ends the run of a response, unless another writer was faster. Returns the run as it is then.

        The last events of the response are stored, too, unless something was forgotten since they were made.

        job: the attempt that performs the run; None: any process may end it.

        Raises: NotFound; StaleWrite if another attempt performs the run.
        """
        await connection.lock(run.agent_row)
        await check_attempt(connection, job)
        if await end_if_open(
            connection, run.agent_row, run.id, state=end.state, stop=str(end.state), at=end.at
        ):
            await replace_text(connection, run.agent_row, run.id, RunTextKind.RESPONSE, seq=0, data=end.shown)
            if end.turn is not None:
                await connection.run(SQL["note_turn"], (run.id, run.agent_row, end.turn))
            await add_events(connection, run.agent_row, run.id, end.last_number, end.events, epoch=end.epoch)
        return await get_run(connection, run.agent_row, run.id)

    @writes
    async def note_turn(
        self, connection: Connection, agent_row: int, run_row: int, name: bytes, job: Job | None = None
    ) -> bool:
        """Notes the name of a turn that an attempt at a response begins. Returns False if the response has ended.

        job: the attempt that performs the run; None: any process may begin the turn.

        Raises: StaleWrite if another attempt performs the run.
        """
        await connection.lock(agent_row)
        await check_attempt(connection, job)
        if not await _is_open(connection, agent_row, run_row):
            return False
        number = len(await load_texts(connection, agent_row, run_row, RunTextKind.TURN))
        return await add_text(connection, agent_row, run_row, RunTextKind.TURN, seq=number, data=name)

    @writes
    async def add_text(
        self,
        connection: Connection,
        agent_row: int,
        run_row: int,
        kind: RunTextKind,
        seq: int,
        data: bytes,
        *,
        job: Job,
    ) -> bool:
        """Adds a text of an attempt at a response. Returns False as `run_texts.add_text`, or if the run has ended.

        seq: the number of the text among the run's texts of its kind.
        job: the attempt.
        """
        await connection.lock(agent_row)
        if not await _is_open(connection, agent_row, run_row):
            return False
        return await add_text(connection, agent_row, run_row, kind, seq=seq, data=data, job=job)

    @reads
    async def load_turns(self, connection: Connection, agent_row: int, run_row: int) -> list[bytes]:
        """Returns the names of the turns that attempts at a response have begun, oldest first."""
        return [text.data for text in await load_texts(connection, agent_row, run_row, RunTextKind.TURN)]

    @bulk_writes
    async def drop_events(
        self, connection: Connection, agent_row: int, run_row: int, job: Job | None = None
    ) -> None:
        """Drops the events of an attempt that was broken off.

        job: the attempt that goes on with the run; None: any process may drop the texts.

        Raises: StaleWrite if another attempt performs the run.
        """
        await connection.lock(agent_row)
        await check_attempt(connection, job)
        await connection.run(SQL["events_drop"], (agent_row, run_row, RunTextKind.EVENT))

    @bulk_writes
    async def replace_shown(
        self, connection: Connection, agent_row: int, run_row: int, shown: bytes, job: Job | None = None
    ) -> None:
        """Replaces the shown form of a response that no turn stores.

        shown: the response as it is shown, as JSON.
        job: the attempt that performs the run; None: any process may replace the form.

        Raises: StaleWrite if another attempt performs the run.
        """
        await connection.lock(agent_row)
        await check_attempt(connection, job)
        await replace_text(connection, agent_row, run_row, RunTextKind.RESPONSE, seq=0, data=shown)

    @bulk_writes
    async def remove(self, connection: Connection, agent_row: int, run_row: int) -> None:
        """Deletes a run with its texts."""
        await connection.lock(agent_row)
        await connection.run(SQL["events_drop"], (agent_row, run_row, ""))
        await connection.run(SQL["drop"], (run_row, agent_row))


async def _is_open(connection: Connection, agent_row: int, run_row: int) -> bool:
    """Returns whether a run exists and has not ended."""
    stored_run = await find_run(connection, agent_row, run_row)
    return stored_run is not None and not stored_run.is_over


def _render_payload(agent_row: int, run_rows: Collection[int]) -> bytes:
    oldest, *later = sorted(run_rows)
    return orjson.dumps({"agent": agent_row, "run": oldest, "later": later})


def _merge_payloads(waiting_payload: bytes, new_payload: bytes) -> bytes:
    payloads = [orjson.loads(data) for data in (waiting_payload, new_payload)]
    runs = {run_row for payload in payloads for run_row in (payload["run"], *payload["later"])}
    return _render_payload(payloads[0]["agent"], runs)
