"""A call of a model or an embedder for a memory, with its end and its failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.errors import ProviderError, ProviderRefused
from adapters.types import ModelRequest
from gateway.core.usage.estimate import estimate_prompt_tokens
from gateway.core.usage.gen_ai import CANCELLED_FAILURE
from gateway.run.receipts import find_current_receipt
from gateway.run.upstream.provider_errors import classify_failure
from gateway.run.upstream_call import UpstreamCall


@contextmanager
def open_memory_call(
    request: ModelRequest, upstream: str, provider: str, model: str, *, is_background: bool = True
) -> Iterator[UpstreamCall]:
    """Yields a call for a memory, and ends the call with the block.

    If a provider's error, a timeout or a cancellation ends the block, the call has the failure, or the status of a
    refusal. The call is in the receipt of the current work, if there is one.

    upstream: the name of the upstream in the settings.
    provider: the kind of the upstream in the settings.
    model: the name of the model in the request.
    is_background: the value of `UpstreamCall.is_background`.
    """
    call = UpstreamCall(
        time.perf_counter(),
        upstream=upstream,
        provider=provider,
        model=model,
        path=request.path,
        is_background=is_background,
        sent_tokens=estimate_prompt_tokens(request.body),
    )
    if (receipt := find_current_receipt()) is not None:
        receipt.add_call(call)
    try:
        yield call
    except TimeoutError:
        call.failure = "timeout"
        raise
    except asyncio.CancelledError:
        call.failure = CANCELLED_FAILURE
        raise
    except ProviderRefused as error:
        call.status = error.status
        raise
    except ProviderError as error:
        call.failure = classify_failure(error).kind
        raise
    finally:
        call.end()
