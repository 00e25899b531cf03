"""Claude's export: `conversations.json`, a list of conversations with `chat_messages`.

The form is not documented; it was read off exports of 2024 to 2026.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.core.imports.branch import get_newest_leaf, list_branch
from gateway.core.imports.records import (
    Role,
    SourceConversation,
    SourceMessage,
    WrongForm,
    read_id,
    read_time,
    validate_text,
)

# The notice that stands in the plain text of a message in place of each block without text, such as a call.
_NOTICE: Final = re.compile(r"```\nThis block is not supported on your current device yet\.\n```")
_ROLES: Final[dict[str, Role]] = {"human": "user", "assistant": "assistant"}


def read_conversation(item: Any) -> SourceConversation:
    """Reads one conversation of the list. Raises: WrongForm."""
    items = item.get("chat_messages") if isinstance(item, dict) else None
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        raise WrongForm("it has no list of messages")
    messages = [message for message in map(_read_message, _list_newest_branch(items)) if message is not None]
    return SourceConversation(
        id=read_id(item.get("uuid")),
        messages=messages,
        begun_at=read_time(item.get("created_at")),
        skipped_count=len(items) - len(messages),
    )


def _list_newest_branch(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages of the newest branch, oldest first. If no message names its parent, all are one branch."""
    if not any("parent_message_uuid" in item for item in items):
        return items
    items_by_id = {item["uuid"]: item for item in items if isinstance(item.get("uuid"), str)}
    if len(items_by_id) < len(items):
        raise WrongForm("its messages have no ids of their own")
    parents: dict[str, str | None] = {}
    for item_id, item in items_by_id.items():
        parent = item.get("parent_message_uuid")
        if parent is not None and not isinstance(parent, str):
            raise WrongForm("the parent of a message is no text")
        parents[item_id] = parent if parent in items_by_id else None
    times = {item_id: read_time(item.get("created_at")) for item_id, item in items_by_id.items()}
    leaf = get_newest_leaf(parents, times)
    return [items_by_id[item_id] for item_id in list_branch(leaf, parents)]


def _read_message(item: dict[str, Any]) -> SourceMessage | None:
    """Returns a message; None: it is empty, or neither a person nor the model wrote it."""
    role = _ROLES.get(str(item.get("sender")))
    if role is None:
        return None
    text = validate_text(_read_text(item))
    return SourceMessage(role, text, read_time(item.get("created_at"))) if text.strip() else None


def _read_text(item: dict[str, Any]) -> str:
    """Returns the text of a message: of its blocks, or else its plain text. Raises: WrongForm."""
    blocks = item.get("content")
    if isinstance(blocks, list):
        texts = [
            block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text"
        ]
        if text := "\n".join(text for text in texts if isinstance(text, str)):
            return text
    plain_text = item.get("text", "")
    if not isinstance(plain_text, str):
        raise WrongForm("the text of a message is no text")
    return _NOTICE.sub("", plain_text)
