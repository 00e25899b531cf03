"""The vector of a question, for which a reply waits.

The wait is bounded, and after failures in a row nothing waits for a while: memory is searched by words alone then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from msgspec.structs import replace

from adapters.errors import ProviderError, ProviderRefused
from gateway.core.prompt.note_query import make_query
from gateway.core.upstream.policy import EndpointHealth, Policy
from gateway.run.background.background_model import REFUSAL_STATUSES
from gateway.run.background.embedder import MeteredEmbedder
from storage.errors import StoreError
from storage.records import Vector
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The longest wait for the local embedder. Not measured: its table answers in less than one millisecond, unless the
# machine is overloaded.
_LOCAL_WAIT_MS = 20.0
# After failures in a row the embedder gets no question for a while, as an upstream that fails gets no requests.
_QUESTION_POLICY = Policy()
# The local embedder is asked again sooner: when it was late, the machine was busy.
_LOCAL_QUESTION_POLICY = replace(_QUESTION_POLICY, breaker_s=1.0)


class QuestionEmbedder:
    """Makes the vectors of questions."""

    def __init__(self, store: Store, embedder: MeteredEmbedder, wait_ms: float) -> None:
        """Assumes that the embedder is healthy. wait_ms: the longest wait for an embedder that is not local."""
        self._store = store
        self._embedder = embedder
        # The longest wait for a vector, in milliseconds.
        self._wait_ms = _LOCAL_WAIT_MS if embedder.is_local else wait_ms
        # The policy by which an unhealthy embedder is passed over.
        self._policy = _LOCAL_QUESTION_POLICY if embedder.is_local else _QUESTION_POLICY
        # Returns the seconds of a clock that never goes back.
        self._clock = time.monotonic
        # The health of the embedder, as questions with a long wait see it.
        self._health = EndpointHealth()
        # Its health for questions with a short wait (of voice agents): an answer that is too late for them may be in
        # time for other questions.
        self._hurried_health = EndpointHealth()

    async def embed_query(self, agent_rows: Sequence[int], query: str, wait_ms: float) -> Vector | None:
        """Returns the vector of a question, or None if the vector came too late or no memory has vectors yet.

        agent_rows: the rows of the memories that are searched; the call is counted for the first.
        wait_ms: the longest wait in milliseconds; the embedder's own bound may be shorter.
        """
        wait_ms = min(wait_ms, self._wait_ms)
        # Shortened, since the embedder may refuse a long question.
        query = make_query(query)
        health = self._hurried_health if wait_ms < self._wait_ms / 2 else self._health
        name = self._embedder.name
        if not query or wait_ms <= 0 or not health.is_available(self._clock(), name):
            return None
        with health.begin_attempt(self._policy):
            try:
                if not await self._store.vectors.has(agent_rows, name):
                    return None
                embedded = await self._embedder.embed([query], wait_ms / 1000)
                self._embedder.meter_call(agent_rows[0], embedded)
                vector = self._embedder.make_vector(embedded.vectors[0])
            except Exception as error:
                # The question can be answered without vectors, whatever the error is.
                self._note_failure(health, error, wait_ms)
                return None
        health.record_success(name)
        return vector

    def _note_failure(self, health: EndpointHealth, error: Exception, wait_ms: float) -> None:
        """Notes the reason why a question got no vector.

        After failures in a row, or a Retry-After, no question is embedded for a while.
        """
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
                reason, retry_after_s = error.message, error.retry_after_s
            case ProviderError():
                reason = error.message
            case TimeoutError():
                reason = f"no answer in {wait_ms:g} ms"
            case _:
                reason = type(error).__name__
        health.record_failure(self._policy, self._clock(), self._embedder.name, retry_after_s)
        if retry_after_s or health.failure_count == self._policy.breaker_failures:
            _log.warning("Memory is searched by words alone until the embedder answers again: %s", reason)
