"""The seam to a provider: the same few verbs for every upstream, real or scripted.

`send` returns as soon as the response's status and headers are known. A reply must be closed. Where its body was not
read to the end, that closes the upstream's connection: a client that leaves stops the bill.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Container, Sequence
from typing import BinaryIO, Final, Literal, Protocol

from msgspec import Struct

from adapters.errors import ProviderError, ProviderTooLarge
from adapters.types import Capabilities, Embedded, Event, Header, Json, ModelRequest

# Streams up to this size take nothing of the quota. It is one of 5,000 tokens that come one by one.
SMALL_STREAM_BYTES: Final = 1024 * 1024
# Far above any completion, and far below the memory of a machine; no measurement.
MAX_REPLY_BYTES = 256 * 1024 * 1024


class ReplyQuota:
    """The bytes of replies that may be in memory at once."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = self.left_bytes = limit_bytes


# The quota of the process is no more than one reply may have, since parsing it takes several times that.
REPLIES: Final = ReplyQuota(MAX_REPLY_BYTES)


class ReplyReservation:
    """The part of a quota that is reserved for one reply until it is released; for a small reply, nothing."""

    __slots__ = ("_bytes", "_quota", "_small_bytes")

    def __init__(self, small_bytes: int, quota: ReplyQuota = REPLIES) -> None:
        self._quota, self._small_bytes = quota, small_bytes
        self._bytes = 0

    def reserve(self, size: int) -> None:
        """Reserves `size` bytes in all. Raises: ProviderTooLarge."""
        if size <= self._small_bytes:
            return
        quota, missing = self._quota, size - self._bytes
        if missing > quota.left_bytes:
            raise ProviderTooLarge(
                f"all replies under way are larger than {quota.limit_bytes} bytes together"
            )
        quota.left_bytes -= missing
        self._bytes = size

    def release(self) -> None:
        """Gives all back. Idempotent."""
        self._quota.left_bytes += self._bytes
        self._bytes = 0

    def __del__(self) -> None:
        self.release()


class StreamReservation:
    """The part of the process's quota that is reserved for the streams of one turn. Together they have a limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._bytes = limit_bytes, 0
        self._reservation = ReplyReservation(SMALL_STREAM_BYTES)

    def reserve_more(self, size: int) -> None:
        """Reserves `size` further bytes. Raises: ProviderTooLarge."""
        self._bytes += size
        if self._bytes > self._limit_bytes:
            raise ProviderTooLarge(f"the reply is larger than {self._limit_bytes} bytes")
        self._reservation.reserve(self._bytes)

    def release(self) -> None:
        """Gives all back. Idempotent."""
        self._reservation.release()


class ModelReply(Protocol):
    """A response after its headers have arrived."""

    status: int
    # With lower-case names, without hop-by-hop headers, content-length and content-encoding.
    headers: tuple[Header, ...]

    @property
    def is_stream(self) -> bool:
        """Returns whether it is a success in server-sent events; any other reply is read as one body."""

    @property
    def size(self) -> int | None:
        """Returns the bytes that the body is announced to have; None: none are announced, or it is translated."""

    @property
    def prompt_usage(self) -> Json | None:
        """Returns what a translated reply has reported of its prompt so far, as the `usage` of a chat completion."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body's bytes as they arrive. Raises: ProviderBroke, ProviderTimeout."""

    def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as server-sent events, all that one read of the socket completed at a time.

        Raises: ProviderBroke when the body ends inside an event or the connection breaks, ProviderTimeout.
        """

    async def peek(self) -> Event | None:
        """Returns the first event of a stream, which `chunks` and `events` yield again.

        None: it is large. Comments before it are skipped, but not for long: the client awaits them as a sign of life.
        Raises: as `events`; ProviderBroke: there is none.
        """

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""

    async def aclose(self) -> None:
        """Releases the connection. Idempotent; never raises."""


async def read_whole(reply: ModelReply, limit_bytes: int) -> bytes:
    """Returns all that `chunks` yields, for replies that are translated on the way.

    Raises: as `ModelReply.read`.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in reply.chunks():
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            await reply.aclose()
            raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
    return b"".join(parts)


