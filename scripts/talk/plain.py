"""The reference: a plain BM25 of two columns, a turn's own words and those of the turns around it, by SQLite's FTS5."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from gateway.core.prompt.note_text import estimate_tokens
from storage.search.document import Document
from storage.search.tokens import list_terms_of_word, split_words

_HITS = 200


class PlainSearch:
    """The index of one history. Turns come back whole, each with its speaker, until the budget is used."""

    def __init__(self, history: Sequence[Document]) -> None:
        self._rows = {turn.seq: turn for turn in history}
        self._index = sqlite3.connect(":memory:")
        self._index.execute("CREATE VIRTUAL TABLE turns USING fts5(own, near, tokenize = 'porter unicode61')")
        following = {turn.previous: turn for turn in history if turn.previous is not None}
        for turn in history:
            neighbours = [self._rows.get(turn.previous or 0), following.get(turn.seq)]
            near = " ".join(neighbour.text for neighbour in neighbours if neighbour is not None)
            self._index.execute(
                "INSERT INTO turns (rowid, own, near) VALUES (?, ?, ?)", (turn.seq, turn.text, near)
            )

    def ask(self, question: str, budget: int) -> str:
        """Returns what the question finds, best first."""
        words = [word for word in split_words(question) if list_terms_of_word(word)]
        if not words:
            return ""
        match = " OR ".join('"' + word.replace('"', "") + '"' for word in words)
        order = "SELECT rowid FROM turns WHERE turns MATCH ? ORDER BY bm25(turns, 1.0, 0.5) LIMIT ?"
        lines, remaining = list[str](), budget
        for (seq,) in self._index.execute(order, (match, _HITS)):
            line = f"{self._rows[seq].role}: {' '.join(self._rows[seq].text.split())}"
            cost = estimate_tokens(line + "\n")
            if cost <= remaining:
                lines.append(line)
                remaining -= cost
        return "\n".join(lines)

    def close(self) -> None:
        self._index.close()
