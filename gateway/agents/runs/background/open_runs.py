"""The background runs of this process that have not ended, and the queue tickets reserved for them.

open_run = open_runs.add(uid, queue)                  # WAITING, with a ticket in the queue of its conversation
reservation = open_runs.begin(open_run)               # QUEUED
ticket = await open_runs.wait(open_run, reservation)  # PERFORMED, first in its conversation
open_runs.put_back(open_run, reservation)             # WAITING again, still first
open_runs.close(open_run)                             # ENDED, forgotten; callers that wait for its end go on
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from gateway.core.conversation.kind import QueueName
from gateway.run.call import Forwarded
from gateway.run.event_log import EventLog
from gateway.run.memory.queue import Queues, QueueTicket, Reservation


class RunPhase(Enum):
    """The progress of a run in this process."""

    ACCEPTING = "accepting"  # its row is being written
    WAITING = "waiting"  # on disk, with a ticket; its job has not begun, or will begin again
    QUEUED = "queued"  # its job has begun, and waits until the conversation is free
    PERFORMED = "performed"  # its job runs and holds the conversation
    STOPPED = "stopped"  # its job has failed and given up the ticket; it may begin again
    ENDED = "ended"  # it has an end, and is no longer among the open runs


# The phases of a run for which a ticket is reserved.
_WITH_TICKET = (RunPhase.ACCEPTING, RunPhase.WAITING)


@dataclass(eq=False, slots=True)
class OpenRun:
    """A run that has not ended. `OpenRuns` alone changes its phase."""

    # The uid of the run.
    uid: str
    # The queue of the run's conversation.
    queue: QueueName
    # The progress of the run.
    phase: RunPhase
    # The headers and fields of the request that are passed to the upstream, known to the process that accepted the run.
    forwarded: Forwarded = field(default_factory=Forwarded)
    # The log of the run's events; None: no events are logged, or the log is not open yet.
    log: EventLog | None = None
    # The event that is set when the run is closed.
    end_event: asyncio.Event = field(default_factory=asyncio.Event)


class OpenRuns:
    """The open runs of a process, by uid.

    A ticket belongs to a conversation rather than to a run: jobs may begin in another order than their runs were
    accepted in, and the first to begin takes the first ticket. A conversation has one ticket for each run whose phase
    is in `_WITH_TICKET`.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._runs: dict[str, OpenRun] = {}
        self._tickets: dict[QueueName, deque[Reservation]] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[OpenRun]:
        """Yields the runs that are open now. A run may be closed meanwhile."""
        return iter([*self._runs.values()])

    def find(self, uid: str) -> OpenRun | None:
        """Returns the open run with this uid; None if there is none."""
        return self._runs.get(uid)

    def add(
        self,
        uid: str,
        queue: QueueName,
        forwarded: Forwarded | None = None,
        phase: RunPhase = RunPhase.WAITING,
    ) -> OpenRun:
        """Adds a run and reserves a ticket for it. A run that is performed already needs no ticket."""
        if phase is not RunPhase.PERFORMED:
            self._tickets.setdefault(queue, deque()).append(self._queues.reserve(queue))
        run = self._runs[uid] = OpenRun(uid, queue, phase, forwarded or Forwarded())
        return run

    def note_accepted(self, run: OpenRun) -> None:
        """Notes that the row of a run is written. Its job may have begun, or ended, before."""
        if run.phase is RunPhase.ACCEPTING:
            run.phase = RunPhase.WAITING

    def begin(self, run: OpenRun) -> Reservation:
        """Returns the first ticket of the run's conversation for its job, which has begun."""
        tickets = self._tickets.setdefault(run.queue, deque())
        if run.phase not in _WITH_TICKET:
            # For the run that loses the first ticket to this run.
            tickets.append(self._queues.reserve(run.queue))
        run.phase = RunPhase.QUEUED
        return self._pop_ticket(run.queue)

    async def wait(self, run: OpenRun, reservation: Reservation) -> QueueTicket | None:
        """Waits until a run is first in its conversation. Returns its ticket; None if the run was closed meanwhile.

        Raises: StoreError.
        """
        entering = asyncio.ensure_future(reservation.wait())
        ending = asyncio.ensure_future(run.end_event.wait())
        try:
            await asyncio.wait((entering, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            entering.cancel()
            ending.cancel()
            await asyncio.gather(entering, ending, return_exceptions=True)
        if run.phase is RunPhase.ENDED:
            return None
        run.phase = RunPhase.PERFORMED
        return entering.result()

    def stop(self, run: OpenRun) -> None:
        """Notes that the job of a run is over, for now or for good, unless its ticket was put back."""
        if run.phase in (RunPhase.QUEUED, RunPhase.PERFORMED):
            run.phase = RunPhase.STOPPED

    def put_back(self, run: OpenRun, reservation: Reservation) -> None:
        """Gives back the ticket of a job that will be tried again, so that its run stays first in the queue.

        If the run has ended meanwhile, the ticket is dropped.
        """
        if run.phase is RunPhase.ENDED:
            reservation.drop()
        else:
            run.phase = RunPhase.WAITING
            self._tickets.setdefault(run.queue, deque()).appendleft(reservation)

    def close(self, run: OpenRun) -> None:
        """Forgets a run that has ended and wakes the callers that wait for its end. Idempotent.

        If the run has a ticket, the newest of the conversation is dropped.
        """
        if run.phase is RunPhase.ENDED:
            return
        if run.phase in _WITH_TICKET:
            self._pop_ticket(run.queue, takes_newest=True).drop()
        run.phase = RunPhase.ENDED
        del self._runs[run.uid]
        run.end_event.set()

    def _pop_ticket(self, queue: QueueName, *, takes_newest: bool = False) -> Reservation:
        """Removes the first ticket of a queue, or its newest, and returns it."""
        tickets = self._tickets[queue]
        ticket = tickets.pop() if takes_newest else tickets.popleft()
        if not tickets:
            del self._tickets[queue]
        return ticket
