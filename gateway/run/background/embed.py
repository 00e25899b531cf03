"""The job that makes the vectors of messages.

Memories that lack vectors of the embedder are found at the start, so a new embedder embeds everything again. A job
embeds one batch, commits it with the number of its last message, and enqueues the next job; a job that fails is tried
again later. Until there are vectors, memory is searched by words. An error about one text alone holds up no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from adapters.errors import ProviderError, ProviderRefused
from gateway.core.dates import DAY_S
from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from gateway.run.background.background_model import BUSY_S, CALL_S, REFUSAL_STATUSES
from gateway.run.background.budget import CountCall, DailyBudget
from gateway.run.background.embedder import MeteredEmbedder
from gateway.run.background.job_context import JobContext, JobFailed, JobPostponed
from gateway.run.background.schedule import Schedule
from gateway.run.usage.meter import Meter
from gateway.settings import MemorySettings
from storage.database import Connection
from storage.reader_commands import UnembeddedMessages
from storage.records import Agent
from storage.run_records import TokenCounts
from storage.sql.store import Store

# The kind of the job.
EMBED_JOB = "embed"
# The number of new messages after which a memory is embedded. Until then the newest are found by their words. Not
# measured.
_EVERY_MESSAGES = 16
# The characters of a long message that are embedded, from its beginning; the best or the mean of several parts found
# less (measured).
TEXT_CHARS = 800
# The most texts in one call. OpenAI takes 2,048.
BATCH_TEXTS = 64
# The seconds for which no memory is embedded after failures in a row.
PAUSE_S = 30.0
# The number of these failures. A single failure means nothing: with a pause after each, an embedder that fails one call
# in fifty would never catch up with a busy gateway.
MAX_FAILURES = 2


class EmbeddingService:
    """Makes the vectors of all memories."""

    def __init__(
        self,
        store: Store,
        embedder: MeteredEmbedder,
        settings: MemorySettings,
        now: Callable[[], float],
        *,
        concurrency: int = 2,
        count_call: CountCall = lambda outcome, tokens: None,
        meter: Meter | None = None,
    ) -> None:
        """Makes the service; its schedule starts it.

        now: returns the seconds since the epoch.
        concurrency: the most calls at a time.
        meter: the meter that counts the tokens; None: no tokens are counted.
        """
        self.embedder = embedder
        self._store = store
        # The local embedder costs nothing.
        daily_tokens = 0 if embedder.is_local else settings.background_daily_tokens
        # The tokens that calls may use in a day; None: no tokens are counted.
        self._budget = None if meter is None else DailyBudget(meter, now, daily_tokens, count_call)
        # The calls that may be made at the same time.
        self._slots = asyncio.Semaphore(concurrency)
        # Returns the seconds of a clock that never goes back.
        self._clock = time.monotonic
        self._count_call = count_call
        # Jobs do not call the embedder before this time.
        self._paused_until = 0.0
        # The number of jobs in a row that have failed.
        self._failure_count = 0
        # Enqueues the jobs when messages lack vectors.
        self.schedule = Schedule(
            "embedding",
            EMBED_JOB,
            store.jobs,
            self._find_unembedded,
            every=_EVERY_MESSAGES,
            idle_s=settings.idle_s,
            now=now,
        )

    async def _find_unembedded(self, limit: int) -> Sequence[int]:
        return await self._store.vectors.find_agents_to_embed(self.embedder.name, limit)

    # -- the job

    @property
    def pause_s(self) -> float:
        """The seconds for which no job is tried, because the embedder fails; 0 or less: jobs are tried.

        Otherwise the jobs of many memories would fail one after the other, and hold up other work.
        """
        return self._paused_until - self._clock()

    async def run_job(self, job: JobContext) -> None:
        """Embeds the next batch of a memory. Raises: JobFailed, JobPostponed, StoreError."""
        vectors, name = self._store.vectors, self.embedder.name
        # Vectors are in the order of the search index, so the index is made first.
        while await self._store.search_index.advance(job.agent_row):
            pass
        unembedded = await vectors.find_unembedded(job.agent_row, name)
        if unembedded is not None and unembedded.is_new:
            await job.commit(vectors.make_begin_effect(job.agent_row, name))
            unembedded = await vectors.find_unembedded(job.agent_row, name)
        if unembedded is None or unembedded.is_new or not unembedded.agent.scope.spans_conversations:
            return
        try:
            if self.embedder.baseline is None:
                self.embedder.baseline = await self._make_vectors(unembedded.agent, BASELINE_TEXTS)
            new_vectors = await self._embed_messages(unembedded)
        except JobPostponed:
            raise
        except JobFailed:
            self._failure_count += 1
            if self._failure_count >= MAX_FAILURES:
                self._paused_until = self._clock() + PAUSE_S
            raise
        self._failure_count = 0
        add = vectors.make_add_effect(unembedded, new_vectors)

        async def add_and_enqueue(connection: Connection) -> None:
            has_more = await add(connection)
            if has_more:
                await self._store.jobs.enqueue_in(connection, EMBED_JOB, job.agent_row, EMBED_JOB)

        await job.finish(add_and_enqueue)

    async def _embed_messages(self, unembedded: UnembeddedMessages) -> dict[int, bytes]:
        """Returns vectors by the messages' numbers, without messages that the embedder refuses."""
        vectors: dict[int, bytes] = {}
        for start in range(0, len(unembedded.messages), BATCH_TEXTS):
            batch = unembedded.messages[start : start + BATCH_TEXTS]
            texts = [_cut_text_to_embed(message.text) for message in batch]
            batch_vectors = await self._embed_texts(unembedded.agent, texts)
            for message, vector in zip(batch, batch_vectors, strict=True):
                if vector is not None:
                    vectors[message.seq] = vector
        if len(set(map(len, vectors.values()))) > 1:
            raise JobFailed("the embedder gave vectors of different lengths")
        return vectors

    async def _embed_texts(self, agent: Agent, texts: Sequence[str]) -> list[bytes | None]:
        """Returns the vector of each text; None: the embedder refuses the text. Raises: JobFailed, JobPostponed."""
        try:
            return list(await self._make_vectors(agent, texts))
        except _RefusedText:
            # If the embedder refuses the baseline texts as well, the settings or the account are wrong: the job fails.
            await self._make_vectors(agent, BASELINE_TEXTS)
        if len(texts) == 1:
            return [None]
        # A text that the model refuses (too long in the model's own counting, filtered) must not keep the others out.
        vectors: list[bytes | None] = []
        for text in texts:
            try:
                vectors += await self._make_vectors(agent, [text])
            except _RefusedText:
                vectors.append(None)
        return vectors

    async def _make_vectors(self, agent: Agent, texts: Sequence[str]) -> Sequence[bytes]:
        """Returns the vectors of texts. Raises: _RefusedText: the embedder refuses them; JobFailed, JobPostponed."""
        async with self._slots:
            project = agent.scope.project
            if self._budget is not None:
                await self._budget.check(project)
            try:
                embeddings = await self.embedder.embed(texts, CALL_S)
            except TimeoutError:
                self._count_call("failed", 0)
                raise JobFailed(f"the embedder gave no answer in {CALL_S:g} s") from None
            except ProviderRefused as error:
                self._count_call("failed", 0)
                if error.status == 429:
                    wait_s = min(error.retry_after_s or BUSY_S, DAY_S)
                    raise JobPostponed("the embedder is busy (429)", wait_s) from error
                failure = _RefusedText if error.status in REFUSAL_STATUSES else JobFailed
                raise failure(f"the embedder answered {error.status}") from error
            except ProviderError as error:
                self._count_call("failed", 0)
                raise JobFailed(f"the embedder failed: {type(error).__name__}") from error
            if self._budget is not None:
                counts = TokenCounts(embeddings.tokens)
                self._budget.spend(project, agent.id, self.embedder.upstream, self.embedder.model, counts)
            return embeddings.vectors


class _RefusedText(JobFailed):
    """The embedder refuses at least one of the texts."""


def _cut_text_to_embed(text: str) -> str:
    """Returns the part of a text that is embedded, cut between words."""
    text = " ".join(text[: 4 * TEXT_CHARS].split())
    if len(text) <= TEXT_CHARS:
        return text
    space = text.rfind(" ", TEXT_CHARS // 2, TEXT_CHARS)
    return text[: space if space > 0 else TEXT_CHARS]
