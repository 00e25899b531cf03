"""Memories to be asked: histories of turns with questions, which the sets of scripts/talk/sets.py are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scripts.talk.dialogue import Turn
from storage.search.document import Document

# A session: its start (in seconds since the epoch), and its turns.
Session = tuple[float, list[Turn]]


@dataclass(frozen=True)
class AskedMessage:
    """A question, or another first message."""

    # The kind of the message, under which its result is printed.
    kind: str
    # The message.
    text: str
    # The numbers of the turns that hold the answer; empty: nothing answers it, and any note is noise.
    evidence: frozenset[int]
    # If set, only an excerpt with one of these sentences counts as the answer.
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryCase:
    """A case of the bench: one person's history, and what is asked about it at the end."""

    # The messages of the memory, oldest first.
    history: list[Document]
    # The messages that are asked at the end.
    questions: list[AskedMessage]
    # In seconds since the epoch.
    asked_at: float
    # The person's name, where the requests of the questions have it.
    name: str | None = None
    # The messages have the name as well.
    has_name_in_messages: bool = False


def history_of(sessions: Iterable[Session]) -> tuple[list[Document], dict[int, set[int]]]:
    """Returns the turns as numbered documents, and for each mark (`Turn.marks`) the numbers of the turns that have it.

    A mark stands for a fact.
    """
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
