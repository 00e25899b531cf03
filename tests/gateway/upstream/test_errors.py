"""One table says what a provider's error is to the client, to the metrics and to failover."""

from __future__ import annotations

import pytest

from adapters.errors import (
    NoDescriptor,
    ProviderError,
    ProviderReplyBroken,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
    UnfinishedEvent,
)
from gateway.core.upstream.policy import Failure
from gateway.errors import (
    DescriptorsUsedUp,
    UpstreamError,
    UpstreamReplyBroken,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnreachable,
)
from gateway.run.upstream.provider_errors import classify_failure, get_error_kind, translate_provider_error


@pytest.mark.parametrize(
    ("error", "ours", "failure"),
    [
        # no connection: the request cannot have been seen, but dialling again would wait as long
        (ProviderTimeout("t", phase="connect"), UpstreamTimeout, Failure("timeout", False, False)),
        (ProviderTimeout("t", phase="first byte"), UpstreamTimeout, Failure("timeout", True, False)),
        (ProviderUnreachable("u", was_sent=False), UpstreamUnreachable, Failure("unreachable", False)),
        (ProviderUnreachable("u"), UpstreamUnreachable, Failure("unreachable")),
        (NoDescriptor("n", was_sent=False), DescriptorsUsedUp, Failure("unreachable", False, is_own=True)),
        (ProviderReplyBroken("b"), UpstreamReplyBroken, Failure("broke")),
        (UnfinishedEvent(b"data: {"), UpstreamReplyBroken, Failure("broke")),
        (ProviderTooLarge("l"), UpstreamTooLarge, Failure("broke")),
        (ProviderError("e"), UpstreamError, Failure("broke")),
    ],
)
def test_an_error_of_a_provider(error: ProviderError, ours: type[UpstreamError], failure: Failure) -> None:
    found = translate_provider_error(error)
    said = f"The gateway got no whole answer from its upstream: {error}."
    assert (type(found), found.message) == (ours, said)
    assert get_error_kind(found) == failure.kind
    assert classify_failure(error) == failure


def test_an_error_without_words_gets_some() -> None:
    assert translate_provider_error(ProviderError("")).message
