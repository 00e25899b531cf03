"""A fake embedder's idea of meaning: words that mean the same have the same place in its vectors.

Deterministic and without words of the text in it, so that a test can look for a vector's bytes in a file.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from functools import cache

DIMENSION = 400  # enough for two words that are not the same to be hardly alike
_SAME = {"reptile": "tortoise", "pet": "tortoise", "nourishment": "dandelions", "meal": "dandelions"}


@cache
def _of_word(word: str) -> tuple[float, ...]:
    meant = _SAME.get(word.rstrip("s"), word)
    digest = hashlib.shake_128(meant.encode()).digest(2 * DIMENSION)
    return tuple((digest[2 * i] * 256 + digest[2 * i + 1]) / 32768 - 1 for i in range(DIMENSION))


def vector_of(text: str) -> list[float]:
    """Returns the text's vector: not normalised, and all zeros where there is no word."""
    words = [_of_word(word) for word in re.findall(r"\w+", text.lower())]
    return [sum(numbers) for numbers in zip(*words, strict=True)] if words else [0.0] * DIMENSION


def unit_bytes(text: str) -> bytes:
    """Returns the normalised vector in the bytes that the database holds."""
    vector = vector_of(text)
    length = sum(x * x for x in vector) ** 0.5
    return array("f", [x / length for x in vector]).tobytes()
