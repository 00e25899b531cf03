"""The parts of a batch: requests of one upstream and model that are submitted together, as the job's journal has them.

part-<n>        it is about to be made: of what, and under which mark
made-<n>-<m>    the provider's id of it; m: how often it was refused before, each time under another mark
failed-<n>-<t>  it could not be submitted, for the t-th time, and is not until a time that the provider named
over-<n>        when all of its results were read, or the provider's queue had no room for it
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import BinaryIO

import orjson

from adapters.base import BatchPart, BatchProvider
from adapters.errors import ProviderError, ProviderRefused
from gateway.run.background.batches.items import Composed
from gateway.run.background.worker import JobContext
from storage.batches import GivenItem
from storage.sql.store import Store

TRIES = 8  # of submitting a part
_GROWTH = 10  # the longest wait between two polls, in first ones
_PATIENCE_S = 86_400.0  # as long as a provider takes for a part


@dataclass(slots=True)
class PartDraft:
    """A part that is being composed, with the file of its requests, which has no name."""

    upstream: str
    model: str
    items: list[GivenItem] = field(default_factory=list)
    size: int = 0
    _file: BinaryIO | None = None

    def add(self, composed: Composed, line: bytes, item: GivenItem) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.write(line)
        self.size += len(line)
        self.items.append(item)

    def is_full(self, provider: BatchProvider, more: int) -> bool:
        """Returns whether there is no room for so many more bytes."""
        return self.size + more > provider.most_bytes or len(self.items) >= provider.most_requests

    def hand_over(self) -> BinaryIO:
        """Returns the file, whose taker closes it."""
        file, self._file = self._file, None
        assert file is not None
        file.seek(0)
        return file

    def release(self) -> None:
        """Closes the file, if nobody has taken it."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(slots=True)
class ProviderPart:
    """A part. at: seconds since the epoch when it was thought of.

    tries: how often it could not be submitted; refusals: how often of these the provider refused it.
    until: when it may be tried again, as the provider said. over_at: when it was over; None: it is not.
    no_room: the provider's queue had no room for it.
    """

    number: int
    upstream: str
    model: str
    mark: str
    at: float
    count: int
    id: str | None = None
    tries: int = 0
    refusals: int = 0
    until: float = 0.0
    over_at: float | None = None
    no_room: bool = False

    @property
    def is_over(self) -> bool:
        return self.over_at is not None

    @property
    def wanted(self) -> BatchPart:
        return BatchPart(f"{self.mark}-{self.refusals}", self.at, self.count)

    def wait_s(self, now: float, first_s: float) -> float:
        """Returns the seconds until its provider is asked again: the longer it took so far, the longer they are."""
        wait = min(_GROWTH * first_s, max(first_s, (now - self.at) / _GROWTH))
        return wait if self.id is not None else max(wait, self.until - now)


@dataclass(slots=True)
class PartJournal:
    """The parts of one batch, in one attempt of its job."""

    job: JobContext
    parts: list[ProviderPart] = field(default_factory=list)
    faults: int = 0

    @staticmethod
    async def load(job: JobContext, store: Store) -> PartJournal:
        journal = {
            name: orjson.loads(result) for name, result in (await store.batches.journal(job.job.id)).items()
        }
        found = PartJournal(job, faults=sum(name.startswith("fault-") for name in journal))
        while (about := journal.get(f"part-{len(found.parts) + 1}")) is not None:
            part = ProviderPart(len(found.parts) + 1, **about)
            while (failure := journal.get(f"failed-{part.number}-{part.tries + 1}")) is not None:
                part.tries += 1
                part.refusals += failure["refused"]
                part.until = failure.get("until", 0.0)
            made = journal.get(f"made-{part.number}-{part.refusals}")
            part.id = None if made is None else made["id"]
            if (over := journal.get(f"over-{part.number}")) is not None:
                part.over_at, part.no_room = over.get("at", 0.0), bool(over.get("no_room"))
            found.parts.append(part)
        return found

    @property
    def open(self) -> list[ProviderPart]:
        return [part for part in self.parts if not part.is_over]

    async def add(self, upstream: str, model: str, mark: str, at: float, count: int) -> ProviderPart:
        """Writes down that a part is about to be made."""
        number = len(self.parts) + 1
        part = ProviderPart(number, upstream, model, mark, at, count)
        about = {"upstream": upstream, "model": model, "mark": mark, "at": at, "count": count}
        await self._write(f"part-{number}", about)
        self.parts.append(part)
        return part

    async def made(self, part: ProviderPart, id: str) -> None:
        await self._write(f"made-{part.number}-{part.refusals}", {"id": id})
        part.id = id

    async def failed(self, part: ProviderPart, *, refused: bool, until: float = 0.0) -> None:
        """Writes down that it could not be submitted. refused: surely there is none, so the next has another mark.

        Why is not written: a provider's words may quote somebody's.
        """
        await self._write(f"failed-{part.number}-{part.tries + 1}", {"refused": refused, "until": until})
        part.tries, part.until = part.tries + 1, until
        if refused:
            part.refusals += 1
            part.id = None

    async def over(self, part: ProviderPart, at: float, *, no_room: bool = False) -> None:
        await self._write(f"over-{part.number}", {"at": at, "no_room": no_room})
        part.over_at, part.no_room = at, no_room

    @property
    def _crowded(self) -> list[float]:
        """When there was no room, oldest first, since a part was answered last."""
        over = [(part.over_at, part.no_room) for part in self.parts if part.over_at is not None]
        answered = max((at for at, no_room in over if not no_room), default=0.0)
        return sorted(at for at, no_room in over if no_room and at > answered)

    def is_patient(self, at: float) -> bool:
        """Returns whether parts that find no room are made smaller; after a day the last one has all that is left."""
        crowded = self._crowded
        return not crowded or at - crowded[0] < _PATIENCE_S

    def room(self, now: float) -> int | None:
        """Returns how many requests the next part may have; None: any number.

        Half of those for which a provider's queue had no room, and twice as many as those for which it had.
        """
        most: int | None = None
        for part in self.parts:
            if part.no_room:
                most = max(1, part.count // 2)
            elif most is not None and part.is_over:
                most = max(most, 2 * part.count)
        # A part that is under way may have all the room that there is.
        return most if self.open or self.is_patient(now) else None

    def crowded_s(self, now: float, first_s: float) -> float:
        """Returns the seconds until a queue that had no room is given the next part."""
        if self.open:
            return first_s
        crowded = self._crowded
        if not crowded:
            return 0.0
        return crowded[-1] + min(_GROWTH * first_s, max(first_s, (crowded[-1] - crowded[0]) / _GROWTH)) - now

    async def faulted(self) -> int:
        """Writes down that an attempt ended with an error of ours. Returns how many did."""
        self.faults += 1
        await self._write(f"fault-{self.faults}", {})
        return self.faults

    async def _write(self, name: str, value: object) -> None:
        await self.job.jobs.journal(self.job.job, name, orjson.dumps(value))


def cause(error: ProviderError) -> str:
    """Returns what the log says of an error: a provider's own words may quote somebody's."""
    return f"status {error.status}" if isinstance(error, ProviderRefused) else error.message
