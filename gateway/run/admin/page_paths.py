"""The paths below `/ui/`, relative to it, as records and links name them: of screens, of texts, of static files."""

from __future__ import annotations

import re
from urllib.parse import quote

from storage.operator_records import ExchangeRef
from storage.records import Exchange, Message

STATIC = "static/"
# The number of a long exchange's messages that are shown from a linked message on. A page of a conversation has room
# for them.
_SHOWN_AFTER = 3
_ESCAPES = {"~": "~7E", ".": "~2E", "/": "~2F"}
_ESCAPED_CHARACTER = re.compile("~(7E|2E|2F)")


def page_path(*parts: str | int) -> str:
    """Returns the path of a screen, relative to `/ui/`: page_path("m", uid, "b", label).

    A part may have any characters. `~`, `.` and `/` in it are escaped, so that it is read neither as the JSON form of a
    screen (`.json`) nor as two parts.
    """
    return "/".join(map(_render_segment, parts))


def parse_part(segment: str) -> str:
    """Returns the part that a percent-decoded segment of a path stands for."""
    return _ESCAPED_CHARACTER.sub(lambda match: chr(int(match[1], 16)), segment)


def make_message_href(uid: str, conversation_uid: str, exchange: Exchange | ExchangeRef, seq: int) -> str:
    """Returns the address of a message, relative to /ui/. The page shows the branch that ends with its exchange.

    conversation_uid: the uid of the message's conversation.
    """
    before = seq + _SHOWN_AFTER
    end = f"&before={before}" if before <= exchange.reply_seq else ""
    return f"{page_path('m', uid, 'c', conversation_uid)}?branch={exchange.seq}{end}#message-{seq}"


def make_fact_href(uid: str, seq: int) -> str:
    """Returns the address of a fact, relative to /ui/."""
    return page_path("m", uid, "f", seq)


def make_version_href(uid: str, label: str, version: int) -> str:
    """Returns the address of a version in the history of a block, relative to /ui/."""
    # The history has the newest first, so a page after the next version begins with this one.
    return f"{page_path('m', uid, 'b', label)}?after={version + 1}#history"


def make_passage_href(uid: str, seq: int) -> str:
    """Returns the address of a passage, relative to /ui/."""
    # The list has the newest first, so a page after the next number begins with this one.
    return f"{page_path('m', uid, 'passages')}?after={seq + 1}#passage-{seq}"


def make_text_href(uid: str, message: Message, ref: ExchangeRef | None) -> str | None:
    """Returns the address of a text, relative to /ui/, or None if no page shows it.

    ref: the reference of a message's exchange.
    """
    match message.kind:
        case "fact" | "muted":
            return make_fact_href(uid, message.seq)
        case "passage":
            return make_passage_href(uid, message.seq)
        case _:
            return None if ref is None else make_message_href(uid, ref.conversation_uid, ref, message.seq)


def _render_segment(part: str | int) -> str:
    text = str(part)
    # Most parts are numbers and hex digits, and a list has hundreds of links: quoting took a sixth of its rendering.
    if text.isascii() and text.isalnum():
        return text
    return quote(re.sub("[~./]", lambda found: _ESCAPES[found[0]], text), safe="~")
