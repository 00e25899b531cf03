"""The frame around a person's words: what applications and frameworks say in the user's role, in fixed words.

Their tags, sentences and templates are data (gateway.core.applications). It does not know messages or notes.
"""

from __future__ import annotations

from gateway.core.applications import APPLICATIONS, IN_PLACE

_REMINDER, _REMINDED = "<system-reminder>", "</system-reminder>"
# OpenClaw's, as the last line of a session's first message.
_RUNTIME, _OF_RUNTIME = "\n\nRuntime: ", " | session="


_BEGINNINGS = tuple({template.begin for template in APPLICATIONS.templates})


def without_frame(text: str) -> str:
    """Returns a person's own words, without the text that applications put around them.

    Coding agents put that between these tags (Letta Code, Claude Code, opencode). A message of nothing else stays as it
    is, since some wrap the person's later words. Of a framework's own text in the user's role nothing is left.
    """
    bare = _without_added(text)
    if question := _question_in_template(bare.strip()):
        bare = question
    elif placed := IN_PLACE.match(text):
        bare = _without_added(text[placed.end() :])
    own, is_there, line = bare.rpartition(_RUNTIME)
    if is_there and _OF_RUNTIME in line and "\n" not in line:
        bare = own
    own = _without(bare, _REMINDER, _REMINDED)
    return own if own.strip() else bare


def _question_in_template(text: str) -> str:
    """Returns the question in a framework's template; "": it is no known template."""
    if text.startswith(_BEGINNINGS):
        for template in APPLICATIONS.templates:
            if text.startswith(template.begin) and (question := template.question(text)):
                return question
    if "\n" in text:
        for appended in APPLICATIONS.appended:
            own, is_there, _ = text.partition(appended.text)
            if is_there:
                return own.strip()
    return ""


def _without_added(text: str) -> str:
    if "<" in text:
        for added in APPLICATIONS.added:
            text = _without(text, added.begin, added.end)
    return text


def _without(text: str, begin: str, end: str) -> str:
    """Returns a text without what stands between two tags."""
    pieces = []
    at = 0
    # Not by a pattern: it would read the rest of the text again for each tag that is not closed.
    while (opened := text.find(begin, at)) >= 0 and (closed := text.find(end, opened)) >= 0:
        pieces.append(text[at:opened])
        at = closed + len(end)
    return "".join((*pieces, text[at:])).strip() if at else text
