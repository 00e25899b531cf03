"""Performs batches for an upstream without a batch API: sends their requests as single requests, a few at a time.

The provider that sends them has connections of its own, so that live turns are not disturbed. Results can be read as
they arrive. Results that are unread when the process ends are lost, and their requests are sent again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Container
from functools import partial
from typing import BinaryIO, Final, NamedTuple
from uuid import uuid4

from adapters.base import Provider
from adapters.batch.batch_provider import MAX_RESULT_BYTES, BatchPart, PartResult, PartState, is_transient
from adapters.batch.sdk_errors import read_error_message
from adapters.errors import ProviderError
from adapters.json_escapes import read_json
from adapters.reply_headers import read_retry_after
from adapters.types import ModelRequest

# The most requests of all batches at a time. Not measured: more would take an upstream's capacity from chats.
REQUESTS_AT_ONCE: Final = 4
# The most unread results of a batch. While there are that many, the batch sends no requests.
_MAX_RESULTS: Final = 64
# The statuses of an upstream that is busy now and answers later.
_BUSY_STATUSES: Final = frozenset((429, 503, 529))
# The most attempts at a request while the upstream is busy.
MAX_TRIES: Final = 5
# The shortest wait after the first attempt. It doubles with each attempt.
_FIRST_WAIT_S: Final = 2.0
# The longest wait between two attempts.
_MAX_WAIT_S: Final = 60.0
_log = logging.getLogger("mnemogate")


class _AttemptResult(NamedTuple):
    """The result of one attempt at a request."""

    # The result of the request, if no further attempt follows.
    result: PartResult
    # The seconds that a busy upstream asks to wait; None: the upstream is not busy.
    wait_s: float | None = None


class _Batch(NamedTuple):
    """A batch that has been submitted."""

    # The part that the batch performs.
    part: BatchPart
    # Results that are not read yet.
    results: asyncio.Queue[PartResult]
    # The task that sends the requests.
    task: asyncio.Task[None]


class LocalBatches:
    """Implements `BatchProvider`, which documents the methods. Closes its provider with itself."""

    max_requests = 50_000
    max_bytes = 200 * 1000 * 1000
    poll_interval_s: float | None = 1.0
    is_durable = False
    missing_package: str | None = None

    def __init__(self, provider: Provider, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._provider = provider
        self._sleep = sleep
        # The slots of requests under way, which all batches share. One batch alone may use all slots.
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        # The batches by their ids.
        self._batches: dict[str, _Batch] = {}

    def make_line(self, custom_id: str, body: bytes) -> bytes:
        return custom_id.encode() + b" " + body + b"\n"

    async def submit(self, part: BatchPart, lines: BinaryIO) -> str:
        batch_id = f"local-{uuid4().hex}"
        results = asyncio.Queue[PartResult](_MAX_RESULTS)
        task = asyncio.create_task(self._perform(lines, results))
        task.add_done_callback(partial(_close_lines, lines))
        self._batches[batch_id] = _Batch(part, results, task)
        return batch_id

    async def find(
        self, part: BatchPart, custom_ids: Container[str], known_ids: Container[str] = ()
    ) -> str | None:
        matching_ids = (batch_id for batch_id, batch in self._batches.items() if batch.part.mark == part.mark)
        return next(matching_ids, None)

    async def poll(self, batch_id: str) -> PartState:
        batch = self._batches.get(batch_id)
        if batch is None:
            return PartState(is_over=True, is_gone=True)
        return PartState(is_over=batch.task.done(), has_results=not batch.results.empty())

    async def read_results(self, batch_id: str) -> AsyncGenerator[PartResult]:
        """Yields the results that have arrived."""
        batch = self._batches.get(batch_id)
        while batch is not None and not batch.results.empty():
            yield batch.results.get_nowait()

    async def cancel(self, batch_id: str) -> None:
        # The results are not read any more, so a worker with a result for a full queue would wait for ever.
        await self._drop(batch_id)

    async def discard(self, batch_id: str, part: BatchPart) -> None:
        await self._drop(batch_id)

    async def aclose(self) -> None:
        for batch_id in [*self._batches]:
            await self._drop(batch_id)
        await self._provider.aclose()

    async def _drop(self, batch_id: str) -> None:
        """Cancels the requests of a batch, and drops its results."""
        batch = self._batches.pop(batch_id, None)
        if batch is not None:
            batch.task.cancel()
            await asyncio.gather(batch.task, return_exceptions=True)

    async def _perform(self, lines: BinaryIO, results: asyncio.Queue[PartResult]) -> None:
        """Sends all requests of a batch, a few at a time."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(REQUESTS_AT_ONCE):
                tasks.create_task(self._perform_lines(lines, results))

    async def _perform_lines(self, lines: BinaryIO, results: asyncio.Queue[PartResult]) -> None:
        """Sends requests from the lines until none is left."""
        while line := lines.readline():
            id_bytes, _, body = line.partition(b" ")
            async with self._slots:
                result = await self._request_with_retries(id_bytes.decode(), body)
            await results.put(result)

    async def _request_with_retries(self, custom_id: str, body: bytes) -> PartResult:
        """Sends a request, and sends it again after a wait while the upstream is busy."""
        for try_number in range(1, MAX_TRIES + 1):
            attempt = await self._request_once(custom_id, body)
            if attempt.wait_s is None or try_number == MAX_TRIES:
                break
            await self._sleep(min(_MAX_WAIT_S, max(attempt.wait_s, _FIRST_WAIT_S * 2 ** (try_number - 1))))
        return attempt.result

    async def _request_once(self, custom_id: str, body: bytes) -> _AttemptResult:
        try:
            reply = await self._provider.send(ModelRequest(body))
            try:
                raw = await reply.read(MAX_RESULT_BYTES)
            finally:
                await reply.aclose()
        except ProviderError as error:
            return _AttemptResult(
                PartResult(custom_id, "errored", message=error.message, is_transient=error.is_transient)
            )
        if reply.status == 200:
            return _AttemptResult(PartResult(custom_id, "succeeded", raw))
        wait_s = None
        if reply.status in _BUSY_STATUSES:
            wait_s = read_retry_after(reply.headers, time.time()) or 0.0
        message = read_error_message(read_json(raw)[0])
        result = PartResult(custom_id, "errored", message=message, is_transient=is_transient(reply.status))
        return _AttemptResult(result, wait_s)


def _close_lines(lines: BinaryIO, task: asyncio.Task[None]) -> None:
    """Closes the lines of a batch, and logs the fault that ended its task."""
    lines.close()  # here, since a task that is cancelled before its first step runs no `finally`
    if not task.cancelled() and (error := task.exception()) is not None:
        # A batch without all results is over for its caller, which sends the missing requests again.
        _log.error("The requests of a batch were ended by a fault in the gateway.", exc_info=error)
