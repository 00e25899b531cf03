"""Patterns for texts that are looked for by a part of them."""

from __future__ import annotations

_ESCAPED = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_"})


def part_of(text: str | None) -> str | None:
    """Returns the pattern of texts that have this one in them, in lower case; None for None.

    Statements compare it with `lower(...)`, which in SQLite knows ASCII letters alone.
    """
    if text is None:
        return None
    lowered = "".join(c.lower() if c.isascii() else c for c in text)
    return f"%{lowered.translate(_ESCAPED)}%"
