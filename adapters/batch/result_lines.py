"""Files of results, one JSON object in each line, read piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from adapters.batch.batch_provider import MAX_RESULT_BYTES, PartResult
from adapters.errors import ProviderReplyBroken, UnreadableResults
from adapters.json_escapes import read_json_exactly
from adapters.types import Json

# Replaces a line that is too long. It is no JSON.
_UNREADABLE = b"?"


async def parse_results(
    pieces: AsyncIterator[bytes], read_result: Callable[[Json], PartResult]
) -> AsyncGenerator[PartResult]:
    """Yields the results of a file, as its pieces come in.

    read_result: a function that returns the result in a line's object, or raises ProviderReplyBroken.

    Raises: UnreadableResults, after all readable results were yielded: some lines are no results.
    """
    garbled_count = 0
    async for line in _split_lines(pieces):
        try:
            value = read_json_exactly(line)
            if not isinstance(value, dict):
                raise ProviderReplyBroken("a result is no object")
            result = read_result(value)
        # A field of another type than the provider documents raises a TypeError, and so does JSON that is nested too
        # deeply to be written again.
        except (ValueError, ProviderReplyBroken, TypeError):
            garbled_count += 1
        else:
            yield result
    if garbled_count:
        raise UnreadableResults(f"{garbled_count} lines of the provider's results cannot be read")


async def _split_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the lines that are not blank."""
    # The pieces of a line before its end has come.
    unfinished: list[bytes] = []
    # The bytes of these pieces.
    size = 0
    async for piece in pieces:
        *line_ends, beginning = piece.split(b"\n")
        for line_end in line_ends:
            if (line := b"".join((*unfinished, line_end))).strip():
                yield line
            unfinished = []
            size = 0
        if beginning:
            size += len(beginning)
            unfinished.append(beginning)
            if size > MAX_RESULT_BYTES:
                # Each further piece is dropped, too: the size stays above the bound until the line ends.
                unfinished = [_UNREADABLE]
    # The last line may lack its end.
    if (last_line := b"".join(unfinished)).strip():
        yield last_line
