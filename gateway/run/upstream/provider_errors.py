"""The one table of a provider's errors: the client's error, the kind in metrics, and the failure for failover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adapters.errors import (
    NoDescriptor,
    ProviderError,
    ProviderReplyBroken,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
)
from gateway.core.upstream.policy import Failure
from gateway.errors import (
    DescriptorsUsedUp,
    GatewayError,
    UpstreamError,
    UpstreamReplyBroken,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnreachable,
)

_ERROR_TABLE: Final[tuple[tuple[type[ProviderError], type[UpstreamError], str], ...]] = (
    (ProviderTimeout, UpstreamTimeout, "timeout"),
    (NoDescriptor, DescriptorsUsedUp, "unreachable"),
    (ProviderUnreachable, UpstreamUnreachable, "unreachable"),
    (ProviderReplyBroken, UpstreamReplyBroken, "broke"),
    (ProviderTooLarge, UpstreamTooLarge, "broke"),
    (ProviderError, UpstreamError, "broke"),
)

# The outcome of an attempt in words, by the kind of its failure: the predicate of a sentence about the provider or the
# model. "filtered" stands for an attempt that a filter of the provider refused. All other outcomes are statuses.
FAILURE_WORDS: Final[Mapping[str, str]] = {
    "broke": "gave no whole answer",
    "filtered": "refused the content",
    "timeout": "did not answer in time",
    "unreachable": "could not be reached",
}


def translate_provider_error(error: ProviderError) -> UpstreamError:
    """Returns the gateway's error for a provider's. Its text names the source, which may be the provider."""
    error_type = next(
        mapped for provider_error, mapped, _ in _ERROR_TABLE if isinstance(error, provider_error)
    )
    return error_type(
        f"The gateway got no whole answer from its upstream: {str(error) or 'it could not be used'}."
    )


def get_error_kind(error: GatewayError) -> str:
    """Returns the kind of an upstream's error, as metrics and receipts name it."""
    return next((kind for _, mapped, kind in _ERROR_TABLE if isinstance(error, mapped)), "broke")


def classify_failure(error: ProviderError) -> Failure:
    """Returns the failure of an attempt that brought no reply, as failover judges it."""
    kind = next(kind for provider_error, _, kind in _ERROR_TABLE if isinstance(error, provider_error))
    match error:
        case ProviderTimeout():
            # An endpoint that was silent until a timeout is not tried again for this request.
            return Failure(kind, was_sent=error.phase != "connect", is_repeatable=False)
        case ProviderUnreachable():
            return Failure(kind, was_sent=error.was_sent, is_own=isinstance(error, NoDescriptor))
        case _:
            return Failure(kind)
