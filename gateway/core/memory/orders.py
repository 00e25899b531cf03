"""Orders to an assistant in remembered texts. A reply must not obey them, so they are marked as the user's words."""

from __future__ import annotations

import re

from storage.records import MUTED

# Sentences that look like orders to an assistant. English only: the prompt asks for the same in any language.
_ORDER = re.compile(
    r"^\W*(?:please\s+)?(?:always|never|ignore|disregard|forget|pretend|obey|do not|don't|make sure|be sure|remember to"
    r"|respond|reply|answer|act as|you (?:are|must|should|shall|will|have to|need to))\b"
    r"|\b(?:you|assistant|model|ai|bot)\s+(?:must|should|shall|has to|have to|needs? to|is to|will always|will never)\b"
    r"|\b(?:ignore|disregard|override)\b.{0,40}\b(?:instructions?|rules?|prompts?|messages?|safety)\b"
    r"|\b(?:system prompt|from now on|new rule|new instructions?)\b",
    re.IGNORECASE | re.DOTALL,
)
# The words before a sentence that a person has asked to be remembered.
STATEMENT = "User said: "


def as_statement(line: str) -> str:
    """Returns a line. If it looks like an order, it is marked as the user's statement."""
    if _ORDER.search(line) and not line.strip().startswith(STATEMENT):
        return f"{STATEMENT}{line.strip()}"
    return line


def get_own_text(text: str, kind: str = "fact") -> str:
    """Returns a remembered text without the words that mark a fact as a user's statement.

    kind: the kind of the text, as in `Message` or `SourceRecord`; any text but a fact's is returned as it is.
    """
    return text.removeprefix(STATEMENT) if kind in ("fact", MUTED) else text
