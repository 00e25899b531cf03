"""The overview: whether all is well; if not, what is wrong and where to look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct

from gateway.run.admin.page_records import (
    AddedTime,
    JobCounts,
    MemoryCounts,
    MemoryRecord,
    OverviewRecord,
    Problem,
    RequestCounts,
    RequestRecord,
    UpstreamRecord,
)
from gateway.run.admin.request_operations import RequestOperations
from gateway.run.request_figures import RequestFigures
from gateway.run.request_log import RequestLog
from storage.errors import Busy, StoreError, TooSlow
from storage.records import JobState
from storage.sql.store import Store

WELL = "All is well."
# Requests and memories that are listed.
_LISTED = 10

# Returns the memories with the newest turns. Its arguments: a project, or None for all; the most memories.
NewestMemories = Callable[[str | None, int], Awaitable[Sequence[MemoryRecord]]]


class OverviewOperation(Struct, frozen=True):
    """Shows how this process and its database are."""

    store: Store
    log: RequestLog
    requests: RequestOperations
    newest_memories: NewestMemories
    # Returns by the name of each upstream whether it is passed over.
    passed_over: Callable[[], Mapping[str, bool]]
    version: str

    async def show(self, project: str | None = None) -> OverviewRecord:
        """Returns the overview. project: what it is limited to; None: all."""
        log = self.log
        figures = log.figures.last_hour(log.now(), project)
        passed_over = self.passed_over()
        is_up, is_whole = self.store.health.is_up, True
        jobs = JobCounts(None, None)
        replies: tuple[RequestRecord, ...] = ()
        memories: Sequence[MemoryRecord] | None = None
        try:
            replies = (await self.requests.list(project=project, limit=_LISTED)).items
            counts = await self.store.jobs.counts(project)
            failed = counts.pop(JobState.DEAD)
            jobs = JobCounts(sum(counts.values()), failed)
            memories = await self.newest_memories(project, _LISTED)
        except (TooSlow, Busy):
            is_whole = False
        except StoreError:
            is_up = False
        problems = _find_problems(figures, passed_over, jobs, is_up=is_up, is_whole=is_whole)
        is_down = not is_up or (bool(passed_over) and all(passed_over.values()))
        return OverviewRecord(
            state="down" if is_down else "degraded" if problems else "well",
            sentence=" ".join(each.text for each in problems) or WELL,
            problems=tuple(problems),
            version=self.version,
            requests=RequestCounts(len(log.in_flight(project=project)), figures.count, figures.failed),
            memory=MemoryCounts(
                *(figures.modes.get(mode, 0) for mode in ("on", "read", "off", "none", "unavailable"))
            ),
            added_ms=AddedTime(figures.added_p50, figures.added_p99),
            upstreams=tuple(
                UpstreamRecord(name, "rests" if rests else "well") for name, rests in passed_over.items()
            ),
            jobs=jobs,
            replies=replies,
            people=None if memories is None else tuple(memories),
        )


def _find_problems(
    figures: RequestFigures,
    passed_over: Mapping[str, bool],
    jobs: JobCounts,
    *,
    is_up: bool,
    is_whole: bool,
) -> list[Problem]:
    """Returns what is wrong, worst first. is_whole: all was read."""
    found: list[Problem] = []
    count, modes = figures.count, figures.modes
    if not is_up:
        found.append(Problem("The database cannot be used: replies go on without memory.", "requests"))
    resting = [name for name, rests in passed_over.items() if rests]
    if resting and len(resting) == len(passed_over):
        found.append(Problem("No upstream answers: each one rests after it has failed.", "requests"))
    elif resting:
        is_one = len(resting) == 1
        named = f"The upstream {resting[0]}" if is_one else f"The upstreams {', '.join(resting)}"
        words = "rests after it has failed" if is_one else "rest after they have failed"
        found.append(Problem(f"{named} {words}: others answer.", "requests"))
    if failed := jobs.failed:
        found.append(Problem(f"{failed:,} {'job has' if failed == 1 else 'jobs have'} failed.", "work"))
    if missed := modes.get("unavailable", 0):
        words = f"Memory was unavailable for {missed:,} of {count:,} requests in the last hour."
        found.append(Problem(words, "requests"))
    if figures.failed:
        words = f"{figures.failed:,} of {count:,} requests failed in the last hour."
        found.append(Problem(words, "requests"))
    if unnamed := modes.get("none", 0):
        requests, them = ("request", "it") if unnamed == 1 else ("requests", "them")
        words = f"{unnamed:,} {requests} named nobody: nothing is remembered of {them}."
        found.append(Problem(words, "requests"))
    if not is_whole:
        found.append(Problem("Not all of this could be read in time: open it again.", ""))
    return found
