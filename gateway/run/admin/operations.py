"""What an operator may ask of the process that owns the database: named operations, JSON in, JSON out.

The command line calls them directly when nobody serves, and over the owner's admin route when somebody does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from gateway.errors import BadRequest, MemoryUnavailable
from storage.base import Jobs, Keys
from storage.errors import NotFound, Stale, StoreError, WriteConflict
from storage.records import Job, JobState

__all__ = ["Operation", "job_operations", "key_operations", "meaning", "telling"]

Operation = Callable[[Mapping[str, Any]], Awaitable[Any]]


def key_operations(keys: Keys) -> dict[str, Operation]:
    async def create(arguments: Mapping[str, Any]) -> Any:
        key, secret = await keys.create(_text(arguments, "project"), _text(arguments, "name"))
        return {**asdict(key), "secret": secret}

    async def show(_: Mapping[str, Any]) -> Any:
        return [asdict(key) for key in keys.list()]

    async def revoke(arguments: Mapping[str, Any]) -> Any:
        try:
            return asdict(await keys.revoke(_text(arguments, "key")))
        except (NotFound, WriteConflict) as error:
            raise BadRequest(f"{error.message}; `mnemogate keys list` shows them", param="key") from error

    return {"keys-create": create, "keys-list": show, "keys-revoke": revoke}


def job_operations(jobs: Jobs) -> dict[str, Operation]:
    async def show_all(arguments: Mapping[str, Any]) -> Any:
        state = arguments.get("state")
        if state is not None and state not in list(JobState):
            known = ", ".join(JobState)
            raise BadRequest(f"state must be one of {known}, saw {state!r}.", param="state")
        limit = _number(arguments, "limit") if "limit" in arguments else 100
        return [_shown(job) for job in jobs.list(None if state is None else JobState(state), limit)]

    async def show(arguments: Mapping[str, Any]) -> Any:
        id = _number(arguments, "job")
        job = jobs.get(id)
        if job is None:
            raise BadRequest(f"there is no job {id}; `mnemogate jobs` shows them", param="job")
        return {**_shown(job), "steps": [asdict(step) for step in jobs.steps(id)]}

    def change(perform: Callable[[int], Awaitable[Job]]) -> Operation:
        async def changed(arguments: Mapping[str, Any]) -> Any:
            try:
                return _shown(await perform(_number(arguments, "job")))
            except (NotFound, Stale) as error:
                raise BadRequest(f"{error.message}; `mnemogate jobs` shows them", param="job") from error

        return changed

    return {
        "jobs-list": show_all,
        "jobs-show": show,
        "jobs-retry": change(jobs.retry),
        "jobs-cancel": change(jobs.cancel),
    }


def _shown(job: Job) -> dict[str, Any]:
    """Without the payload, of which only the handler knows what it is."""
    shown = asdict(job)
    del shown["payload"]
    return shown


def meaning(
    operation: Operation,
    default_user: str | None,
    default_profile: Callable[[str], str],
    if_so: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Operation:
    """The same, for those whom requests mean where no user or profile is named.

    default_profile: by project. if_so: for which arguments; None: for all.
    """

    async def perform(arguments: Mapping[str, Any]) -> Any:
        given = {name: value for name, value in arguments.items() if value is not None}
        if if_so is None or if_so(given):
            if default_user is not None and "conversation" not in given:
                given.setdefault("user", default_user)
            given.setdefault("profile", default_profile(str(given.get("project"))))
        return await operation(given)

    return perform


def telling(operation: Operation) -> Operation:
    """The same, with what is wrong with the store said in words."""

    async def perform(arguments: Mapping[str, Any]) -> Any:
        try:
            return await operation(arguments)
        except StoreError as error:
            raise MemoryUnavailable(error.message, retry_after_s=1.0) from error

    return perform


def _number(arguments: Mapping[str, Any], name: str) -> int:
    value = arguments.get(name)
    if type(value) is not int or not 0 < value < 1 << 62:
        raise BadRequest(f"{name} must be a positive number, saw {value!r}.", param=name)
    return value


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{name} must be a non-empty text, saw {value!r}.", param=name)
    return value
