"""Standing facts: wishes, preferences and instructions of a user that a later request does not name.

"I never eat meat" matters in a question about restaurants, and shares no word with it. A fact that always holds is a
standing fact, and the memory section shows it (`standing_block.py`). A background model marks standing facts; without
one a rule finds the sentences that state such a fact in the first person, by a table of words
(gateway/data/standing_words.txt).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from math import inf
from pathlib import Path
from typing import NamedTuple

from gateway.core.memory.fact_words import list_distinctive_words, make_fact_key
from gateway.core.memory.orders import STATEMENT, get_own_text
from gateway.core.memory.secret_texts import has_secret
from gateway.core.words import QUESTION_MARKS
from storage.commands import LearnedFact
from storage.reader_commands import LearnedChanges
from storage.records import Fact, Message

# The table of words with which standing facts begin.
_TABLE_FILE = Path(__file__).parents[2] / "data/standing_words.txt"
# The most characters of a sentence that states a fact; a longer one is a story. Not measured: with fewer, facts with
# a reason are missed; with more, stories are shown before each reply.
MAX_CHARS = 160
# The end of a sentence.
_SENTENCE = re.compile(r"(?<=[.!?;…])\s+|(?<=[。！？])|\n+")
# Between names and numbers a dash stands for "to": "the Berlin - Hamburg train", "12 - 8 pm".
_CLAUSE = re.compile(r", |，|、|؛|،| [-–—] (?![A-ZÀ-ÞА-Я\d])|—")
# Letters of Japanese and Korean, where a clause states something at its end.
_VERB_LAST_SCRIPT = re.compile("[\u3041-\u30ff\uac00-\ud7a3]")
# The keys of the table that are no language.
# Before patterns of things of which a person has only one ("! call me").
_SINGLE_VALUE_KEY = "!"
# Before words for how a statement holds ("- never always").
_ADVERBS_KEY = "-"
# Before the ends of clauses that state nothing.
_CONDITIONS_KEY = "?"
# The beginnings of alternatives of a pattern in the table that are no letters.
_BEGINNINGS = (r"\b", "^")


def learn_standing(
    messages: Iterable[Message], known_facts: Sequence[Fact], *, now: float = inf, keeps_secrets: bool = False
) -> LearnedChanges:
    """Returns the standing facts that a user's messages state by the rule. (`apply_reply_edits` is for a model.)

    If two statements contradict each other, the later one holds, in whichever order they are read.

    messages: the messages, cleaned.
    known_facts: the standing facts so far.
    now: the current time, in seconds since the epoch. A fact with a later date was dated by a wrong clock, and gives
        way to any statement.
    keeps_secrets: True if texts that look like secrets are learned, too.
    """
    # The facts by their keys.
    facts_by_key: dict[str, _StatedFact] = {}
    known_statements = [
        (fact, _Statement.of(get_own_text(fact.text))) for fact in known_facts if fact.standing
    ]
    for message, sentence in _find_sentences(messages):
        statement = _Statement.of(sentence)
        if statement.is_empty or (not keeps_secrets and has_secret(sentence)):
            continue
        text = f"{STATEMENT}{sentence}"
        key = make_fact_key(text)
        facts_by_key = {
            earlier_key: stated
            for earlier_key, stated in facts_by_key.items()
            if not statement.replaces(stated.statement)
        }
        replaced_facts = [
            fact for fact, known_statement in known_statements if statement.replaces(known_statement)
        ]
        if any(message.at < fact.valid_from <= now for fact in replaced_facts):
            continue
        fact = LearnedFact(
            text,
            about="",
            key=key,
            valid_from=message.at,
            exchange_row=message.exchange_row,
            sources=(message.exchange_row,),
            replaces=tuple(fact.id for fact in replaced_facts),
            standing=True,
        )
        facts_by_key[key] = _StatedFact(statement, fact)
    return LearnedChanges(facts=[stated.fact for stated in facts_by_key.values()])


def find_replaced_rows(text: str, known_facts: Iterable[Fact]) -> list[int]:
    """Returns the rows of the facts that a standing fact replaces as a later statement would.

    known_facts: the standing facts so far.
    """
    statement = _Statement.of(get_own_text(text))
    return [fact.id for fact in known_facts if statement.replaces(_Statement.of(get_own_text(fact.text)))]


def is_standing(sentence: str) -> bool:
    """Returns whether a sentence states something that always holds for its speaker."""
    return len(sentence) <= MAX_CHARS and any(pattern.search(sentence) for pattern in _read_table().patterns)


def read_first_clause(sentence: str) -> str:
    """Returns the first clause of a sentence; the sentence, if it has one clause."""
    return _CLAUSE.split(sentence, maxsplit=1)[0]


def normalize_statement(text: str) -> str:
    """Returns the bare statement of a fact or of a message; two that state the same have the same statement."""
    return get_own_text(text).strip(" .")


def _find_sentences(messages: Iterable[Message]) -> Iterator[tuple[Message, str]]:
    """Yields the sentences of a user's messages that state standing facts, the oldest message first."""
    # An import may bring old messages after new ones.
    for message in sorted(messages, key=lambda each: each.at):
        if message.role == "user":
            for sentence in _find_sentences_in(message.text):
                yield message, sentence


