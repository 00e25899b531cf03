"""How common words are in people's texts: the background against which a memory's own words are counted.

A memory of ten messages cannot show that "go" is a common word and "whale" is not. The tables of word_degrees.py can.
How common a word is depends on the language of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from storage.search.language import detect_language, load_pairs
from storage.search.tokens import is_pair, list_terms, list_terms_of_word, split_words
from storage.search.word_degrees import (
    FIRST_LINE,
    LAST_LINE,
    OPENING_WORDS,
    TIME_TERMS,
    load_degrees,
    unpack_degree,
    unpack_degrees,
)

# Words in a message: turns a word's share of all words into the share of messages that have it. Measured on
# LongMemEval in histories of 22 messages with 100, 150 and 300: evidence in the note 91.5, 91.3 and 90.8%; questions
# about something else that get a note: 31, 30 and 27%.
_MESSAGE_WORDS = 150
# The share of messages that have a term, by the term's degree.
_SHARES = [
    0.0, *(min(1.0, _MESSAGE_WORDS * 10 ** (-line / 2)) for line in range(LAST_LINE, FIRST_LINE - 1, -1))
]  # fmt: skip
# Half of the pairs of characters in a text without spaces belong to two words, and no table has such pairs. At most, a
# pair is in as many messages as both of its characters; if characters were side by side by chance, it would be in one
# of _MESSAGE_WORDS of these messages. The mean of the two logarithms is taken: a choice between the two bounds.
_SIDE_BY_SIDE = _MESSAGE_WORDS**-0.5
# A word that is in a larger share of people's messages distinguishes nothing.
COMMON_SHARE = 0.5
# A short word that is in a larger share in some language is a function word there: lines 2 to 5 of the table. Line 6
# has names, such as Amy and Tom, and "cat". Chosen by reading the words of up to three letters; among the longer words,
# these lines have "night" and "help".
_FUNCTION_SHARE = 0.4
_MAX_SHORT_LETTERS = 3
# A word that is in a larger share than this names nothing. These are some 150 words of a language, besides those used
# with assistants. One of LongMemEval's 500 questions has no others, and none of short talk's 1,088. With all words of
# the table, some 500, these were 8 and 43.
MAX_NAMING_SHARE = 0.1


def list_general_shares(words: Sequence[str], terms: Sequence[str]) -> list[float]:
    """Returns the share of people's messages that have each term of a text, in the text's most likely language.

    words: all words of the text. If all of them only begin or test a conversation ("Let's start."), every message
        counts as having each term.
    """
    if OPENING_WORDS.issuperset(words):
        return [1.0] * len(terms)
    degrees, language = load_degrees(), detect_language(words)

    def get_share(term: str) -> float:
        return _SHARES[unpack_degree(degrees.get(term, 0), language)]

    return [
        get_share(term) or (get_share(term[0]) * get_share(term[1]) * _SIDE_BY_SIDE if is_pair(term) else 0.0)
        for term in terms
    ]


def measure_rarest_share(terms: Sequence[str], shares: Sequence[float]) -> float:
    """Returns which share of people's messages has the rarest of the terms that may name something.

    Returns 1 if none may. Words of time ("yesterday") name nothing.
    """
    return min(
        [share for term, share in zip(terms, shares, strict=True) if term not in TIME_TERMS], default=1.0
    )


def names_nothing(text: str) -> bool:
    """Returns whether a text has words, all of them among the most common of its language, as in "Who am I?".

    Such a text names nothing to look for. If it asks for anything, it asks for the memory as a whole.
    """
    words = split_words(text)
    terms = [*chain.from_iterable(map(list_terms_of_word, words))]
    return bool(words) and measure_rarest_share(terms, list_general_shares(words, terms)) > MAX_NAMING_SHARE


def lacks_content(words: Sequence[str], terms: Sequence[str]) -> bool:
    """Returns whether each term of a text is in most of people's messages: "And now?" words: all of the text's."""
    return min(list_general_shares(words, terms), default=1.0) > COMMON_SHARE


def select_uncommon(text: str, words: Sequence[str]) -> list[str]:
    """Returns words without the common words of a text's language (some 500, such as "leave").

    Of scripts without spaces all words are returned: the table has no pairs of their characters.
    """
    degrees, language = load_degrees(), detect_language(split_words(text))
    return [
        word
        for word in words
        if not all(unpack_degree(degrees.get(term, 0), language) for term in list_terms(word))
    ]


def select_distinctive(text: str, words: Sequence[str]) -> list[str]:
    """Returns words without those in most of people's messages in a text's language, such as "und" in German."""
    degrees, language = load_degrees(), detect_language(split_words(text))

    def is_common(term: str) -> bool:
        return _SHARES[unpack_degree(degrees.get(term, 0), language)] > COMMON_SHARE

    return [word for word in words if not all(map(is_common, list_terms(word)))]


def is_function_word(word: str) -> bool:
    """Returns whether a word is a function word: of English, such as "with", or a short one of any language ("bei")."""
    terms = list_terms(word)
    if not terms:  # `list_terms` leaves out the function words of English
        return True
    degrees = load_degrees()
    return len(word) <= _MAX_SHORT_LETTERS and all(
        _SHARES[max(unpack_degrees(degrees.get(term, 0)))] > _FUNCTION_SHARE for term in terms
    )


def preload() -> None:
    """Reads the tables now instead of in the first query."""
    load_degrees()
    load_pairs()
