"""No script is silent: a wordy question finds what was said in any language, small talk finds nothing."""

from __future__ import annotations

from itertools import islice

import pytest

from scripts.talk.languages import FACTS, FRAMES, OPENINGS, make_chats
from storage.search.index import Index
from storage.search.rank import rank
from storage.search.tail import Tail

SECRET = b"s" * 32
# Of each half; the sets have more.
MEMORIES = 4
# What was written for the sets begins with these words where the question is wordy.
WORDY = {language: frame.partition("{}")[0] for language, frame in FRAMES.items()}


@pytest.mark.parametrize("language", FRAMES)
def test_a_wordy_question_finds_its_fact(language: str) -> None:
    """Each pair of characters across two words that was never heard counted as a rare word that no message has."""
    asked, found = 0, 0
    for half in (0, 1):
        for memory in islice(make_chats(language, half), MEMORIES):
            tail = Tail(memory.history)
            for question in memory.questions:
                if question.evidence and question.text.startswith(WORDY[language]):
                    asked += 1
                    hits = rank(Index(()), question.text, SECRET, tail=tail, only_strong=True, room=1_000)
                    found += question.evidence <= {*hits}
    assert asked >= 8
    assert found >= {"Chinese": 0.6, "German": 0.5, "Japanese": 0.7}.get(language, 0.75) * asked


@pytest.mark.parametrize("language", FACTS)
def test_a_question_about_something_else_finds_nothing(language: str) -> None:
    """What any text has some of, such as common pairs of characters, is no reason for a note."""
    asked, found = 0, 0
    for half in (0, 1):
        for memory in islice(make_chats(language, half), MEMORIES):
            tail = Tail(memory.history)
            for question in memory.questions:
                if question.kind == "foreign question":
                    asked += 1
                    found += bool(
                        rank(Index(()), question.text, SECRET, tail=tail, only_strong=True, room=1_000)
                    )
    assert asked >= 24
    # In Korean the word for a year of school is in the memory, in Chinese and Thai the one for learning, in Japanese
    # the one for a name; in German another thing than the one that is asked about is said to run.
    most = {
        "Chinese": 0.03,
        "Japanese": 0.03,
        "Korean": 0.13,
        "German": 0.03,
        "German, compounds": 0.03,
        "Thai": 0.09,
    }
    assert found <= most.get(language, 0.0) * asked


@pytest.mark.parametrize("language", OPENINGS)
def test_a_greeting_finds_nothing(language: str) -> None:
    tail = Tail(next(make_chats(language, 0)).history)
    greeting = OPENINGS[language].split("|")[0]
    assert rank(Index(()), greeting, SECRET, tail=tail, only_strong=True, room=1_000) == []
