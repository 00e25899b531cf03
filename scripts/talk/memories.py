"""The memories of the sets in scripts/talk/sets.py: histories of turns, with questions about them."""

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
    # The numbers of the turns that have the answer; empty: no turn has it, and any note is noise.
    evidence: frozenset[int]
    # If set, only an excerpt with one of these sentences counts as the answer.
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryCase:
    """A case of the bench: one person's history, and the questions that are asked at its end."""

    # The messages of the memory, oldest first.
    history: list[Document]
    # The questions, and other first messages.
    questions: list[AskedMessage]
    # The time of the questions, in seconds since the epoch.
    asked_at: float
    # The person's name, which the requests of the questions have; None: they have no name.
    name: str | None = None
    # True: the messages have the name as well.
    has_name_in_messages: bool = False


def history_of(sessions: Iterable[Session]) -> tuple[list[Document], dict[int, set[int]]]:
    """Returns the turns as numbered documents, and for each fact in `Turn.marks` the numbers of the turns with it."""
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
