"""Marks that voice frameworks put into messages: turn marks, flush tags, lines that only fill a pause.

No person wrote them. They pass untouched in both directions, and are removed only before facts are learned from a
message.
"""

from __future__ import annotations

import re

# Pipecat's filter of incomplete turns prefixes a reply with a mark: a check mark or a filled circle, by version; a
# hollow or a half circle alone means "incomplete, say nothing".
_TURN_MARK = re.compile(r"^[\s✓✔●⬤○◯◐◑◒◓]+")
# Vapi's `<flush />` sends the buffered text to the voice; break and emphasis are the speech engines' own.
_TAG = re.compile(r"</?\s*(?:flush|break|emphasis|prosody|speak|say-as|phoneme)\b[^<>]*>", re.IGNORECASE)
# Whole messages that only bridge a pause, and prompts that a framework sends in the user's place.
_BRIDGING_LINE = re.compile(
    r"(?:(?:ok(?:ay)?|sure|right|alright|well|hm+|um+|uh+)[\s,.!…]*+)?"
    r"(?:let me (?:just )?(?:check|see|look|think)(?: (?:that|this|on that|into that|it up))?(?: for you)?"
    r"|(?:just )?(?:a|one) (?:moment|second|sec|minute)(?: please)?|hold on(?: a (?:moment|second|sec))?"
    r"|please introduce yourself(?: to the (?:user|caller))?|(?:are )?you (?:still )?there)?[\s.…!?,]*",
    re.IGNORECASE,
)


def strip_marks(text: str) -> str:
    """Returns the message without such marks; "": the message has no other text."""
    text = _TAG.sub("", _TURN_MARK.sub("", text)).strip()
    return "" if _BRIDGING_LINE.fullmatch(text) else text
