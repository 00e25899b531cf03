"""Files of JSON lines, read piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson

from adapters.errors import ProviderBroke, ProviderTooLarge
from adapters.types import Json

_MOST_BYTES = 64 * 1024 * 1024  # of one line; chosen: far above any completion


async def cut_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[Json]:
    """Yields the objects of a file of JSON lines, as its pieces come in.

    Raises: ProviderBroke: a line is cut off, or is no object; ProviderTooLarge.
    """
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for line in whole:
            yield_of = b"".join((*held, line)) if held else line
            held, size = [], 0
            if yield_of.strip():
                yield _object(yield_of)
        if rest:
            held.append(rest)
            size += len(rest)
            if size > _MOST_BYTES:
                raise ProviderTooLarge(f"a result is larger than {_MOST_BYTES} bytes")
    # The last line may lack its end.
    if held and (last := b"".join(held)).strip():
        yield _object(last)


def _object(line: bytes) -> Json:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ProviderBroke("a result is cut off") from error
    if not isinstance(found, dict):
        raise ProviderBroke("a result is no object")
    return found
