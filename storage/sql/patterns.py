"""Texts that are looked for by a part of them."""

from __future__ import annotations


def part_of(text: str | None) -> str | None:
    """Returns a part of texts as `{has:..}` compares it, with ASCII's capitals made small; None for None."""
    return None if text is None else "".join(c.lower() if c.isascii() else c for c in text)
