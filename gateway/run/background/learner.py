"""Learning: the job that reads confirmed messages and keeps the facts in them.

Without a background model a rule keeps what always holds for the user (gateway.core.memory.standing), and nothing else.

It asks the background model once, which is a journaled step, and writes the facts together with the cursor. After an
error the job is tried again. An answer without a usable call teaches nothing, and the cursor moves on. So it does where
a model that answers others refuses a text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from gateway.core.memory import learn
from gateway.core.memory.standing import learn_standing
from gateway.core.memory.transcript import MESSAGE_CHARS, clean_messages
from gateway.core.prompt import note
from gateway.run.background.background_model import BackgroundModel, RequestRefused
from gateway.run.background.schedule import AT_START, Schedule
from gateway.run.background.worker import JobContext
from gateway.settings import MemorySettings
from storage.commands import Learned, Unread
from storage.database import Effect
from storage.errors import TooSlow
from storage.records import LEARNER, RULE, Block, Fact, Message
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

KIND = "learn"
# One call reads messages of this length, about 6,000 tokens. Each failure of the job halves it, down to an eighth.
BATCH_CHARS = 24_000
_HALVINGS = 3
# So many messages make nothing due.
_NEVER = 2**62
# One call shows so many known facts. Of a larger memory these are the newest (a third) and those that the messages
# recall.
SHOWN_FACTS = 60
# The job waits this much longer than the idle time, so that the last message is confirmed by then.
MARGIN_S = 1.0
# The deadline of a job's searches: no reply waits for them.
_SEARCH_MS = 5_000.0


class Learning:
    """Learns from people's memories when they are due. now: seconds since the epoch, as turns are dated."""

    def __init__(
        self,
        store: Store,
        background: BackgroundModel | None,
        settings: MemorySettings,
        now: Callable[[], float],
        but: Sequence[str] = (),
    ) -> None:
        """background: None: the rule alone reads. but: profiles with users' memories that sleeptime agents read."""
        self._but = but
        self._store = store
        self._background = background
        self._idle_s = settings.idle_s
        self._keeps_secrets = settings.learn_secrets
        self._now = now
        # It has answered since the start: what it refuses is not refused for the settings' sake.
        self._answers = False
        self._reader = LEARNER if background is not None else RULE
        self.schedule = Schedule(
            "learning",
            KIND,
            store.jobs,
            self._start,
            # What a rule keeps is for other conversations, and waits until this one rests.
            every=settings.learn_every if background is not None else _NEVER,
            idle_s=settings.idle_s + MARGIN_S,
            now=now,
            # The newest turn is not confirmed before the next one.
            leaves_out_last=True,
        )

    async def _start(self) -> None:
        self.schedule.enqueue_when_idle(
            await self._store.readers.unlearned(AT_START, self._but, self._reader)
        )

    # -- the job

    async def handle(self, job: JobContext) -> None:
        """Learns from the next batch of a memory. Raises: JobFailed, Postponed, StoreError."""
        asked = orjson.loads(await job.step("ask", lambda: self._ask(job)))
        cursor, upto = asked["cursor"], asked["upto"]
        if asked["is_more"]:
            # Before this job ends, so that a crash in between leaves nothing unread.
            await self._store.jobs.enqueue(KIND, job.agent, KIND)
        if upto > cursor:
            # Read again, because what was asked about may have been forgotten, or learned by another job.
            found = await self._next(job, upto)
            if found is None or found.cursor != cursor:
                return
            if not await self._learn(job, asked, found):
                self.schedule.enqueue_now([job.agent])
                return
        if asked["is_waiting"]:
            self.schedule.enqueue_when_idle([job.agent])

    async def _next(self, job: JobContext, upto: int | None = None) -> Unread | None:
        """Reads the next batch. upto: the batch that an earlier attempt read, by its end."""
        return await self._store.readers.unread(
            job.agent,
            self._reader,
            now=self._now(),
            idle_s=self._idle_s,
            limit_chars=BATCH_CHARS >> min(max(job.job.tries - 1, 0), _HALVINGS),
            message_chars=MESSAGE_CHARS,
            upto=upto,
        )

    async def _ask(self, job: JobContext) -> bytes:
        """Asks the model. Returns, as JSON, what was read, what was shown with it, and the calls of the answer."""
        found = await self._next(job)
        asked: dict[str, Any] = {"cursor": 0, "upto": 0, "is_more": False, "is_waiting": False}
        scope = None if found is None else found.agent.scope
        if found is not None and scope is not None and scope.is_person and scope.profile not in self._but:
            messages = clean_messages(found.messages, keeps_secrets=self._keeps_secrets)
            is_shown = messages and self._background is not None
            facts = await self._related(found, messages) if is_shown else []
            asked = {
                "cursor": found.cursor,
                "upto": found.upto,
                "is_more": found.is_more,
                "is_waiting": found.is_waiting,
                "messages": [message.seq for message in messages],
                "shown": [fact.seq for fact in facts],
                "blocks": {},
                "calls": [],
            }
            if messages:
                if self._background is None:
                    return orjson.dumps(asked)
                blocks = learn.with_human(await self._store.facts.blocks(job.agent))
                asked["blocks"] = {block.label: block.version for block in blocks}
                request = learn.build_request(blocks, facts, messages, self._now())
                asked["calls"] = await self._calls(job, self._background, found.agent.scope.project, request)
        return orjson.dumps(asked)

    async def _calls(
        self,
        job: JobContext,
        background: BackgroundModel,
        project: str,
        request: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, str]]:
        """Returns the calls of the model's answer; none where it refuses what no smaller batch would be without."""
        try:
            reply = await background.ask(project, request, tools=learn.tool_definitions(), memory=job.agent)
        except RequestRefused:
            if not self._answers or job.job.tries <= _HALVINGS:
                raise
            _log.warning(
                "Learning: the background model refuses to read a part of a memory, which is skipped."
            )
            return []
        self._answers = True
        return learn.read_calls(reply.message)

    async def _related(self, unread: Unread, messages: Sequence[Message]) -> Sequence[Fact]:
        """Returns the known facts that the model sees: all of a small memory, else the newest and the related."""
        facts = await self._store.facts.list(unread.agent.id, limit=SHOWN_FACTS + 1)
        if len(facts) <= SHOWN_FACTS:
            return facts[::-1]
        newest = facts[: SHOWN_FACTS // 3]
        query = note.make_query("\n".join(m.text for m in messages if m.role == "user"))
        try:
            hits = await self._store.recall.search(
                unread.agent,
                query,
                limit=SHOWN_FACTS - len(newest),
                deadline_ms=_SEARCH_MS,
            )
        except TooSlow:
            hits = []
        seqs = {f.seq for f in newest} | {m.seq for m in hits if m.source == "fact"}
        return await self._store.facts.get(unread.agent.id, sorted(seqs))

    async def _learn(self, job: JobContext, asked: dict[str, Any], unread: Unread) -> bool:
        """Writes the answer's edits. Returns False if a message that the model read is gone.

        Then the source of an answer is unknown, and the job has to ask again.
        """
        messages = clean_messages(unread.messages, keeps_secrets=self._keeps_secrets)
        if asked["calls"] and [message.seq for message in messages] != asked.get("messages"):
            return False
        if self._background is None:
            known = await self._store.facts.standing(job.agent)
            learned = learn_standing(messages, known, keeps_secrets=self._keeps_secrets)
            await job.finish(self._effect(unread, asked, lambda blocks: learned))
            return True
        shown = await self._store.facts.get(job.agent, asked["shown"])
        reading = learn.read_reply(asked["calls"])
        dropped = 0

        def decide(blocks: Sequence[Block]) -> Learned:
            nonlocal dropped
            learned = learn.changes_from(
                reading, messages, shown, blocks, asked["blocks"], keeps_secrets=self._keeps_secrets
            )
            dropped = learned.dropped
            return learned

        await job.finish(self._effect(unread, asked, decide))
        if dropped:
            _log.info("Learning: %d calls of the background model were invalid and were ignored.", dropped)
        return True

    def _effect(
        self, unread: Unread, asked: Mapping[str, Any], decide: Callable[[Sequence[Block]], Learned]
    ) -> Effect:
        """Returns the effect that writes what was learned and moves the cursor."""
        return self._store.facts.learn_effect(
            unread.agent, asked["cursor"], asked["upto"], self._now(), decide, self._reader
        )
