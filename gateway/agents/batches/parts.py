"""The parts of a batch: requests of one upstream and model that are submitted together.

The journal of the batch's job has these entries:

    part-<n>        part n is about to be submitted; with its upstream, model, mark, time and number of items
    made-<n>-<m>    the provider's id of part n, submitted after m refusals
    failed-<n>-<t>  the t-th submission of part n failed; perhaps with a time before which it is not tried again
    <kind>-<n>-<t>  a request of another kind about part n failed for the t-th time (`FailedRequest`)
    over-<n>        all results of part n were read, or the provider's queue had no room for it; with the time
    gone-<n>-<m>    the provider has deleted the data of part n that was submitted after m refusals
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any
from uuid import uuid4

import orjson
from msgspec import Struct
from msgspec.structs import asdict

from adapters.batch.batch_provider import BatchPart
from adapters.errors import ProviderError, ProviderRefused
from gateway.core.dates import DAY_S
from gateway.run.background.job_context import JobContext
from storage.sql.store import Store

# The most attempts at one request about a part, unless the provider does not answer (`_NO_ANSWER_S`). Not measured:
# with fewer, a part fails in a short outage.
MAX_TRIES = 8
# The longest wait between two polls, as a multiple of the first wait. A shorter wait is a tenth of the time that has
# passed, so that a result is fetched late by a tenth of its time. Not measured.
_MAX_WAIT_FACTOR = 10
# The seconds for which a part without room is submitted again: the parts before it may take a day at the provider.
_NO_ROOM_S = 86_400.0
# The seconds for which a provider may fail to answer. Longer than a weekend, so that a key that is refused from Friday
# on can be replaced on Monday.
_NO_ANSWER_S = 3 * 86_400.0


class FailedRequest(StrEnum):
    """The kinds of failed requests about a part, besides submissions, by their names in the journal."""

    LOOK_UP = "unfound"  # a submission cannot be looked up
    RESULTS = "unread"  # there are no results
    ANY = "unheard"  # the provider does not answer, whatever it is asked
    CANCEL = "unstopped"  # the provider does not cancel the part
    DELETE = "undeleted"  # the provider does not delete the part's data


class SubmissionFailure(Struct, frozen=True):
    """A failed submission of a part."""

    # True: the provider has certainly not made the part, so the next submission gets another mark.
    refused: bool
    # The earliest time of the next submission that the provider allows, in seconds since the epoch; 0.0: any time.
    until: float = 0.0


@dataclass(slots=True)
class ProviderPart:
    """A part of a batch."""

    # The number of the part in its batch, from 1.
    number: int
    # The upstream of all requests in the part.
    upstream: str
    # The model of all requests in the part.
    model: str
    # The name of the part at its provider, together with the number of refusals.
    mark: str
    # The time when the part was added to the journal, in seconds since the epoch.
    at: float
    # The number of items in the part.
    count: int
    # The submissions that failed, oldest first.
    failures: list[SubmissionFailure] = field(default_factory=list)
    # The times of other failed requests by kind, oldest first.
    failed_at: dict[FailedRequest, list[float]] = field(default_factory=dict)
    # The provider's ids of this part, by the number of refusals before each.
    provider_ids: dict[int, str] = field(default_factory=dict)
    # The keys of `provider_ids` for which the provider has deleted its data.
    deleted_keys: set[int] = field(default_factory=set)
    # The time when all results of the part were read; 0.0: the part was not submitted; None: the part goes on.
    over_at: float | None = None
    # True: the provider's queue was full.
    found_no_room: bool = False
    # The time of the next poll, by the loop's clock. Not in the journal, since an attempt begins when it is due.
    next_poll: float = 0.0

    @property
    def is_over(self) -> bool:
        """True if all results of the part were read, or if the part was never submitted."""
        return self.over_at is not None

    @property
    def refusals(self) -> int:
        """The number of submissions that the provider refused."""
        return sum(failure.refused for failure in self.failures)

    @property
    def earliest_submission(self) -> float:
        """The earliest time of the next submission, in seconds since the epoch; 0.0: any time."""
        return self.failures[-1].until if self.failures else 0.0

    @property
    def id(self) -> str | None:
        """The provider's id of the part; None if the provider has not taken the part yet, or has refused it."""
        return self.provider_ids.get(self.refusals)

    @property
    def undeleted_ids(self) -> Mapping[int, str]:
        """The `provider_ids` that are no longer needed and that the provider has not deleted yet."""
        return {
            refusals: provider_id
            for refusals, provider_id in self.provider_ids.items()
            if refusals not in self.deleted_keys and (self.is_over or refusals < self.refusals)
        }

    @property
    def submission(self) -> BatchPart:
        """The part in the form of its next submission."""
        return self.make_submission(self.refusals)

    def make_submission(self, refusals: int) -> BatchPart:
        """Returns the part in the form of the submission after a number of refusals."""
        return BatchPart(f"{self.mark}-{refusals}", self.at, self.count)


