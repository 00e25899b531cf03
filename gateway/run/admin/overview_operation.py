"""The overview: whether all is well; if not, the problems and their pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from gateway.run.admin.records.memory_records import MemoryRecord
from gateway.run.admin.records.request_records import RequestRecord
from gateway.run.admin.requests.request_operations import RequestOperations
from gateway.run.request_figures import RequestFigures
from gateway.run.request_log import RequestLog
from gateway.run.upstream.provider_errors import FAILURE_WORDS
from storage.errors import StoreError, StoreTimeout
from storage.job_records import JobState
from storage.sql.store import Store

WELL = "All is well."
_HOUR_S = 3600.0
# The statuses with which an upstream refuses its key, or reports that the key is out of credit or over its limit.
_KEY_STATUSES = frozenset({"401", "402", "403", "429"})
# A job that is tried again after one failure or two is no problem yet. Not measured.
_FAILING_TRIES = 3
# The most requests, and the most memories, that the overview lists.
_LISTED_RECORDS = 10

# Returns the memories with the newest turns. Its arguments: a project, or None for all; the most memories.
NewestMemories = Callable[[str | None, int], Awaitable[Sequence[MemoryRecord]]]


class Problem(Struct, frozen=True):
    """Something that is not well."""

    text: str
    # The page that shows more of it, relative to /ui/.
    href: str


class RequestCounts(Struct, frozen=True):
    """Requests of this process: in flight, of the last hour, and those of them that failed."""

    in_flight: int
    last_hour: int
    failed: int


class MemoryCounts(Struct, frozen=True):
    """The requests of the last hour by what became of memory."""

    on: int
    read: int
    off: int
    # No user was named.
    none: int
    unavailable: int


class AddedTime(Struct, frozen=True):
    """The milliseconds that the gateway added to the requests of the last hour; None: no request came."""

    p50: float | None
    p99: float | None


class UpstreamRecord(Struct, frozen=True):
    """An upstream with one of its keys."""

    name: str
    # "rests": it is passed over for a while, because it failed. "fails": it failed at the last request of the hour.
    state: Literal["well", "fails", "rests"]


class JobCounts(Struct, frozen=True):
    """The numbers of jobs that wait or run, and of jobs that failed for good. None: the database cannot be asked."""

    waiting: int | None
    failed: int | None


class OverviewRecord(Struct, frozen=True):
    """How the gateway is."""

    state: Literal["well", "degraded", "down"]
    # "All is well.", or the problems, worst first.
    sentence: str
    problems: tuple[Problem, ...]
    version: str
    requests: RequestCounts
    memory: MemoryCounts
    added_ms: AddedTime
    upstreams: tuple[UpstreamRecord, ...]
    jobs: JobCounts
    # The last requests.
    replies: tuple[RequestRecord, ...]
    # The memories with the newest turns; None: the store could not be read.
    people: tuple[MemoryRecord, ...] | None


class OverviewOperation(Struct, frozen=True):
    """Shows how this process and its database are."""

    store: Store
    # The requests of this process.
    log: RequestLog
    # Reads and explains requests.
    requests: RequestOperations
    # Returns the memories with the newest turns, of a project or all.
    newest_memories: NewestMemories
    # Returns by the name of each upstream whether it is passed over.
    passed_over: Callable[[], Mapping[str, bool]]
    # The version of the gateway.
    version: str

    async def show(self, project: str | None = None) -> OverviewRecord:
        """Returns the overview. project: the only project that it shows; None: all projects."""
        log = self.log
        figures = log.figures.sum_last_hour(log.now(), project)
        passed_over = self.passed_over()
        failures = _find_last_failures(log, project)
        health = self.store.health
        is_up = health.is_up
        is_read_only = health.is_read_only
        is_complete = True
        jobs = JobCounts(None, None)
        failing_count = 0
        replies: tuple[RequestRecord, ...] = ()
        memories: Sequence[MemoryRecord] | None = None
        try:
            replies = (await self.requests.lists.read_page(project=project, limit=_LISTED_RECORDS)).items
            counts = await self.store.jobs.count_by_state(project)
            failed_count = counts.pop(JobState.DEAD)
            jobs = JobCounts(sum(counts.values()), failed_count)
            failing_count = await self.store.jobs.count_failing(project, _FAILING_TRIES)
            memories = await self.newest_memories(project, _LISTED_RECORDS)
        except StoreTimeout:
            is_complete = False
        except StoreError:
            is_up = False
            is_read_only = False
        problems = _find_problems(
            figures,
            passed_over,
            failures,
            jobs,
            failing_count,
            is_up=is_up,
            is_read_only=is_read_only,
            is_complete=is_complete,
        )
        is_down = not is_up or (bool(passed_over) and all(passed_over.values()))
        return OverviewRecord(
            state="down" if is_down else "degraded" if problems else "well",
            sentence=" ".join(each.text for each in problems) or WELL,
            problems=tuple(problems),
            version=self.version,
            requests=RequestCounts(len(log.list_in_flight(project=project)), figures.count, figures.failed),
            memory=MemoryCounts(
                *(figures.modes.get(mode, 0) for mode in ("on", "read", "off", "none", "unavailable"))
            ),
            added_ms=AddedTime(figures.added_p50, figures.added_p99),
            upstreams=tuple(
                UpstreamRecord(name, "rests" if rests else "fails" if name in failures else "well")
                for name, rests in passed_over.items()
            ),
            jobs=jobs,
            replies=replies,
            people=None if memories is None else tuple(memories),
        )


def _find_problems(
    figures: RequestFigures,
    passed_over: Mapping[str, bool],
    failures: Mapping[str, str],
    jobs: JobCounts,
    failing_count: int,
    *,
    is_up: bool,
    is_read_only: bool,
    is_complete: bool,
) -> list[Problem]:
    """Returns the problems, the worst first. is_complete: True: all of the overview was read in time."""
    problems: list[Problem] = []
    if is_read_only:
        problems.append(Problem("The database cannot be written: nothing new is stored.", "requests"))
    elif not is_up:
        problems.append(Problem("The database cannot be used: replies go on without memory.", "requests"))
    if (upstream_problem := _find_upstream_problem(passed_over)) is not None:
        problems.append(upstream_problem)
    for name, rests in passed_over.items():
        if name in failures and not rests:
            words = FAILURE_WORDS.get(failures[name]) or f"answered {failures[name]}"
            problems.append(Problem(f"At the last request the upstream {name} {words}.", "requests"))
    if failed_count := jobs.failed:
        jobs_have = "job has" if failed_count == 1 else "jobs have"
        problems.append(Problem(f"{failed_count:,} {jobs_have} failed.", "work"))
    if failing_count:
        jobs_keep = "job keeps" if failing_count == 1 else "jobs keep"
        problems.append(Problem(f"{failing_count:,} {jobs_keep} failing, and will be tried again.", "work"))
    problems += _list_request_problems(figures)
    if not is_complete:
        problems.append(Problem("Not all of this could be read in time: open it again.", ""))
    return problems


def _find_last_failures(log: RequestLog, project: str | None) -> dict[str, str]:
    """Returns the outcome of the last attempt of the hour at each upstream where it was the upstream's failure."""
    since = log.now() - _HOUR_S
    outcomes: dict[str, str] = {}
    for request in log.list_ended(project=project):
        if request.started_at >= since:
            for attempt in reversed(request.tries):
                name, _, outcome = attempt.rpartition(":")
                outcomes.setdefault(name, outcome)
    return {name: outcome for name, outcome in outcomes.items() if _is_upstream_failure(outcome)}


