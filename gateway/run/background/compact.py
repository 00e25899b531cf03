"""Compaction: a job summarises what will soon leave a conversation's window.

A turn whose window fills up asks for the job when it has been written, and nothing waits for it. The job reads the
conversation from the store. A model that is down, refuses or talks nonsense changes nothing: meanwhile the window is
cut without a summary, and the job is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from gateway.core.conversation.private import is_nudge
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
    spoken_lines,
)
from gateway.errors import BadRequest
from gateway.run.admin.arguments import Arguments, Defaults, RawArguments
from gateway.run.background.model import BackgroundModel
from gateway.run.background.worker import JobContext, JobFailed
from gateway.tokens import message_tokens, tokenizer_for
from storage.commands import Committed
from storage.errors import Stale, StoreError
from storage.records import Exchange
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The kind of the job.
COMPACT = "compact"
# A model gets so many times the tokens that it is asked for; a longer summary is cut.
_SLACK = 2


@dataclass(frozen=True, slots=True)
class SummaryRequest:
    """The payload of a job. exchange: up to it. keep: tokens at the end that stay whole. size: tokens of a summary.

    messages: how many at the end stay whole.
    """

    exchange: int
    keep: int
    size: int
    messages: int = 0

    @property
    def payload(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def read(cls, payload: bytes) -> SummaryRequest:
        return cls(**orjson.loads(payload))


@dataclass(eq=False)
class Compactor:
    """Asks for summaries when turns say that a window fills up, and makes them. now: seconds since the epoch."""

    store: Store
    background: BackgroundModel
    now: Callable[[], float]
    _enqueuing: set[asyncio.Task[None]] = field(default_factory=set)

    def want(self, turn: Committed, overfull: Overfull) -> None:
        """Asks for a summary of a conversation whose window fills up. Returns at once.

        A request while a job of the conversation waits becomes that job's.
        """
        task = asyncio.ensure_future(self._enqueue(turn, overfull))
        self._enqueuing.add(task)
        task.add_done_callback(self._enqueuing.discard)

    async def drain(self, timeout_s: float) -> None:
        """Waits until what was asked for is in the queue, for so long at most."""
        if self._enqueuing:
            await asyncio.wait(self._enqueuing, timeout=timeout_s)

    async def _enqueue(self, turn: Committed, overfull: Overfull) -> None:
        request = SummaryRequest(turn.exchange, overfull.keep, overfull.size, overfull.messages)
        agent, conversation = turn.agent, str(turn.conversation)
        try:
            await self.store.jobs.enqueue(COMPACT, agent.id, conversation, request.payload, epoch=agent.epoch)
        except Stale:
            # Something was forgotten since; the next turn asks again.
            pass
        except StoreError as error:
            _log.warning("a job that summarises a conversation was not enqueued: %s", error.message)

    async def run(self, job: JobContext) -> None:
        """Summarises what may leave the window, and stores the summary. Raises: JobFailed, Postponed, StoreError."""
        request = SummaryRequest.read(job.payload)
        project = await self.store.summaries.project(job.agent)
        path = await self.store.summaries.path(job.agent, request.exchange)
        if project is None or not path:
            return
        earlier = await self.store.summaries.at(job.agent, path[0].id)
        shares = await asyncio.to_thread(_shares, path)
        end = end_of_span(shares, request.keep, request.messages)
        first = 1 if earlier is not None else 0
        if end is None or end < first:
            # All of it is covered already, or all of it stays.
            return
        lines = spoken_lines(path[first : end + 1])
        text = earlier.text if earlier is not None else ""
        done = 0
        for part in parts(lines, PART_CHARS):
            # The step's name says what it was made of, so that a later run of another span does not take its result.
            step = f"{path[end].id}: {done} and {len(part)}"
            text = await self._fold(job, step, project, text, part, request.size)
            done += len(part)
        if not text:
            # Nothing of the span may be shown to a model.
            return
        tokens = await asyncio.to_thread(tokenizer_for(path[end].model).count, text)
        await job.finish(
            self.store.summaries.adding(
                job.agent, path[end], text, tokens=tokens, at=self.now(), model=self.background.model
            )
        )

    async def _fold(
        self, job: JobContext, step: str, project: str, earlier: str, part: Sequence[str], size: int
    ) -> str:
        """Returns the summary with this part in it. Raises: JobFailed: the model gave none."""

        async def ask() -> bytes:
            reply = await self.background.ask(project, ask_for(earlier, part, size), max_tokens=_SLACK * size)
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
    # What an agent's rules say to its model goes on with the run.
    opens = bool(messages) and messages[0].get("role") == "user" and not is_nudge(messages[0])
    return Share(tokens, opens, len(messages) + len(replies))


@dataclass(frozen=True, slots=True)
class CompactOperation:
    """Asks for a summary by hand. The job is done by the process that serves."""

    store: Store
    defaults: Defaults
    has_model: bool

    async def compact(self, raw: RawArguments) -> dict[str, int]:
        """Enqueues the job. Returns {"job"}, its number.

        in: one of the user's conversations, by its public name or the client's; without it, the one that spoke last.
        """
        if not self.has_model:
            raise BadRequest("There is no background model to summarise with: set memory.background_model.")
        arguments = Arguments(raw)
        scope, name = arguments.whose(self.defaults).scope, arguments.optional_text("in")
        agents = await self.store.forgetting.find(scope.project, scope.profile, scope.subject, limit=1)
        tip = await self.store.summaries.tip(agents[0], name) if agents else None
        if tip is None:
            raise BadRequest("There is no such conversation here.", param="in" if name else "user")
        exchange, conversation = tip
        # All that may leave the window is summarised, as long as the longest summary of a model's window.
        request = SummaryRequest(exchange, keep=0, size=MOST_TOKENS)
        job = await self.store.jobs.enqueue(COMPACT, agents[0], str(conversation), request.payload)
        return {"job": job}
