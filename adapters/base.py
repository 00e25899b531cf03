"""The seams to providers and embedders: the same few methods for every upstream, real or scripted.

`send` returns as soon as the response's status and headers are known. A reply must be closed. If its body was not read
to the end, that closes the upstream's connection, so that the upstream stops generating for a client that has left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from adapters.capabilities import Capabilities
from adapters.types import EmbeddingResult, Event, Header, Json, ModelRequest


class ModelReply(Protocol):
    """A response after its headers have arrived. Its body is read once, by one of `chunks`, `events` and `read`."""

    # The HTTP status.
    status: int
    # The headers, with lower-case names, without hop-by-hop headers, content-length and content-encoding.
    headers: tuple[Header, ...]

    @property
    def is_stream(self) -> bool:
        """True if the reply is a success in server-sent events; any other reply is read as one body."""

    @property
    def size_bytes(self) -> int | None:
        """The body's announced length in bytes; None: no length is announced, or the body is translated."""

    @property
    def prompt_usage(self) -> Json | None:
        """The `usage` of the prompt, which a translated reply reports as it begins; None: not reported yet."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body's bytes as they arrive. Raises: ProviderReplyBroken, ProviderTimeout, ProviderTooLarge."""

    def events(self) -> AsyncIterator[list[Event]]:
        """Yields the body as server-sent events. Each list has the events that one read of the socket completed.

        Raises:
            ProviderReplyBroken: the connection breaks, or the body ends inside an event.
            ProviderTimeout.
            ProviderTooLarge: an event is too large.
        """

    async def peek(self) -> Event | None:
        """Returns the first event of a stream with content. Nothing is consumed: the body is read from its beginning.

        Comments and events without content are skipped for some seconds. Then the first of them is returned, since it
        is a sign of life for the client.

        Returns None for a reply that is no stream, and for an event that is too large to be buffered.

        Raises: as `events`; ProviderReplyBroken: the stream has no event.
        """

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body.

        limit_bytes: the size above which the body is not read. A body that is in memory already is returned anyway.

        Raises: ProviderReplyBroken, ProviderTimeout, ProviderTooLarge.
        """

    async def aclose(self) -> None:
        """Releases the connection. Idempotent; never raises."""


class Provider(Protocol):
    """An upstream."""

    # The upstream's name in the settings.
    name: str
    # The abilities of the upstream on which the gateway acts.
    capabilities: Capabilities

    def has_endpoint(self, path: str) -> bool:
        """Returns False for a path (below the base URL) that this provider is known not to serve."""

    async def send(self, request: ModelRequest) -> ModelReply:
        """Sends a request; an HTTP error is a reply, not an exception. Raises: ProviderUnreachable, ProviderTimeout."""

    async def aclose(self) -> None:
        """Closes all connections to the upstream."""


class Embedder(Protocol):
    """Makes vectors from texts."""

    # The name under which the vectors are stored. Two embedders with one name make the same vectors.
    name: str
    # True if the embedder computes in this process, in about a millisecond, and costs nothing.
    is_local: bool

    async def embed(self, texts: Sequence[str]) -> EmbeddingResult:
        """Returns a vector for each text.

        texts: at most some hundreds of texts, none of them empty.

        Raises: ProviderError, also if the answer has something that is not a vector.
        """

    async def aclose(self) -> None:
        """Releases the connections or the thread of the embedder."""
