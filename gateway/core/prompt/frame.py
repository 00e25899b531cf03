"""Finds a user's own words in a message around which an application or a framework has put fixed texts of its own.

Their tags, sentences and templates are data (gateway.core.applications). This module knows neither messages nor notes.
"""

from __future__ import annotations

from gateway.core.applications import APPLICATIONS, IN_PLACE

# Coding agents (Letta Code, Claude Code, opencode) put their own words between these tags.
_REMINDER_BEGIN = "<system-reminder>"
_REMINDER_END = "</system-reminder>"
# OpenClaw ends the first message of a session with a line that begins so and names the session.
_RUNTIME_BEGIN = "\n\nRuntime: "
_RUNTIME_SESSION = " | session="
# The beginnings of the templates, in one of which a message has to begin.
_TEMPLATE_BEGINNINGS = tuple({template.begin for template in APPLICATIONS.templates})


def without_frame(text: str) -> str:
    """Returns a user's own words, without the texts that applications put around them.

    Text between reminder tags stays if there is no other text: some applications wrap the user's later words in them.
    """
    words = _without_added(text)
    if question := _read_question_in_template(words.strip()):
        words = question
    elif replacement := IN_PLACE.match(text):
        words = _without_added(text[replacement.end() :])
    before_line, line_begin, line = words.rpartition(_RUNTIME_BEGIN)
    if line_begin and _RUNTIME_SESSION in line and "\n" not in line:
        words = before_line
    without_reminders = _without_tagged(words, _REMINDER_BEGIN, _REMINDER_END)
    return without_reminders if without_reminders.strip() else words


def _read_question_in_template(text: str) -> str:
    """Returns the question in a framework's template; "": the text is of no known template."""
    if text.startswith(_TEMPLATE_BEGINNINGS):
        for template in APPLICATIONS.templates:
            if text.startswith(template.begin) and (question := template.read_question(text)):
                return question
    if "\n" in text:
        for appended in APPLICATIONS.appended:
            question, is_appended, _ = text.partition(appended.text)
            if is_appended:
                return question.strip()
    return ""


def _without_added(text: str) -> str:
    """Returns a text without the parts that applications add between tags of their own."""
    if "<" in text:
        for added in APPLICATIONS.added:
            text = _without_tagged(text, added.begin, added.end)
    return text


def _without_tagged(text: str, begin: str, end: str) -> str:
    """Returns a text without two tags and all that stands between them."""
    pieces = []
    offset = 0
    # Not by a pattern: it would read the rest of the text again for each tag that is not closed.
    while (begin_offset := text.find(begin, offset)) >= 0 and (
        end_offset := text.find(end, begin_offset)
    ) >= 0:
        pieces.append(text[offset:begin_offset])
        offset = end_offset + len(end)
    return "".join((*pieces, text[offset:])).strip() if offset else text
