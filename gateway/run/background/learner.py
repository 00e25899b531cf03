"""Learning: the job that reads confirmed messages and stores the facts in them.

Without a background model a rule stores what always holds for the user (gateway.core.memory.standing), nothing else.

It asks the background model once, which is a journaled step, and writes the facts together with the cursor. After an
error or an answer that was cut off, the job is tried again with less to read. After a whole answer without a usable
call the cursor moves on, and nothing is learned; so it is if the model refuses these messages, and answers a request
without them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.finish_reasons import CUT_REASONS
from gateway.core.memory.learned_changes import apply_reply_edits
from gateway.core.memory.learning_reply import read_edits, read_reply_calls
from gateway.core.memory.learning_request import build_request, make_request_tools, with_human
from gateway.core.memory.standing import learn_standing
from gateway.core.memory.transcript import MESSAGE_CHARS, clean_messages
from gateway.core.prompt import note_query
from gateway.run.background.background_model import BackgroundModel, ModelAnswer, RequestRefused
from gateway.run.background.job_context import JobContext, JobFailed
from gateway.run.background.schedule import NEVER, Schedule
from gateway.settings import MemorySettings
from storage.commands import SourcedLine
from storage.database import Effect
from storage.errors import StoreTimeout
from storage.reader_commands import LearnedChanges, UnreadMessages
from storage.records import LEARNER, RULE, Block, Fact, Message, Scope
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The kind of the job.
LEARN_JOB = "learn"
# The characters of the messages that one call reads, about 6,000 tokens. Each failure of the job halves the number.
BATCH_CHARS = 24_000
# The most times that the number is halved.
_HALVINGS = 3
# The known facts that one call shows. Of a larger memory these are the newest (a third) and the facts that the messages
# recall.
_SHOWN_FACTS = 60
# The time that the job waits beyond the idle time, so that the last message is confirmed by then.
MARGIN_S = 1.0
# The deadline of a job's searches: no reply waits for them.
_SEARCH_MS = 5_000.0


class _BatchAnswer(Struct, frozen=True):
    """The messages that a job has read, and the answer of the model. The job's step journals it."""

    # The number up to which the memory was read before.
    cursor: int = 0
    # The number up to which this batch goes; equal to `cursor` if no message was read.
    upto: int = 0
    # True: more confirmed messages follow.
    is_more: bool = False
    # True: messages follow that are not confirmed yet.
    is_waiting: bool = False
    # The numbers of the messages that were read.
    messages: Sequence[int] = ()
    # The numbers of the facts that the model has seen with them.
    shown: Sequence[int] = ()
    # The versions of the blocks that the model has seen, by their labels.
    blocks: Mapping[str, int] = {}
    # The calls that `read_reply_calls` returns.
    calls: Sequence[Mapping[str, str]] = ()


