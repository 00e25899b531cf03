"""Memories to be asked: histories of turns with questions, which the sets of scripts/talk/sets.py are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scripts.talk.dialogue import Turn
from storage.search.document import Document

# When it begins, in seconds since the epoch, and its turns.
Session = tuple[float, list[Turn]]


@dataclass(frozen=True)
class Asked:
    """A question, or another first message."""

    kind: str
    text: str
    # The numbers of the turns that hold the answer; none where the memory has no answer, so that a note is noise.
    evidence: frozenset[int]
    # The sentences of these turns that answer, where a part of a turn without them is no answer.
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """One person's history, and what is asked about it at the end."""

    history: list[Document]
    questions: list[Asked]
    # When it is asked, in seconds since the epoch.
    at: float
    # The person's name, where the requests of the questions have it.
    name: str | None = None
    # The messages have it as well.
    is_named: bool = False


def history_of(sessions: Iterable[Session]) -> tuple[list[Document], dict[int, set[int]]]:
    """Numbers the turns of sessions one after the other; returns also the turns of each mark."""
    history: list[Document] = []
    marked: dict[int, set[int]] = {}
    for at, turns in sessions:
        for number, turn in enumerate(turns):
            seq = len(history) + 1
            history.append(
                Document(seq, turn.role, turn.text, at + number, None, seq - 1 if number else None)
            )
            for mark in turn.marks:
                marked.setdefault(mark, set()).add(seq)
    return history, marked
