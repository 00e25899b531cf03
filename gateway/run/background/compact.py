"""Compaction: what will soon leave a conversation's window is summarised, by a job beside the conversation.

A turn whose window fills up asks for it when it has been written; nothing waits for it. What the job needs to know
of the conversation it reads from the store. A model that is down, refuses or talks nonsense changes nothing: the
window is cut without a summary meanwhile, and the job is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from gateway.core.conversation.tree import Tree
from gateway.core.prompt.summary import (
    MOST_TOKENS,
    PART_CHARS,
    Nonsense,
    Overfull,
    Share,
    ask_for,
    check,
    end_of_span,
    parts,
    told,
)
from gateway.errors import BadRequest
from gateway.run.admin.forget import scope_of
from gateway.run.admin.operations import Operation
from gateway.run.background.model import BackgroundModel
from gateway.run.background.worker import JobContext, JobFailed
from gateway.run.pending import Pending
from gateway.tokens import message_tokens, tokenizer_for
from storage.base import Store
from storage.commands import Committed
from storage.errors import Stale
from storage.records import Exchange

__all__ = ["COMPACT", "Compactor", "compact_operation"]

COMPACT = "compact"  # the kind of the job
_SLACK = 2  # tokens that a model may take for each that it was asked for; what is too long is cut


class Compactor:
    """now: seconds since the epoch. pending: holds what is written after a turn, until the process ends."""

    def __init__(
        self, store: Store, background: BackgroundModel, now: Callable[[], float], pending: Pending
    ) -> None:
        self._store = store
        self._background = background
        self._now = now
        self._pending = pending

    def want(self, turn: Committed, overfull: Overfull) -> None:
        """A window fills up; what is asked for while a job waits is the same job. Returns at once."""
        self._pending.add(self._enqueue(turn, overfull), "that a conversation wants a summary")

    async def _enqueue(self, turn: Committed, overfull: Overfull) -> None:
        payload = {"exchange": turn.exchange, "keep": overfull.keep, "size": overfull.size}
        with suppress(Stale):  # something was forgotten: the next turn asks again
            await self._store.jobs.enqueue(
                COMPACT,
                turn.agent.id,
                str(turn.conversation),
                orjson.dumps(payload),
                epoch=turn.agent.epoch,
            )

    async def run(self, job: JobContext) -> None:
        wanted = orjson.loads(job.payload)
        keep, size = int(wanted["keep"]), int(wanted["size"])
        project = self._store.summaries.project(job.agent)
        path = await self._store.summaries.path(job.agent, int(wanted["exchange"]))
        if project is None or not path:
            return
        earlier = self._store.summaries.at(job.agent, path[0].id)
        shares = await asyncio.to_thread(_shares, path)
        end = end_of_span(shares, keep)
        first = 1 if earlier is not None else 0
        if end is None or end < first:
            return  # it is all covered, or all of it stays
        lines = told(path[first : end + 1])
        text = earlier.text if earlier is not None else ""
        told_of = 0
        for part in parts(lines, PART_CHARS):
            step = f"{path[end].id}: {told_of} and {len(part)}"  # names what it was made of
            text = await self._fold(job, step, project, text, part, size)
            told_of += len(part)
        if not text:
            return  # nothing of it may be told
        tokens = await asyncio.to_thread(tokenizer_for(path[end].model).count, text)
        await job.finish(
            self._store.summaries.adding(
                job.agent, path[end], text, tokens=tokens, at=self._now(), model=self._background.model
            )
        )

    async def _fold(
        self, job: JobContext, step: str, project: str, earlier: str, part: Sequence[str], size: int
    ) -> str:
        """The notes with this part in them. Raises: JobFailed where the model gave none."""

        async def ask() -> bytes:
            reply = await self._background.ask(
                project, ask_for(earlier, part, size), max_tokens=_SLACK * size
            )
            if reply.message.get("refusal"):
                raise JobFailed("the background model refused to summarise")
            try:
                text = check(reply.text, part, earlier, size=size, finish_reason=reply.finish_reason)
            except Nonsense as error:
                raise JobFailed(error.message) from None
            return text.encode()

        return (await job.step(step, ask)).decode()


def _shares(path: Sequence[Exchange]) -> list[Share]:
    return [_share(x, tokenizer_for(path[-1].model).count) for x in path]


def _share(x: Exchange, count: Callable[[str], int]) -> Share:
    content = Tree([x]).content(x)
    messages = content.messages or []
    replies = content.full or ([content.said] if content.said is not None else [])
    tokens = sum(message_tokens(m, count) for m in (*messages, *replies))
    return Share(tokens, bool(messages) and messages[0].get("role") == "user")


def compact_operation(store: Store, *, has_model: bool) -> Operation:
    """Compaction by hand. project, profile; user or else conversation; in: which of the user's conversations, by its
    public name or the client's; without, the one that spoke last. Answers {"job"}; the serving process does it."""

    async def compact(arguments: Mapping[str, Any]) -> Any:
        if not has_model:
            raise BadRequest("There is no background model to summarise with: set memory.background_model.")
        project, profile, subject = scope_of(arguments)
        if subject is None:
            raise BadRequest("Say whose conversation: user, or the conversation of nobody.", param="user")
        name = arguments.get("in")
        if name is not None and not isinstance(name, str):
            raise BadRequest(f"in must be a text, saw {name!r}.", param="in")
        agents = store.forgetting.find(project, profile or "default", subject, limit=1)
        tip = store.summaries.tip(agents[0], name) if agents else None
        if tip is None:
            raise BadRequest("There is no such conversation here.", param="in" if name else "user")
        exchange, conversation = tip
        payload = {"exchange": exchange, "keep": 0, "size": MOST_TOKENS}
        job = await store.jobs.enqueue(COMPACT, agents[0], str(conversation), orjson.dumps(payload))
        return {"job": job}

    return compact
