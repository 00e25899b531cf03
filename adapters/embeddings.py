"""An embedder over OpenAI's `/embeddings`, which many others serve too.

A provider sends its requests, with address, key and timeouts. Every vector of a reply is checked: a vector that is
missing, not finite or of another length than the others would otherwise show only in wrong answers, much later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson

from adapters.base import Provider
from adapters.errors import ProviderRefused, ProviderReplyBroken
from adapters.reply_headers import read_retry_after
from adapters.token_counts import BYTES_PER_TOKEN, read_token_count
from adapters.types import EmbeddingResult, ModelRequest

_MAX_REPLY_BYTES = 64 * 1024 * 1024
# A longer reply is read in a thread, so that the event loop does not wait. 64 vectors of 1,536 numbers are 2 MB and
# take 15 ms.
_LONG_REPLY_BYTES = 64 * 1024


class ApiEmbedder:
    """An embedder at a provider. Closing the embedder closes the provider. Implements `Embedder`."""

    is_local = False

    def __init__(self, provider: Provider, model: str) -> None:
        """Sends nothing yet. model: the provider's name for the model that makes vectors."""
        self.name = f"{provider.name}/{model}"
        self._provider = provider
        self._model = model

    async def embed(self, texts: Sequence[str]) -> EmbeddingResult:
        """Returns a vector for each text. Raises: ProviderError, of which ProviderRefused is an error status."""
        body = orjson.dumps({"model": self._model, "input": list(texts)})
        reply = await self._provider.send(ModelRequest(body, path="/embeddings"))
        try:
            answer = await reply.read(_MAX_REPLY_BYTES)
        finally:
            await reply.aclose()
        if reply.status != 200:
            raise ProviderRefused(
                f"{self.name} answered {reply.status}",
                status=reply.status,
                retry_after_s=read_retry_after(reply.headers, time.time()),
            )
        try:
            if len(answer) > _LONG_REPLY_BYTES:
                return await asyncio.to_thread(_read_vectors, answer, len(texts), len(body))
            return _read_vectors(answer, len(texts), len(body))
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            # The answer is not quoted: it may repeat the texts.
            raise ProviderReplyBroken(
                f"{self.name} answered with something that is not a vector for each text"
            ) from error

    async def aclose(self) -> None:
        await self._provider.aclose()


def _read_vectors(answer: bytes, count: int, request_bytes: int) -> EmbeddingResult:
    """Returns the vectors of an answer, with length 1.

    count: the number of texts that were sent.
    request_bytes: the size of the request, for an estimate of its tokens where the answer does not count them.

    Raises: ValueError, LookupError, TypeError, AttributeError, OverflowError: the answer lacks a vector for some text.
    """
    import numpy as np

    body = orjson.loads(answer)
    rows: list[Any] = [None] * count
    data = body["data"]
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} texts")
    for position, entry in enumerate(data):
        index = entry.get("index", position)
        if rows[index] is not None or index < 0:
            raise ValueError("one text has two vectors")
        rows[index] = entry["embedding"]
    # This raises if the rows differ in length.
    numbers = np.array(rows, np.float64)
    if numbers.ndim != 2 or not numbers.shape[1] or not np.isfinite(numbers).all():
        raise ValueError("not numbers")
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(numbers, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise ValueError("numbers too large")
    unit = (numbers / np.where(norms > 0, norms, 1.0)).astype("<f4")
    tokens = read_token_count(body.get("usage"), "total_tokens") or request_bytes // BYTES_PER_TOKEN
    return EmbeddingResult([row.tobytes() for row in unit], tokens)
