"""The seam to an upstream that answers requests in batches: the same methods for every provider's batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container
from typing import BinaryIO, Final, Literal, Protocol

from msgspec import Struct

# The ways in which a request of a batch does not succeed.
FailedOutcome = Literal["errored", "expired", "cancelled"]
# The most bytes of one result. Chosen: far above any completion.
MAX_RESULT_BYTES: Final = 64 * 1024 * 1024
# The most characters of a provider's message.
MAX_MESSAGE_CHARS: Final = 500
# The statuses below 500 after which the same request may succeed another time.
_TRANSIENT_STATUSES: Final = frozenset((408, 409, 425, 429))


class PartState(Struct, frozen=True):
    """The state of the provider's batch that was made of a `BatchPart`."""

    # True if there will be no more results.
    is_over: bool
    # True if there are results to be read.
    has_results: bool = False
    # The provider's reason for having no results.
    message: str = ""
    # True if the provider does not know the batch.
    is_gone: bool = False
    # True if the batch has no results because the account's queue had no room for it.
    exceeds_queue: bool = False
    # The tokens that the queue takes when it is empty; None: not reported.
    queue_tokens: int | None = None
    # The outcome of requests that are missing in the results.
    unreported: FailedOutcome = "errored"


class PartResult(Struct, frozen=True):
    """The result of one request of a batch."""

    # The id under which `make_line` put the request into the batch.
    custom_id: str
    # The outcome of the request.
    outcome: Literal["succeeded"] | FailedOutcome
    # The chat completion; empty where the request did not succeed.
    body: bytes = b""
    # The provider's message where the outcome is an error.
    message: str = ""
    # True if the same request may succeed when it is sent again.
    is_transient: bool = False


class BatchPart(Struct, frozen=True):
    """Requests that are submitted as one of the provider's batches."""

    # A random text that serves to find the batch again.
    mark: str
    # The earliest time at which the batch can have been made, in seconds since the epoch.
    earliest_at: float
    # The most requests that the batch has.
    count: int


class BatchProvider(Protocol):
    """An upstream that answers many requests whenever it has time. All methods raise ProviderError."""

    # The most requests of one batch.
    max_requests: int
    # The most bytes of all lines of one batch.
    max_bytes: int
    # The seconds between two polls; None: the caller decides.
    poll_interval_s: float | None
    # True if the provider's batches outlive this process.
    is_durable: bool

    @property
    def missing_package(self) -> str | None:
        """The text that a package is missing, with the command that installs it; None: nothing is missing."""

    def make_line(self, custom_id: str, body: bytes) -> bytes:
        """Returns a request as a line of a batch's file. body: a chat completion request that is no stream.

        Raises: ProviderRefused, with a message for the caller: the provider's dialect cannot express it.
        """

    async def submit(self, part: BatchPart, lines: BinaryIO) -> str:
        """Makes a batch of a file of lines, which is read as it is sent and then closed. Returns its id.

        Raises: BatchQueueFull: the account's queue has no room for the batch; ProviderRefused: the batch was not made;
        other errors: the batch may have been made.
        """

    async def find(
        self, part: BatchPart, custom_ids: Container[str], known_ids: Container[str] = ()
    ) -> str | None:
        """Returns the id of the batch that was made of a part.

        None: no batch was made; then files that were uploaded for the part are deleted.

        custom_ids: the ids of the part's requests.
        known_ids: the ids of batches that were made of other parts.

        Raises: BatchOutcomeUnknown: a batch that is under way may be the part's; ask again later.
        """

    async def poll(self, batch_id: str) -> PartState:
        """Returns the present state of the batch with this id."""

    def read_results(self, batch_id: str) -> AsyncIterator[PartResult]:
        """Yields results one by one as they are read, in any order.

        Raises: ProviderReplyBroken: the results ended in the middle.
        """

    async def cancel(self, batch_id: str) -> None:
        """Asks the provider to stop. Requests that were answered before may have results nevertheless."""

    async def discard(self, batch_id: str, part: BatchPart) -> None:
        """Deletes the files and results of a batch that is over. part: the part that the batch was made of."""

    async def aclose(self) -> None: ...


def is_transient(status: int) -> bool:
    """Returns whether the same request may succeed another time."""
    return status in _TRANSIENT_STATUSES or status >= 500
