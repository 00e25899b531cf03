"""The words of facts: the limits of their length, the key of equal facts, and the distinctive words."""

from __future__ import annotations

import re
from collections.abc import Collection

from gateway.core.words import list_folded_words, list_words_with_signs, stem

# The most characters of a fact that a model writes, which has two or three sentences; a longer text is a document.
FACT_CHARS = 400
# The most characters of a fact that a user, another program or an import writes.
WRITTEN_FACT_CHARS = 2_000

# A word with its digits.
_WORD = re.compile(r"\w+")
# Words that do not distinguish one fact from another.
_SMALL = frozenset(
    _WORD.findall(
        "a an the is are was were be been has have had do does did will would to of in on at by for with from and or "
        "but that this it its he she they his her their user users s said"
    )
)
# The words by which models call the person of a memory. Most facts of a memory have such a word, which would tie each
# new fact to the messages of all others.
DESIGNATIONS = frozenset(
    _WORD.findall(
        "caller callers client clients customer customers guest guests human humans member members mr mrs ms patient "
        "patients people person player players speaker student students visitor visitors"
    )
)
# Small words that distinguish a present state from a past one.
_TENSES = frozenset({"was", "were", "had", "did", "would", "will"})


def make_fact_key(text: str) -> str:
    """Returns the key of a fact. Facts that differ only in small words, case and punctuation have the same key.

    Numbers are separated in the key, since 1.5 is not 15 and 1/11 not 11/1.
    """
    words = [f" {w}" if w[0].isdecimal() else w for w in list_words_with_signs(text)]
    return "".join(w for w in words if w not in _SMALL or w in _TENSES) or "".join(words)


def list_distinctive_words(text: str, left_out: Collection[str] = ()) -> frozenset[str]:
    """Returns the words that distinguish a text from others, without their endings, and the numbers and codes.

    left_out: the words that do not count.
    """
    words = (w for w in list_folded_words(text) if w not in _SMALL and w not in left_out)
    return frozenset(
        w if any(map(str.isdecimal, w)) else stem(w)
        for w in words
        if len(w) > 2 or not w.isascii() or any(map(str.isdecimal, w))
    )