@dataclass(slots=True)
class PartJournal:
    """The parts of one batch during one attempt of the batch's job."""

    # The job of the batch, in this attempt.
    job: JobContext
    # Returns the time in seconds since the epoch.
    now: Callable[[], float]
    # The seconds between the first two polls of a part.
    first_poll_s: float
    # All parts of the batch, by number.
    parts: list[ProviderPart] = field(default_factory=list)

    @staticmethod
    async def load(
        job: JobContext, store: Store, now: Callable[[], float], first_poll_s: float
    ) -> PartJournal:
        """Reads the parts of a batch from the job's journal. Raises: StoreError.

        first_poll_s: the seconds between the first two polls of a part.
        """
        results = await store.batches.load_journal(job.job.id)
        entries = {name: orjson.loads(result) for name, result in results.items()}
        journal = PartJournal(job, now, first_poll_s)
        while (fields := entries.get(f"part-{len(journal.parts) + 1}")) is not None:
            part = ProviderPart(len(journal.parts) + 1, **fields)
            _restore_part(part, entries)
            journal.parts.append(part)
        return journal

    @property
    def open_parts(self) -> list[ProviderPart]:
        """The parts that are not over."""
        return [part for part in self.parts if not part.is_over]

    async def add(self, upstream: str, model: str, count: int) -> ProviderPart:
        """Writes down that a part is about to be submitted. count: the number of items in the part."""
        part = ProviderPart(len(self.parts) + 1, upstream, model, uuid4().hex, self.now(), count)
        fields = {"upstream": upstream, "model": model, "mark": part.mark, "at": part.at, "count": count}
        await self._write(f"part-{part.number}", fields)
        self.parts.append(part)
        return part

    async def note_provider_id(self, part: ProviderPart, provider_id: str) -> None:
        """Writes down the provider's id of a part."""
        await self._write(f"made-{part.number}-{part.refusals}", {"id": provider_id})
        part.provider_ids[part.refusals] = provider_id

    async def note_failed_submission(self, part: ProviderPart, failure: SubmissionFailure) -> None:
        """Writes down that a part could not be submitted, without the error's text, which may quote a user."""
        await self._write(f"failed-{part.number}-{len(part.failures) + 1}", asdict(failure))
        part.failures.append(failure)

    async def note_failed_request(self, part: ProviderPart, kind: FailedRequest) -> bool:
        """Writes down that a request about a part has failed. Returns whether such requests are given up."""
        times = part.failed_at.setdefault(kind, [])
        at = self.now()
        await self._write(f"{kind}-{part.number}-{len(times) + 1}", {"at": at})
        times.append(at)
        if kind is FailedRequest.ANY:
            return self._measure_failures(times) >= _NO_ANSWER_S
        return len(times) >= MAX_TRIES

    async def note_deleted(self, part: ProviderPart, refusals: int) -> None:
        """Writes down that a provider has deleted the data of a part. refusals: the key in `provider_ids`."""
        await self._write(f"gone-{part.number}-{refusals}", {})
        part.deleted_keys.add(refusals)

    async def note_over(
        self, part: ProviderPart, *, was_submitted: bool = True, found_no_room: bool = False
    ) -> None:
        """Writes down that a part is over now. found_no_room: True if the provider's queue was full."""
        at = self.now() if was_submitted else 0.0
        await self._write(f"over-{part.number}", {"at": at, "no_room": found_no_room})
        part.over_at = at
        part.found_no_room = found_no_room

    def choose_poll_wait_s(self, part: ProviderPart) -> float:
        """Returns the seconds until a part is submitted, or its provider is asked about it again.

        The longer the part has taken so far, the longer the wait.
        """
        wait_s = self._choose_poll_s(self.now() - part.at)
        return wait_s if part.id is not None else max(wait_s, self.choose_submission_wait_s(part))

    def choose_delete_wait_s(self, part: ProviderPart) -> float:
        """Returns the seconds until the next request to delete a part's data, which double with each failure."""
        times = part.failed_at.get(FailedRequest.DELETE)
        return self._measure_left_s(times[-1], self.first_poll_s * 2.0 ** len(times)) if times else 0.0

    def choose_submission_wait_s(self, part: ProviderPart) -> float:
        """Returns the least seconds until a part may be submitted; 0.0: it may be submitted now."""
        # The wait that a provider requests is cut to a day.
        return max(
            self._measure_left_s(part.earliest_submission - DAY_S, DAY_S), self._choose_queue_wait_s(part)
        )

    def _choose_queue_wait_s(self, part: ProviderPart) -> float:
        """Returns the seconds until the queue of its model may have room for a part; 0.0: it may have room now.

        Once a model's queue had no room for a part, parts of the model are submitted one at a time, the smallest first.
        """
        queue = self._list_queue(part)
        if not any(queued.found_no_room for queued in queue):
            return 0.0
        open_parts = [queued for queued in queue if not queued.is_over]
        smallest = min(open_parts, key=lambda queued: queued.count)
        if part is not smallest or any(queued.id is not None for queued in open_parts):
            return self.first_poll_s
        if not (full_at := _list_full_times(queue)):
            return 0.0
        return self._measure_left_s(full_at[-1], self._choose_poll_s(full_at[-1] - full_at[0]))

    def may_wait(self, part: ProviderPart) -> bool:
        """Returns whether a part that found no room is submitted again, which it is for a day."""
        return self._measure_failures([*_list_full_times(self._list_queue(part)), self.now()]) < _NO_ROOM_S

    def list_waiting(self, part: ProviderPart) -> list[ProviderPart]:
        """Returns the parts that wait for room in a part's queue, and the part itself."""
        queue = [queued for queued in self._list_queue(part) if not queued.is_over]
        return [queued for queued in queue if queued is part or queued.id is None]

    def _list_queue(self, part: ProviderPart) -> list[ProviderPart]:
        key = part.upstream, part.model
        return [queued for queued in self.parts if (queued.upstream, queued.model) == key]

    def _choose_poll_s(self, passed_s: float) -> float:
        """Returns the seconds between two polls. passed_s: the seconds since the first poll."""
        return min(_MAX_WAIT_FACTOR * self.first_poll_s, max(self.first_poll_s, passed_s / _MAX_WAIT_FACTOR))

    def _measure_left_s(self, since: float, wait_s: float) -> float:
        """Returns the seconds that are left of a wait; 0.0 if the wait is over, or the clock was put back meanwhile."""
        left_s = since + wait_s - self.now()
        return left_s if left_s <= wait_s else 0.0

    def _measure_failures(self, times: Sequence[float]) -> float:
        """Returns the seconds from the first failure to the last, without the time in which no request was made."""
        return sum(min(b - a, 2 * _MAX_WAIT_FACTOR * self.first_poll_s) for a, b in pairwise(times))

    async def _write(self, name: str, value: object) -> None:
        await self.job.jobs.journal(self.job.job, name, orjson.dumps(value))