def _find_sentences_in(text: str) -> Iterator[str]:
    """Yields the sentences of a text that state standing facts."""
    for sentence in _SENTENCE.split(text):
        sentence = " ".join(sentence.split())
        if sentence.endswith(QUESTION_MARKS):
            sentence = _cut_statement_before_question(sentence)
        if is_standing(sentence):
            yield sentence


def _cut_statement_before_question(sentence: str) -> str:
    """Returns the clause of a question that states a fact before the question: "I'm vegan, what can I cook?".

    Returns "" if the question states nothing. Only its first clause can state a fact, since a later clause may depend
    on a condition. In languages with the verb at the end, the end of the first clause may make it a condition, a
    question or a topic: then it states nothing. It also states nothing if the rest has no words of its own: "I like
    fish, do I?"
    """
    first_clause, *rest = _CLAUSE.split(sentence, maxsplit=1)
    if not rest or not list_distinctive_words(rest[0]) or _read_table().conditions.search(first_clause):
        return ""
    states_fact = is_standing if _VERB_LAST_SCRIPT.search(first_clause) else _begins_standing
    return first_clause if states_fact(first_clause) else ""


def _begins_standing(clause: str) -> bool:
    """Returns whether a clause begins with a standing fact."""
    return any(pattern.match(clause) for pattern in _read_table().patterns)


class _Statement(NamedTuple):
    """A sentence in the form in which sentences are compared."""

    # The words of the sentence, without the words for how the statement holds.
    words: frozenset[str]
    # True: the sentence states a thing of which a person has only one, such as a name.
    is_single_valued: bool

    @classmethod
    def of(cls, sentence: str) -> _Statement:
        table = _read_table()
        is_single_valued = table.single_valued.search(sentence) is not None
        return cls(list_distinctive_words(sentence) - table.adverbs, is_single_valued)

    @property
    def is_empty(self) -> bool:
        """True if the sentence states nothing by itself.

        Examples are "I never do.", and the rest of a sentence that an abbreviation has cut ("Call me Al P. from now
        on.").
        """
        return not (self.words or self.is_single_valued)

    def replaces(self, old: _Statement) -> bool:
        """Returns whether this statement takes the place of an older one.

        It does if both state a thing of which a person has only one, or if they differ only in how they hold, as "I
        always eat meat now" and "I never eat meat" do.
        """
        if self.is_single_valued and old.is_single_valued:
            return True
        new_words, old_words = self.words, old.words
        return bool(new_words and old_words) and (new_words <= old_words or old_words <= new_words)


class _StatedFact(NamedTuple):
    """A fact that is learned, with the statement that it is made of."""

    # The statement.
    statement: _Statement
    # The fact as it is stored.
    fact: LearnedFact


class _Table(NamedTuple):
    """The table of words, compiled."""

    # The patterns of standing facts, one for each way in which such a fact begins.
    patterns: Sequence[re.Pattern[str]]
    # Finds things of which a person has only one.
    single_valued: re.Pattern[str]
    # Words for how a statement holds.
    adverbs: frozenset[str]
    # The ends of clauses that state a condition, ask, or name a topic.
    conditions: re.Pattern[str]


@cache
def _read_table() -> _Table:
    """Returns the table of words, which is read once."""
    texts_by_key: dict[str, list[str]] = {}
    for line in _TABLE_FILE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            key, text = line.split(maxsplit=1)
            texts_by_key.setdefault(key, []).append(text)
    adverbs = list_distinctive_words(" ".join(texts_by_key.pop(_ADVERBS_KEY)))
    conditions = _compile(texts_by_key.pop(_CONDITIONS_KEY))
    # The texts with one beginning are one pattern, so that the beginning is looked for once at each character. For a
    # sentence that states nothing, this takes a fifth of the time that a pattern for each language takes.
    texts_by_beginning: dict[str, list[str]] = {}
    for text in chain.from_iterable(texts_by_key.values()):
        beginning = next(filter(text.startswith, _BEGINNINGS), "")
        texts_by_beginning.setdefault(beginning, []).append(text)
    return _Table(
        patterns=[*map(_compile, texts_by_beginning.values())],
        single_valued=_compile(texts_by_key[_SINGLE_VALUE_KEY]),
        adverbs=adverbs,
        conditions=conditions,
    )


def _compile(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)
