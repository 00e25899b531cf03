"""Batches of an upstream that speaks OpenAI's dialect: a file of requests, and a batch on `/v1/chat/completions`.

The official SDK sends the requests; it is imported when it is first needed, since the import takes a second. A mark in
the `metadata` of a batch serves to find the batch again after an interruption.
(developers.openai.com/api/docs/guides/batch)
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Container
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

import orjson

from adapters.batch.batch_provider import MAX_MESSAGE_CHARS, BatchPart, PartResult, PartState, is_transient
from adapters.batch.result_lines import parse_results
from adapters.batch.sdk_client import CLOCK_SKEW_S, PAGE_SIZE, SdkBatches, make_client_options
from adapters.batch.sdk_errors import read_error_message
from adapters.errors import (
    BatchQueueFull,
    ProviderError,
    ProviderRefused,
    ProviderReplyBroken,
    UnreadableResults,
)
from adapters.types import Json

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

# The key of a part's mark in the batch's metadata.
_MARK_KEY: Final = "mnemogate"
_LINE_HEAD: Final = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":'
_END_STATUSES: Final = frozenset(("completed", "failed", "expired", "cancelled"))
# The code of a batch that failed because the account's queue has no room for its tokens.
_QUEUE_EXCEEDED_CODE: Final = "token_limit_exceeded"
# The words in the message of a refused batch if the queue has no room for it.
_QUEUE_FULL_WORDS: Final = re.compile(r"\benqueued tokens?\b", re.IGNORECASE)
# The words in a message that name the number of tokens that the queue takes.
_QUEUE_LIMIT_WORDS: Final = re.compile(r"[Ll]imit: ([0-9,]+) enqueued tokens")


class OpenAIBatches(SdkBatches):
    """Implements `BatchProvider`, which documents the methods."""

    sdk = "openai"
    # The API's limits of a batch's file.
    max_requests = 50_000
    max_bytes = 200 * 1000 * 1000

    @cached_property
    def _client(self) -> AsyncOpenAI:
        self._check_installed()
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        # The SDK must not retry: a batch that was interrupted while it was made is looked for.
        return AsyncOpenAI(
            api_key=self._key or "",
            base_url=self._base_url,
            default_headers=self._headers,
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(**make_client_options(self._proxy)),
        )

    def make_line(self, custom_id: str, body: bytes) -> bytes:
        return _LINE_HEAD % custom_id.encode() + self._adapt_calls(body) + b"}\n"

    async def submit(self, part: BatchPart, lines: BinaryIO) -> str:
        with lines, self._map_errors():
            upload = (_make_file_name(part), lines, "application/jsonl")
            file = await self._client.files.create(file=upload, purpose="batch")
        try:
            with self._map_errors():
                batch = await self._client.batches.create(
                    completion_window="24h",
                    endpoint="/v1/chat/completions",
                    input_file_id=file.id,
                    metadata={_MARK_KEY: part.mark},
                )
        except ProviderRefused as error:
            if error.status < 500:
                # No batch names the file, so nothing else will delete it. The refusal is reported in any case.
                with suppress(ProviderError):
                    await self._await_ending(self._client.files.delete(file.id))
                if _QUEUE_FULL_WORDS.search(error.message):
                    message = error.message
                    raise BatchQueueFull(
                        message, status=error.status, queue_tokens=_read_queue_tokens(message)
                    ) from error
            raise
        return batch.id

    async def find(
        self, part: BatchPart, custom_ids: Container[str], known_ids: Container[str] = ()
    ) -> str | None:
        # The mark identifies the batch, so the ids of requests and of other batches are not needed.
        with self._map_errors():
            # Newest first.
            async for batch in self._client.batches.list(limit=PAGE_SIZE):
                if (batch.metadata or {}).get(_MARK_KEY) == part.mark:
                    return batch.id
                if batch.created_at < part.earliest_at - CLOCK_SKEW_S:
                    break
        with suppress(ProviderError):
            await self._delete_upload(part)
        return None

    async def poll(self, batch_id: str) -> PartState:
        state = await self._await_unless_missing(self._client.batches.retrieve(batch_id), _read_state)
        return state or PartState(is_over=True, is_gone=True)

    async def read_results(self, batch_id: str) -> AsyncGenerator[PartResult]:
        with self._map_errors():
            batch = await self._client.batches.retrieve(batch_id)
            garbled_error: UnreadableResults | None = None
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                try:
                    async with self._client.files.with_streaming_response.content(file_id) as reply:
                        async for result in parse_results(reply.iter_bytes(), _read_result):
                            yield result
                except UnreadableResults as error:
                    garbled_error = error
            # The other file is read first, even if one has lines that are no results.
            if garbled_error is not None:
                raise garbled_error

    async def cancel(self, batch_id: str) -> None:
        await self._await_ending(self._client.batches.cancel(batch_id))

    async def discard(self, batch_id: str, part: BatchPart) -> None:
        file_ids = await self._await_unless_missing(self._client.batches.retrieve(batch_id), _list_file_ids)
        if file_ids is None:
            await self._delete_upload(part)
        for file_id in file_ids or ():
            await self._await_ending(self._client.files.delete(file_id))

    async def _delete_upload(self, part: BatchPart) -> None:
        """Deletes the files that were uploaded for a part, where no batch names them."""
        with self._map_errors():
            async for file in self._client.files.list(purpose="batch", order="desc", limit=PAGE_SIZE):
                if file.created_at < part.earliest_at - CLOCK_SKEW_S:
                    break
                if file.filename == _make_file_name(part):
                    await self._client.files.delete(file.id)


def _read_state(batch: Batch) -> PartState:
    """Returns the state of a batch. `errors` are errors of the batch as a whole, not of single requests."""
    errors = (batch.errors.data if batch.errors is not None else None) or []
    message = "; ".join(error.message for error in errors if error.message)
    has_results = bool(batch.output_file_id or batch.error_file_id)
    is_over = batch.status in _END_STATUSES
    exceeds_queue = any(error.code == _QUEUE_EXCEEDED_CODE for error in errors)
    unreported: Literal["errored", "expired", "cancelled"] = "errored"
    if batch.status in ("expired", "cancelled"):
        unreported = batch.status
    return PartState(
        is_over,
        has_results=is_over and has_results,
        message=message[:MAX_MESSAGE_CHARS],
        exceeds_queue=exceeds_queue,
        queue_tokens=_read_queue_tokens(message),
        unreported=unreported,
    )


def _list_file_ids(batch: Batch) -> list[str]:
    """Returns the ids of the files that a batch has."""
    return [*filter(None, (batch.input_file_id, batch.output_file_id, batch.error_file_id))]


def _make_file_name(part: BatchPart) -> str:
    """Returns the name of the file that is uploaded for a part."""
    return f"{part.mark}.jsonl"


def _read_queue_tokens(message: str) -> int | None:
    """Returns the tokens that may be enqueued; None: the provider's message does not name them."""
    match = _QUEUE_LIMIT_WORDS.search(message)
    return int(match[1].replace(",", "")) if match else None


def _read_result(line: Json) -> PartResult:
    """Returns a line of an output or error file. Raises: ProviderReplyBroken."""
    custom_id = line.get("custom_id")
    response = line.get("response")
    error = line.get("error")
    if not isinstance(custom_id, str):
        raise ProviderReplyBroken("a result has no custom_id")
    if isinstance(response, dict):
        status = response.get("status_code")
        body = response.get("body")
        if status == 200 and isinstance(body, dict):
            return PartResult(custom_id, "succeeded", orjson.dumps(body))
        # A line without a status that can be read may succeed when it is sent again.
        error_status = status if isinstance(status, int) else 500
        return PartResult(
            custom_id, "errored", message=read_error_message(body), is_transient=is_transient(error_status)
        )
    code = error.get("code") if isinstance(error, dict) else None
    message = read_error_message(error)
    if code == "batch_expired":
        return PartResult(custom_id, "expired", message=message)
    if code == "batch_cancelled":
        return PartResult(custom_id, "cancelled", message=message)
    return PartResult(custom_id, "errored", message=message, is_transient=True)