class WholeReply(ABC):
    """A reply with a body in one piece; a subclass decides where it is read from."""

    status: int
    headers: tuple[Header, ...]
    is_stream = False
    size: int | None = None
    prompt_usage: Json | None = None

    @abstractmethod
    async def read(self, limit_bytes: int) -> bytes: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        if body := await self.read(MAX_REPLY_BYTES):
            yield body

    async def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as one event: an error that comes in the place of a stream has no events of its own."""
        async for body in self.chunks():
            yield [Event(body, body)]

    async def peek(self) -> Event | None:
        return None

    @abstractmethod
    async def aclose(self) -> None: ...


class BufferedReply(WholeReply):
    """A reply that has arrived, or is made here. error: raised by `read`, if the reply broke."""

    def __init__(
        self, status: int, headers: tuple[Header, ...], body: bytes, error: ProviderError | None = None
    ) -> None:
        self.status = status
        self.headers = headers
        self._body = body
        self._error = error

    async def read(self, limit_bytes: int) -> bytes:
        if self._error is not None:
            raise self._error
        return self._body

    async def aclose(self) -> None:
        pass


class Provider(Protocol):
    """An upstream. name: the one it has in the settings."""

    name: str
    capabilities: Capabilities

    def has_endpoint(self, path: str) -> bool:
        """Returns False for a path (below the base URL) that this provider is known not to serve."""

    async def send(self, request: ModelRequest) -> ModelReply:
        """Sends a request; an HTTP error is a reply, not an exception. Raises: ProviderUnreachable, ProviderTimeout."""

    async def aclose(self) -> None: ...


class Embedder(Protocol):
    """A maker of vectors from texts."""

    # The name under which its vectors are stored; two embedders with one name make the same vectors.
    name: str
    # The embedder computes in this process, in about a millisecond, and costs nothing.
    is_local: bool

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Returns a vector for each text. texts: none of them empty, at most some hundreds.

        Raises: ProviderError, also for an answer in which anything is not a vector.
        """

    async def aclose(self) -> None: ...


class PartState(Struct, frozen=True):
    """The state of the provider's batch that a `BatchPart` was submitted as."""

    # There will be no more results.
    is_over: bool
    # There are results to be read.
    has_results: bool = False
    # The provider's reason for having no results.
    message: str = ""
    # The provider does not know the batch.
    is_gone: bool = False
    # The batch has no results because the account's queue had no room for it.
    exceeds_queue: bool = False
    # The tokens that the queue takes when it is empty; None: not reported.
    queue_tokens: int | None = None
    # The outcome of the requests that the results do not have.
    unreported: Literal["errored", "expired", "cancelled"] = "errored"


class PartResult(Struct, frozen=True):
    """The result of one request of a batch."""

    custom_id: str
    outcome: Literal["succeeded", "errored", "expired", "cancelled"]
    # The chat completion; empty where it did not succeed.
    body: bytes = b""
    # The provider's message where the outcome is an error.
    message: str = ""
    # The same request may succeed another time.
    is_transient: bool = False


class BatchPart(Struct, frozen=True):
    """Requests that are submitted as one of the provider's batches."""

    # A random text by which the batch is found again.
    mark: str
    # The earliest time at which the batch can have been made, in seconds since the epoch.
    since: float
    # The most requests that it has.
    count: int


class BatchProvider(Protocol):
    """An upstream that answers many requests at a time of its own. All methods raise ProviderError."""

    # The most requests of one batch, and the most bytes of its lines.
    most_requests: int
    most_bytes: int
    # The wait between two polls; None: the caller decides.
    poll_interval_s: float | None
    # The provider's batches outlive this process.
    is_durable: bool

    @property
    def missing(self) -> str | None:
        """Returns what has to be installed before it takes a batch, with the command to run; None: nothing."""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Returns a request as a line of a batch's file. body: a chat completion request that is no stream.

        Raises: ProviderRefused, with a message for the caller: the provider's dialect cannot express it.
        """

    async def submit(self, part: BatchPart, lines: BinaryIO) -> str:
        """Makes a batch of a file of lines, which is read as it is sent and then closed. Returns its id.

        Raises: ProviderCrowded: the account's queue has no room for it; ProviderRefused: it was not made; other errors:
        it may have been made.
        """

    async def find(
        self, part: BatchPart, custom_ids: Container[str], known: Container[str] = ()
    ) -> str | None:
        """Returns the id of the batch that was made of a part; None: there is none, and its files are deleted.

        known: ids of other parts. Raises: ProviderUnsure: a batch that is under way may be it; ask again.
        """

    async def poll(self, id: str) -> PartState: ...

    def results(self, id: str) -> AsyncIterator[PartResult]:
        """Yields results as they are read, in any order; they are never held together.

        Raises: ProviderBroke: they ended in the middle.
        """

    async def cancel(self, id: str) -> None:
        """Asks the provider to stop; what was done so far may be results nevertheless."""

    async def discard(self, id: str, part: BatchPart) -> None:
        """Has the provider delete what it stores of a batch that is over. part: the part that the batch was made of."""

    async def aclose(self) -> None: ...
