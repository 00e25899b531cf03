"""Operations that an operator may ask of the process that owns the database: keys and jobs; JSON in, JSON out.

The command line calls them directly when no process serves, and over the owner's admin route when one does. The
operations on memories are in `show`, `forget` and `transfer`; gateway/operations.py puts all of them together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, get_args

from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import BadRequest, GatewayError, MemoryUnavailable
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.settings import DefaultMode
from storage.batch_records import BATCH
from storage.errors import NotFound, Stale, StoreError, WriteConflict
from storage.records import Job, JobState
from storage.sql.keys import DEFAULT_PROJECT, Keys
from storage.sql.store import Store

_Perform = Callable[[RawArguments], Awaitable[Any]]
# Jobs that are listed where no limit is given.
LISTED_JOBS = 100


class Operations:
    """Performs operations by their names."""

    def __init__(self, operations: Mapping[str, _Perform]) -> None:
        self._operations = operations

    def __contains__(self, name: str) -> bool:
        return name in self._operations

    async def perform(self, name: str, raw: RawArguments) -> Any:
        """Performs one operation and returns its answer, which can be written as JSON.

        Raises: GatewayError: there is no such operation; BadRequest; MemoryUnavailable: the store's error.
        """
        operation = self._operations.get(name)
        if operation is None:
            raise GatewayError(f"{name} is not there yet.")
        try:
            return await operation(raw)
        except StoreError as error:
            raise MemoryUnavailable(error.message, retry_after_s=1.0) from error


class KeyOperations(Struct, frozen=True):
    """projects: those that the settings name."""

    keys: Keys
    projects: Collection[str] = ()

    async def create(self, raw: RawArguments) -> dict[str, Any]:
        """Returns the key with its "secret", which cannot be shown again.

        "is_new": nothing named its project before. "is_first": there was no key, not even a revoked one.
        """
        arguments = Arguments(raw)
        memory = arguments.optional_text("memory")
        if memory is not None and memory not in get_args(DefaultMode):
            raise BadRequest(f"memory must be on, read or off, saw {memory!r}.", param="memory")
        opens = "metrics" if arguments.flag("metrics") else None
        project, name = arguments.text("project"), arguments.text("name")
        there = await self.keys.list()
        known = {DEFAULT_PROJECT, *self.projects, *(key.project for key in there)}
        key, secret = await self.keys.create(project, name, memory, opens)
        return {**asdict(key), "secret": secret, "is_new": project not in known, "is_first": not there}

    async def show_all(self, _: RawArguments) -> list[dict[str, Any]]:
        return [asdict(key) for key in await self.keys.list()]

    async def revoke(self, raw: RawArguments) -> dict[str, Any]:
        """Revokes a key. key: its number or its name."""
        try:
            return asdict(await self.keys.revoke(Arguments(raw).text("key")))
        except (NotFound, WriteConflict) as error:
            raise BadRequest(f"{error.message}; `mnemogate keys list` shows them", param="key") from error


class JobOperations(Struct, frozen=True):
    """now: seconds since the epoch."""

    store: Store
    now: Callable[[], float]

    async def show_all(self, raw: RawArguments) -> list[dict[str, Any]]:
        """Returns jobs, the newest first. state: only those of one state."""
        arguments = Arguments(raw)
        state = arguments.optional("state")
        if state is not None and state not in list(JobState):
            raise BadRequest(f"state must be one of {', '.join(JobState)}, saw {state!r}.", param="state")
        limit = arguments.optional_number("limit") or LISTED_JOBS
        return [
            _shown(job)
            for job in await self.store.jobs.list(None if state is None else JobState(state), limit)
        ]

    async def show(self, raw: RawArguments) -> dict[str, Any]:
        id = Arguments(raw).number("job")
        job = await self.store.jobs.get(id)
        if job is None:
            raise BadRequest(f"there is no job {id}; `mnemogate jobs` shows them", param="job")
        return {**_shown(job), "steps": [asdict(step) for step in await self.store.jobs.steps(id)]}

    async def retry(self, raw: RawArguments) -> dict[str, Any]:
        return await self._change(raw, self.store.jobs.retry)

    async def cancel(self, raw: RawArguments) -> dict[str, Any]:
        """Deletes a job. A batch ends with its own, which nothing else would end."""
        job = await self._change(raw, self.store.jobs.cancel)
        if job["kind"] == BATCH:
            batches = self.store.batches
            await batches.cancel(await batches.find(None, job["key"]), self.now())
        return job

    async def _change(self, raw: RawArguments, change: Callable[[int], Awaitable[Job]]) -> dict[str, Any]:
        try:
            return _shown(await change(Arguments(raw).number("job")))
        except (NotFound, Stale) as error:
            raise BadRequest(f"{error.message}; `mnemogate jobs` shows them", param="job") from error


def _shown(job: Job) -> dict[str, Any]:
    """Leaves out the payload, which only the handler of its kind can read."""
    shown = asdict(job)
    del shown["payload"]
    return shown
