"""A fake embedder's idea of meaning: words that mean the same have the same place in its vectors.

Deterministic and without words of the text in it, so that a test can look for a vector's bytes in a file.
"""

from __future__ import annotations

import hashlib
import re
from array import array

__all__ = ["DIMENSION", "unit_bytes", "vector_of"]

DIMENSION = 48
_SAME = {"reptile": "tortoise", "pet": "tortoise", "nourishment": "dandelions", "meal": "dandelions"}


def vector_of(text: str) -> list[float]:
    """Not of length 1, and all zeros where there is no word."""
    vector = [0.0] * DIMENSION
    for word in re.findall(r"\w+", text.lower()):
        base = word.rstrip("s")
        meant = _SAME.get(base, word)
        digest = hashlib.blake2b(meant.encode(), digest_size=2 * DIMENSION).digest()
        for i in range(DIMENSION):
            vector[i] += (digest[2 * i] * 256 + digest[2 * i + 1]) / 32768 - 1
    return vector


def unit_bytes(text: str) -> bytes:
    """As it lies in the database."""
    vector = vector_of(text)
    length = sum(x * x for x in vector) ** 0.5
    return array("f", [x / length for x in vector]).tobytes()
