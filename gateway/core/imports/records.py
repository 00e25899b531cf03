"""Conversations and facts as the readers of all formats make them, without anything of their format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import Struct

Role = Literal["user", "assistant"]
# A longer text is no message of a person or a model.
MOST_TEXT: Final = 10_000_000
# Later than any date that a file may mean, in seconds; what is above is no date.
_LAST: Final = 253_402_300_800.0
# Of a source's id, as it stands in the conversation's client id.
_ID_CHARS: Final = 200


class SourceMessage(Struct, frozen=True):
    """A message."""

    role: Role
    text: str
    # Seconds since the epoch; None: the file does not say.
    at: float | None = None


class SourceConversation(Struct, frozen=True):
    """A conversation, on the branch that was last."""

    # The id that the source gave it; None: it has none.
    id: str | None
    messages: Sequence[SourceMessage]
    # When it began, for messages without a date of their own.
    at: float | None = None
    # How many messages of the source are left out: other branches, tools, thoughts, empty ones.
    skipped: int = 0


class SourceFact(Struct, frozen=True):
    """A sentence about a person."""

    text: str
    at: float | None = None
    # Whom the source has it of; None: it does not say.
    user: str | None = None


class Unreadable(Struct, frozen=True):
    """A conversation or a fact that is left out. why: quotes nothing of it."""

    why: str
    messages: int = 0


class WrongForm(Exception):
    """A part of a file is not as its format has it. Its text quotes nothing of it."""


def time_of(value: object) -> float | None:
    """Reads a date: seconds since the epoch, or ISO 8601 (UTC where it names no zone). None: it is none."""
    if isinstance(value, str):
        try:
            date = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        at = value
    else:
        return None
    return float(at) if math.isfinite(at) and 0 < at < _LAST else None


def id_in(value: object) -> str | None:
    """Reads the id of a conversation; None: it has none that can be stored."""
    return value if isinstance(value, str) and 0 < len(value) <= _ID_CHARS and value.isprintable() else None


def checked(text: str) -> str:
    """Returns the text of a message. Raises: WrongForm."""
    if "\0" in text:
        raise WrongForm("a message has a NUL")
    if len(text) > MOST_TEXT:
        raise WrongForm(f"a message has more than {MOST_TEXT:,} characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WrongForm("a message has half a character") from error
    return text
