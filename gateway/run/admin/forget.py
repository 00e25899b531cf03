"""Forgetting, by hand and by age: `mnemogate memory forget`, and `retention_days` of a project.

What is to go is written down before anything is done, so a call that ran out of its time, or a process that died, is
taken up again: by the next call with what is `left`, and when a gateway starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from gateway.core.memory.forget import FORGET_RULES
from gateway.errors import BadRequest
from gateway.run.admin.operations import Operation
from storage.base import Store
from storage.commands import Extent, ForgetTarget
from storage.errors import NotFound, StoreError

__all__ = ["Retention", "forget_operations", "names_part", "scope_of"]

_log = logging.getLogger("mnemogate")

CALL_S = 5.0  # of one call; the command line calls again
RETENTION_S = 6 * 3600.0  # between two looks for what is too old, which is counted in days
_PAGE = 64  # memories begun at a time
_DAY_S = 86_400.0
_PARTS = ("message", "exchange", "in")


def forget_operations(
    store: Store, now: Callable[[], float], *, call_s: float = CALL_S
) -> dict[str, Operation]:
    """memory-forget and memory-undo.

    Forget: project; profile and user (or conversation alone, of nobody); and at most one of message, exchange (numbers)
    and in (a conversation's id). A user without a profile: in all of them. A project alone: all its users. left: what
    an earlier call said was left. Answers {"memories", "left", "done"}; where a part is named also how much it was:
    "messages", "kept" (of the same exchange), "conversation".
    """

    async def forget(arguments: Mapping[str, Any]) -> Any:
        end = time.monotonic() + call_s

        def is_late() -> bool:
            return time.monotonic() > end

        left = [id for id in arguments.get("left") or [] if isinstance(id, int)]
        count, extent = 0, Extent()
        is_more = not left
        if left:
            known = set(store.forgetting.unfinished())
            left = [id for id in left if id in known]  # nobody else's are run to order
        what = _what(arguments)
        if is_more or what is None:
            begun, is_more, extent = await _begin(store, arguments, what, is_late)
            count, left = len(begun), [*left, *begun]
        else:
            is_more = False
        while left and await store.forgetting.run(left[0], FORGET_RULES, is_late):
            left.pop(0)
            if is_late():
                break
        done = not left and not is_more
        if done:
            if what is None and not any(arguments.get(name) for name in ("user", "conversation", "profile")):
                await store.forgetting.forget_project(str(arguments["project"]))
            await store.forgetting.sweep()
        return {"memories": count, "left": left, "done": done, **asdict(extent)}

    async def undo(arguments: Mapping[str, Any]) -> Any:
        project, profile, subject = scope_of(arguments)
        label = arguments.get("block")
        found = store.forgetting.find(project, profile or "default", subject, limit=1)
        blocks = store.blocks.load(found[0]) if found and subject else ()
        block = next((b for b in blocks if b.label == label), None)
        if block is None:
            raise BadRequest(f"There is no block {label!r} in this memory.", param="block")
        try:
            after = await store.blocks.undo(block.id, at=now())
        except NotFound as error:
            raise BadRequest(error.message, param="block") from error
        return {"label": after.label, "version": after.version, "value": after.value}

    return {"memory-forget": forget, "memory-undo": undo}


def scope_of(arguments: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """(project, profile, subject); None: whichever. Raises: BadRequest."""
    for name in ("project", "profile", "user", "conversation"):
        value = arguments.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise BadRequest(f"{name} must be a non-empty text, saw {value!r}.", param=name)
    project = arguments.get("project")
    if project is None:
        raise BadRequest("Say in which project.", param="project")
    user, conversation = arguments.get("user"), arguments.get("conversation")
    if user and conversation:
        raise BadRequest("Name a user, or the conversation of nobody, not both.", param="conversation")
    subject = f"user:{user}" if user else f"conversation:{conversation}" if conversation else None
    return project, arguments.get("profile"), subject


def names_part(arguments: Mapping[str, Any]) -> bool:
    """Whether a part of one memory is to be forgotten, not whole ones."""
    return any(arguments.get(name) is not None for name in _PARTS)


def _what(arguments: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The one part of a memory that is named; None: all of it. Raises: BadRequest."""
    named = [(name, arguments[name]) for name in _PARTS if arguments.get(name) is not None]
    if not named:
        return None
    if len(named) > 1:
        raise BadRequest("Name one of message, exchange and in, not several.", param=named[1][0])
    name, value = named[0]
    if not isinstance(value, str if name == "in" else int) or isinstance(value, bool):
        raise BadRequest(f"{name} is wrong: {value!r}.", param=name)
    if not arguments.get("user") and not arguments.get("conversation"):
        raise BadRequest(f"Say whose {name}: user, or the conversation of nobody.", param="user")
    return name, value


async def _begin(
    store: Store, arguments: Mapping[str, Any], what: tuple[str, Any] | None, is_late: Callable[[], bool]
) -> tuple[list[int], bool, Extent]:
    """(what was begun, is there more, how much it is). Raises: BadRequest where there is no such thing."""
    project, profile, subject = scope_of(arguments)
    forgetting = store.forgetting
    if what is None:
        begun: list[int] = []
        while not is_late() and len(begun) < _PAGE:
            # Each memory that was begun is not found again, so there is no page to turn.
            agents = forgetting.find(project, profile, subject, limit=1)
            if not agents:
                return begun, False, Extent()
            begun.append(await forgetting.begin(agents[0], ForgetTarget(is_all=True)))
        return begun, True, Extent()
    name, value = what
    agents = forgetting.find(project, profile or "default", subject, limit=1)
    target = _target(store, agents[0], name, value) if agents else None
    if target is None:
        raise BadRequest(
            f"There is no {'conversation' if name == 'in' else name} {value!r} here.", param=name
        )
    extent = forgetting.extent(agents[0], target)
    return [await forgetting.begin(agents[0], target)], False, extent


def _target(store: Store, agent: int, name: str, value: Any) -> ForgetTarget | None:
    if name == "in":
        conversation = store.forgetting.conversation(agent, value)
        return None if conversation is None else ForgetTarget(conversation=conversation)
    exchange = store.forgetting.exchange(agent, value)
    if exchange is None:
        return None
    return ForgetTarget(messages=[value]) if name == "message" else ForgetTarget(exchanges=[exchange])


class Retention:
    """Forgets what is older than its project keeps. days: by project. now: seconds since the epoch."""

    def __init__(self, store: Store, days: Mapping[str, float], now: Callable[[], float]) -> None:
        self._store = store
        self._days = days
        self._now = now

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.step()
            except StoreError as error:
                _log.warning("retention: %s", error.message)
            except Exception:
                _log.exception("retention failed")
            await asyncio.sleep(RETENTION_S)

    async def step(self) -> int:
        """All that is too old now, and what was left by a process before this one. Returns of how many memories."""
        forgetting, count = self._store.forgetting, 0
        for id in forgetting.unfinished():
            await forgetting.run(id, FORGET_RULES)
            count += 1
        for project, days in self._days.items():
            before, after = self._now() - days * _DAY_S, 0
            while agents := await forgetting.aged(project, before, after=after, limit=_PAGE):
                for agent in agents:
                    id = await forgetting.begin(agent, ForgetTarget(before=before))
                    await forgetting.run(id, FORGET_RULES)
                count, after = count + len(agents), agents[-1]
        if count:
            await forgetting.sweep()
        return count
