"""The words that a reply shares with other texts, and those that it has alone.

Each function works in a thread, since long texts take some milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from storage.search.text_words import find_spans_with_words, list_uncommon_words, list_written_words


class SharedWord(NamedTuple):
    """A word of a reply that some texts have as well."""

    # The index in the reply of the word's first character.
    start: int
    # The index in the reply after the word's last character.
    end: int
    # The positions of the texts that have it.
    text_indices: tuple[int, ...]


async def select_words_without(reply: str, shown_texts: Sequence[str]) -> str:
    """Returns the words of a reply that none of some texts has in any form."""
    return " ".join(await asyncio.to_thread(list_written_words, reply, "\n".join(shown_texts)))


async def select_uncommon_without(reply: str, shown_texts: Sequence[str]) -> str:
    """Returns what `select_words_without` does, without the most common words of the reply's language."""
    return " ".join(await asyncio.to_thread(list_uncommon_words, reply, "\n".join(shown_texts)))


async def find_shared_words(reply: str, question: str, texts: Sequence[str]) -> list[SharedWord]:
    """Returns the words of a reply that its question lacks and some of the texts have, in the reply's order."""

    def find() -> list[SharedWord]:
        indices_by_span: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        words = list_written_words(reply, question)
        for index, text in enumerate(texts if words else ()):
            lacking = {*list_written_words(" ".join(words), text)}
            found = " ".join(word for word in words if word not in lacking)
            for span in find_spans_with_words(reply, found) if found else ():
                indices_by_span[span].append(index)
        return sorted(SharedWord(*span, tuple(indices)) for span, indices in indices_by_span.items())

    return await asyncio.to_thread(find)


async def find_lines(text: str, query: str, limit: int) -> list[str]:
    """Returns the lines of a text with most words of a query, at most `limit`, in their order."""

    def find() -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        counts = {line: len(find_spans_with_words(line, query)) for line in lines}
        best_lines = sorted(filter(counts.get, counts), key=counts.__getitem__, reverse=True)[:limit]
        return sorted(best_lines, key=lines.index)

    return await asyncio.to_thread(find)
