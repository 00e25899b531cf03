"""The rules of recall, each with how it is turned off: what `scripts/bench recall --rules` asks the sets without.

A rule is off while other values stand in the places of its constants or functions. Rules by which an index is made
are not among them: a memory is written once and asked without each rule in turn.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from types import ModuleType
from typing import Any

from gateway.core.prompt import note_draft, note_query
from gateway.run.memory import find_messages, request_search
from storage.search import (
    common_words,
    language,
    occurrences,
    rank,
    score_sums,
    scores,
    term_weights,
    word_degrees,
)
from storage.search.tokens import list_terms_of_word

_scale_to_best = scores._scale_to_best
Place = tuple[ModuleType, str, Any]


@dataclass(frozen=True)
class Rule:
    """A rule, and what stands in which places while it is off: module, name, value."""

    name: str
    off: Sequence[Place]

    @contextlib.contextmanager
    def turned_off(self) -> Iterator[None]:
        """Turns it off for a while."""
        originals = [(module, name, getattr(module, name)) for module, name, _ in self.off]
        try:
            for module, name, value in self.off:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in originals:
                setattr(module, name, value)


def _by_all_turns(score: Any, of_user: Any, _: float) -> Any:
    return _scale_to_best(score, of_user, 0.0)


def _beginning(text: str, _: Sequence[str], limit: int, **__: bool) -> tuple[str, str]:
    return text[:limit], " ..."


def _by_words(word: str) -> int:
    terms = list_terms_of_word(word) or (word,)
    return sum(filter(None, map(word_degrees.load_degrees().get, dict.fromkeys(terms))))


def _is_none(_: str) -> bool:
    return False


def _as_it_is(query: str, _: Sequence[str]) -> str:
    return query


RULES = (
    Rule("the words of the turns around", [(score_sums, "NEIGHBOUR_FACTOR", 0.0)]),
    Rule("those beyond a short turn", [(score_sums, "HALVING_TERMS", 0.001)]),
    Rule("the user's turns once more", [(scores, "_scale_to_best", _by_all_turns)]),
    Rule("texts that only ask count less", [(score_sums, "ASKS", 0), (scores, "ASKS", 0)]),
    Rule("small talk stays out", [(scores, "SLIGHT", 0)]),
    Rule("how common words are in general", [(term_weights, "_MIN_IN_GENERAL", 0)]),
    Rule("common words are rarer in short messages", [(term_weights, "_MESSAGE_TERMS", 0.001)]),
    Rule("the date of most messages tells little", [(occurrences, "is_date_word", _is_none)]),
    Rule("the name of most messages' speaker tells little", [(occurrences, "_MIN_SPEAKER_MESSAGES", inf)]),
    Rule("a text's language by its letters", [(language, "_measure_likelihood", _by_words)]),
    Rule("small talk searches nothing", [(rank, "COMMON_SHARE", 1.0)]),
    Rule("what only begins or tests searches nothing", [(common_words, "OPENING_WORDS", frozenset())]),
    Rule("bound: the best hit", [(scores, "MIN_BEST_SHARE", 0.0), (scores, "MIN_BEST_SHARE_OF_ONE", 0.0)]),
    Rule("bound: a hit by one word", [(scores, "MIN_BEST_SHARE_OF_ONE", 0.0)]),
    Rule("bound: each hit, of the query", [(scores, "MIN_SHARE", 0.0)]),
    Rule(
        "a word of a long message says less",
        [(term_weights, "_USUAL_LENGTH", inf), (term_weights, "_USUAL_LENGTH_UNSPACED", inf)],
    ),
    Rule("wordy questions ask for less", [(term_weights, "_MAX_UNKNOWN_WORDS", inf)]),
    Rule("pairs never heard ask less", [(term_weights, "_MISSING_PAIR_SHARE", 1.0)]),
    Rule("a sentence never heard asks less", [(rank, "_SENTENCE_END", re.compile("(?!)"))]),
    Rule("a second look for names", [(rank, "_MAX_BYTES_OF_SECOND_SEARCH", -1)]),
    Rule("more hits of short messages", [(request_search, "SPARE_BUDGETS", 0)]),
    Rule("the best part of a long turn", [(note_draft, "make_excerpt", _beginning)]),
    Rule("what came next, or before", [(find_messages, "_NEIGHBOUR_QUESTIONS", ())]),
    Rule("a second search for an order", [(find_messages, "_ORDER_QUESTIONS", ())]),
    Rule("an order's hits with its words first", [(find_messages, "list_query_keys", lambda _: ())]),
    Rule("the user's name is I", [(note_query, "with_speaker", _as_it_is)]),
    Rule("vectors fade where words hold", [(scores, "VECTORS_FADE", 0)]),
    Rule("a near vector for few words", [(scores, "_NEAR_ENOUGH", inf)]),
    Rule("vectors alone, far beyond", [(scores, "_MIN_BEYOND_ALONE", inf)]),
)
