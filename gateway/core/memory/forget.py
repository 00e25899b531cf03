"""Rules of forgetting: which notes may quote what was erased, and what is left of a block without it.

When a rule is asked, the erased words are gone already. It decides by what stood beside them: a note gives the day of
each message that it quotes. In doubt the note is erased as well, since a note can be written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.core.dates import date_of
from gateway.core.memory.edits import perform
from gateway.core.prompt.note import folded_words, mentions_blocks
from storage.commands import Erased, Revised
from storage.records import Block

_REVEALING = 4  # letters of a word that can give something away; shorter ones are function words


def quotes(text: str, erased: Erased) -> bool:
    """Returns whether a text may quote what was erased. text: a note, or hidden rounds with results of searches."""
    if erased.blocks and mentions_blocks(text):
        return True
    # Notes give the day of the week too, which other texts of ours may leave out, and the year where it is another.
    dates = (date_of(day).split()[0] for day in erased.days)
    return any(f"[{date}" in text or f"[{date.partition('-')[2]} " in text for date in dates)


def rebuild(block: Block, later: Sequence[Revised]) -> str:
    """Returns the value of a block without what was erased.

    Edits by tools are done again on what is left. Of values that were given whole, those lines are left out that may
    repeat what was erased.

    block: with its last value from before. later: the values it had since, oldest first.
    """
    clean = _words(block.value)
    before = block.value
    tainted: set[str] = set()
    now = block
    for each in later:
        if each.is_whole:
            now = replace(now, value=each.value)
        elif each.is_erased:
            # The words that this edit brought in may come back in a later value; those from before may stay.
            known = set(before.split("\n"))
            for line in each.value.split("\n"):
                if line not in known:
                    tainted |= _words(line) - clean
        elif each.op is not None and each.op.op != "rethink":
            # An insert or a replace says what it adds, so it can be done without the erased part.
            (now,), _ = perform([now], each.op)
        else:
            lines = each.value.split("\n")
            now = replace(now, value="\n".join(line for line in lines if not _words(line) & tainted))
        before = each.value
    return now.value


def _words(text: str) -> set[str]:
    return {w for w in folded_words(text) if len(w) >= _REVEALING or not w.isascii() or w.isdigit()}
