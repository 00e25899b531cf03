"""The seam to a provider: the same few verbs for every upstream, real or scripted.

`send` returns as soon as the response's status and headers are known. A reply must be closed; closing one whose
body was not read to its end closes the upstream's connection, which is how a cancelled client stops the bill.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from adapters.errors import ProviderTooLarge
from adapters.types import Capabilities, Embedded, Event, ModelRequest

__all__ = ["Embedder", "ModelReply", "Provider", "read_whole"]


class ModelReply(Protocol):
    """A response whose headers have arrived.

    headers: lower-case names, end-to-end headers only (hop-by-hop ones, content-length and content-encoding are gone).
    """

    status: int
    headers: tuple[tuple[str, str], ...]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive. Raises: ProviderBroke, ProviderTimeout."""

    def events(self) -> AsyncIterator[list[Event]]:
        """The body as server-sent events, all that one read of the socket completed at a time; nothing held back.

        Raises: ProviderBroke when the body ends inside an event or the connection breaks, ProviderTimeout.
        """

    async def peek(self) -> Event | None:
        """The first event of an event stream, which `chunks` and `events` tell all the same; None: there is none.

        Raises: as `events`.
        """

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises: ProviderBroke, ProviderTimeout, ProviderTooLarge."""

    async def aclose(self) -> None:
        """Idempotent; never raises."""


async def read_whole(reply: ModelReply, limit_bytes: int) -> bytes:
    """What its `chunks` make together, for a reply that is translated on the way. Raises: as `ModelReply.read`."""
    parts: list[bytes] = []
    size = 0
    async for chunk in reply.chunks():
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            await reply.aclose()
            raise ProviderTooLarge(f"the reply is larger than {limit_bytes} bytes")
    return b"".join(parts)


class Provider(Protocol):
    """One upstream. `name` is the one of the settings."""

    name: str
    capabilities: Capabilities

    def has_endpoint(self, path: str) -> bool:
        """Whether it may have this one, a path below its base URL: False where it is known that it has not."""

    async def send(self, request: ModelRequest) -> ModelReply:
        """Raises: ProviderUnreachable, ProviderTimeout. An HTTP error is a reply, not an exception."""

    async def aclose(self) -> None: ...


class Embedder(Protocol):
    """Texts to vectors.

    name: what its vectors are kept under; two with the same name make the same. is_local: it computes in this process,
    in about a millisecond, and costs nothing.
    """

    name: str
    is_local: bool

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """texts: none of them empty, at most some hundreds. Raises: ProviderError; nothing is to be made of garbage."""

    async def aclose(self) -> None: ...
