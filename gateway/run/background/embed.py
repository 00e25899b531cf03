"""Vectors of messages: the job that makes them, and the vector of a question.

Memories that lack vectors of the embedder are found at the start, so a new embedder embeds everything again. A job
embeds one batch, commits it with the number of its last message, and enqueues the next job; a job that fails is tried
again later. Until there are vectors, memory is searched by words.

Only the vector of a question is waited for by a reply. The wait is bounded, and after failures in a row nothing waits
for a while. An error about one text alone holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from adapters.base import Embedder
from adapters.errors import ProviderError, ProviderRefused
from adapters.types import Embedded, ModelRequest
from gateway.core.dates import DAY_S
from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from gateway.core.prompt.note_query import make_query
from gateway.core.upstream.policy import EndpointHealth, Policy
from gateway.errors import SettingsError, UnknownModel
from gateway.run.background.background_model import BUSY_S, CALL_S, REFUSAL_STATUSES
from gateway.run.background.budget import CountCall, DailyBudget
from gateway.run.background.job_context import JobContext, JobFailed, Postponed
from gateway.run.background.memory_call import open_memory_call
from gateway.run.background.schedule import Schedule
from gateway.run.upstream.route import Route, resolve_route, unknown_model
from gateway.run.usage.meter import Meter
from gateway.settings import MemorySettings, Settings
from storage.commands import Unembedded
from storage.database import Connection
from storage.errors import StoreError
from storage.records import Agent, TokenCounts, Vector
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

EMBED_JOB = "embed"
LOCAL_EMBEDDER = "local"
# New messages after which a memory is embedded. Until then the newest are found by their words.
EVERY_MESSAGES = 16
# A long message is embedded by its beginning; the best or the mean of several parts found less (measured).
TEXT_CHARS = 800
# The number of texts in one call. OpenAI takes 2,048.
BATCH_TEXTS = 64
# Chosen: a local table answers in less than one millisecond, unless the machine has no time at all.
LOCAL_WAIT_MS = 20.0
# After failures in a row the embedder gets no question for a while, as an upstream that fails gets no requests.
_QUESTION_POLICY = Policy()
# The local embedder is asked again sooner: when it was late, the machine was busy.
_LOCAL_QUESTION_POLICY = replace(_QUESTION_POLICY, breaker_s=1.0)
# How long no memory is embedded after failures in a row.
PAUSE_S = 30.0
# How many failures these are. A single failure means nothing: with a pause after each, an embedder that fails one call
# in fifty would never catch up with a busy gateway.
MAX_FAILURES = 2


def find_embedder_route(settings: Settings) -> Route | None:
    """Returns the route of memory.embedder; None: no embedder is named, or it is local. Raises: SettingsError."""
    model = settings.memory.embedder
    if model is None or model == LOCAL_EMBEDDER:
        return None
    try:
        route = resolve_route(settings, model, by_operator=True)
    except UnknownModel as error:
        mistake = unknown_model(settings, "memory.embedder", error)
        raise SettingsError(f"{mistake.message}; {LOCAL_EMBEDDER!r} is the one in this process") from error
    upstream = next(each for each in settings.upstreams if each.name == route.upstream)
    if upstream.kind in ("anthropic", "scripted"):
        raise SettingsError(f"memory.embedder: {upstream.name!r} ({upstream.kind}) has no embeddings")
    return route


def upstream_kind(settings: Settings, embedder: Embedder) -> str:
    """Returns the kind of the upstream of an embedder; "": it is local."""
    name = embedder.name.partition("/")[0]
    return next((each.kind for each in settings.upstreams if each.name == name), "")


class EmbeddingService:
    """Makes the vectors of all memories, and those of questions."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        settings: MemorySettings,
        now: Callable[[], float],
        *,
        concurrency: int = 2,
        count_call: CountCall = lambda outcome, tokens: None,
        meter: Meter | None = None,
        kind: str = "",
    ) -> None:
        """Makes the service; its schedule starts it.

        now: seconds since the epoch.
        concurrency: the most calls at a time.
        meter: counts the tokens that are used; None: they are not counted.
        kind: the kind of the embedder's upstream, in the settings.
        """
        self._kind = kind
        self.embedder = embedder
        self._store = store
        self._wait_ms = LOCAL_WAIT_MS if embedder.is_local else float(settings.embedder_wait_ms)
        # The local embedder costs nothing.
        daily_tokens = 0 if embedder.is_local else settings.background_daily_tokens
        self._meter = meter
        self._budget = None if meter is None else DailyBudget(meter, now, daily_tokens, count_call)
        self._upstream, _, self._model = embedder.name.partition("/")
        self._slots = asyncio.Semaphore(concurrency)
        self._clock = time.monotonic
        self._count_call = count_call
        # Vectors of baseline texts (gateway.core.memory.baseline_texts); None: they are still to be made.
        self._baseline: Sequence[bytes] | None = None
        self._policy = _LOCAL_QUESTION_POLICY if embedder.is_local else _QUESTION_POLICY
        # The health of the embedder as questions find it. Questions with a short wait (of voice agents) have a health
        # of their own, since an answer that is too late for them is in time for other questions.
        self._health, self._hurried_health = EndpointHealth(), EndpointHealth()
        # Jobs do not call the embedder before this time.
        self._paused_until = 0.0
        # How many jobs in a row have failed.
        self._failures = 0
        self.schedule = Schedule(
            "embedding",
            EMBED_JOB,
            store.jobs,
            self._find,
            every=EVERY_MESSAGES,
            idle_s=settings.idle_s,
            now=now,
        )

    async def warm(self) -> None:
        """Embeds the baseline texts, so that the first question does not wait for files or connections to open."""
        try:
            embedded = await self._embed(BASELINE_TEXTS, CALL_S)
            self._meter_call(0, embedded)  # the call is for no memory
            self._baseline = embedded.vectors
        except Exception as error:
            # Jobs will try again.
            why = error.message if isinstance(error, ProviderError) else repr(error)
            _log.warning(
                "The embedder %s does not answer; it is asked again with the next job: %s",
                self.embedder.name,
                why,
            )

    async def _find(self, limit: int) -> Sequence[int]:
        return await self._store.vectors.find_agents_to_embed(self.embedder.name, limit)

    # -- the job

    @property
    def pause_s(self) -> float:
        """The seconds for which no job is tried, because the embedder fails; 0 or less: jobs are tried.

        Otherwise the jobs of many memories would fail one after the other, and hold up other work.
        """
        return self._paused_until - self._clock()

    async def run_job(self, job: JobContext) -> None:
        """Embeds the next batch of a memory. Raises: JobFailed, Postponed, StoreError."""
        vectors, name = self._store.vectors, self.embedder.name
        # Vectors are in the order of the search index, so the index is made first.
        while await self._store.search_index.advance(job.agent_row):
            pass
        unembedded = await vectors.find_unembedded(job.agent_row, name)
        if unembedded is not None and unembedded.is_new:
            await job.commit(vectors.begin_effect(job.agent_row, name))
            unembedded = await vectors.find_unembedded(job.agent_row, name)
        if unembedded is None or unembedded.is_new or not unembedded.agent.scope.spans_conversations:
            return
        try:
            if self._baseline is None:
                self._baseline = await self._call(unembedded.agent, BASELINE_TEXTS)
            new_vectors = await self._embed_messages(unembedded)
        except Postponed:
            raise
        except JobFailed:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                self._paused_until = self._clock() + PAUSE_S
            raise
        self._failures = 0
        add = vectors.add_effect(unembedded, new_vectors)

        async def add_and_go_on(connection: Connection) -> None:
            if await add(connection):
                await self._store.jobs.enqueue_in(connection, EMBED_JOB, job.agent_row, EMBED_JOB)

        await job.finish(add_and_go_on)

    async def _embed_messages(self, unembedded: Unembedded) -> dict[int, bytes]:
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
        """Returns the vector of each text; None for a text that the embedder refuses. Raises: JobFailed, Postponed."""
        try:
            return list(await self._call(agent, texts))
        except _RefusedText:
            # If the embedder refuses the baseline texts as well, the settings or the account are wrong: the job fails.
            await self._call(agent, BASELINE_TEXTS)
        if len(texts) == 1:
            return [None]
        # A text that the model refuses (too long in the model's own counting, filtered) must not keep the others out.
        vectors: list[bytes | None] = []
        for text in texts:
            try:
                vectors += await self._call(agent, [text])
            except _RefusedText:
                vectors.append(None)
        return vectors

    async def _call(self, agent: Agent, texts: Sequence[str]) -> Sequence[bytes]:
        """Makes the vectors of texts. Raises: _RefusedText: the embedder refuses the texts; JobFailed, Postponed."""
        async with self._slots:
            project = agent.scope.project
            if self._budget is not None:
                await self._budget.check(project)
            try:
                embeddings = await self._embed(texts, CALL_S)
            except TimeoutError:
                self._count_call("failed", 0)
                raise JobFailed(f"the embedder gave no answer in {CALL_S:g} s") from None
            except ProviderRefused as error:
                self._count_call("failed", 0)
                if error.status == 429:
                    wait_s = min(error.retry_after_s or BUSY_S, DAY_S)
                    raise Postponed("the embedder is busy (429)", wait_s) from error
                failure = _RefusedText if error.status in REFUSAL_STATUSES else JobFailed
                raise failure(f"the embedder answered {error.status}") from error
            except ProviderError as error:
                self._count_call("failed", 0)
                raise JobFailed(f"the embedder failed: {type(error).__name__}") from error
            if self._budget is not None:
                self._budget.spend(
                    project, agent.id, self._upstream, self._model, TokenCounts(embeddings.tokens)
                )
            return embeddings.vectors

    async def _embed(self, texts: Sequence[str], wait_s: float) -> Embedded:
        """Calls the embedder. A call of an upstream is added to the receipt of the request or job under way.

        Raises: TimeoutError; ProviderError.
        """
        if self.embedder.is_local:
            async with asyncio.timeout(wait_s):
                return await self.embedder.embed(texts)
        # The embedder makes its request by itself. Only the path of the request is known here.
        request = ModelRequest(b"", path="/embeddings")
        with open_memory_call(request, self._upstream, self._kind, self._model) as call:
            async with asyncio.timeout(wait_s):
                embedded = await self.embedder.embed(texts)
            call.status = 200
            call.counts = TokenCounts(embedded.tokens)
            return embedded

    def _meter_call(self, agent_row: int, embedded: Embedded) -> None:
        """Counts the tokens of a call that no budget bounds. agent_row: the memory's row; 0: it was for no memory."""
        if embedded.tokens and self._meter is not None:
            counts = TokenCounts(embedded.tokens)
            self._meter.add_background("", agent_row, self._upstream, self._model, counts)

    # -- a question

    async def embed_query(self, agent_rows: Sequence[int], query: str, wait_ms: float) -> Vector | None:
        """Returns the vector of a question; None: it came too late, or no memory has vectors yet.

        agent_rows: the rows of the memories that are searched; the call is counted for the first.
        wait_ms: the longest wait; the embedder's own bound may be shorter.
        """
        wait_ms = min(wait_ms, self._wait_ms)
        # Shortened, since the embedder may refuse a long question.
        query = make_query(query)
        health = self._hurried_health if wait_ms < self._wait_ms / 2 else self._health
        name = self.embedder.name
        if not query or wait_ms <= 0 or not health.is_available(self._clock(), name):
            return None
        with health.attempt(self._policy):
            try:
                if not await self._store.vectors.has(agent_rows, name):
                    return None
                embedded = await self._embed([query], wait_ms / 1000)
                self._meter_call(agent_rows[0], embedded)
                data = embedded.vectors[0]
                vector = self._make_vector(data)
            except Exception as error:
                # The question can be answered without vectors, whatever the error is.
                self._note_failure(health, error, wait_ms)
                return None
        health.record_success(name)
        return vector

    def _note_failure(self, health: EndpointHealth, error: Exception, wait_ms: float) -> None:
        """Notes why a question got no vector. After failures in a row, or a Retry-After, no question is embedded."""
        retry_after_s = None
        match error:
            case StoreError():
                return  # the search by words meets the same error, and logs it
            case ProviderRefused(status=status) if status in REFUSAL_STATUSES:
                _log.info(
                    "The embedder refused a question with status %d; memory was searched by words alone.",
                    status,
                )
                return
            case ProviderRefused():
                why, retry_after_s = error.message, error.retry_after_s
            case ProviderError():
                why = error.message
            case TimeoutError():
                why = f"no answer in {wait_ms:g} ms"
            case _:
                why = type(error).__name__
        health.record_failure(self._policy, self._clock(), self.embedder.name, retry_after_s)
        if retry_after_s or health.failure_count == self._policy.breaker_failures:
            _log.warning("Memory is searched by words alone until the embedder answers again: %s", why)

    def _make_vector(self, data: bytes) -> Vector:
        """Returns the vector of a question, compared with the baseline if that is known. data: as in `Vector`."""
        name = self.embedder.name
        if self._baseline is None or len(self._baseline[0]) != len(data):
            # The embedder's vectors have another length than before: the next job embeds the baseline again.
            self._baseline = None
            return Vector(name, data)
        # Not at start: numpy is loaded by the first search of a memory, which comes before this.
        import numpy as np

        baseline = np.frombuffer(b"".join(self._baseline), "<f4").reshape(len(self._baseline), -1)
        similarities = np.einsum("ij,j->i", baseline, np.frombuffer(data, "<f4"))
        return Vector(name, data, float(similarities.mean()), float(similarities.std()))


class _RefusedText(JobFailed):
    """The embedder refuses these texts."""


def _cut_text_to_embed(text: str) -> str:
    """Returns the part of a text that is embedded, cut between words."""
    text = " ".join(text[: 4 * TEXT_CHARS].split())
    if len(text) <= TEXT_CHARS:
        return text
    space = text.rfind(" ", TEXT_CHARS // 2, TEXT_CHARS)
    return text[: space if space > 0 else TEXT_CHARS]
