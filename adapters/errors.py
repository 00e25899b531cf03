"""The errors of requests to a provider. A reply with an HTTP error status is no error of this module.

ProviderError
├── ProviderUnreachable   no reply came: refused, name not found, TLS, cut before the response's headers
│   └── NoDescriptor      the gateway has no file descriptor left for a connection
├── ProviderTimeout       a deadline passed; `phase` names it
├── ProviderReplyBroken   the reply began and did not end as HTTP or as server-sent events must
│   ├── UnreadableResults some lines of a file of results are not results
│   └── UnfinishedEvent   the stream ended inside an event; `rest` has the bytes
├── ProviderTooLarge      a reply, or one event of it, is larger than its bound
│   └── ReplyQuotaUsedUp  the replies under way are larger than their bound together
├── BatchOutcomeUnknown   it is not known yet whether a batch was made
└── ProviderRefused       an error status where the caller needs an answer (never from `send`)
    └── BatchQueueFull    the account's queue has no room for a batch
"""

from __future__ import annotations

from typing import ClassVar, Literal

Phase = Literal["connect", "first byte", "between chunks", "total"]


class ProviderError(Exception):
    """An error of a request to a provider. message: a sentence about the fault and what was seen."""

    # True if the same request may succeed another time.
    is_transient: ClassVar[bool] = True

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ProviderUnreachable(ProviderError):
    """No reply came. was_sent: the upstream may have seen the request; False: there was no connection."""

    def __init__(self, message: str, *, was_sent: bool = True) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class NoDescriptor(ProviderUnreachable):
    """The gateway has no file descriptor left for a connection, so the provider is not at fault."""


class ProviderTimeout(ProviderError):
    """A deadline passed. phase: the phase of the request that took too long."""

    def __init__(self, message: str, *, phase: Phase) -> None:
        super().__init__(message)
        self.phase: Phase = phase


class ProviderReplyBroken(ProviderError):
    """The reply did not end as HTTP or server-sent events must."""


class UnreadableResults(ProviderReplyBroken):
    """Some lines of a file of results are not results."""


class UnfinishedEvent(ProviderReplyBroken):
    """The stream ended inside an event. rest: the bytes after the last whole event."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"the stream ended inside an event, after {len(rest)} bytes of it")
        self.rest = rest


class ProviderTooLarge(ProviderError):
    """A reply, or one event of it, is larger than its bound. The next one would be as large."""

    is_transient = False


class ReplyQuotaUsedUp(ProviderTooLarge):
    """All replies under way are larger than their bound together."""

    is_transient = True


class BatchOutcomeUnknown(ProviderError):
    """The outcome of a submission is not known: it may have made a batch."""


class ProviderRefused(ProviderError):
    """The provider has refused the request with an error status.

    retry_after_s: the wait that the reply asks for; None: the reply asks for no wait.
    """

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class BatchQueueFull(ProviderRefused):
    """The account's queue has no room for a batch.

    queue_tokens: the tokens that the queue takes when it is empty; None: not reported.
    """

    def __init__(self, message: str, *, status: int, queue_tokens: int | None = None) -> None:
        super().__init__(message, status=status)
        self.queue_tokens = queue_tokens