def _is_upstream_failure(outcome: str) -> bool:
    """Returns whether an attempt failed by the upstream or its key. The other refusals are about the request."""
    if outcome.isdecimal():
        return outcome in _KEY_STATUSES or int(outcome) >= 500
    return outcome != "filtered"


def _find_upstream_problem(passed_over: Mapping[str, bool]) -> Problem | None:
    """Returns the problem that upstreams are passed over; None: all of them are asked."""
    resting_names = [name for name, rests in passed_over.items() if rests]
    if not resting_names:
        return None
    if len(resting_names) == len(passed_over):
        return Problem("No upstream answers: each one rests after it has failed.", "requests")
    if len(resting_names) == 1:
        words = f"The upstream {resting_names[0]} rests after it has failed: others answer."
    else:
        words = f"The upstreams {', '.join(resting_names)} rest after they have failed: others answer."
    return Problem(words, "requests")


def _list_request_problems(figures: RequestFigures) -> list[Problem]:
    """Returns the problems of the requests of the last hour, worst first."""
    problems: list[Problem] = []
    if unavailable_count := figures.modes.get("unavailable", 0):
        text = f"Memory was unavailable for {unavailable_count:,} of {figures.count:,} requests in the last hour."
        problems.append(Problem(text, "requests?only=unavailable"))
    if figures.failed:
        text = f"{figures.failed:,} of {figures.count:,} requests failed in the last hour."
        problems.append(Problem(text, "requests?only=failed"))
    if unnamed_count := figures.modes.get("none", 0):
        requests, them = ("request", "it") if unnamed_count == 1 else ("requests", "them")
        text = f"{unnamed_count:,} {requests} named nobody: nothing is remembered of {them}."
        problems.append(Problem(text, "requests?only=none"))
    return problems
