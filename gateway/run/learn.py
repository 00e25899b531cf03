"""Learning after the turn: when a memory is due for it, and the job that reads what was confirmed and keeps what it
says.

A memory is due when enough has been said since it last was, or when it has been left alone for the idle time. Nothing
of this is in the way of a turn: a finished one leaves a number in memory, and a task of its own enqueues the job. What
a process that died did not enqueue the next one finds by the cursor.

The job asks the background model once (a journaled step) and writes what comes of it together with the cursor. Errors
are the job's to try again; an answer without a usable call teaches nothing, and the cursor moves on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.core import learn, recall
from gateway.core.tell import messages_of
from gateway.run.background import Background
from gateway.run.jobs import JobContext
from gateway.run.rounds import Rounds
from gateway.settings import MemorySettings
from storage.base import Store
from storage.errors import Stale, TooSlow
from storage.records import Block, Fact, Learned, Message, Unlearned

__all__ = ["KIND", "Learning"]

_log = logging.getLogger("mnemogate")

KIND = "learn"
BATCH_CHARS = (
    24_000  # of messages in one call, about 6,000 tokens; halved each time it fails, down to an eighth
)
SHOWN_FACTS = 60  # of what is known; of a memory with more, the newest third and what the messages recall
_LEAST_S = 1.0
_MARGIN_S = 1.0  # after the idle time, so that what was said last is over it as well
_AT_START = 10_000  # memories that are looked after when the process begins


@dataclass(slots=True)
class _Waiting:
    """messages: since the last job was enqueued. last: of the newest turn, which is not confirmed yet."""

    at: float
    messages: int = 0
    last: int = 0


class Learning:
    """now: seconds since the epoch, as turns are dated."""

    def __init__(
        self, store: Store, background: Background, settings: MemorySettings, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._background = background
        self._every = settings.learn_every
        self._idle_s = settings.idle_s
        self._secrets = settings.learn_secrets
        self._now = now
        self._waiting: dict[int, _Waiting] = {}  # whoever spoke last stands last
        self._full: set[int] = set()
        self._rounds = Rounds("learning", self._start, self.step)

    # -- when

    def said(self, agent: int, messages: int) -> None:
        """A turn of a person's memory is on disk."""
        waiting = self._waiting.pop(agent, None) or _Waiting(0.0)
        self._waiting[agent] = waiting
        waiting.at = self._now()
        waiting.messages += messages
        waiting.last = messages
        if waiting.messages - messages >= self._every:
            self._full.add(agent)
        if self._full or self._rounds.is_open_ended:
            self._rounds.wake()

    async def run(self) -> None:
        """Until cancelled."""
        await self._rounds.run()

    def _start(self) -> None:
        self._look_after(self._store.facts.waiting(_AT_START))

    def _look_after(self, agents: Sequence[int]) -> None:
        """Once they have been left alone for the idle time."""
        for agent in agents:
            self._waiting.setdefault(agent, _Waiting(self._now()))

    async def step(self) -> float | None:
        """Enqueues what is due. Returns the seconds until there will be more; None: not before something is said."""
        now, rest = self._now(), self._idle_s + _MARGIN_S
        while self._full:
            agent = next(iter(self._full))
            await self._enqueue(agent)
            self._full.discard(agent)
            waiting = self._waiting.get(agent)
            if waiting is not None:
                waiting.messages = waiting.last
        while self._waiting:
            agent, waiting = next(iter(self._waiting.items()))
            if abs(now - waiting.at) < rest:  # on either side: the clock may have been put back
                return max(_LEAST_S, waiting.at + rest - self._now())
            await self._enqueue(agent)
            # Unless something was said meanwhile.
            if self._waiting.get(agent) is waiting and abs(now - waiting.at) >= rest:
                del self._waiting[agent]
        return None

    async def _enqueue(self, agent: int) -> None:
        with suppress(Stale):  # the memory is gone
            await self._store.jobs.enqueue(KIND, agent, KIND)

    # -- the job

    async def handle(self, job: JobContext) -> None:
        """Learns from the next batch of a memory. Raises: JobFailed, Postponed, StoreError."""
        asked = orjson.loads(await job.step("ask", lambda: self._ask(job)))
        cursor, upto = asked["cursor"], asked["upto"]
        if asked["is_more"]:  # before this one ends, so that nothing is left off in between
            await self._store.jobs.enqueue(KIND, job.agent, KIND)
        if upto > cursor:
            found = await self._next(job, upto)
            if found is None or found.cursor != cursor:
                return
            await self._learn(job, asked, found)
        if asked["is_waiting"]:
            self._look_after([job.agent])
            self._rounds.wake()

    async def _next(self, job: JobContext, upto: int | None = None) -> Unlearned | None:
        return await self._store.facts.unlearned(
            job.agent,
            messages_of,
            now=self._now(),
            idle_s=self._idle_s,
            limit_chars=BATCH_CHARS >> min(max(job.job.tries - 1, 0), 3),
            upto=upto,
        )

    async def _ask(self, job: JobContext) -> bytes:
        """What was read, what was shown beside it, and the calls of the answer."""
        found = await self._next(job)
        asked: dict[str, Any] = {"cursor": 0, "upto": 0, "is_more": False, "is_waiting": False}
        if found is not None and found.agent.scope.is_person:
            messages = learn.clean(found.messages, secrets=self._secrets)
            facts = await self._related(found, messages) if messages else []
            asked = {
                "cursor": found.cursor,
                "upto": found.upto,
                "is_more": found.is_more,
                "is_waiting": found.is_waiting,
                "shown": [fact.seq for fact in facts],
                "blocks": {},
                "calls": [],
            }
            if messages:
                blocks = learn.with_human(self._store.facts.blocks(job.agent))
                asked["blocks"] = {block.label: block.version for block in blocks}
                request = learn.build_request(blocks, facts, messages, self._now())
                reply = await self._background.ask(
                    found.agent.scope.project, request, tools=learn.definitions()
                )
                asked["calls"] = learn.keep_calls(reply.message)
        return orjson.dumps(asked)

    async def _related(self, found: Unlearned, messages: Sequence[Message]) -> Sequence[Fact]:
        facts = self._store.facts.list(found.agent.id, limit=SHOWN_FACTS + 1)
        if len(facts) <= SHOWN_FACTS:
            return facts[::-1]
        newest = facts[: SHOWN_FACTS // 3]
        query = recall.make_query("\n".join(m.text for m in messages if m.role == "user"))
        try:
            hits = await self._store.recall.search(
                found.agent,
                query,
                messages_of,
                size=found.agent.next_seq,
                indexed=found.agent.indexed_seq,
                limit=SHOWN_FACTS - len(newest),
                deadline_ms=5_000.0,
            )
        except TooSlow:
            hits = []
        seqs = {f.seq for f in newest} | {m.seq for m in hits if m.source == "fact"}
        return self._store.facts.get(found.agent.id, sorted(seqs))

    async def _learn(self, job: JobContext, asked: dict[str, Any], found: Unlearned) -> None:
        messages = learn.clean(found.messages, secrets=self._secrets)
        shown = self._store.facts.get(job.agent, asked["shown"])
        reading = learn.read_reply(asked["calls"])
        dropped = 0

        def decide(blocks: Sequence[Block]) -> Learned:
            nonlocal dropped
            learned = learn.learn(reading, messages, shown, blocks, asked["blocks"], secrets=self._secrets)
            dropped = learned.dropped
            return learned

        effect = self._store.facts.learning(found.agent, asked["cursor"], asked["upto"], self._now(), decide)
        await job.finish(effect)
        if dropped:
            _log.info("learning: %d calls of the background model made no sense", dropped)
