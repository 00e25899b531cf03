"""A message as the search index has it: its terms, each with how often it occurs, and four numbers of the message.

Pure: a message in, counted terms out. How they are packed is known to storage/search/blob.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol

from msgspec import Struct

from storage.search.common_words import lacks_content
from storage.search.tokens import (
    list_names,
    list_terms,
    list_terms_of_words,
    make_date_words,
    may_be_compound,
    split_compounds,
    split_words,
)

# Characters of a turn that count for its neighbours: a whole long turn ruins BM25, its beginning does not.
_HEAD_CHARS = 200
# Distinct terms stored of one document; a page of prose has about 250. It bounds the entries of one document: later
# terms are not found.
_DOCUMENT_TERMS = 4_000
# The characters of a document that are indexed: some hundred pages of prose. It bounds the time of one document: later
# words are not found.
_DOCUMENT_CHARS = 200_000
# The largest numbers of 16 bits and of 8 bits.
_MAX_U16 = 0xFFFF
_MAX_U8 = 0xFF

# A text with fewer terms than this share of its words counts as English, which writes hardly any compound as one word:
# its long words are not split into parts. Function words are no terms: 28 to 66% of English words, up to 20% of other
# languages'. With parts, 29 and 25% of the requests in scripts/talk/kinds.py that need no note got one, not 21 and 12%.
_ENGLISH_TERM_SHARE = 0.75

# A text only asks if its sentences are questions, or it repeats a question. A longer text also states something.
_ENDS_WITH_QUESTION = re.compile(r"[?？؟]\W*\Z")
_STATEMENT_END = re.compile(r"[.!。！](?:\s|(?<=[。！]))")
_QUESTION_CHARS = 500
# A text with more terms than this has content.
_SLIGHT_TERMS = 8

# A counted term is one number: how often a document has the term (8 bits), and to the left two marks: the term is in
# the document's head, and the term is in a name there.
FREQUENCY = 0xFF
HEAD = 0x100
NAME = 0x200
# An occurrence, as queries see it, is a counted term with its document's row to the left.
ROW_SHIFT = 10
COUNTED_TERM = (1 << ROW_SHIFT) - 1

# The bits of a row's flags.
# The user wrote the document.
USER = 1
# The row has a document.
PRESENT = 2
# The document only asks.
ASKS = 4
# The document's words are what people say all the time.
SLIGHT = 8


class Indexable(Protocol):
    """The fields of a message that the index reads, as records of the store and `Document` have them."""

    @property
    def seq(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def at(self) -> float:
        """Seconds since the epoch."""

    @property
    def speaker(self) -> str | None:
        """A name, where the client gave one."""

    @property
    def previous(self) -> int | None:
        """The seq of the turn before in the conversation, if that turn is indexed or will be."""


class Document(Struct, frozen=True):
    """The fields of a message that the index reads, as a key of caches: equal documents have the same terms."""

    # The number of the message, as `Message.seq`.
    seq: int
    # The role of the author.
    role: str
    # The text of the message.
    text: str
    # The time of the message, in seconds since the epoch.
    at: float
    # The name of the speaker; None: the message names no speaker.
    speaker: str | None = None
    # The number of the previous message of the conversation; None: there is none, or it was not read.
    previous: int | None = None


class DocumentRow(NamedTuple):
    """The four numbers of a message. A number that is too large for its bits is stored as the largest that fits."""

    # The number of terms of the message, including its date's and its speaker's. 16 bits.
    length: int
    # The message's number less the number of the turn before; 0: there is no such turn, or the difference is too large.
    # 16 bits.
    previous_distance: int
    # The flags of the message (`USER` and others). 8 bits.
    flags: int
    # The number of terms of the message's head. 8 bits.
    head_length: int


NO_DOCUMENT = DocumentRow(0, 0, 0, 0)


class CountedDocument(Struct, frozen=True):
    """A message with its terms counted."""

    # The four numbers of the message.
    row: DocumentRow
    # The number of times that each term occurs, at most 255, with the marks HEAD and NAME, by term.
    terms: dict[str, int]


class _SplitText(NamedTuple):
    """The words and terms of a text, which begin with the words and terms of its head."""

    # The words of the head.
    head_words: list[str]
    # The words of the whole text.
    words: list[str]
    # The terms of the head.
    head_terms: list[str]
    # The terms of the whole text.
    terms: list[str]

    def list_compounds(self) -> list[str]:
        """Returns the words that may be compounds, each once; none of an English text."""
        if len(self.head_terms) < _ENGLISH_TERM_SHARE * len(self.head_words):
            return []
        return [word for word in dict.fromkeys(self.words) if may_be_compound(word)]


def _split(text: str) -> _SplitText:
    text = text[:_DOCUMENT_CHARS]
    head_end = _measure_head(text)
    head_words = split_words(text[: head_end or _HEAD_CHARS])
    head_terms = list_terms_of_words(head_words)
    words = head_words
    terms = head_terms
    if head_end < len(text):
        words = head_words + split_words(text[head_end:]) if head_end else split_words(text)
        terms = list_terms_of_words(words)
    return _SplitText(head_words, words, head_terms, terms)


def count_terms(document: Indexable) -> CountedDocument:
    """Returns the terms of a message, its date and its speaker, counted, without the marks of names (`mark_names`)."""
    split = _split(document.text)
    text_terms = split.terms
    frame_terms = _list_frame_terms(document)
    terms: dict[str, int] = Counter(chain(dict.fromkeys(frame_terms), text_terms))
    compounds = split.list_compounds()
    # A part of a compound is found, but it is no word of the text and does not make it longer.
    for part in islice(split_compounds(compounds), _DOCUMENT_TERMS):
        terms.setdefault(part, 1)
    if len(terms) > _DOCUMENT_TERMS:
        terms = dict(islice(terms.items(), _DOCUMENT_TERMS))
    if len(text_terms) >= FREQUENCY:
        terms = {term: min(times, FREQUENCY) for term, times in terms.items()}
    for term in {*split.head_terms, *split_compounds({*split.head_words}.intersection(compounds))}:
        if term in terms:
            terms[term] |= HEAD
    distance = 0 if document.previous is None else document.seq - document.previous
    row = DocumentRow(
        length=min(len(text_terms) + len(frame_terms), _MAX_U16),
        previous_distance=distance if 0 < distance <= _MAX_U16 else 0,
        flags=_make_flags(document, split.words, text_terms),
        head_length=min(len(split.head_terms), _MAX_U8),
    )
    return CountedDocument(row, terms)


def list_distinct_terms(text: str) -> set[str]:
    """Returns the terms that `count_terms` counts in a text, each once, in half of the time."""
    split = _split(text)
    terms = dict.fromkeys(split.terms)
    terms.update(dict.fromkeys(islice(split_compounds(split.list_compounds()), _DOCUMENT_TERMS)))
    return {*islice(terms, _DOCUMENT_TERMS)}


def _list_frame_terms(document: Indexable) -> Sequence[str]:
    """Returns the terms of a message besides its text's: the terms of its date and of its speaker's name."""
    date_terms = make_date_words(int(document.at // 86_400)) if math.isfinite(document.at) else ()
    return [*date_terms, *list_terms(document.speaker)] if document.speaker else date_terms


def list_name_terms(document: Indexable) -> list[str]:
    """Returns the terms of the names and numbers in the head of a message, sorted."""
    text = document.text[:_DOCUMENT_CHARS]
    return sorted({*list_names(text[: _measure_head(text) or _HEAD_CHARS])})


def mark_names(counted: CountedDocument, document: Indexable) -> CountedDocument:
    """Returns a counted message with the marks of its names, which blobs have."""
    terms = dict(counted.terms)
    for term in list_name_terms(document):
        if term in terms:
            terms[term] |= NAME
    return CountedDocument(counted.row, terms)


def _measure_head(text: str) -> int:
    """Returns where the head of a text ends, after a word, or 0 without spaces: the head may then end anywhere."""
    return len(text) if len(text) <= _HEAD_CHARS else text.rfind(" ", 0, _HEAD_CHARS) + 1


def _make_flags(document: Indexable, words: Sequence[str], terms: Sequence[str]) -> int:
    """Returns the flags of a message. words, terms: the words of its text with function words, and its terms."""
    flags = PRESENT | (USER if document.role == "user" else 0)
    text = document.text[:_DOCUMENT_CHARS].strip()
    if len(text) <= _QUESTION_CHARS:
        question_end = _ENDS_WITH_QUESTION.search(text)
        if question_end and not _STATEMENT_END.search(text, 0, question_end.start()):
            flags |= ASKS
    if len(terms) <= _SLIGHT_TERMS and lacks_content(words, terms):
        flags |= SLIGHT
    return flags
