"""The background runs of this process that have not ended, and their reservations of tickets in queues.

open_run = open_runs.add(uid, queue)                  # WAITING, with a reservation in the queue of its conversation
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
    WAITING = "waiting"  # on disk, with a reservation; its job has not begun, or will begin again
    QUEUED = "queued"  # its job has begun, and waits until the conversation is free
    PERFORMED = "performed"  # its job runs and holds the conversation
    STOPPED = "stopped"  # its job has failed and given up the reservation; it may begin again
    ENDED = "ended"  # it has an end, and is no longer among the open runs


# The phases of a run that counts among the reservations of its queue.
_WITH_RESERVATION = (RunPhase.ACCEPTING, RunPhase.WAITING)


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

    A reservation belongs to a queue rather than to a run: jobs may begin in another order than their runs were accepted
    in, and the first job takes the first reservation. A queue has one reservation for each run with a phase of
    `_WITH_RESERVATION`.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._runs: dict[str, OpenRun] = {}
        self._reservations: dict[QueueName, deque[Reservation]] = {}

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
        """Adds a run and reserves a ticket for it, unless the run is performed already.

        forwarded: headers and fields of its request that are passed to the upstream; None: this process has none.
        phase: the progress of the run.
        """
        if phase is not RunPhase.PERFORMED:
            self._reservations.setdefault(queue, deque()).append(self._queues.reserve(queue))
        run = self._runs[uid] = OpenRun(uid, queue, phase, forwarded or Forwarded())
        return run

    def note_accepted(self, run: OpenRun) -> None:
        """Notes that the row of a run is written. Its job may have begun, or ended, before."""
        if run.phase is RunPhase.ACCEPTING:
            run.phase = RunPhase.WAITING

    def begin(self, run: OpenRun) -> Reservation:
        """Takes the first reservation of a run's queue for the run's job, which has begun."""
        reservations = self._reservations.setdefault(run.queue, deque())
        if run.phase not in _WITH_RESERVATION:
            # For the run that loses the first reservation to this run.
            reservations.append(self._queues.reserve(run.queue))
        run.phase = RunPhase.QUEUED
        return self._pop_reservation(run.queue)

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
        """Notes that the job of a run is over, for now or for good, unless its reservation was put back."""
        if run.phase in (RunPhase.QUEUED, RunPhase.PERFORMED):
            run.phase = RunPhase.STOPPED

    def put_back(self, run: OpenRun, reservation: Reservation) -> None:
        """Puts back the reservation of a job that will be tried again, so that its run stays first in the queue.

        If the run has ended meanwhile, the reservation is dropped.
        """
        if run.phase is RunPhase.ENDED:
            reservation.drop()
        else:
            run.phase = RunPhase.WAITING
            self._reservations.setdefault(run.queue, deque()).appendleft(reservation)

    def close(self, run: OpenRun) -> None:
        """Forgets a run that has ended and wakes the callers that wait for its end. Idempotent.

        If the run counts among the reservations of its queue, the newest of these is dropped.
        """
        if run.phase is RunPhase.ENDED:
            return
        if run.phase in _WITH_RESERVATION:
            self._pop_reservation(run.queue, takes_newest=True).drop()
        run.phase = RunPhase.ENDED
        del self._runs[run.uid]
        run.end_event.set()

    def _pop_reservation(self, queue: QueueName, *, takes_newest: bool = False) -> Reservation:
        """Removes the first reservation of a queue, or its newest, and returns it."""
        reservations = self._reservations[queue]
        reservation = reservations.pop() if takes_newest else reservations.popleft()
        if not reservations:
            del self._reservations[queue]
        return reservation
