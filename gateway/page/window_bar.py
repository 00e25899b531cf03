"""The bar that shows how the prompt of a request fills its window."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from gateway.run.admin.records.request_records import WindowPart, WindowRecord

# The number of cells of a bar, each of 2 % of the window.
_BAR_CELLS = 50


class _PartLabel(NamedTuple):
    """The letter and the name of a part of a window, so that none is known by its colour alone."""

    letter: str
    name: str


WINDOW_PARTS: dict[WindowPart, _PartLabel] = {
    "system": _PartLabel("s", "system"),
    "tools": _PartLabel("T", "tools"),
    "section": _PartLabel("B", "memory blocks"),
    "summary": _PartLabel("u", "summary"),
    "history": _PartLabel("h", "history"),
    "note": _PartLabel("N", "note"),
    "message": _PartLabel("m", "message"),
}
FREE_PART = _PartLabel("·", "free")


class Cell(Struct, frozen=True):
    """A cell of the bar of a window."""

    # The part of the window that fills the cell, or "free".
    part: str
    # The letter of that part.
    letter: str


def make_cells(window: WindowRecord) -> list[Cell]:
    """Returns the bar of a window, in which each part that has tokens has at least one cell."""
    tokens_by_part = {each.part: each.tokens for each in window.parts if each.tokens}
    if not tokens_by_part:
        return []
    used_tokens = sum(tokens_by_part.values())
    free_tokens = max(0, (window.context or 0) - used_tokens)
    all_tokens = used_tokens + free_tokens
    counts = {
        part: max(1, round(tokens * _BAR_CELLS / all_tokens)) for part, tokens in tokens_by_part.items()
    }
    while sum(counts.values()) > _BAR_CELLS:  # small parts have a cell that they do not fill
        counts[max(counts, key=lambda part: counts[part])] -= 1
    if not free_tokens:
        # Rounding may have left cells over.
        counts[max(counts, key=lambda part: counts[part])] += _BAR_CELLS - sum(counts.values())
    cells = [Cell(part, WINDOW_PARTS[part].letter) for part, count in counts.items() for _ in range(count)]
    return cells + [Cell("free", FREE_PART.letter)] * (_BAR_CELLS - len(cells))
