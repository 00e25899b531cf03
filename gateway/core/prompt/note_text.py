"""The text of notes: writes them, and recognises them in a text that quotes them.

A note is reference material from outside the conversation: it is dated, names its source and asks for nothing, since
text that gives orders from inside a user's message looks like an attack, and some models then refuse the whole message.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from string import digits, punctuation

from msgspec import Struct

from gateway.core.dates import render_day
from gateway.core.prompt.frame import without_frame
from gateway.core.prompt.shown_blocks import CHANGES_HEADING, describe_mark
from gateway.core.tags import MARK_PATTERN, escape_tags, quote_name
from storage.records import Message

# The characters of ASCII that take more of a token than letters do.
_DIGITS_AND_SIGNS = (digits + punctuation).encode()
# These bytes begin a character of three or four bytes in UTF-8, which counts as one token.
_WIDE_BEGINNINGS = bytes(range(0xE0, 0xF5))

# The tag at the end of a note.
_CLOSE = "</memory>"
# The first line of a note.
_HEADING = "Notes from earlier conversations with this user, for reference: quotations, possibly outdated."
# The line of a note with a selection of the whole memory.
_SELECTION = "The message names nothing to look for; this is a small selection of what was said."

# A model may repeat a note as it is, with a quotation mark (">") before each line, or escaped within JSON or HTML.
_LEFT = r"(?:<|&lt;|(?<!\\)\\++u003c)"
_RIGHT = r"(?:>|&gt;|\\++u003e)"
# A note in a text.
_NOTE = re.compile(
    rf"{_LEFT}memory(?: {MARK_PATTERN})?{_RIGHT}(?:\s|>|\\+[nr])*{re.escape(_HEADING)}.*?"
    rf"(?:{_LEFT}\\?/memory{_RIGHT}(?:\s|\\+[nr])*|\Z)",
    re.DOTALL | re.IGNORECASE,
)
# The word for the source of a line, by the kind of its message.
_SOURCES = {"passage": "saved note", "fact": "learned"}
# The word for the speaker of a line, by the role of its message.
_SPEAKERS = {"assistant": "you", "user": "user"}
# The number of characters of the year, with which a day's text begins.
YEAR_CHARS = 4


class NoteHit(Struct, frozen=True):
    """A message chosen for a note."""

    # The message, fact or passage.
    message: Message
    # The text of the message in the note: on one line, cut, and without the gateway's tags.
    text: str
    # The line of the note: the source or the speaker, and the text.
    line: str
    # The day of the message.
    day: str
    # The estimated tokens of the line, with the heading that the line needs.
    tokens: int = 0

    @classmethod
    def of(cls, message: Message, text: str) -> NoteHit:
        return cls(message, text, render_line(message, text), render_day(message.at))


def estimate_tokens(text: str) -> int:
    """Returns the tokens of a text, estimated: a fifth of the bytes, 3/4 for a digit or sign, 1 for a character of CJK.

    Fitted to 250 notes of LongMemEval in OpenAI's o200k: 7% above its count on average, so that the bound holds for 99%
    of them, and never more than 3% below it. (A quarter of the bytes: 9% above, and up to 25% below, where a note is
    many short lines with their dates.) In other languages: Hebrew, Greek and Vietnamese about as many, Arabic, Russian
    and Hindi more than its count, Turkish and Finnish up to a third fewer, Amharic half. A full window is counted.
    """
    raw = text.encode("utf-8", "replace")
    # Three full stops in a row are one token.
    sign_count = len(raw) - len(raw.translate(None, _DIGITS_AND_SIGNS)) - 2 * raw.count(b"...")
    wide_count = 0
    if len(raw) != len(text):
        wide_count = len(raw) - len(raw.translate(None, _WIDE_BEGINNINGS))
    # In twentieths of a token, rounded up: 4 for each byte, with 11 more a sign has 15, and with 8 more the three bytes
    # of a character of CJK have 20.
    return (4 * len(raw) + 11 * sign_count + 8 * wide_count + 19) // 20


def _frame_line(mark: str, now: float) -> str:
    return f"<memory {mark}>\n{_HEADING} Written {render_day(now)}."


# A mark is no word, so its tokens are not estimated: 3,000 marks had five tokens each on average in OpenAI's o200k, and
# 99% had seven or fewer. The estimate of the rest of the frame is seven above its count.
_MARK_TOKENS = 6
# The tokens of the frame of any note.
EMPTY_TOKENS = estimate_tokens(f"{_frame_line('', 0.0)}\n{_CLOSE}\n\n") + _MARK_TOKENS
# The tokens of the line that names the mark.
NAMING_TOKENS = estimate_tokens(f"{describe_mark('')}\n") + _MARK_TOKENS
# The tokens of the line of a selection.
SELECTION_TOKENS = estimate_tokens(f"{_SELECTION}\n")


def render_note(
    hits: Sequence[NoteHit],
    changes: Sequence[str],
    now: float,
    *,
    mark: str,
    is_selection: bool = False,
    names_mark: bool = False,
) -> str:
    """Returns the note that goes before the user's own words; "": the note would have no content.

    hits: the messages that were found, in the order of their lines.
    changes: the texts of `list_changes`.
    now: the date of the note, in seconds since the epoch.
    mark: the mark of the memory.
    is_selection: True if the hits are a selection of the whole memory, which the note states.
    names_mark: True if the note names its mark, since no text before it does.
    """
    if not hits and not changes:
        return ""
    lines = [_frame_line(mark, now)]
    last_group = ("", 0)
    if names_mark:
        lines.append(describe_mark(mark))
    if is_selection and hits:
        lines.append(_SELECTION)
    for hit in hits:
        group = hit.day, hit.message.conversation_row
        if group != last_group:
            lines.append(render_day_heading(hit.day, (last_group[0][:YEAR_CHARS],)))
            last_group = group
        lines.append(hit.line)
    if changes:
        lines += [CHANGES_HEADING, *(f"- {change}" for change in changes)]
    return "\n".join((*lines, _CLOSE, "", ""))


def read_own_words(text: str) -> str:
    """Returns a person's own words: without the gateway's notes and the text that applications put around them."""
    return without_frame(strip_notes(text))


def strip_notes(text: str) -> str:
    """Returns the text without the gateway's notes: a reply that quotes a note must not be learned as a statement."""
    return _NOTE.sub("", text) if _HEADING in text else text


