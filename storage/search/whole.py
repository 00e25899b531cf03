"""Texts that ask for a memory as a whole: they name nothing to search for, and greet or ask about their speaker.

The words of such texts are in asked_for_whole.txt next to this module, for the languages of said_to_assistants.txt.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from storage.search.common_words import names_nothing
from storage.search.tokens import fold, split_words

_TABLE_PATH = Path(__file__).with_name("asked_for_whole.txt")
_QUESTION_MARKS = frozenset("?？؟")
# Languages without spaces between words.
_UNSPACED_LANGUAGES = frozenset(("zh", "ja"))
# The characters of a text in which the words are searched for: a longer text names something.
_MAX_CHARS = 500


class _Words(NamedTuple):
    """The words of one language by which a text asks about its speaker."""

    # The words that name the speaker.
    speaker_words: frozenset[str]
    # The words that ask.
    question_words: frozenset[str]
    # True if the language is written without spaces between words.
    is_unspaced: bool

    def match(self, words: frozenset[str]) -> bool:
        """Returns whether the words of a text include words of both kinds."""
        if self.is_unspaced:
            return all(
                any(term in word for word in words for term in terms)
                for terms in (self.speaker_words, self.question_words)
            )
        return not words.isdisjoint(self.speaker_words) and not words.isdisjoint(self.question_words)


class _Table(NamedTuple):
    """The words of asked_for_whole.txt."""

    # The words of each language that ask for the memory.
    languages: list[_Words]
    # The words that make a text a greeting, in any language.
    greeting_words: frozenset[str]
    # All words that a greeting may have.
    words_of_greetings: frozenset[str]


def asks_for_whole(text: str, *, is_opening: bool) -> bool:
    """Returns whether a text asks for the memory as a whole: "Who am I?", or "Hello!" as the first of a conversation.

    is_opening: True if no message of the person comes before the text. A later text must be a question.
    """
    if not is_opening and _QUESTION_MARKS.isdisjoint(text):
        return False
    words = _split_words(text[:_MAX_CHARS])
    table = _load_table()
    if is_opening and not words.isdisjoint(table.greeting_words) and words <= table.words_of_greetings:
        return True
    return any(language_words.match(words) for language_words in table.languages) and names_nothing(text)


def _split_words(text: str) -> frozenset[str]:
    """Returns the folded words of a text, divided at apostrophes."""
    return frozenset(part for word in split_words(text) for part in fold(word.replace("’", "'")).split("'"))


@cache
def _load_table() -> _Table:
    words_by_kind: dict[tuple[str, str], set[str]] = {}
    for line in _TABLE_PATH.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            language, kind, words = line.split(maxsplit=2)
            words_by_kind.setdefault((language, kind), set()).update(_split_words(words))

    def collect(kind: str) -> frozenset[str]:
        return frozenset().union(*(words for (_, each), words in words_by_kind.items() if each == kind))

    languages = [
        _Words(frozenset(words), frozenset(words_by_kind[language, "asks"]), language in _UNSPACED_LANGUAGES)
        for (language, kind), words in words_by_kind.items()
        if kind == "speaker"
    ]
    return _Table(languages, collect("greet"), collect("greet") | collect("with"))
