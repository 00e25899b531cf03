"""Batches of Claude: chat completions are translated on their way to `/v1/messages/batches`, and back.

The official SDK speaks to it and is imported when it is first needed. A batch of Anthropic's has no field for the mark
of its part, so a batch is found by the ids of its results, once it has ended, if its submission was interrupted.
(platform.claude.com/docs/en/build-with-claude/batch-processing)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Container
from contextlib import aclosing
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import orjson

from adapters.anthropic import CACHE_MARK, DEFAULT_VERSION, OAUTH_PREFIX, SAMPLING_VERSION, with_beta
from adapters.batch.batch_provider import BatchPart, PartResult, PartState
from adapters.batch.result_lines import parse_results
from adapters.batch.sdk_client import CLOCK_SKEW_S, PAGE_SIZE, SdkBatches, make_client_options
from adapters.batch.sdk_errors import read_error_message
from adapters.body_pieces import PIECE_BYTES
from adapters.claude.error_form import Untranslatable
from adapters.claude.model_traits import SAMPLING_FIELDS
from adapters.claude.reply import translate_message
from adapters.claude.request import translate_request
from adapters.claude.thinking import BINDING_BETA
from adapters.errors import BatchOutcomeUnknown, ProviderRefused, ProviderReplyBroken
from adapters.types import Json

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

_PATH: Final = "/v1/messages/batches"
_TRANSIENT_ERRORS: Final = frozenset(("api_error", "overloaded_error", "rate_limit_error", "timeout_error"))
# Bytes of a line that needs BINDING_BETA, and bytes without which a line has no field of SAMPLING_FIELDS.
_BINDING_MARK: Final = b'"block_binding"'
_SAMPLING_MARKS: Final = tuple(f'"{name}":'.encode() for name in SAMPLING_FIELDS)


class AnthropicBatches(SdkBatches):
    """Implements `BatchProvider`, which documents the methods. The base URL has a version, as in the live adapter."""

    sdk = "anthropic"
    max_requests = 100_000
    max_bytes = 256 * 1000 * 1000

    @cached_property
    def _client(self) -> AsyncAnthropic:
        self._check_installed()
        from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

        key = self._key or ""
        is_token = key.startswith(OAUTH_PREFIX)
        return AsyncAnthropic(
            api_key=key if not is_token else None,
            auth_token=key if is_token else None,
            base_url=self._base_url.removesuffix("/v1"),
            default_headers={"anthropic-version": DEFAULT_VERSION, **self._headers},
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(**make_client_options(self._proxy)),
        )

    def make_line(self, custom_id: str, body: bytes) -> bytes:
        try:
            claude_request = translate_request(
                orjson.loads(self._adapt_calls(body)), places_marks=CACHE_MARK not in body
            )
        except Untranslatable as error:
            raise ProviderRefused(error.message, status=400) from error
        return orjson.dumps({"custom_id": custom_id, "params": claude_request}) + b"\n"

    async def submit(self, part: BatchPart, lines: BinaryIO) -> str:
        with lines, self._map_errors():
            from anthropic.types.messages import MessageBatch

            # All lines are read for the headers. 256 MB of them held the event loop up for 1.4 s.
            headers = await asyncio.to_thread(self._make_batch_headers, lines)
            batch = await self._client.post(
                _PATH,
                cast_to=MessageBatch,
                options={"headers": headers},
                content=_join_lines(lines),
            )
            return batch.id

    async def find(
        self, part: BatchPart, custom_ids: Container[str], known_ids: Container[str] = ()
    ) -> str | None:
        may_be_running = False
        with self._map_errors():
            # Newest first.
            async for batch in self._client.messages.batches.list(limit=PAGE_SIZE):
                if batch.created_at.timestamp() < part.earliest_at - CLOCK_SKEW_S:
                    break
                counts = batch.request_counts
                total = (
                    counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                )
                if total > part.count or batch.id in known_ids:
                    continue
                if batch.processing_status != "ended":
                    may_be_running = True
                elif await self._has_any_result(batch.id, custom_ids):
                    return batch.id
        if may_be_running:
            raise BatchOutcomeUnknown("a batch that is under way may be the one being looked for")
        return None

    async def poll(self, batch_id: str) -> PartState:
        state = await self._await_unless_missing(
            self._client.messages.batches.retrieve(batch_id), _read_state
        )
        return state or PartState(is_over=True, is_gone=True)

    async def read_results(self, batch_id: str) -> AsyncGenerator[PartResult]:
        created = int(self._now())
        with self._map_errors():
            from anthropic._constants import RAW_RESPONSE_HEADER

            # Below the configured address, not at `results_url`: the key is sent nowhere else.
            # The header has the SDK return a response that is not yet read, whatever the types say.
            reply: Any = await self._client.get(
                f"{_PATH}/{batch_id}/results",
                cast_to=object,
                options={"headers": {"Accept": "application/binary", RAW_RESPONSE_HEADER: "stream"}},
            )
            try:
                async for result in parse_results(reply.iter_bytes(), partial(_read_result, created=created)):
                    yield result
            finally:
                await reply.close()

    async def cancel(self, batch_id: str) -> None:
        await self._await_ending(self._client.messages.batches.cancel(batch_id))

    async def discard(self, batch_id: str, part: BatchPart) -> None:
        # The API refuses to delete a batch that is under way; it has to be deleted once it has ended.
        await self._await_unless_missing(self._client.messages.batches.delete(batch_id), lambda _: None)

    def _make_batch_headers(self, lines: BinaryIO) -> dict[str, str]:
        """Returns the headers of a batch, with the version of the API and the beta that its lines need.

        lines: a file at its beginning. It is read, and set back to the beginning.
        """
        # DEFAULT_VERSION refuses the fields of SAMPLING_FIELDS; SAMPLING_VERSION takes them.
        is_sampled = False
        has_binding = False
        for line in lines:
            is_sampled = is_sampled or _is_sampled(line)
            has_binding = has_binding or _BINDING_MARK in line
        lines.seek(0)
        version = SAMPLING_VERSION if is_sampled else DEFAULT_VERSION
        configured = tuple((name.lower(), value) for name, value in self._headers.items())
        headers = with_beta(configured, BINDING_BETA) if has_binding else configured
        return {"content-type": "application/json", "anthropic-version": version, **dict(headers)}

    async def _has_any_result(self, batch_id: str, custom_ids: Container[str]) -> bool:
        """Returns whether a batch has a result for one of these requests."""
        async with aclosing(self.read_results(batch_id)) as results:
            async for result in results:
                # One result is enough: no two requests have the same id.
                if result.custom_id in custom_ids:
                    return True
        return False


async def _join_lines(lines: BinaryIO) -> AsyncIterator[bytes]:
    """Yields the body of a batch, made of its lines."""
    yield b'{"requests":['
    piece: list[bytes] = []
    size = 0
    separator = b""
    for line in lines:
        piece += separator, line[:-1]
        separator = b","
        size += len(line)
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece.clear()
            size = 0
    yield b"".join((*piece, b"]}"))


def _is_sampled(line: bytes) -> bool:
    """Returns whether a line's request has a field of SAMPLING_FIELDS. Arguments of tools may have the same names."""
    return any(name in line for name in _SAMPLING_MARKS) and any(
        key in orjson.loads(line)["params"] for key in SAMPLING_FIELDS
    )


