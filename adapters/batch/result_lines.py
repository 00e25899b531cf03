"""Files of results, one JSON object in each line, read piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from adapters.batch.batch_provider import PartResult
from adapters.errors import ProviderBroke, ProviderGarbled
from adapters.json_escapes import read_json_exactly
from adapters.types import Json

_MAX_BYTES = 64 * 1024 * 1024  # of one line; chosen: far above any completion
_UNREADABLE = b"?"  # stands for the omitted part of a line, and is no JSON


async def read_results(
    pieces: AsyncIterator[bytes], read: Callable[[Json], PartResult]
) -> AsyncGenerator[PartResult]:
    """Yields the results of a file, as its pieces come in. read: of an object; it raises ProviderBroke for no result.

    Raises: ProviderGarbled, when all that can be read was yielded: there are lines that are no results.
    """
    garbled = 0
    async for line in _lines(pieces):
        try:
            found = read_json_exactly(line)
            if not isinstance(found, dict):
                raise ProviderBroke("a result is no object")
            result = read(found)
        except (ValueError, ProviderBroke, TypeError):
            garbled += 1
        else:
            yield result
    if garbled:
        raise ProviderGarbled(f"{garbled} lines of the provider's results cannot be read")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for line in whole:
            if (found := b"".join((*held, line))).strip():
                yield found
            held, size = [], 0
        if rest:
            size += len(rest)
            held.append(rest)
            if size > _MAX_BYTES:
                held = [_UNREADABLE]
    # The last line may lack its end.
    if (last := b"".join(held)).strip():
        yield last
