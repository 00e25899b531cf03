"""Conversations and facts as the readers of all formats return them: nothing in them depends on the format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from gateway.core.dates import BEGIN_OF_DATES_S, END_OF_DATES_S, parse_moment

Role = Literal["user", "assistant"]
# The roles of messages that are read; messages of tools and systems are left out.
ROLES: Final = ("user", "assistant")
# The most characters of a message. Chosen, not measured: far above the length of real messages.
_MAX_TEXT_CHARS: Final = 10_000_000
# The most characters of a source's id, which becomes a part of the conversation's client id. Chosen: with its prefix
# the client id has fewer than 256 characters, the limit of the ids in requests.
_MAX_ID_CHARS: Final = 200


class SourceMessage(Struct, frozen=True):
    """A message of a user or a model."""

    # The writer of the message.
    role: Role
    # The text of the message.
    text: str
    # The time of the message, in seconds since the epoch; None: the file has no date.
    at: float | None = None


class SourceConversation(Struct, frozen=True):
    """A conversation, on its newest branch."""

    # The id that the source gave the conversation; None: no id.
    id: str | None
    # The messages, oldest first.
    messages: Sequence[SourceMessage]
    # The beginning, in seconds since the epoch, for messages without a date; None: the file has no date.
    begun_at: float | None = None
    # The number of the source's messages that are left out: of other branches, of tools, thoughts, and empty ones.
    skipped_count: int = 0


class SourceFact(Struct, frozen=True):
    """A sentence about a person."""

    # The sentence.
    text: str
    # The time of the fact, in seconds since the epoch; None: the file has no date.
    at: float | None = None
    # The user that the source names; None: it names no user.
    user: str | None = None


class Unreadable(Struct, frozen=True):
    """A conversation or a fact that is left out."""

    # The reason, which quotes nothing of the file.
    reason: str
    # The number of the conversation's messages; 0: a fact is left out, or the messages cannot be counted.
    message_count: int = 0


class WrongForm(Exception):
    """A part of a file does not have the form of the file's format. The error's text quotes nothing of it."""


def read_time(value: object) -> float | None:
    """Returns the time of a date: seconds since the epoch, or ISO 8601 (by default in UTC); None: no date."""
    if isinstance(value, str):
        try:
            at = parse_moment(value.strip())
        except ValueError:
            return None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        at = value
    else:
        return None
    # Programs write 0 for an unknown date.
    return float(at) if at and BEGIN_OF_DATES_S <= at < END_OF_DATES_S else None


def read_id(value: object) -> str | None:
    """Returns the id of a conversation; None: the value is no id that can be stored."""
    if isinstance(value, str) and 0 < len(value) <= _MAX_ID_CHARS and value.isprintable():
        return value
    return None


def validate_text(text: str) -> str:
    """Returns the text of a message. Raises: WrongForm: it is too long, or cannot be stored."""
    if "\0" in text:
        raise WrongForm("a message has a NUL")
    if len(text) > _MAX_TEXT_CHARS:
        raise WrongForm(f"a message has more than {_MAX_TEXT_CHARS:,} characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WrongForm("a message has half a character") from error
    return text