def _read_state(batch: MessageBatch) -> PartState:
    """Returns the state of a batch."""
    is_over = batch.processing_status == "ended"
    message = ""
    if batch.archived_at is not None:
        message = "its results are stored no longer"
    return PartState(is_over, has_results=is_over and batch.results_url is not None, message=message)


def _read_result(line: Json, created: int) -> PartResult:
    """Returns a line of the results. Raises: ProviderReplyBroken."""
    custom_id, result = line.get("custom_id"), line.get("result")
    if not isinstance(custom_id, str) or not isinstance(result, dict):
        raise ProviderReplyBroken("a result has no custom_id")
    match result.get("type"):
        case "succeeded":
            try:
                return PartResult(
                    custom_id, "succeeded", orjson.dumps(translate_message(result["message"], created))
                )
            except (LookupError, TypeError, AttributeError, ValueError):
                return PartResult(custom_id, "errored", message="the result is no message")
        case "expired":
            return PartResult(custom_id, "expired", message="It was not answered within 24 hours.")
        case "canceled":
            return PartResult(custom_id, "cancelled", message="The batch was cancelled.")
    error = result.get("error")
    error_object = error.get("error") if isinstance(error, dict) else None
    error_type = error_object.get("type") if isinstance(error_object, dict) else None
    return PartResult(
        custom_id,
        "errored",
        message=read_error_message(error),
        is_transient=error_type is None or error_type in _TRANSIENT_ERRORS,
    )
