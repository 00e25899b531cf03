"""Formats that any program can write: JSON lines of messages, a pasted list of facts; and mem0's and Mastra's JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from gateway.core.imports.records import (
    ROLES,
    Role,
    SourceConversation,
    SourceFact,
    SourceMessage,
    WrongForm,
    read_id,
    read_time,
    validate_text,
)
from gateway.core.memory.fact_words import WRITTEN_FACT_CHARS

_BULLET: Final = re.compile(r"^(?:[-*+\u2022\u00b7]|\d{1,4}[.)])\s+")
# The date before a fact. Claude's prompt for the memories of another assistant asks for `[unknown]` where no date is
# known, and models have other words for it. Before an address they are the text of a link.
DATE_PATTERN: Final = r"\[(\d{4}-\d{2}-\d{2}|unknown(?: date)?|date unknown|no date|undated|n/a)\](?!\()"
_DATE: Final = re.compile(rf"{DATE_PATTERN}\s*(?:[-\u2013\u2014:]\s+)?", re.IGNORECASE)
_HEADING: Final = re.compile(r"^#{1,6}\s|^#+$")


def read_message(value: Any) -> SourceMessage | None:
    """Returns the message in `{"role", "content", "at"}`; None: it has no text. Raises: WrongForm."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise WrongForm("a message has no role")
    if value["role"] not in ROLES:
        return None
    text = validate_text(read_content_text(value.get("content")))
    at = read_time(value.get("at", value.get("createdAt")))
    role: Role = value["role"]
    return SourceMessage(role, text, at) if text.strip() else None


def read_content_text(content: Any) -> str:
    """Returns the text of a message's content: a text, parts, or an object with `parts`. Raises: WrongForm."""
    if isinstance(content, dict):
        content = content.get("parts", content.get("content"))
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise WrongForm("the content of a message is neither text nor parts")
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        for part in content
    ]
    return "\n".join(text for text in texts if isinstance(text, str))


def read_conversation(value: Any) -> SourceConversation:
    """Reads a line `{"messages": […], "id", "at"}`. Raises: WrongForm."""
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list):
        raise WrongForm("it has no list of messages")
    return make_conversation(value.get("id"), messages, value.get("at"))


def make_conversation(source_id: Any, items: Sequence[Any], date: Any = None) -> SourceConversation:
    """Returns the conversation of messages, in their order. Raises: WrongForm."""
    messages = [message for message in map(read_message, items) if message is not None]
    return SourceConversation(
        id=read_id(source_id),
        messages=messages,
        begun_at=read_time(date),
        skipped_count=len(items) - len(messages),
    )


def read_fact(line: str) -> SourceFact | None:
    """Returns the fact in a line of a list; None: a blank line, a heading or a fence. Raises: WrongForm."""
    text = line.strip()
    if not text or text.startswith(("```", "~~~")) or _HEADING.match(text):
        return None
    text = _BULLET.sub("", text)
    date = _DATE.match(text)
    at = None
    if date is not None:
        at = read_time(date[1])
        text = text[date.end() :]
    text = text.strip()
    return _make_fact(text, at) if any(map(str.isalnum, text)) else None


def read_memory(value: Any) -> SourceFact | None:
    """Returns the fact in mem0's `{"memory", "created_at", "user_id"}`; None: it has no text. Raises: WrongForm."""
    text = value.get("memory") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise WrongForm("it has no memory")
    user = value.get("user_id") if isinstance(value.get("user_id"), str) else None
    fact = _make_fact(" ".join(text.split()), read_time(value.get("created_at")), user)
    return fact if fact.text else None


def _make_fact(text: str, at: float | None, user: str | None = None) -> SourceFact:
    if len(validate_text(text)) > WRITTEN_FACT_CHARS:
        raise WrongForm(f"it has more than {WRITTEN_FACT_CHARS:,} characters")
    return SourceFact(text, at, user)
