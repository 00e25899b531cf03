"""What follows from forgetting: which notes may quote what is gone, and what of a block is left without it.

The words themselves are gone when this is asked, so it is decided by what stands beside them: a note gives the day of
each message it quotes. Where that is not certain the note goes; it can be written again, what was forgotten cannot be
taken back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from gateway.core.memory.edits import perform
from gateway.core.prompt.note import tells_of_blocks
from storage.commands import Erased, ForgetRules, Revised
from storage.records import Block

__all__ = ["FORGET_RULES", "quotes", "rebuild"]

_DAY_S = 86_400
_WORD = re.compile(r"\w+")
_TELLING = 4  # letters of a word that can give something away; shorter ones are function words, or numbers


def quotes(text: str, erased: Erased) -> bool:
    """text: a note, or hidden rounds with results of searches."""
    if erased.blocks and tells_of_blocks(text):
        return True
    return any(f"[{_date(day)}" in text for day in erased.days)


def _date(day: int) -> str:
    try:
        return datetime.fromtimestamp(day * _DAY_S, UTC).strftime("%Y-%m-%d")
    except (OverflowError, OSError, ValueError):
        return "undated"


def rebuild(block: Block, later: Sequence[Revised]) -> str:
    """Edits by tools are done again on what is left. Of values that were given whole, lines go that may repeat it.

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
            known = set(before.split("\n"))
            for line in each.value.split("\n"):
                if line not in known:
                    tainted |= _words(line) - clean
        elif each.op is not None and each.op.op != "rethink":
            (now,), _ = perform([now], each.op)
        else:
            lines = each.value.split("\n")
            now = replace(now, value="\n".join(line for line in lines if not _words(line) & tainted))
        before = each.value
    return now.value


def _words(text: str) -> set[str]:
    return {w for w in _WORD.findall(text.casefold()) if len(w) >= _TELLING or not w.isascii() or w.isdigit()}


FORGET_RULES = ForgetRules(quotes, rebuild)