def without_first_note(text: str) -> str:
    """Returns the text without the gateway's note at its beginning. A note that is quoted later in the text stays."""
    note = _NOTE.match(text) if _HEADING in text else None
    if note is None:
        return text
    return text[len(note[0].rstrip()) :].removeprefix("\n\n")


def has_selection(notes: Iterable[str]) -> bool:
    """Returns whether one of these notes is a selection of the whole memory: a conversation has one at most."""
    return any(_SELECTION in note for note in notes)


def mentions_blocks(note: str) -> bool:
    """Returns whether a note, or a text that quotes one, states a change of a memory block."""
    return CHANGES_HEADING in note


def render_day_heading(day: str, years: Collection[str]) -> str:
    """Returns the line before a group: its day, with the year unless `years` has it."""
    return f"[{day[YEAR_CHARS + 1 :] if '-' in day and day[:YEAR_CHARS] in years else day}]"


def render_line(message: Message, text: str) -> str:
    """Returns a line of a note: the source or the speaker of the text, and the text."""
    label = _SOURCES.get(message.kind)
    if label is None:
        # A name or a role that a client has sent is quoted, so that it cannot pass for a label or a heading.
        client_name = message.speaker or ("" if message.role in _SPEAKERS else message.role)
        label = quote_name(client_name) if client_name else _SPEAKERS[message.role]
    return f"{label}: {text}"


def quote_on_line(text: str) -> str:
    """Returns a text on one line and with its tags escaped, so that no part of it passes for a part of the note."""
    return escape_tags(" ".join(text.split()))
