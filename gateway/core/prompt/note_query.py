"""The query of a recall: the text to search for, and the found messages that share only a template with it.

Sans-IO. It knows nothing of the search itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from gateway.core.prompt.excerpt import UNSPACED_FROM, choose_best_sentence, list_query_keys
from gateway.core.prompt.note_text import quote_on_line, read_own_words
from storage.records import Message

# A query has about 1,000 tokens at most; a longer message is a template or a document, not a question.
QUERY_CHARS = 4_000
# The characters of such a message's first lines, and of its last lines.
_EDGE_CHARS = 500
# The number of the user's messages from which sentences about the events of a query are taken. The index takes names
# from as many for its second search (`storage.search.rank`). With 1, 2 and 5 as much is found.
_EVENT_MESSAGES = 3
# The most characters of a very long message that are compared, and searched for its best part.
SEARCHED_CHARS = 20_000
# Shorter lines, such as brackets, are in many texts by chance. Not measured.
_LINE_CHARS = 16
# A line in this many messages belongs to an application's template. Not measured: with fewer, a user's repetition
# counts as a template; with more, a new template is shown more often.
_TEMPLATE_MESSAGES = 3


def make_query(text: str) -> str:
    """Returns the text to search for: the message, or the last and then the first lines of a long one."""
    text = read_own_words(text).strip()
    if len(text) <= QUERY_CHARS:
        return text
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    last_lines = _choose_edge_lines(reversed(lines), is_from_end=True)
    first_lines = _choose_edge_lines(lines, is_from_end=False)
    return "\n".join((*reversed(last_lines), *first_lines))


def with_speaker(query: str, names: Sequence[str]) -> str:
    """Returns a query with "I" in the place of its speaker's name, since speakers do not name themselves.

    names: the names of the speaker. The first word of a longer name is a name as well.
    """
    for name in names:
        pattern = find_name_pattern(name, is_low=query == query.lower())
        if pattern is not None:
            query = pattern.sub("I", query)
    return query


@lru_cache(maxsize=256)
def find_name_pattern(name: str, *, is_low: bool) -> re.Pattern[str] | None:
    """Returns the pattern of a person's name as a word; None for a name without letters.

    is_low: True if the text has no capitals.
    """
    words = [word for word in re.split(r"[\s_]+", name) if word]
    if not words or len(words[0]) < 2:
        return None
    forms = re.escape(" ".join(words)), re.escape(words[0])
    # A script without spaces has no word boundary.
    edge = "" if words[0][0] >= UNSPACED_FROM else r"\b"
    flags = re.IGNORECASE if is_low or name == name.lower() else 0
    return re.compile(f"{edge}(?:{'|'.join(forms)}){edge}", flags)


def choose_event_sentences(messages: Iterable[Message], query: str) -> list[str]:
    """Returns the user's sentences about the events of a query: the best sentence of each of the first messages.

    messages: the messages that were found for the query, best first.
    """
    keys = list_query_keys(query)
    user_messages = [message for message in messages if message.role == "user"][:_EVENT_MESSAGES]
    sentences = (
        choose_best_sentence(quote_on_line(choose_searched_part(message.text, keys)), keys)
        for message in user_messages
    )
    return list(filter(None, dict.fromkeys(sentences)))


def choose_searched_part(text: str, keys: Sequence[str]) -> str:
    """Returns the part of a text that is searched for its best sentences: all of it, unless the text is very long.

    From a very long text it is the part around the word of the query that first occurs latest, since a word that occurs
    early may be all over the text. If the text has no word of the query, the part is its beginning.

    keys: the keys of the query, from `list_query_keys`.
    """
    if len(text) <= SEARCHED_CHARS:
        return text
    offset = max(map(text.lower().find, keys), default=0)
    start = max(0, min(offset - SEARCHED_CHARS // 2, len(text) - SEARCHED_CHARS))
    return text[start : start + SEARCHED_CHARS]


def find_shared_lines(text: str, messages: Iterable[Message]) -> frozenset[str]:
    """Returns the lines of a text that other messages have word for word: lines of a template, or quoted lines."""
    if "\n" not in text:
        return frozenset()
    return _list_long_lines(text) & frozenset().union(*(_list_long_lines(each.text) for each in messages))


def without_lines(text: str, lines: Collection[str]) -> str:
    """Returns a text without its lines that are in `lines`."""
    return "\n".join(line for line in text.splitlines() if line.strip() not in lines)


def without_templates(messages: Sequence[Message], shared_lines: Collection[str]) -> list[Message]:
    """Returns the messages that were found, without those that have only a template in common with the question.

    A text that a person quotes once more is in one or two messages, and these stay.

    shared_lines: the lines from `find_shared_lines`.
    """
    sharing_seqs = {
        message.seq for message in messages if not _list_long_lines(message.text).isdisjoint(shared_lines)
    }
    if len(sharing_seqs) < _TEMPLATE_MESSAGES:
        return [*messages]
    return [message for message in messages if message.seq not in sharing_seqs]


def _choose_edge_lines(lines: Iterable[str], *, is_from_end: bool) -> list[str]:
    """Returns whole lines up to `_EDGE_CHARS`; if the first is too long itself, its part at the message's edge."""
    edge_lines: list[str] = []
    room = _EDGE_CHARS
    for line in lines:
        if len(line) >= room:
            if not edge_lines:
                edge_lines.append(line[-room:] if is_from_end else line[:room])
            break
        edge_lines.append(line)
        room -= len(line) + 1
        if room <= 0:
            break
    return edge_lines


def _list_long_lines(text: str) -> frozenset[str]:
    lines = (line.strip() for line in text[:SEARCHED_CHARS].splitlines())
    return frozenset(line for line in lines if len(line) >= _LINE_CHARS)