class LearningService:
    """Learns from people's memories when they are due."""

    def __init__(
        self,
        store: Store,
        background: BackgroundModel | None,
        settings: MemorySettings,
        now: Callable[[], float],
        excluded_profiles: Sequence[str] = (),
    ) -> None:
        """Makes the service; its schedule starts it.

        background: the model that reads messages; None: messages are read by rules alone.
        now: returns the seconds since the epoch, by the clock that dates turns.
        excluded_profiles: the profiles with memories that sleeptime agents read instead.
        """
        self._excluded_profiles = excluded_profiles
        self._store = store
        self._background = background
        # The seconds after which a turn is confirmed.
        self._idle_s = settings.idle_s
        # True: texts that look like secrets are learned as well.
        self._keeps_secrets = settings.learn_secrets
        self._now = now
        # The reader of memories as which the service notes its progress.
        self._reader = LEARNER if background is not None else RULE
        # Enqueues the jobs when a memory has new messages.
        self.schedule = Schedule(
            "learning",
            LEARN_JOB,
            store.jobs,
            self._find_unlearned,
            # Facts of a rule are for other conversations, so they wait until this conversation is idle.
            every=settings.learn_every if background is not None else NEVER,
            idle_s=settings.idle_s + MARGIN_S,
            now=now,
            # The newest turn is not confirmed before the next one.
            leaves_out_last=True,
        )

    async def _find_unlearned(self, limit: int) -> Sequence[int]:
        return await self._store.readers.load_unlearned(limit, self._excluded_profiles, self._reader)

    # -- the job

    async def run_job(self, job: JobContext) -> None:
        """Learns from the next batch of a memory. Raises: JobFailed, JobPostponed, StoreError."""
        background = self._background
        if background is None:
            await self._run_rule(job)
            return
        journaled_batch = await job.step("ask", lambda: self._ask(job, background))
        batch = msgspec.json.decode(journaled_batch, type=_BatchAnswer)
        if batch.is_more:
            # The next job is enqueued before this job ends, so that a crash in between leaves nothing unread.
            await self._store.jobs.enqueue(LEARN_JOB, job.agent_row, LEARN_JOB)
        if batch.upto > batch.cursor:
            # Read again, because the messages may have been forgotten meanwhile, or learned from by another job.
            unread = await self._read_batch(job, batch.upto)
            if unread is None or unread.cursor != batch.cursor:
                return
            if not await self._write_answer(job, batch, unread):
                self.schedule.enqueue_now([job.agent_row])
                return
        if batch.is_waiting:
            self.schedule.enqueue_when_idle([job.agent_row])

    async def _run_rule(self, job: JobContext) -> None:
        """Stores the facts that the rule finds in the next batch of a memory. Raises: StoreError."""
        unread = await self._read_batch(job)
        if unread is None or not self._learns_from(unread.agent.scope):
            return
        if unread.is_more:
            await self._store.jobs.enqueue(LEARN_JOB, job.agent_row, LEARN_JOB)
        if unread.upto > unread.cursor:
            messages = await self._clean_messages(unread)
            standing_facts = await self._store.facts.list_standing(job.agent_row)
            # A thread, since each statement is compared with all others, which takes a second for thousands.
            learned = await asyncio.to_thread(
                learn_standing, messages, standing_facts, now=self._now(), keeps_secrets=self._keeps_secrets
            )
            await job.finish(self._make_effect(unread, unread.upto, lambda blocks: learned))
        if unread.is_waiting:
            self.schedule.enqueue_when_idle([job.agent_row])

    def _learns_from(self, scope: Scope) -> bool:
        """Returns whether this service learns from a memory."""
        return scope.is_person and scope.profile not in self._excluded_profiles

    async def _read_batch(self, job: JobContext, upto: int | None = None) -> UnreadMessages | None:
        """Returns the next batch, or None if the memory is gone or paused.

        upto: the end of the batch that an earlier attempt has read; None: no earlier attempt has.
        """
        unread = await self._store.readers.find_unread(
            job.agent_row,
            self._reader,
            now=self._now(),
            idle_s=self._idle_s,
            limit_chars=BATCH_CHARS >> min(max(job.job.tries - 1, 0), _HALVINGS),
            message_chars=MESSAGE_CHARS,
            upto=upto,
        )
        return None if unread is None or unread.agent.paused_at is not None else unread

    async def _ask(self, job: JobContext, background: BackgroundModel) -> bytes:
        """Returns the journaled step of the job: `_BatchAnswer`, as JSON."""
        return msgspec.json.encode(await self._read_and_ask(job, background))

    async def _read_and_ask(self, job: JobContext, background: BackgroundModel) -> _BatchAnswer:
        """Reads the next batch, and asks the model about it if there is something to learn from."""
        unread = await self._read_batch(job)
        if unread is None or not self._learns_from(unread.agent.scope):
            return _BatchAnswer()
        scope = unread.agent.scope
        messages = await self._clean_messages(unread)
        batch = _BatchAnswer(unread.cursor, unread.upto, unread.is_more, unread.is_waiting)
        if not messages:
            return batch
        facts = await self._choose_shown_facts(unread, messages)
        blocks = with_human(await self._store.facts.load_blocks(job.agent_row))

        async def ask(messages: Sequence[Message]) -> ModelAnswer:
            request = build_request(blocks, facts, messages, self._now())
            return await background.ask(
                scope.project, request, tools=make_request_tools(), agent_row=job.agent_row
            )

        return replace(
            batch,
            messages=[message.seq for message in messages],
            shown=[fact.seq for fact in facts],
            blocks={block.label: block.version for block in blocks},
            calls=await _ask_calls(ask, messages, is_smallest=job.job.tries > _HALVINGS),
        )

    async def _clean_messages(self, unread: UnreadMessages) -> list[Message]:
        """Returns the messages of a batch without secrets. Works in a thread, since it searches all messages."""
        return await asyncio.to_thread(clean_messages, unread.messages, keeps_secrets=self._keeps_secrets)

    async def _choose_shown_facts(
        self, unread: UnreadMessages, messages: Sequence[Message]
    ) -> Sequence[Fact]:
        """Returns the known facts that the model sees: all of a small memory, else the newest and the related facts."""
        facts = await self._store.facts.list_unmuted(unread.agent.id, _SHOWN_FACTS + 1)
        if len(facts) <= _SHOWN_FACTS:
            return facts[::-1]
        newest_facts = facts[: _SHOWN_FACTS // 3]
        query = note_query.make_query(
            "\n".join(message.text for message in messages if message.role == "user")
        )
        try:
            hits = await self._store.recall.search(
                unread.agent,
                query,
                limit=_SHOWN_FACTS - len(newest_facts),
                takes=lambda message: message.kind == "fact",
                deadline_ms=_SEARCH_MS,
            )
        except StoreTimeout:
            hits = []
        seqs = {fact.seq for fact in newest_facts} | {hit.seq for hit in hits}
        shown_facts = await self._store.facts.load(unread.agent.id, sorted(seqs))
        return [fact for fact in shown_facts if fact.ended_at is None and not fact.muted]

    async def _write_answer(self, job: JobContext, batch: _BatchAnswer, unread: UnreadMessages) -> bool:
        """Writes the edits of the model's answer.

        Returns False if a message that the model read is gone. The answer may come from it, so the job asks again.
        """
        messages = await self._clean_messages(unread)
        if batch.calls and [message.seq for message in messages] != list(batch.messages):
            return False
        numbers = {seq: number for number, seq in enumerate(batch.shown, 1)}
        shown_facts = await self._store.facts.load(job.agent_row, batch.shown)
        facts_by_number = {numbers[fact.seq]: fact for fact in shown_facts}
        reply_edits = read_edits(batch.calls)
        lines: Sequence[SourcedLine] = ()
        if reply_edits.edits:
            lines = await self._store.facts.load_sourced_lines(job.agent_row, batch.blocks)
        dropped_count = 0

        def decide(blocks: Sequence[Block]) -> LearnedChanges:
            """Returns the changes by the answer, given the present blocks."""
            nonlocal dropped_count
            learned = apply_reply_edits(
                reply_edits,
                messages,
                facts_by_number,
                blocks,
                batch.blocks,
                lines=lines,
                keeps_secrets=self._keeps_secrets,
            )
            dropped_count = learned.dropped
            return learned

        await job.finish(self._make_effect(unread, batch.upto, decide))
        if dropped_count:
            _log.info(
                "Learning left out %d calls of the background model: invalid or too many.", dropped_count
            )
        return True

    def _make_effect(
        self, unread: UnreadMessages, upto: int, decide: Callable[[Sequence[Block]], LearnedChanges]
    ) -> Effect:
        """Returns the effect that writes the learned facts and moves the cursor.

        upto: the number up to which messages were read.
        decide: returns the changes, given the present blocks.
        """
        return self._store.facts.make_learn_effect(
            unread.agent, unread.cursor, upto, now=self._now(), decide=decide, reader=self._reader
        )


async def _ask_calls(
    ask: Callable[[Sequence[Message]], Awaitable[ModelAnswer]],
    messages: Sequence[Message],
    *,
    is_smallest: bool,
) -> list[dict[str, str]]:
    """Returns the calls of the model's answer about messages, or none if the model refuses to read them.

    is_smallest: True: no later attempt reads less, so the calls of an answer that was cut off are taken.

    Raises: JobFailed, JobPostponed.
    """
    try:
        reply = await ask(messages)
    except RequestRefused:
        if not is_smallest:
            raise
        # An answer without the messages shows that they are the cause, and not the settings or the account.
        await ask(())
        _log.warning("Learning: the background model refuses to read a part of a memory, which is skipped.")
        return []
    if reply.finish_reason in CUT_REASONS:
        if not is_smallest:
            raise JobFailed(f"the background model's answer was cut off ({reply.finish_reason})")
        _log.warning(
            "Learning: the background model's answer about a part of a memory was cut off (%s).",
            reply.finish_reason,
        )
    return read_reply_calls(reply.message)