def _restore_part(part: ProviderPart, entries: Mapping[str, Any]) -> None:
    """Gives a part the state that the entries of the journal have noted. entries: the parsed entries, by name."""
    while (failure := entries.get(f"failed-{part.number}-{len(part.failures) + 1}")) is not None:
        part.failures.append(SubmissionFailure(**failure))
    for refusals in range(part.refusals + 1):
        if (submission := entries.get(f"made-{part.number}-{refusals}")) is not None:
            part.provider_ids[refusals] = submission["id"]
        if f"gone-{part.number}-{refusals}" in entries:
            part.deleted_keys.add(refusals)
    for kind in FailedRequest:
        times = part.failed_at[kind] = []
        while (entry := entries.get(f"{kind}-{part.number}-{len(times) + 1}")) is not None:
            times.append(entry["at"])
    if (end := entries.get(f"over-{part.number}")) is not None:
        part.over_at = end.get("at", 0.0)
        part.found_no_room = bool(end.get("no_room"))


def _list_full_times(queue: Sequence[ProviderPart]) -> list[float]:
    """Returns the times when a queue had no room, oldest first, after the newest answer to one of its parts."""
    ends = [(part.over_at, part.found_no_room) for part in queue if part.over_at is not None]
    answered_at = max((ended_at for ended_at, was_full in ends if not was_full), default=0.0)
    return sorted(ended_at for ended_at, was_full in ends if was_full and ended_at > answered_at)


def describe_cause(error: ProviderError) -> str:
    """Returns the text of an error for the log, without a provider's own message, which may quote a user's message."""
    return f"status {error.status}" if isinstance(error, ProviderRefused) else error.message
