"""Vectors of what was said: the job that makes them, and the vector of a question.

What a change of the embedder asks for is found at the start. A job embeds one batch, commits it with how far it has
come, and asks for the next; one that fails is tried again later, as all jobs are. Until there are vectors, words find
it.

A question is the one thing that somebody waits for. The wait is bounded, and after one that was in vain nobody waits
for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from adapters.base import Embedder
from adapters.errors import ProviderError, ProviderRefused
from adapters.types import Embedded
from gateway.core.memory.baseline_texts import BASELINE_TEXTS
from gateway.core.memory.visibility import messages_of
from gateway.errors import SettingsError, UnknownModel
from gateway.run.background.model import CALL_S
from gateway.run.background.schedule import AT_START, Schedule
from gateway.run.background.worker import JobContext, JobFailed, Postponed
from gateway.run.upstream.route import Route, resolve_route
from gateway.settings import MemorySettings, Settings
from storage.base import Store
from storage.commands import Unembedded
from storage.errors import Stale
from storage.records import Vector

__all__ = ["KIND", "LOCAL", "Embedding", "embedder_route"]

_log = logging.getLogger("mnemogate")

KIND = "embed"
LOCAL = "local"
EVERY = 16  # messages, as for the search index: the newest are found by their words
TEXT_CHARS = (
    800  # of a long message its beginning; the best or the mean of several parts found less (measured)
)
BATCH = 64  # texts in one call; OpenAI takes 2,048
LOCAL_WAIT_MS = 20.0  # chosen: a table answers in less than one, unless the machine has no time at all
REST_S = 30.0  # after a wait in vain, or a failure
LOCAL_REST_S = 1.0  # of one in this process: then the machine was busy
_REFUSALS = 3  # of single texts in a row, after which it is not the texts
_BUSY_S = 30.0  # how long to leave one alone that is busy and does not say how long
_DAY_S = 86_400


def embedder_route(settings: Settings) -> Route | None:
    """Who answers to memory.embedder; None: nobody is named, or it is local. Raises: SettingsError."""
    model = settings.memory.embedder
    if model is None or model == LOCAL:
        return None
    try:
        route = resolve_route(settings, model)
    except UnknownModel as error:
        raise SettingsError(
            f"memory.embedder: {error.message} Or {LOCAL!r}, for the one in this process."
        ) from error
    upstream = next(each for each in settings.upstreams if each.name == route.upstream)
    if upstream.kind in ("anthropic", "scripted"):
        raise SettingsError(f"memory.embedder: {upstream.name!r} ({upstream.kind}) has no embeddings")
    return route


class Embedding:
    """now: seconds since the epoch. tick: of a clock that does not jump.

    count: told of each call's outcome and tokens.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        settings: MemorySettings,
        now: Callable[[], float],
        *,
        concurrency: int = 2,
        tick: Callable[[], float] = time.monotonic,
        count: Callable[[str, int], None] = lambda outcome, tokens: None,
    ) -> None:
        self.embedder = embedder
        self._store = store
        self._idle_s = settings.idle_s
        self._wait_ms = LOCAL_WAIT_MS if embedder.is_local else float(settings.embedder_wait_ms)
        self._daily_tokens = 0 if embedder.is_local else settings.background_daily_tokens
        self._room = asyncio.Semaphore(concurrency)
        self._now = now
        self._tick = tick
        self._count = count
        self._usual: Sequence[bytes] | None = None  # vectors of texts that nobody said
        self._rests_until = 0.0  # for questions
        self._down_until = 0.0  # for jobs
        self.due = Schedule(
            "embedding", KIND, store.jobs, self._start, every=EVERY, rest_s=settings.idle_s, now=now
        )

    # -- when

    async def run(self) -> None:
        """Until cancelled."""
        await self.warm()
        await self.due.run()

    async def warm(self) -> None:
        """What is usual; and the first question shall not wait for files to be opened, or connections."""
        try:
            async with asyncio.timeout(CALL_S):
                self._usual = (await self.embedder.embed(BASELINE_TEXTS)).vectors
        except Exception as error:  # jobs will try again
            why = error.message if isinstance(error, ProviderError) else repr(error)
            _log.warning("the embedder %s does not answer: %s", self.embedder.name, why)

    async def _start(self) -> None:
        self.due.at_once(await self._store.vectors.behind(self.embedder.name, AT_START))

    # -- the job

    async def handle(self, job: JobContext) -> None:
        """Embeds the next batch of a memory. Raises: JobFailed, Postponed, StoreError."""
        vectors, name = self._store.vectors, self.embedder.name
        rest_s = self._down_until - self._tick()
        if rest_s > 0:
            # Else the jobs of many memories would fail one after the other, and hold up other work.
            raise Postponed("the embedder has just failed", rest_s)
        while await self._store.recall.index(job.agent, messages_of):
            pass
        found = await vectors.unembedded(job.agent, name, messages_of)
        if found is not None and found.is_new:
            await job.commit(vectors.beginning(job.agent, name))
            found = await vectors.unembedded(job.agent, name, messages_of)
        if found is None or found.is_new or not found.agent.scope.is_person:
            return
        try:
            if self._usual is None:
                self._usual = await self._call(found.agent.scope.project, BASELINE_TEXTS)
            added = await self._embed_messages(found)
        except _RefusedText:
            raise
        except JobFailed as error:
            if not isinstance(error, Postponed):
                self._down_until = self._tick() + REST_S
            raise
        await job.finish(vectors.adding(found, added))
        if await vectors.lacks(job.agent, name):
            with suppress(Stale):  # the memory is gone
                await self._store.jobs.enqueue(KIND, job.agent, KIND)

    async def _embed_messages(self, found: Unembedded) -> dict[int, bytes]:
        """By number; without those that the embedder takes from nobody."""
        added: dict[int, bytes] = {}
        for start in range(0, len(found.messages), BATCH):
            batch = found.messages[start : start + BATCH]
            texts = [_beginning(m.text) for m in batch]
            made = await self._embed_texts(found.agent.scope.project, texts)
            added.update({m.seq: data for m, data in zip(batch, made, strict=True) if data is not None})
        if len({len(data) for data in added.values()}) > 1:
            raise JobFailed("the embedder gave vectors of different lengths")
        return added

    async def _embed_texts(self, project: str, texts: Sequence[str]) -> list[bytes | None]:
        try:
            return list(await self._call(project, texts))
        except _RefusedText as refusal:
            if len(texts) == 1:
                raise
            first = refusal
        # One text that it does not take (too long in its own counting, filtered) must not keep the others out.
        made: list[bytes | None] = []
        for text in texts:
            try:
                made += await self._call(project, [text])
            except _RefusedText:
                made.append(None)
                if len(made) >= _REFUSALS and not any(made):
                    raise first from None
        return made

    async def _call(self, project: str, texts: Sequence[str]) -> Sequence[bytes]:
        """Raises: _RefusedText, for these texts; JobFailed, Postponed."""
        async with self._room:
            await self._check_budget(project)
            try:
                async with asyncio.timeout(CALL_S):
                    made = await self.embedder.embed(texts)
            except TimeoutError:
                self._count("failed", 0)
                raise JobFailed(f"the embedder gave no answer in {CALL_S:g} s") from None
            except ProviderRefused as error:
                self._count("failed", 0)
                if error.status == 429:
                    wait = min(error.retry_after_s or _BUSY_S, _DAY_S)
                    raise Postponed("the embedder is busy (429)", wait) from error
                failure = _RefusedText if error.status in (400, 413, 422) else JobFailed
                raise failure(f"the embedder answered {error.status}") from error
            except ProviderError as error:
                self._count("failed", 0)
                raise JobFailed(f"the embedder failed: {type(error).__name__}") from error
            await self._spend(project, made)
            return made.vectors

    async def _check_budget(self, project: str) -> None:
        if not self._daily_tokens:
            return
        spent = await self._store.spending.spent(project, self._today())
        if spent >= self._daily_tokens:
            self._count("refused", 0)
            raise Postponed(
                f"project {project!r} has used {spent} of its {self._daily_tokens} background tokens of today",
                _DAY_S - self._now() % _DAY_S,
            )

    async def _spend(self, project: str, made: Embedded) -> None:
        self._count("ok", made.tokens)
        if made.tokens:
            await self._store.spending.spend(project, self._today(), made.tokens)

    def _today(self) -> int:
        return int(self._now() // _DAY_S)

    # -- a question

    async def embed_query(self, agent: int, query: str, wait_ms: float) -> Vector | None:
        """The question's vector; None: there is nothing to compare it with, or it was not had in time. Then nobody has
        to wait for the next ones either, for a while.

        wait_ms: what there is; the embedder's own bound may be shorter.
        """
        wait_ms = min(wait_ms, self._wait_ms)
        if not query.strip() or wait_ms <= 0 or self._tick() < self._rests_until:
            return None
        try:
            if not await self._store.vectors.has(agent, self.embedder.name):
                return None
            async with asyncio.timeout(wait_ms / 1000):
                made = await self.embedder.embed([query])
            data = made.vectors[0]
            return Vector(self.embedder.name, data, *self._compare_usual(data))
        except TimeoutError:
            why = f"no answer in {wait_ms:g} ms"
        except Exception as error:  # whatever it is: a question is answered without vectors
            why = error.message if isinstance(error, ProviderError) else type(error).__name__
        rest_s = LOCAL_REST_S if self.embedder.is_local else REST_S
        self._rests_until = self._tick() + rest_s
        _log.warning("memory is searched by words alone for %g s: the embedder: %s", rest_s, why)
        return None

    def _compare_usual(self, data: bytes) -> tuple[float, float]:
        """Mean and standard deviation of how alike it is to texts that nobody said; a deviation of 0: not known."""
        if self._usual is None or len(self._usual[0]) != len(data):
            self._usual = None  # of another length than before: the next job sees to it
            return 0.0, 0.0
        import numpy as np  # it is there: memory has been searched

        usual = np.frombuffer(b"".join(self._usual), "<f4").reshape(len(self._usual), -1)
        alike = np.einsum("ij,j->i", usual, np.frombuffer(data, "<f4"))
        return float(alike.mean()), float(alike.std())


class _RefusedText(JobFailed):
    """It does not take these texts."""


def _beginning(text: str) -> str:
    text = " ".join(text[: 4 * TEXT_CHARS].split())
    if len(text) <= TEXT_CHARS:
        return text
    space = text.rfind(" ", TEXT_CHARS // 2, TEXT_CHARS)
    return text[: space if space > 0 else TEXT_CHARS]
